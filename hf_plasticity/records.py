"""
The run folder and its records: the common format of trainer, probe, diagnostics, analysis and Hub.

```
runs/<name>/
  config.yaml          the resolved configuration, every default written out, versions and git commit
  probes.jsonl         one line for each probe
  probe_protocols.json the settings behind each probe_config_hash
  diagnostics.jsonl    one line for each diagnosis
  forgetting.jsonl     one line for each cycle: validation loss on each training language
  mitigations.jsonl    one line for each event: what a mitigation reset, or changed in a task instance
  initial_weights.safetensors  the initial weights, for distances from them (with --diagnose)
  trainer_state.json   the Trainer's log of the finished run (before that, it is in the checkpoints)
  checkpoint-<step>/   the Trainer's checkpoint, for resuming
  cycle-003/           a probed checkpoint, loadable with from_pretrained (task-012/ within a cycle)
  report.html
  hub.json             the state of the upload, if the run is pushed to the Hub
  log.txt              its output, if a ladder or a comparison started it
```

This module does not import torch, so that records can be read without it.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from .errors import PlasticityError, one_line


if TYPE_CHECKING:
    import pandas as pd


# The section of config.yaml that describes the run: parameter counts, text, versions. It has no settings.
PROVENANCE = "provenance"

CONFIG_FILE = "config.yaml"
PROBES_FILE = "probes.jsonl"
PROTOCOLS_FILE = "probe_protocols.json"
# In each entry of it, in addition to the settings behind the hash: the task instances and cycles of the training.
TIMELINE = "timeline"
DIAGNOSTICS_FILE = "diagnostics.jsonl"
FORGETTING_FILE = "forgetting.jsonl"
MITIGATIONS_FILE = "mitigations.jsonl"
TRAINER_STATE_FILE = "trainer_state.json"
INITIAL_WEIGHTS_FILE = "initial_weights.safetensors"
REPORT_FILE = "report.html"
COMPLETE_FILE = "complete.json"
HUB_FILE = "hub.json"
LOG_FILE = "log.txt"  # the output of a run of a ladder or a comparison
# Names that `write_atomically` gives to files before they are complete.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}")
CHECKPOINT_NAME = re.compile(r"(cycle|task)-(\d{3,})")
LOCK_FILE, DEFERRED_LOCK_FILE = ".lock", ".follow.lock"

PROBE_KEY = ("task", "step", "probe_config_hash")
DIAGNOSIS_KEY = ("task", "step", "diagnostics_config_hash")
FORGETTING_KEY = ("task", "step")
MITIGATION_KEY = ("step", "mitigation", "event")


class DamagedRecordWarning(UserWarning):
    """A line of a record file could not be read; the other lines were."""


def config_hash(config: dict[str, Any]) -> str:
    """A hash of a configuration, as twelve hexadecimal digits. The order of keys does not matter."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` atomically: after a kill at any moment, the file is the old or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files only their owner can read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    The records of a `.jsonl` file, in the order in which they were written; none if the file does not exist.

    A damaged line is skipped with a [`DamagedRecordWarning`] that names the file and the line.
    """
    records = []
    for number, line in _lines(path):
        record = _parse(line)
        if record is None:
            warnings.warn(f"{path}:{number}: damaged record, skipped", DamagedRecordWarning, stacklevel=2)
        else:
            records.append(record)
    return records


def damaged_lines(path: str | os.PathLike) -> list[int]:
    """The numbers of the lines of a `.jsonl` file that are not records."""
    return [number for number, line in _lines(path) if _parse(line) is None]


def move_damaged_lines(path: str | os.PathLike) -> None:
    """Move the damaged lines of a `.jsonl` file to `<name>.damaged`, so that other programs can read it."""
    path = Path(path)
    damaged = [line for _, line in _lines(path) if _parse(line) is None]
    if damaged:
        with open(path.with_name(f"{path.name}.damaged"), "ab") as file:
            file.write(b"".join(line + b"\n" for line in damaged))
        write_atomically(path, b"".join(line + b"\n" for _, line in _lines(path) if _parse(line) is not None))


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    path = Path(path)
    if path.exists():
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if line.strip():
                yield number, line


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) else None


def append_record(path: str | os.PathLike, record: dict[str, Any], key: Sequence[str]) -> bool:
    """
    Append `record` as one JSON line, unless the file already has a record with the same values of `key`.

    The file is replaced atomically, so after a kill or on a full disk it has either the old lines or the old lines and
    the new one. Damaged lines are kept.

    Args:
        path (`str` or `os.PathLike`): The `.jsonl` file; created if it does not exist.
        record (`dict`): The record. NaN and infinity are not valid JSON and raise `ValueError`.
        key (`Sequence[str]`): The fields that identify a record, one of `PROBE_KEY`, `DIAGNOSIS_KEY`,
            `FORGETTING_KEY`, `MITIGATION_KEY`.

    Returns:
        `bool`: Whether the record was written; `False` if it was there already.
    """
    path = Path(path)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    if find_record(path, {name: record[name] for name in key}) is not None:
        return False
    lines = path.read_bytes() if path.exists() else b""
    if lines and not lines.endswith(b"\n"):
        lines += b"\n"
    write_atomically(path, lines + line)
    return True


def update_records(path: str | os.PathLike, changes: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """
    Change fields of the records in a `.jsonl` file atomically. Unchanged and damaged lines are not rewritten.

    Args:
        path (`str` or `os.PathLike`): The file.
        changes (`Callable[[dict], dict]`): Returns the changed fields of a record.
    """
    old = Path(path).read_bytes()
    lines = []
    for line in old.split(b"\n"):
        if (record := _parse(line)) is not None:
            changed = record | changes(record)
            if changed != record:
                line = json.dumps(changed, ensure_ascii=False, allow_nan=False).encode()
        lines.append(line)
    if (new := b"\n".join(lines)) != old:
        write_atomically(path, new)


def find_record(path: str | os.PathLike, values: dict[str, Any]) -> dict[str, Any] | None:
    """The first record whose fields have the given values, or `None`."""
    for record in read_records(path):
        if all(record.get(name) == value for name, value in values.items()):
            return record
    return None


class FolderInUseError(PlasticityError):
    """Another process uses a run folder."""


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike, name: str = LOCK_FILE) -> Iterator[None]:
    """
    Lock a run folder for one process. The operating system releases the lock when the process ends, also by SIGKILL.

    Args:
        folder (`str` or `os.PathLike`): The run folder; created if it does not exist.
        name (`str`, *optional*, defaults to `".lock"`): The file of the lock. A run and its deferred prober have
            separate locks.

    Raises:
        [`FolderInUseError`]: Another process holds the lock.
        [`PlasticityError`]: The folder cannot be written to.
    """
    folder = Path(folder)
    lock = FileLock(folder / name, blocking=False, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"output_dir: '{folder}' is in use by another process; wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:
        raise PlasticityError(f"output_dir: '{folder}' cannot be used as a folder: {error.strerror}") from None
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        lock.release()


_held: set[FileLock] = set()


def _close_in_child() -> None:
    """
    Close the lock file in worker processes of a DataLoader. They inherit the lock, and would hold it for seconds
    after a SIGKILL of the run.
    """
    for lock in _held:
        if lock.is_locked:
            os.close(lock._context.lock_file_fd)  # not `release`, which would also unlock it for the parent
            lock._context.lock_file_fd = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def remove_temporary_files(folder: str | os.PathLike) -> None:
    """
    Delete the temporary files that killed processes left in a run folder and its probed checkpoints. The caller holds
    the locks of the folder.
    """
    for place in (Path(folder), *probed_checkpoints(folder)):
        for path in place.glob(".*.*"):
            if TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def read_json(path: str | os.PathLike) -> Any:
    """
    Read a JSON file.

    Raises:
        [`PlasticityError`]: It is damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:  # not JSON, or not UTF-8
        raise PlasticityError(f"'{path}' is damaged (not JSON); restore it from a backup, or delete it") from None


def write_config(folder: str | os.PathLike, config: dict[str, Any]) -> None:
    """Write the resolved configuration of a run to `config.yaml`."""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)
    write_atomically(Path(folder) / CONFIG_FILE, text.encode())


def read_config(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The configuration of a run, or `None` if the folder has none."""
    path = Path(folder) / CONFIG_FILE
    if not path.exists():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlasticityError(f"'{path}' is not valid YAML: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise PlasticityError(f"'{path}' has no configuration")
    return config


def numerics_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that affect its results, from its `config.yaml`. They identify the run."""
    return {name: config.get(name) for name in config[PROVENANCE]["numerics"]}


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """
    Describe the settings in which a recorded configuration differs from a current one.

    Args:
        recorded (`Mapping[str, Any]`): A `config.yaml`.
        current (`Mapping[str, Any]`): The settings that must be equal.
    """
    names = dict.fromkeys([*current, *recorded.get(PROVENANCE, {}).get("numerics", [])])
    return [
        f"{name} is {recorded.get(name)} there and {current.get(name)} here"
        for name in names
        if recorded.get(name) != current.get(name)
    ]


def write_protocol(folder: str | os.PathLike, protocol_hash: str, protocol: dict[str, Any]) -> None:
    """Add the settings behind a `probe_config_hash` to `probe_protocols.json` of a run folder."""
    path = Path(folder) / PROTOCOLS_FILE
    known = read_json(path) if path.exists() else {}
    if protocol_hash not in known:
        known[protocol_hash] = protocol
        write_atomically(path, json.dumps(known, indent=1, ensure_ascii=False).encode())


def cycle_name(cycle: int) -> str:
    """Folder and branch of the checkpoint probed after a cycle: `cycle-003`."""
    return f"cycle-{cycle:03d}"


def checkpoint_name(position: Mapping[str, Any], tasks_per_cycle: int) -> str:
    """
    Folder and branch of a probed checkpoint.

    Args:
        position (`Mapping[str, Any]`): With the number of completed `task` instances, such as a probe's record.
        tasks_per_cycle (`int`): Task instances of a cycle.

    Returns:
        `str`: `cycle-003` after a whole number of cycles, `task-012` within a cycle.
    """
    cycle, within = divmod(position["task"], tasks_per_cycle)
    return f"task-{position['task']:03d}" if within else cycle_name(cycle)


def checkpoint_task(name: str, tasks_per_cycle: int) -> int:
    """The number of completed task instances of a probed checkpoint, from its name."""
    kind, number = CHECKPOINT_NAME.fullmatch(name).groups()
    return int(number) * (tasks_per_cycle if kind == "cycle" else 1)


def probed_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The folders of probed checkpoints (`cycle-003`, `task-012`) in a run folder, by name."""
    folders = (path for path in Path(folder).iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir())
    return sorted(folders, key=lambda path: checkpoint_order(path.name))


def checkpoint_order(name: str) -> tuple[int, str]:
    """The key that sorts the names of probed checkpoints: `cycle-999` before `cycle-1000`."""
    return len(name), name


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The Trainer's checkpoints in a run folder, the newest first, complete or not."""
    found = [
        (int(match.group(1)), path)
        for path in Path(folder).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint has the marker that is written last."""
    return (Path(checkpoint) / COMPLETE_FILE).exists()


def finished_steps(folder: str | os.PathLike) -> int | None:
    """
    The optimizer steps of the training in a run folder, from the state that is written at its end; `None` for an
    unfinished training.
    """
    state = Path(folder) / TRAINER_STATE_FILE
    return read_json(state).get("global_step") if state.exists() else None


def finished_steps_of_run(folder: str | os.PathLike) -> int | None:
    """
    As [`finished_steps`], but `None` also for a run that was finished and is longer in its configuration now.
    """
    config, steps = read_config(folder), finished_steps(folder)
    if config is None or steps is None:
        return None
    return steps if steps >= config["cycles"] * config[PROVENANCE]["tasks_per_cycle"] * config["task_steps"] else None


@dataclass(repr=False)
class RunRecord:
    """
    The records of a run.

    Args:
        name (`str`): The name of the run folder or of the repository.
        folder (`Path`): The folder of the records.
        config (`dict`): The resolved configuration (`config.yaml`); empty if there is none.
        probes (`list[dict]`): The lines of `probes.jsonl`, by step.
        diagnostics (`list[dict]`): The lines of `diagnostics.jsonl`, by step.
        forgetting (`list[dict]`): The lines of `forgetting.jsonl`, by step.
        mitigations (`list[dict]`): The lines of `mitigations.jsonl`, by step.
        training_log (`list[dict]`): The Trainer's log: `step`, `loss`, `learning_rate`, `language`, `tokens`, …
        task_steps (`int`, *optional*): Optimizer steps of a task instance, if the training has task instances.
        tasks_per_cycle (`int`, *optional*): Task instances of a cycle, if the training has cycles.
        protocols (`dict`): The settings behind each `probe_config_hash` (`probe_protocols.json`).
    """

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    forgetting: list[dict[str, Any]] = field(default_factory=list)
    mitigations: list[dict[str, Any]] = field(default_factory=list)
    training_log: list[dict[str, Any]] = field(default_factory=list)
    task_steps: int | None = None
    tasks_per_cycle: int | None = None
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        kinds = ("probes", "diagnostics", "forgetting", "mitigations", "training_log")
        counts = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in kinds if getattr(self, kind))
        return f"RunRecord('{self.name}': {counts or 'no records'})"

    def probes_frame(self) -> "pd.DataFrame":
        """The probes as a table, one row for each; nested fields have columns such as `losses.en`."""
        return _frame(self.probes)

    def diagnostics_frame(self) -> "pd.DataFrame":
        """The diagnoses as a table, one row for each."""
        return _frame(self.diagnostics)

    def forgetting_frame(self) -> "pd.DataFrame":
        """The losses on the training languages as a table, one row for each cycle."""
        return _frame(self.forgetting)

    def training_frame(self) -> "pd.DataFrame":
        """The Trainer's log as a table, one row for each entry."""
        return _frame(self.training_log)


def _frame(records: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.json_normalize(records)


def read_run(folder: str | os.PathLike) -> RunRecord:
    """
    Read the records of a run folder.

    Args:
        folder (`str` or `os.PathLike`): The run folder.

    Returns:
        [`RunRecord`]: With the training log of the finished run or of the newest complete checkpoint, whichever has
            more steps.

    Raises:
        [`PlasticityError`]: There is no such folder, or neither a configuration nor a probe in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PlasticityError(f"run folder '{folder}' does not exist")
    config, probes = read_config(folder), read_records(folder / PROBES_FILE)
    if config is None and not probes:
        raise PlasticityError(f"'{folder}' is not a run folder: it has neither {CONFIG_FILE} nor {PROBES_FILE}")
    protocols = read_json(folder / PROTOCOLS_FILE) if (folder / PROTOCOLS_FILE).exists() else {}
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        config=config or {},
        probes=sorted(probes, key=lambda record: record["step"]),
        diagnostics=sorted(read_records(folder / DIAGNOSTICS_FILE), key=lambda record: record["step"]),
        forgetting=sorted(read_records(folder / FORGETTING_FILE), key=lambda record: record["step"]),
        mitigations=sorted(read_records(folder / MITIGATIONS_FILE), key=lambda record: record["step"]),
        training_log=_training_log(folder),
        **_timeline(protocols, config or {}),
        protocols=protocols,
    )


def _training_log(folder: Path) -> list[dict[str, Any]]:
    """The Trainer's log of the finished run or of the newest complete checkpoint, whichever has more steps."""
    folders = [folder, *(path for path in checkpoints(folder) if is_complete(path))]
    states = [read_json(path / TRAINER_STATE_FILE) for path in folders if (path / TRAINER_STATE_FILE).exists()]
    return max(states, key=lambda state: state.get("global_step") or 0)["log_history"] if states else []


def _timeline(protocols: dict[str, dict[str, Any]], config: dict[str, Any]) -> dict[str, int | None]:
    """The task instances and cycles of a training, from its configuration or, without one, from its probes."""
    tasks_per_cycle = config.get(PROVENANCE, {}).get("tasks_per_cycle")
    if tasks_per_cycle is None:
        for protocol in protocols.values():
            if TIMELINE in protocol:
                return protocol[TIMELINE]
    return {"task_steps": config.get("task_steps"), "tasks_per_cycle": tasks_per_cycle}
