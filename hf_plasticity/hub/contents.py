"""The files of a run folder that are uploaded, by their path in the repository, without private values."""

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..checksums import find_damage_of_model
from ..errors import PlasticityError
from ..probing.checkpoint import RECORD_FILE
from ..records import (
    COMPLETE_FILE,
    CONFIG_FILE,
    DIAGNOSIS_KEY,
    DIAGNOSTICS_FILE,
    FORGETTING_FILE,
    FORGETTING_KEY,
    MITIGATION_KEY,
    MITIGATIONS_FILE,
    PROBE_KEY,
    PROBES_FILE,
    PROTOCOLS_FILE,
    PROVENANCE,
    TRAINER_STATE_FILE,
    RunRecord,
    append_record,
    checkpoint_name,
    is_complete,
    probed_checkpoints,
    read_config,
    read_records,
    read_run,
)
from .card import CARD_FILE, FIGURE_FILE, delta_auc_png, render_card


Files = dict[str, Path | bytes]

RECORD_KEYS = {
    PROBES_FILE: PROBE_KEY,
    DIAGNOSTICS_FILE: DIAGNOSIS_KEY,
    FORGETTING_FILE: FORGETTING_KEY,
    MITIGATIONS_FILE: MITIGATION_KEY,
}
REVISIONS_FILE, RUN_ID = "revisions.txt", "run_id"
FOLDER_SETTINGS = ("output_dir", "data_dir", "data_cache_dir")
FOLDER_OR_NAME = ("dataset", "tokenizer")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
# Files of a Trainer's checkpoint that are for resuming and not part of the model.
NOT_OF_THE_MODEL = re.compile(r"complete\.json|trainer_state\.json|loss_state_\d+\.json|.*\.(pt|pth|bin)")


def public(value: Any, name: str | None = None) -> Any:
    """
    A setting without private values: folders of this machine are shortened to their name, and tokens are removed.

    Args:
        value: A value of `config.yaml`, or the whole configuration.
        name (`str`, *optional*): The name of the setting.
    """
    if isinstance(value, dict):
        return {key: public(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, str):
        is_folder = name in FOLDER_SETTINGS or (name in FOLDER_OR_NAME and os.path.isdir(value))
        if is_folder or os.path.isabs(os.path.expanduser(value)):
            return Path(value).name
        return without_token(value)
    return value


def without_token(text: str) -> str:
    """`text` with Hub tokens removed."""
    return TOKEN.sub("hf_…", text)


def saved_checkpoints(folder: Path) -> dict[str, bool]:
    """The probed checkpoints in a run folder, in order, and whether each has the record of its probe."""
    found = {}
    for path in probed_checkpoints(folder):
        try:
            found[path.name] = "step" in json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            found[path.name] = False
    return found


def checkpoint_files(folder: Path, name: str) -> Files:
    """
    The files for the branch of a probed checkpoint: weights, configuration, tokenizer and probe record.

    Raises:
        [`PlasticityError`]: It is damaged.
    """
    if (damage := find_damage_of_model(folder / name)) is not None:
        raise PlasticityError(
            f"output_dir: '{folder / name}' is damaged: {damage}; restore it from a backup, or delete it"
        )
    paths = sorted((folder / name).iterdir())
    return {path.name: path for path in paths if path.is_file() and path.name != COMPLETE_FILE}


def merge_records(files: Mapping[str, Path], folder: Path) -> None:
    """
    Add records that a run folder does not have yet.

    Args:
        files (`Mapping[str, Path]`): Record files by their name in a run folder.
        folder (`Path`): The run folder.
    """
    for name, key in RECORD_KEYS.items():
        for record in read_records(files[name]) if name in files else []:
            append_record(folder / name, record, key)


def main_files(
    folder: Path,
    repo_id: str,
    run_id: str,
    branches: list[str],
    finished_at: int | None,
    has_model: bool = False,
) -> Files:
    """
    The files for `main`: records, configuration, card, and the model of a finished run.

    Args:
        folder (`Path`): The run folder.
        repo_id (`str`): The repository.
        run_id (`str`): The id in the configuration that identifies the run of the repository.
        branches (`list[str]`): The branches of probed checkpoints in the repository.
        finished_at (`int`, *optional*): The optimizer steps of a finished run, `None` before that.
        has_model (`bool`, *optional*, defaults to `False`): Whether `main` has a model already.
    """
    run = read_run(folder)
    run.config, run.name = _public_config(run.config, run_id), repo_id.split("/")[-1]
    model = final_model(folder, finished_at)
    files: Files = {**model, CONFIG_FILE: _yaml(run.config), REVISIONS_FILE: _lines(branches)}
    lines = {
        PROBES_FILE: run.probes,
        DIAGNOSTICS_FILE: run.diagnostics,
        FORGETTING_FILE: run.forgetting,
        MITIGATIONS_FILE: run.mitigations,
    }
    files |= {name: _json_lines(records) for name, records in lines.items() if records}
    if (folder / PROTOCOLS_FILE).exists():
        files[PROTOCOLS_FILE] = (folder / PROTOCOLS_FILE).read_bytes()
    if run.training_log:
        state: dict[str, Any] = {} if finished_at is None else {"global_step": finished_at}
        state["log_history"] = run.training_log
        files[TRAINER_STATE_FILE] = json.dumps(state, indent=1).encode()
    files |= _parquet(run)
    figure = delta_auc_png(run)
    if figure is not None:
        files[FIGURE_FILE] = figure
    card = render_card(
        run,
        repo_id,
        branches,
        finished=finished_at is not None,
        has_model=has_model or has_weights(model),
        figure=figure is not None,
    )
    files[CARD_FILE] = card.encode()
    return files


def has_weights(paths: Iterable[str]) -> bool:
    """Whether files of a branch include a model."""
    return any(path.endswith(".safetensors") for path in paths)


def config_file(folder: Path, run_id: str) -> Files:
    """The configuration alone, which identifies the run of a repository."""
    return {CONFIG_FILE: _yaml(_public_config(read_run(folder).config, run_id))}


def _public_config(config: dict[str, Any], run_id: str) -> dict[str, Any]:
    config = public(config)
    config.setdefault(PROVENANCE, {})[RUN_ID] = run_id
    return config


def final_model(folder: Path, step: int | None) -> Files:
    """
    The files of the final model: of the last probed checkpoint or of the Trainer's. Empty for an unfinished run, and
    where neither has been saved, or the Trainer's is sharded.
    """
    config = read_config(folder)
    if step is None or config is None:
        return {}
    task, within = divmod(step, config["task_steps"])
    name = checkpoint_name({"task": task}, config[PROVENANCE]["tasks_per_cycle"])
    if not within and (folder / name).is_dir():
        files = checkpoint_files(folder, name)
        files.pop(RECORD_FILE, None)
        return files
    checkpoint = folder / f"checkpoint-{step}"
    if not is_complete(checkpoint) or not has_weights(path.name for path in checkpoint.iterdir()):
        return {}
    return {
        path.name: path
        for path in sorted(checkpoint.iterdir())
        if path.is_file() and not NOT_OF_THE_MODEL.fullmatch(path.name)
    }


def _parquet(run: RunRecord) -> Files:
    """The records as tables, for `datasets.load_dataset`."""
    frames = {
        "probes": run.probes_frame(),
        "diagnostics": run.diagnostics_frame(),
        "forgetting": run.forgetting_frame(),
        "training_log": run.training_frame(),
    }
    files: Files = {}
    for name, frame in frames.items():
        if len(frame):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer)
            files[f"records/{name}.parquet"] = buffer.getvalue()
    return files


def _json_lines(records: list[dict[str, Any]]) -> bytes:
    return _lines([json.dumps(record, ensure_ascii=False) for record in records])


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _yaml(config: dict[str, Any]) -> bytes:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110).encode()
