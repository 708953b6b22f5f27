"""Probed checkpoints: `cycle-003/`, loadable with `from_pretrained`, and complete as soon as the folder exists."""

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ..checksums import find_damage_of_model, mark_complete
from ..distributed import is_main_process
from ..errors import PlasticityError
from ..network import reshard
from ..records import (
    PROBE_KEY,
    PROBES_FILE,
    DamagedRecordWarning,
    append_record,
    damaged_lines,
    find_record,
    move_damaged_lines,
    probed_checkpoints,
    write_atomically,
)


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORD_FILE = "probe.json"


def save_probe_checkpoint(
    model: nn.Module, folder: str | Path, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> None:
    """
    Save weights (safetensors), configuration and tokenizer for `from_pretrained`, unless the folder exists and is not
    damaged.

    All processes that share the model call this; the main one writes. The folder appears under its name only once it
    is complete, with the checksums of its files.

    Args:
        model (`PreTrainedModel`): Plain or sharded by FSDP2.
        folder (`str` or `Path`): The folder of the checkpoint.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The tokenizer to save with it.
    """
    folder = Path(folder)
    reshard(model)
    # `Trainer.save_model` writes nothing under FSDP2 with SHARDED_STATE_DICT (seen in transformers 5.23.0).
    state = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=dist.is_initialized())
    )
    if is_main_process() and not (folder.exists() and find_damage_of_model(folder) is None):
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        mark_complete(unfinished)
        if folder.exists():  # damaged
            shutil.rmtree(folder)
        _move_to_final_name(unfinished, folder)


def _move_to_final_name(unfinished: Path, folder: Path) -> None:
    unfinished.rename(folder)


def restore_probe_records(folder: str | Path) -> None:
    """
    Restore lines of `probes.jsonl` that are damaged or missing from the copies in the probed checkpoints. Damaged
    lines move to `probes.jsonl.damaged`.

    Raises:
        [`PlasticityError`]: A damaged line has no copy. ΔAUC of later probes could then refer to another probe.
    """
    path = Path(folder) / PROBES_FILE
    damaged = damaged_lines(path)
    records = [record for checkpoint in probed_checkpoints(folder) if (record := _copy(checkpoint)) is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedRecordWarning)
        missing = [
            record for record in records if find_record(path, {name: record[name] for name in PROBE_KEY}) is None
        ]
        if len(missing) < len(damaged):
            raise PlasticityError(
                f"'{path}': line {damaged[0]} is damaged, and the probed checkpoints have no copy of it; restore "
                "the file from a backup, or delete it together with the later probes"
            )
        for record in missing:
            append_record(path, record, PROBE_KEY)
    move_damaged_lines(path)


def _copy(checkpoint: Path) -> dict[str, Any] | None:
    """The record in a probed checkpoint; `None` if there is none, or if it is damaged."""
    try:
        record = json.loads((checkpoint / RECORD_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= set(PROBE_KEY) else None


def record_bytes(record: dict[str, Any]) -> bytes:
    """The content of `probe.json`, the record of a probe in its checkpoint."""
    return json.dumps(record, indent=1).encode()


def save_probe_record(folder: str | Path, record: dict[str, Any]) -> None:
    """Save the record of a probe in its checkpoint."""
    write_atomically(Path(folder) / RECORD_FILE, record_bytes(record))
