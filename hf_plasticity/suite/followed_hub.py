"""A run that is followed on the Hub: its cycles are branches there, and the records of its probes go back to it."""

import json
import time
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from ..arguments import PROVENANCE
from ..data.hub_errors import explain_hub_error, may_pass, one_line
from ..errors import PlasticityError
from ..hub.contents import RUN_ID, main_files, merge_records
from ..hub.push import describe, run_identity
from ..hub.repository import MAIN, HubRefusal, RunRepository
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

RECORDS = ["*.jsonl", CONFIG_FILE, TRAINER_STATE_FILE]
FIRST_WAIT, LONGEST_WAIT = 1.0, 600.0


class FollowedRepository(FollowedFolder):
    """
    A run in a repository.

    Args:
        repo_id (`str`): The repository.
        folder (`str` or `Path`): A run folder of the follower's own: records, and no checkpoints.
        push (`bool`): Whether the records of its probes are sent to the repository.

    Raises:
        [`PlasticityError`]: The folder holds something else.
    """

    def __init__(self, repo_id: str, folder: str | Path, push: bool):
        super().__init__(folder)
        self.name, self.push, self.api = repo_id, push, HfApi()
        self._repository: RunRepository | None = None
        self._main: str | None = None
        self._seen: dict[str, tuple[str, bool]] = {}  # by branch: its commit, and whether its probe's record is there
        self._reached = False
        there = read_config(self.folder)
        if there is not None and RUN_ID not in there.get(PROVENANCE, {}):
            raise PlasticityError(
                f"output_dir: '{folder}' holds a run of its own; choose another folder, or follow the run there with "
                f"--model {folder}"
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
            if not self._reached and (explanation := explain_hub_error(self.name, "model", error)) is not None:
                raise PlasticityError(f"model: {explanation}") from None
            if not may_pass(error):
                raise
            logger.warning(f"'{self.name}' cannot be looked at: {describe(error)}; it is tried again")
            return Progress(cycles_of(list(self._seen)), finished=False)
        # The records of `main` were read before the branches: a run that is finished there has them all.
        return Progress(cycles_of(list(self._seen)), is_finished(self.folder))

    def _look(self) -> None:
        heads = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.name).branches}
        self._reached = True
        if heads[MAIN] != self._main:
            self._take_records(heads[MAIN])
            self._main = heads[MAIN]
            heads = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.name).branches}
        for name, commit in heads.items():
            if CYCLE.fullmatch(name) and self._seen.get(name, ("", False))[0] != commit:
                self._look_at(name, commit)

    def _take_records(self, commit: str) -> None:
        there = Path(snapshot_download(self.name, revision=commit, allow_patterns=RECORDS))
        if not (there / CONFIG_FILE).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        merge_records(there, self.folder)
        for name in (TRAINER_STATE_FILE, CONFIG_FILE):
            if (there / name).exists():
                write_atomically(self.folder / name, (there / name).read_bytes())

    def _look_at(self, name: str, commit: str) -> None:
        """Note a branch once its checkpoint is there: a branch is made before it gets its files."""
        tree = self.api.list_repo_tree(self.name, revision=commit)
        files = {entry.path for entry in tree if isinstance(entry, RepoFile)}
        if not any(path.endswith(".safetensors") for path in files):
            return
        if RECORD_FILE in files:
            path = hf_hub_download(self.name, RECORD_FILE, revision=commit)
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            append_record(self.folder / PROBES_FILE, record, PROBE_KEY)
        self._seen[name] = commit, RECORD_FILE in files

    def checkpoint(self, cycle: int) -> Path:
        """The folder that a cycle's checkpoint has been downloaded to; waits for a Hub in trouble."""
        wait = FIRST_WAIT
        while True:
            try:
                return Path(snapshot_download(self.name, revision=cycle_name(cycle)))
            except Exception as error:
                if not may_pass(error):
                    raise
                logger.warning(f"'{cycle_name(cycle)}' cannot be had: {one_line(error)}; next attempt in {wait:g} s")
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)

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
                if name in self._seen and not self._seen[name][1]:
                    files = {RECORD_FILE: record_bytes(record)}
                    self._seen[name] = self._repository.put(name, files, f"Probe of {name}"), True
            self._look()
            finished = is_finished(self.folder)
            branches = [cycle_name(cycle) for cycle in cycles_of(list(self._seen))]
            files = main_files(self.folder, self.name, self._repository.run_id, branches, has_model=finished)
            self._main = self._repository.put(MAIN, files, "Records of the probes", onto=self._main)
        except PlasticityError:
            raise
        except Exception as error:  # as in `RunPusher`: whatever it is, the probing goes on
            logger.warning(f"records for '{self.name}' are not sent yet: {describe(error)}; it is tried again")
            return False
        return True
