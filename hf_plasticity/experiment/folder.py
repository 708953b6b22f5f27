"""The folder of a run: checks whether a run may use it, and `config.yaml`."""

import contextlib
import importlib.metadata
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils import logging

from .. import __version__
from ..distributed import from_main_process, is_main_process
from ..errors import PlasticityError
from ..network import num_non_embedding_parameters
from ..probing.checkpoint import RECORD_FILE, restore_probe_records
from ..records import (
    CONFIG_FILE,
    DEFERRED_LOCK_FILE,
    HUB_FILE,
    PROVENANCE,
    differences,
    finished_steps,
    probed_checkpoints,
    read_config,
    read_json,
    remove_temporary_files,
    run_lock,
    write_atomically,
    write_config,
)
from ..trainer import ContinualTrainer
from ..trainer.checkpoint import clear_start, has_started, last_complete_checkpoint, remove_incomplete
from ..trainer.config import DEFERRED, INLINE
from .config import ExperimentConfig
from .data import RunData, run_schedule


PACKAGES = (
    "torch", "transformers", "accelerate", "datasets", "evaluate", "peft", "huggingface-hub", "tokenizers", "numpy",
)  # fmt: skip
# Under `provenance`: what the run is made with, and the same of its earlier parts.
MADE_WITH, EARLIER = ("versions", "git_commit", "hardware"), "earlier"

logger = logging.get_logger(__name__)


@contextlib.contextmanager
def run_folder(config: ExperimentConfig) -> Iterator[None]:
    """
    Lock the run folder while the run lasts.

    Raises:
        [`PlasticityError`]: Another process uses it, or it belongs to a run with another configuration.
    """
    with contextlib.ExitStack() as stack:
        from_main_process(lambda: _take_folder(config, stack))
        yield


def _take_folder(config: ExperimentConfig, stack: contextlib.ExitStack) -> None:
    """Lock the folder until `stack` is closed, and check that this run may use it."""
    folder = config.training.output_dir
    stack.enter_context(run_lock(folder))
    recorded = read_config(folder)
    if recorded is None and has_started(folder):
        raise PlasticityError(
            f"output_dir: '{folder}' has checkpoints or records but no {CONFIG_FILE}, so they may be those of "
            "another training; choose another folder"
        )
    if config.training.probe == INLINE:
        # A separate probe process that is still running would probe the same checkpoints.
        stack.enter_context(run_lock(folder, DEFERRED_LOCK_FILE))
        remove_temporary_files(folder)
        restore_probe_records(folder)
    else:
        # A separate probe process that is running writes records, and has temporary files.
        with contextlib.suppress(PlasticityError), run_lock(folder, DEFERRED_LOCK_FILE):
            remove_temporary_files(folder)
    if recorded is None:
        return
    different = differences(recorded, config.numerics())
    if different and has_started(folder):
        raise PlasticityError(
            f"output_dir: '{folder}' belongs to another run ({'; '.join(different)}); choose another folder"
        )
    if different:
        _clear(config, different)
        return
    remove_incomplete(folder)
    if recorded.get("probe") == DEFERRED and config.training.probe == INLINE:
        unprobed = [path.name for path in probed_checkpoints(folder) if not (path / RECORD_FILE).exists()]
        if unprobed:
            raise PlasticityError(
                f"probe: {', '.join(unprobed)} of '{folder}' are not probed yet, but ΔAUC refers to the first probe; "
                "probe them with `hf-plasticity probe --follow` (`hf-plasticity push` downloads the records of a "
                "probe process that uploaded them), or resume with --probe deferred"
            )


def _clear(config: ExperimentConfig, different: list[str], same_run: bool = False) -> None:
    """
    Delete the records, the untrained checkpoint, the configuration and the upload state of a start without a training
    checkpoint. If it remains the same run, its repository is still that of the run, and what was uploaded is uploaded
    again.

    Raises:
        [`PlasticityError`]: A separate probe process has read the settings of that start.
    """
    folder = Path(config.training.output_dir)
    with contextlib.ExitStack() as stack:
        if config.training.probe == DEFERRED:
            try:
                stack.enter_context(run_lock(folder, DEFERRED_LOCK_FILE))
            except PlasticityError:
                raise PlasticityError(
                    f"output_dir: a probe process follows '{folder}' with other settings ({'; '.join(different)}); "
                    "stop it and start it again after the run, or choose another folder"
                ) from None
        clear_start(folder)
        hub = folder / HUB_FILE
        if same_run and hub.exists():
            write_atomically(hub, json.dumps({"run_id": read_json(hub).get("run_id")}).encode())
        else:
            hub.unlink(missing_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)


def recorded_setting(folder: str | Path, name: str) -> Any:
    """A setting that a run was started with; `None` if it has none, or has not started."""
    return (read_config(folder) or {}).get(name) if has_started(folder) else None


def is_finished(config: ExperimentConfig) -> bool:
    """Whether the training in the run folder has the length of the configuration."""
    training = config.training
    steps = training.cycles * run_schedule(config, batch_size=1).tasks_per_cycle * training.task_steps
    return (finished_steps(training.output_dir) or 0) >= steps


def check_same_text(config: ExperimentConfig, data: RunData) -> None:
    """
    Check that the text is that with which the run in the folder was started. Without a training checkpoint, what was
    recorded with other text is deleted.

    Raises:
        [`PlasticityError`]: The run in the folder was started with other text.
    """
    from_main_process(lambda: _check_same_text(config, data.fingerprints()))


def _check_same_text(config: ExperimentConfig, fingerprints: dict[str, dict[str, str]]) -> None:
    folder = config.training.output_dir
    recorded = (read_config(folder) or {}).get(PROVENANCE, {}).get("data", {})
    changed = [
        language
        for language in fingerprints
        if recorded.get(language, fingerprints[language]) != fingerprints[language]
    ]
    if changed and has_started(folder):
        raise PlasticityError(
            f"output_dir: '{folder}' was started with other text; that of '{changed[0]}' has changed; choose another "
            "folder"
        )
    if changed:
        # A repository with deferred probes has records that would be downloaded again.
        same_run = config.training.probe == INLINE
        _clear(config, [f"the text of '{changed[0]}' has changed"], same_run)


def write_run_config(config: ExperimentConfig, data: RunData, trainer: ContinualTrainer) -> None:
    """
    Write `config.yaml`: every setting, and under `provenance` versions, hardware and text of the run, with those of
    its earlier parts (`earlier`) if it resumes with others.
    """
    if not is_main_process():
        return
    folder = config.training.output_dir
    provenance = {
        "num_parameters": trainer.model.num_parameters(),
        "num_non_embedding_parameters": num_non_embedding_parameters(trainer.model),
        "tasks_per_cycle": trainer.schedule.tasks_per_cycle,
        "head_loss": trainer.head_loss,
        # The settings that affect the results, so that reports can find runs that differ only by their seed.
        "numerics": sorted(config.numerics()),
        "data": data.fingerprints(),
        "versions": versions(),
        "git_commit": _git_commit(),
        "hardware": _hardware(),
    }
    if has_started(folder):
        recorded = (read_config(folder) or {}).get(PROVENANCE, {})
        earlier = recorded.get(EARLIER, [])
        made_with = {name: recorded.get(name) for name in MADE_WITH}
        if any(made_with[name] != provenance[name] for name in MADE_WITH):
            checkpoint = last_complete_checkpoint(folder)
            until = None if checkpoint is None else int(checkpoint.rsplit("-", 1)[-1])
            earlier = [*earlier, {"until_step": until, **made_with}]
            _warn_of_versions(made_with["versions"] or {}, provenance["versions"])
        if earlier:
            provenance[EARLIER] = earlier
    write_config(folder, config.settings() | {PROVENANCE: provenance})


def _warn_of_versions(before: dict[str, str], now: dict[str, str]) -> None:
    """Name the packages whose version has changed since the earlier part of a run."""
    changed = [f"{name} {before[name]} → {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        logger.warning(
            f"the run resumes with other versions ({', '.join(changed)}), and may not end with the same numbers as an "
            "uninterrupted run"
        )


def versions() -> dict[str, str]:
    """The versions of this package and of the packages that affect its numbers."""
    return {"hf-plasticity": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _git_commit() -> str | None:
    """
    The commit of the source tree that this package is imported from, with `-dirty` if files have changed; `None` for
    an installed copy.
    """
    tree = Path(__file__).parents[2]
    if not (tree / ".git").exists():
        return None
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.strip() or None


def _hardware() -> str:
    """The devices of the run: `"8 x NVIDIA H100 80GB HBM3"`."""
    device = PartialState().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} process"
    return f"{PartialState().num_processes} x {name}"
