"""A run with deferred probes in a folder: its configuration, its checkpoints and its records."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PlasticityError
from ..experiment.data import TOKENIZER_FOLDER
from ..probing.checkpoint import RECORD_FILE, record_bytes, save_probe_record
from ..records import (
    DEFERRED_LOCK_FILE,
    HUB_FILE,
    LOCK_FILE,
    LOG_FILE,
    PROVENANCE,
    TEMPORARY,
    checkpoint_name,
    finished_steps_of_run,
    probed_checkpoints,
    read_config,
)
from ..trainer.config import DEFERRED


# Files that a run folder may have before its configuration.
BEFORE_THE_RUN = {
    LOCK_FILE, DEFERRED_LOCK_FILE, HUB_FILE, LOG_FILE, TOKENIZER_FOLDER, f".{TOKENIZER_FOLDER}.partial",
}  # fmt: skip


@dataclass
class Progress:
    """
    The progress of a run.

    Args:
        checkpoints (`list[str]`): The names of its saved checkpoints.
        complete (`bool`): Whether the run is complete.
    """

    checkpoints: list[str]
    complete: bool


class DeferredFolder:
    """
    A run in a folder on this machine.

    Args:
        folder (`str` or `Path`): The run folder, which also receives the records.
    """

    def __init__(self, folder: str | Path):
        self.name, self.folder = str(folder), Path(folder)

    def check(self) -> None:
        """
        Check that the folder has a run, or is empty so that a run may start in it.

        Raises:
            [`PlasticityError`]: It does not exist, or has other files.
        """
        if not self.folder.is_dir():
            raise PlasticityError(f"model: there is no run folder '{self.folder}'")
        names = {path.name for path in self.folder.iterdir()} - BEFORE_THE_RUN
        others = sorted(name for name in names if not TEMPORARY.fullmatch(name))
        if others and read_config(self.folder) is None:
            raise PlasticityError(f"model: '{self.folder}' has other files ({others[0]}) and no run")

    def check_rights(self) -> None:
        """Check that the records can be written."""

    def config(self) -> dict[str, Any] | None:
        """The configuration of the run, or `None` while there is none."""
        return read_config(self.folder)

    def progress(self) -> Progress:
        """The progress of the run."""
        complete = finished_steps_of_run(self.folder) is not None
        return Progress([path.name for path in probed_checkpoints(self.folder)], complete)

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint."""
        return self.folder / name

    def release(self, name: str) -> None:
        """Called when a checkpoint is probed. Does nothing: the run keeps its checkpoints."""

    def deliver(self, records: list[dict[str, Any]]) -> bool:
        """Write the record of each probe into its checkpoint, as inline probes do. Returns whether this succeeded."""
        for record in records:
            checkpoint = self.checkpoint(self.name_of(record))
            path = checkpoint / RECORD_FILE
            if checkpoint.is_dir() and not (path.exists() and path.read_bytes() == record_bytes(record)):
                save_probe_record(checkpoint, record)
        return True

    def name_of(self, record: Mapping[str, Any]) -> str:
        """The name of the checkpoint of a record."""
        return checkpoint_name(record, read_config(self.folder)[PROVENANCE]["tasks_per_cycle"])


def check_deferred(name: str, config: Mapping[str, Any]) -> None:
    """
    Check that the probes of a run are deferred.

    Raises:
        [`PlasticityError`]: The run probes inline.
    """
    if config.get("probe") != DEFERRED:
        raise PlasticityError(
            f"follow: '{name}' probes its checkpoints inline; --follow requires a run with --probe deferred"
        )
