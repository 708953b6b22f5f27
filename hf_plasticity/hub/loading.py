"""Load runs and probed checkpoints from a folder or from the Hub."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .. import records
from ..checksums import find_damage_of_model
from ..errors import PlasticityError
from ..hub_errors import explain_hub_error
from ..records import RunRecord, cycle_name, probed_checkpoints


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECORDS = [
    records.PROBES_FILE, records.DIAGNOSTICS_FILE, records.FORGETTING_FILE, records.MITIGATIONS_FILE,
    records.CONFIG_FILE, records.TRAINER_STATE_FILE, records.PROTOCOLS_FILE,
]  # fmt: skip


def load_run(run: str | Path, revision: str | None = None) -> RunRecord:
    """
    Load the records of a run.

    Args:
        run (`str` or `Path`): A run folder, or a repository on the Hub (`"org/name"`). Weights are not downloaded.
        revision (`str`, *optional*): A commit or branch of the repository; `main` by default.

    Returns:
        [`RunRecord`]: Named after its folder or repository.

    Raises:
        [`PlasticityError`]: There is no such run, or it cannot be reached.

    Example:

    ```python
    >>> from hf_plasticity import load_run

    >>> run = load_run("org/name")
    >>> run.probes_frame()[["cycle", "auc", "delta_auc"]]
    ```
    """
    if not is_repository(run):
        if revision is not None:
            raise PlasticityError(f"revision: '{revision}' cannot be chosen in the folder '{run}'")
        return records.read_run(run)
    repo_id = str(run)
    try:
        folder = _download_records(repo_id, revision)
    except Exception as error:
        explanation = explain_hub_error(repo_id, "model", error)
        if explanation is None:
            raise
        raise PlasticityError(f"run: there is no folder of that name here, and {explanation}") from None
    if not any((folder / name).exists() for name in (records.CONFIG_FILE, records.PROBES_FILE)):
        raise PlasticityError(f"run: '{repo_id}' on the Hub has neither a configuration nor a probe")
    record = records.read_run(folder)
    record.name = repo_id
    return record


def _download_records(repo_id: str, revision: str | None) -> Path:
    """
    The folder of the downloaded records. With `HF_HUB_OFFLINE=1` it is that of the last download; otherwise a Hub that
    fails is an error, because an earlier download may lack the newest records.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    from .repository import download, with_timeout

    folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=RECORDS))
    if constants.HF_HUB_OFFLINE:
        return folder
    # If the Hub fails, `snapshot_download` returns what is on this machine (seen in huggingface_hub 2.4.0).
    api = HfApi()
    commit = with_timeout(api).model_info(repo_id, revision=revision).sha
    download(api, repo_id, RECORDS, commit)
    return folder.with_name(commit)


def load_probe_checkpoint(
    run: str | Path | RunRecord, cycle: int
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """
    Load the model that was probed after a cycle, and its tokenizer.

    Args:
        run (`str`, `Path` or [`RunRecord`]): A run folder, or a repository on the Hub.
        cycle (`int`): The cycle; 0 is the untrained model.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: As `from_pretrained` gives them.

    Raises:
        [`PlasticityError`]: There is no such checkpoint, or it is damaged.

    Example:

    ```python
    >>> model, tokenizer = load_probe_checkpoint("org/name", 3)
    ```
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if isinstance(run, RunRecord):
        run = run.name if is_repository(run.name) else run.folder
    name = cycle_name(cycle)
    options = {"revision": name} if is_repository(run) else {}
    where = str(run) if is_repository(run) else Path(run) / name
    if isinstance(where, Path) and not where.is_dir():
        there = ", ".join(path.name for path in probed_checkpoints(run)) or "none"
        raise PlasticityError(f"cycle: '{run}' has no checkpoint '{name}', only {there}")
    if isinstance(where, Path) and (damage := find_damage_of_model(where)) is not None:
        raise PlasticityError(f"cycle: '{where}' is damaged: {damage}; restore it from a backup, or load another")
    try:
        model = AutoModelForCausalLM.from_pretrained(where, use_safetensors=True, **options)
        return model, AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:
        explanation = explain_hub_error(str(run), "model", error)
        if not options or explanation is None:
            raise
        raise PlasticityError(f"cycle: '{name}' cannot be loaded: {explanation}") from None


def is_repository(run: str | Path) -> bool:
    """Whether `run` is the name of a repository rather than a folder: `org/name`, and no folder of that name here."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(run)) is not None and not Path(run).is_dir()
