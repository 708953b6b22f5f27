"""A run that is followed, in its folder: what it is, which cycles it has kept so far, where its records go."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import PROVENANCE
from ..errors import PlasticityError
from ..probing.checkpoint import RECORD_FILE, record_bytes, save_probe_record
from ..records import FOLLOW_LOCK_FILE, LOCK_FILE, TRAINER_STATE_FILE, cycle_name, read_config


# What a run folder may hold before its configuration.
BEFORE_THE_RUN = {LOCK_FILE, FOLLOW_LOCK_FILE, "tokenizer", ".tokenizer.unfinished"}
CYCLE = re.compile(r"cycle-(\d{3,})")


@dataclass
class Progress:
    """
    How far a followed run is.

    Args:
        cycles (`list[int]`): Those whose checkpoints are there.
        finished (`bool`): Whether there will be no more.
    """

    cycles: list[int]
    finished: bool


class FollowedFolder:
    """
    A run in a folder that this machine sees.

    Args:
        folder (`str` or `Path`): The run folder, which gets the records too.
    """

    def __init__(self, folder: str | Path):
        self.name, self.folder = str(folder), Path(folder)

    def check(self) -> None:
        """
        See to it that there is a run, or may be one soon.

        Raises:
            [`PlasticityError`]: There is something else.
        """
        if not self.folder.is_dir():
            raise PlasticityError(f"model: there is no run folder '{self.folder}'")
        others = sorted(path.name for path in self.folder.iterdir() if path.name not in BEFORE_THE_RUN)
        if others and read_config(self.folder) is None:
            raise PlasticityError(f"model: '{self.folder}' holds other things ({others[0]}) and no run to follow")

    def check_rights(self) -> None:
        """See to it before anything is computed that the records may go where they are to go."""

    def config(self) -> dict[str, Any] | None:
        """The run's configuration, or `None` while there is none."""
        return read_config(self.folder)

    def progress(self) -> Progress:
        """How far the run is."""
        finished = is_finished(self.folder)
        names = [path.name for path in self.folder.glob("cycle-*") if path.is_dir()]
        return Progress(cycles_of(names), finished)

    def checkpoint(self, cycle: int) -> Path:
        """The folder of a cycle's checkpoint."""
        return self.folder / cycle_name(cycle)

    def release(self, cycle: int) -> None:
        """A cycle's checkpoint is not needed any more by the follower; the run keeps it."""

    def deliver(self, records: list[dict[str, Any]]) -> bool:
        """Put the record of each probe where the run's own probe would have; whether all of them are there."""
        for record in records:
            checkpoint = self.checkpoint(record["cycle"])
            path = checkpoint / RECORD_FILE
            if checkpoint.is_dir() and not (path.exists() and path.read_bytes() == record_bytes(record)):
                save_probe_record(checkpoint, record)
        return True


def cycles_of(names: list[str]) -> list[int]:
    """The cycles among names of folders or branches, in order."""
    return sorted(int(match.group(1)) for name in names if (match := CYCLE.fullmatch(name)))


def steps_per_cycle(config: Mapping[str, Any]) -> int:
    """Optimizer steps of a cycle, from a run's resolved configuration."""
    return config[PROVENANCE]["tasks_per_cycle"] * config["task_steps"]


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds a run to the end that its configuration names."""
    config, state = read_config(folder), folder / TRAINER_STATE_FILE
    if config is None or not state.exists():
        return False
    step = json.loads(state.read_text(encoding="utf-8")).get("global_step")
    return step is not None and step >= config["cycles"] * steps_per_cycle(config)


def check_followed(name: str, config: Mapping[str, Any]) -> None:
    """
    See to it that a run leaves its probes to others.

    Raises:
        [`PlasticityError`]: It does not.
    """
    if config.get("probe") != "deferred":
        raise PlasticityError(
            f"follow: '{name}' probes its cycles itself; a run is followed where it was started with --probe deferred"
        )
