"""
The checkpoints that a run resumes from: marked when they are complete, verified before they are used.

The Trainer takes the checkpoint with the highest number. If that one is incomplete, it fails, or silently resumes
without the optimizer state (seen in transformers 5.23.0; reported in
https://github.com/huggingface/transformers/issues/35782).
"""

import errno
import shutil
from pathlib import Path

from transformers.utils import logging

from ..checksums import find_damage
from ..records import (
    COMPLETE_FILE,
    DIAGNOSTICS_FILE,
    FORGETTING_FILE,
    INITIAL_WEIGHTS_FILE,
    MITIGATIONS_FILE,
    PROBES_FILE,
    PROTOCOLS_FILE,
    TRAINER_STATE_FILE,
    checkpoints,
    cycle_name,
    is_complete,
    probed_checkpoints,
    read_records,
)


logger = logging.get_logger(__name__)

# What a start without a training checkpoint leaves, besides the untrained model.
OF_A_START = (PROBES_FILE, PROTOCOLS_FILE, DIAGNOSTICS_FILE, MITIGATIONS_FILE, INITIAL_WEIGHTS_FILE)
# A disk with less free space than this is full.
FULL_DISK_BYTES = 2**20


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest complete checkpoint of a run folder. Damaged ones are skipped with a warning.

    Args:
        output_dir (`str` or `Path`): The run folder.

    Returns:
        `str`: Its path, for `resume_from_checkpoint`; `None` if there is none.
    """
    for checkpoint in checkpoints(output_dir):
        if (damage := find_damage(checkpoint)) is None:
            return str(checkpoint)
        logger.warning(f"skipping '{checkpoint}': {damage}")
    return None


def has_started(folder: str | Path) -> bool:
    """Whether a run folder has a checkpoint or a record of a trained model. Before that, its settings may change."""
    folder = Path(folder)
    if (folder / TRAINER_STATE_FILE).exists() or checkpoints(folder):
        return True
    # With `save_strategy: no` a run that was killed may have nothing else.
    if folder.is_dir() and any(path.name != cycle_name(0) for path in probed_checkpoints(folder)):
        return True
    records = (read_records(folder / name) for name in (PROBES_FILE, DIAGNOSTICS_FILE, FORGETTING_FILE))
    return any(record.get("step", 1) > 0 for lines in records for record in lines)


def clear_start(folder: str | Path) -> None:
    """Delete the records and the untrained model of a start without a training checkpoint."""
    for name in OF_A_START:
        (Path(folder) / name).unlink(missing_ok=True)
    shutil.rmtree(Path(folder) / cycle_name(0), ignore_errors=True)


def rotate(saved: str | Path, limit: int | None) -> None:
    """
    Delete incomplete checkpoints, and all but the newest `limit` complete ones. `None`, and in accordance with the
    Trainer a number that is not positive, keeps all complete ones.

    Args:
        saved (`str` or `Path`): The checkpoint that was just saved. Complete ones of later steps are kept and not
            counted: the run did not resume from them, so they may be damaged.
        limit (`int`, *optional*): `save_total_limit`.
    """
    saved = Path(saved)
    found = checkpoints(saved.parent)
    complete = [checkpoint for checkpoint in found if is_complete(checkpoint)]
    later = complete[: complete.index(saved)]
    kept = complete[: len(later) + limit] if limit is not None and limit > 0 else complete
    for checkpoint in found:
        if checkpoint not in kept:
            delete_checkpoint(checkpoint)


def remove_incomplete(folder: str | Path) -> None:
    """Delete the incomplete checkpoints of a run folder: no run resumes from them. The caller holds its lock."""
    for checkpoint in checkpoints(folder):
        if not is_complete(checkpoint):
            delete_checkpoint(checkpoint)


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint, its marker first, so that a partly deleted checkpoint does not count as complete."""
    (checkpoint / COMPLETE_FILE).unlink(missing_ok=True)
    _delete_files(checkpoint)


def _delete_files(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def is_full_disk(error: BaseException, folder: str | Path) -> bool:
    """Whether a write failed for lack of space. Torch and safetensors raise other errors, without `errno`."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    if "No space left on device" in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < FULL_DISK_BYTES
