"""A run with deferred probes on the Hub: its checkpoints are branches, and the records are uploaded to it."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from ..errors import PlasticityError
from ..hub.contents import RECORD_KEYS, RUN_ID, has_weights, main_files, merge_records, public
from ..hub.push import describe
from ..hub.repository import MAIN, UNCLAIMED, HubAccessError, RunRepository, download, with_timeout
from ..hub_errors import explain_hub_error, is_temporary
from ..probing.checkpoint import RECORD_FILE, record_bytes
from ..records import (
    CHECKPOINT_NAME,
    CONFIG_FILE,
    PROBE_KEY,
    PROBES_FILE,
    PROVENANCE,
    TRAINER_STATE_FILE,
    append_record,
    checkpoint_order,
    finished_steps_of_run,
    numerics_of,
    read_config,
    write_atomically,
)
from .folder import DeferredFolder, Progress


logger = logging.get_logger(__name__)

DOWNLOADS = ".downloads"
FIRST_WAIT, LONGEST_WAIT = 1.0, 600.0


class DeferredRepository(DeferredFolder):
    """
    A run in a repository.

    Args:
        repo_id (`str`): The repository.
        folder (`str` or `Path`): A folder for the records, without checkpoints.
        push (`bool`): Whether to upload the records to the repository.
    """

    def __init__(self, repo_id: str, folder: str | Path, push: bool):
        super().__init__(folder)
        self.name, self.push, self._api = repo_id, push, HfApi()
        self._repository: RunRepository | None = None
        self._main: str | None = None
        self._seen: dict[str, str] = {}  # the newest commit of every branch with a checkpoint
        self._recorded: set[str] = set()  # the branches that have the record of their probe

    @property
    def api(self) -> HfApi:
        return with_timeout(self._api)

    def check(self) -> None:
        """
        Check that the repository exists, and that the folder does not belong to another run.

        Raises:
            [`PlasticityError`]: There is no such repository, or the folder belongs to another run.
        """
        try:
            self._heads()
        except Exception as error:
            if (explanation := explain_hub_error(self.name, "model", error)) is None:
                raise
            raise PlasticityError(f"model: there is no folder of that name here, and {explanation}") from None
        there = read_config(self.folder)
        if there is not None and RUN_ID not in there.get(PROVENANCE, {}):
            raise PlasticityError(
                f"output_dir: '{self.folder}' belongs to another run; choose another folder, or probe that run "
                f"with --model {self.folder}"
            )

    def config(self) -> dict[str, Any] | None:
        """The configuration of the run on `main`, or `None` while there is none."""
        self.progress()
        return super().config()

    def progress(self) -> Progress:
        """The progress of the run on the Hub; the last known one while the Hub fails."""
        try:
            self._look()
        except Exception as error:
            if is_temporary(error):
                logger.warning(f"'{self.name}' cannot be read: {describe(error)}; trying again later")
                return Progress(list(self._seen), complete=False)
            if (explanation := explain_hub_error(self.name, "model", error)) is None:
                raise
            raise PlasticityError(f"model: {explanation}") from None
        # The records of `main` are read before the branches: a run that is complete there has all of them.
        return Progress(list(self._seen), finished_steps_of_run(self.folder) is not None)

    def _heads(self) -> dict[str, str]:
        return {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.name).branches}

    def _look(self) -> None:
        heads = self._heads()
        if heads[MAIN] != self._main:
            self._download_records(heads[MAIN])
            self._main = heads[MAIN]
            heads = self._heads()
        for name, commit in heads.items():
            if CHECKPOINT_NAME.fullmatch(name) and self._seen.get(name) != commit:
                self._register_branch(name, commit)

    def _download_records(self, commit: str) -> None:
        files = download(self.api, self.name, [CONFIG_FILE, TRAINER_STATE_FILE, *RECORD_KEYS], commit)
        if CONFIG_FILE not in files:
            others = sorted(self._files(commit) - UNCLAIMED)
            if others:
                raise PlasticityError(f"model: '{self.name}' has other files ({others[0]}) and no run")
            return
        self._check_same(yaml.safe_load(files[CONFIG_FILE].read_text(encoding="utf-8")))
        merge_records(files, self.folder)
        for name in (TRAINER_STATE_FILE, CONFIG_FILE):
            if name in files:
                write_atomically(self.folder / name, files[name].read_bytes())

    def _check_same(self, config: Any) -> None:
        """
        Check the id of the run: the probes of two runs with the same configuration must not be mixed in a folder.
        """
        if not isinstance(config, dict) or RUN_ID not in config.get(PROVENANCE, {}):
            raise PlasticityError(f"model: {CONFIG_FILE} of '{self.name}' is not that of a run with deferred probes")
        here, there = (read_config(self.folder) or config)[PROVENANCE][RUN_ID], config[PROVENANCE][RUN_ID]
        if here != there:
            raise PlasticityError(
                f"output_dir: '{self.folder}' has the probes of another run ({RUN_ID} {here}, and {there} is "
                f"that of '{self.name}'); choose another folder"
            )

    def _files(self, commit: str) -> set[str]:
        tree = self.api.list_repo_tree(self.name, revision=commit)
        return {entry.path for entry in tree if isinstance(entry, RepoFile)}

    def _register_branch(self, name: str, commit: str) -> None:
        """Register a branch that has its checkpoint. A branch is created before its files are uploaded."""
        files = self._files(commit)
        if not has_weights(files):
            return
        if RECORD_FILE in files:
            path = hf_hub_download(self.name, RECORD_FILE, revision=commit)
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            append_record(self.folder / PROBES_FILE, record, PROBE_KEY)
            self._recorded.add(name)
        self._seen[name] = commit

    def checkpoint(self, name: str) -> Path:
        """The folder to which a checkpoint is downloaded; waits while the Hub fails."""
        wait, folder = FIRST_WAIT, self.folder / DOWNLOADS / name
        while True:
            try:
                for path in sorted(self._files(self._seen[name])):
                    self.api.hf_hub_download(self.name, path, revision=self._seen[name], local_dir=folder)
                return folder
            except Exception as error:
                if not is_temporary(error):
                    raise
                logger.warning(f"'{name}' cannot be downloaded: {describe(error)}; next attempt in {wait:g} seconds")
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def release(self, name: str) -> None:
        """Delete the download of a probed checkpoint."""
        shutil.rmtree(self.folder / DOWNLOADS / name, ignore_errors=True)

    def check_rights(self) -> None:
        """
        Check that the records can be uploaded.

        Raises:
            [`PlasticityError`]: The repository is not writable, or cannot be reached.
        """
        if not self.push:
            return
        config = read_config(self.folder)
        self._repository = RunRepository(self.name, public(numerics_of(config)), config[PROVENANCE][RUN_ID])
        try:
            self._repository.open()
        except HubAccessError as error:
            raise PlasticityError(f"{error}; or keep the records here with --push_to_hub false") from None
        except Exception as error:
            if not is_temporary(error):
                raise
            raise PlasticityError(f"model: '{self.name}': {describe(error)}; the same command tries again") from None

    def deliver(self, records: list[dict[str, Any]]) -> bool:
        """Upload each record to the branch of its checkpoint, and all to `main`. Returns whether this succeeded."""
        if self._repository is None:
            return True
        try:
            for record in records:
                name = self.name_of(record)
                if name in self._seen and name not in self._recorded:
                    probed = {RECORD_FILE: record_bytes(record)}
                    self._seen[name] = self._repository.upload(name, probed, f"Probe of {name}")
                    self._recorded.add(name)
            self._look()
            finished_at = finished_steps_of_run(self.folder)
            branches = sorted(self._seen, key=checkpoint_order)
            has_model = has_weights(self._files(self._main))
            files = main_files(self.folder, self.name, self._repository.run_id, branches, finished_at, has_model)
            self._main = self._repository.upload(MAIN, files, "Records of the probes", parent=self._main)
        except PlasticityError:
            raise
        except Exception as error:  # as in `RunPusher`: no error stops the probes
            logger.warning(f"records for '{self.name}' are not uploaded yet: {describe(error)}; trying again later")
            return False
        return True
