"""A run that is followed on the Hub: its cycles are branches there, and the records of its probes go back to it."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from ..arguments import PROVENANCE
from ..data.hub_errors import explain_hub_error, may_pass
from ..errors import PlasticityError
from ..hub.contents import RECORD_KEYS, RUN_ID, last_step, main_files, merge_records
from ..hub.push import describe, run_identity
from ..hub.repository import MAIN, UNCLAIMED, HubRefusal, RunRepository, download, with_timeout
from ..probing.checkpoint import RECORD_FILE, record_bytes
from ..records import (
    CONFIG_FILE,
    PROBE_KEY,
    PROBES_FILE,
    TRAINER_STATE_FILE,
    append_record,
    cycle_name,
    read_config,
    write_atomically,
)
from .followed import CYCLE, FollowedFolder, Progress, cycles_of, is_finished


logger = logging.get_logger(__name__)

DOWNLOADS = ".downloads"
FIRST_WAIT, LONGEST_WAIT = 1.0, 600.0


class FollowedRepository(FollowedFolder):
    """
    A run in a repository.

    Args:
        repo_id (`str`): The repository.
        folder (`str` or `Path`): A run folder of the follower's own: records, and no checkpoints.
        push (`bool`): Whether the records of its probes are sent to the repository.
    """

    def __init__(self, repo_id: str, folder: str | Path, push: bool):
        super().__init__(folder)
        self.name, self.push, self._api = repo_id, push, HfApi()
        self._repository: RunRepository | None = None
        self._main: str | None = None
        self._seen: dict[str, str] = {}  # the newest commit of every branch with a checkpoint
        self._recorded: set[str] = set()  # those that have their probe's record

    @property
    def api(self) -> HfApi:
        return with_timeout(self._api)

    def check(self) -> None:
        """
        See to it that the repository is there, and the folder not another run's.

        Raises:
            [`PlasticityError`]: It is not, or it is.
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
                f"output_dir: '{self.folder}' holds a run of its own; choose another folder, or follow the run there "
                f"with --model {self.folder}"
            )

    def config(self) -> dict[str, Any] | None:
        """The run's configuration as it is on `main`, or `None` while there is none."""
        self.progress()
        return super().config()

    def progress(self) -> Progress:
        """How far the run is on the Hub; as far as before while the Hub is in trouble."""
        try:
            self._look()
        except Exception as error:
            if may_pass(error):
                logger.warning(f"'{self.name}' cannot be looked at: {describe(error)}; it is tried again")
                return Progress(cycles_of(list(self._seen)), finished=False)
            if (explanation := explain_hub_error(self.name, "model", error)) is None:
                raise
            raise PlasticityError(f"model: {explanation}") from None
        # The records of `main` were read before the branches: a run that is finished there has them all.
        return Progress(cycles_of(list(self._seen)), is_finished(self.folder))

    def _heads(self) -> dict[str, str]:
        return {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.name).branches}

    def _look(self) -> None:
        heads = self._heads()
        if heads[MAIN] != self._main:
            self._take_records(heads[MAIN])
            self._main = heads[MAIN]
            heads = self._heads()
        for name, commit in heads.items():
            if CYCLE.fullmatch(name) and self._seen.get(name) != commit:
                self._look_at(name, commit)

    def _take_records(self, commit: str) -> None:
        files = download(self.api, self.name, [CONFIG_FILE, TRAINER_STATE_FILE, *RECORD_KEYS], commit)
        if CONFIG_FILE not in files:
            others = sorted(self._files(commit) - UNCLAIMED)
            if others:
                raise PlasticityError(f"model: '{self.name}' holds other things ({others[0]}) and no run to follow")
            return
        self._check_same(yaml.safe_load(files[CONFIG_FILE].read_text(encoding="utf-8")))
        merge_records(files, self.folder)
        for name in (TRAINER_STATE_FILE, CONFIG_FILE):
            if name in files:
                write_atomically(self.folder / name, files[name].read_bytes())

    def _check_same(self, config: Any) -> None:
        """Two runs of one configuration differ by their id alone, and their probes may not get into one folder."""
        if not isinstance(config, dict) or RUN_ID not in config.get(PROVENANCE, {}):
            raise PlasticityError(f"model: {CONFIG_FILE} of '{self.name}' is not that of a run that can be followed")
        here, there = (read_config(self.folder) or config)[PROVENANCE][RUN_ID], config[PROVENANCE][RUN_ID]
        if here != there:
            raise PlasticityError(
                f"output_dir: '{self.folder}' holds the probes of another run ({RUN_ID} {here}, and {there} is "
                f"that of '{self.name}'); choose another folder"
            )

    def _files(self, commit: str) -> set[str]:
        tree = self.api.list_repo_tree(self.name, revision=commit)
        return {entry.path for entry in tree if isinstance(entry, RepoFile)}

    def _look_at(self, name: str, commit: str) -> None:
        """Note a branch once its checkpoint is there: a branch is made before it gets its files."""
        files = self._files(commit)
        if not any(path.endswith(".safetensors") for path in files):
            return
        if RECORD_FILE in files:
            path = hf_hub_download(self.name, RECORD_FILE, revision=commit)
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            append_record(self.folder / PROBES_FILE, record, PROBE_KEY)
            self._recorded.add(name)
        self._seen[name] = commit

    def checkpoint(self, cycle: int) -> Path:
        """Where a cycle's checkpoint has been downloaded to; waits for a Hub in trouble."""
        name, wait = cycle_name(cycle), FIRST_WAIT
        folder = self.folder / DOWNLOADS / name
        while True:
            try:
                for path in sorted(self._files(self._seen[name])):
                    self.api.hf_hub_download(self.name, path, revision=self._seen[name], local_dir=folder)
                return folder
            except Exception as error:
                if not may_pass(error):
                    raise
                logger.warning(f"'{name}' cannot be had: {describe(error)}; next attempt in {wait:g} seconds")
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def release(self, cycle: int) -> None:
        """A cycle's checkpoint is not needed any more."""
        shutil.rmtree(self.folder / DOWNLOADS / cycle_name(cycle), ignore_errors=True)

    def check_rights(self) -> None:
        """
        See to it before anything is computed that the records may be sent.

        Raises:
            [`PlasticityError`]: They may not.
        """
        if not self.push:
            return
        config = read_config(self.folder)
        self._repository = RunRepository(self.name, run_identity(config), config[PROVENANCE][RUN_ID])
        try:
            self._repository.open()
        except HubRefusal as refusal:
            raise PlasticityError(f"{refusal}; or keep the records here with --push_to_hub false") from None

    def deliver(self, records: list[dict[str, Any]]) -> bool:
        """Send each probe's record to the branch of its cycle, and all of them to `main`; whether that is done."""
        if self._repository is None:
            return True
        try:
            for record in records:
                name = cycle_name(record["cycle"])
                if name in self._seen and name not in self._recorded:
                    files = {RECORD_FILE: record_bytes(record)}
                    self._seen[name] = self._repository.put(name, files, f"Probe of {name}")
                    self._recorded.add(name)
            self._look()
            finished_at = last_step(self.folder)
            branches = [cycle_name(cycle) for cycle in cycles_of(list(self._seen))]
            has_model = finished_at is not None
            files = main_files(self.folder, self.name, self._repository.run_id, branches, finished_at, has_model)
            self._main = self._repository.put(MAIN, files, "Records of the probes", onto=self._main)
        except PlasticityError:
            raise
        except Exception as error:  # as in `RunPusher`: whatever it is, the probing goes on
            logger.warning(f"records for '{self.name}' are not sent yet: {describe(error)}; it is tried again")
            return False
        return True
