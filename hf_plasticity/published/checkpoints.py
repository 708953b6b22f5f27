"""The checkpoints of a suite: find them, order them by training step, check and load them."""

import contextlib
import fnmatch
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..checksums import find_damage_of_model
from ..errors import PlasticityError, one_line
from ..hub_errors import explain_hub_error
from .config import SuiteConfig


WEIGHTS = "*.safetensors"
END_BYTES = 2**20


class DamagedCheckpointError(PlasticityError):
    """A checkpoint has no weights that can be loaded, or lacks some of them."""


def training_step(name: str) -> int | None:
    """
    The training step in the name of a checkpoint: the number after `step`, also as `50K`, or otherwise the last
    number; `None` for a name without a number, and for a version such as `v1.0`.
    """
    if re.fullmatch(r"v\d+(\.\d+)*|\d+(\.\d+)+", name):
        return None
    numbers = re.findall(r"step[-_]?(\d+)([KkM]?)", name) or re.findall(r"(\d+)([KkM]?)", name)
    if not numbers:
        return None
    digits, unit = numbers[-1]
    return int(digits) * {"": 1, "K": 1_000, "M": 1_000_000}[unit.upper()]


def find_checkpoints(suite: SuiteConfig) -> dict[int, str]:
    """
    Find the checkpoints to probe, by step and in order.

    Raises:
        [`PlasticityError`]: A pattern without a match, a name without a number, two names with the same number, or a
            step for more than one checkpoint.
    """
    if Path(suite.model).is_dir():
        there = sorted(path.name for path in Path(suite.model).iterdir() if (path / "config.json").exists())
    else:
        try:
            refs = HfApi().list_repo_refs(suite.model)
        except Exception as error:
            raise _explained(suite, error) from None
        there = [ref.name for ref in [*refs.branches, *refs.tags]]
    chosen = [] if suite.revisions else [name for name in there if training_step(name) is not None]
    if not chosen and not suite.revisions:
        raise PlasticityError(
            f"model: '{suite.model}' has no checkpoint with a number in its name; it has {_some(there)}. To probe one "
            "of them, name it with --revisions and give its training step with --step"
        )
    for pattern in suite.revisions or []:
        fitting = fnmatch.filter(there, pattern)
        if not fitting:
            raise PlasticityError(f"revisions: '{suite.model}' has no '{pattern}'; it has {_some(there)}")
        chosen += fitting
    chosen = list(dict.fromkeys(chosen))
    if suite.step is not None and len(chosen) > 1:
        raise PlasticityError(
            f"step: {suite.step} is for a single checkpoint, and there are {len(chosen)}; leave it out"
        )
    found: dict[int, str] = {}
    for name in chosen:
        step = training_step(name) if suite.step is None else suite.step
        if step is None:
            raise PlasticityError(
                f"revisions: '{name}' has no number in its name; give its training step with --step"
                + (", one checkpoint at a time" if len(chosen) > 1 else "")
            )
        if step in found:
            raise PlasticityError(f"revisions: '{found[step]}' and '{name}' both have step {step}; choose one of them")
        found[step] = name
    return {step: found[step] for step in sorted(found)[:: suite.every]}


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "none"


def _explained(suite: SuiteConfig, error: Exception) -> Exception:
    explanation = explain_hub_error(suite.model, "model", error)
    return (
        error
        if explanation is None
        else PlasticityError(f"model: there is no folder of that name here, and {explanation}")
    )


def check_weights(suite: SuiteConfig, found: Mapping[int, str], recorded: Mapping[int, str] | None = None) -> None:
    """
    Check, before any download, that every checkpoint has safetensors and that no two have the same weights. Published
    suites have had branches with the weights of the final model (https://github.com/EleutherAI/pythia/issues/205 and
    206). A curve through such checkpoints is wrong.

    Args:
        suite ([`SuiteConfig`]): The suite.
        found (`Mapping[int, str]`): The names of the checkpoints to probe, by step.
        recorded (`Mapping[int, str]`, *optional*): Those that were probed before, as far as they still exist.

    Raises:
        [`PlasticityError`]: A checkpoint without safetensors, unless damaged ones are skipped; or several with the
            same file of weights.
    """
    local = Path(suite.model).is_dir()
    files = {}
    for name in found.values():
        try:
            files[name] = _local_files(suite, name) if local else _files_on_the_hub(suite, name)
        except DamagedCheckpointError:
            if not suite.skip_damaged:
                raise
    for name in set((recorded or {}).values()) - set(found.values()):
        with contextlib.suppress(PlasticityError, OSError):
            files[name] = _local_files(suite, name) if local else _files_on_the_hub(suite, name)
    holders: Mapping[Any, list[str]] = defaultdict(list)
    for name, digests in files.items():
        for digest in digests:
            holders[digest].append(name)
    if local:
        holders = _equal_files(suite, holders)
    shared = sorted({tuple(names) for names in holders.values() if len(names) > 1}, key=len)
    if shared and not suite.allow_duplicates:
        most = sorted(shared[-1], key=lambda name: (training_step(name) is None, training_step(name) or 0, name))
        raise PlasticityError(
            f"revisions: {len(most)} checkpoints of '{suite.model}' have the same weights ({_some(most)}), so "
            "their names are wrong; choose others, or accept them with --allow_duplicates"
        )


def check_tokenizers(suite: SuiteConfig, found: Mapping[int, str]) -> None:
    """
    Check that the checkpoints of a folder have the same tokenizer, because they are compared on the same tokens.

    Raises:
        [`PlasticityError`]: Two checkpoints have different tokenizers.
    """
    if not Path(suite.model).is_dir():
        return
    holders: dict[bytes, str] = {}
    for name in found.values():
        path = Path(suite.model) / name / "tokenizer.json"
        if path.exists():
            holders.setdefault(hashlib.sha256(path.read_bytes()).digest(), name)
    if len(holders) > 1:
        raise PlasticityError(
            f"tokenizer: checkpoints of '{suite.model}' have different tokenizers ({_some(list(holders.values()))}); "
            "choose one with --tokenizer"
        )


def _files_on_the_hub(suite: SuiteConfig, name: str) -> list[str]:
    """The hashes of the weight files of a checkpoint, without downloading them."""
    try:
        tree = list(HfApi().list_repo_tree(suite.model, revision=name))
    except Exception as error:
        raise _explained(suite, error) from None
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    weights = _weights(suite, name, list(files))
    return [files[path].lfs.sha256 if files[path].lfs else files[path].blob_id for path in weights]


def _local_files(suite: SuiteConfig, name: str) -> list[tuple[int, bytes]]:
    """The size, the first and the last bytes of the weight files of a checkpoint: fast to read and rarely equal."""
    folder = Path(suite.model) / name
    files = [path.name for path in folder.iterdir() if path.is_file()]
    return [_ends(folder / path) for path in _weights(suite, name, files)]


def _weights(suite: SuiteConfig, name: str, files: list[str]) -> list[str]:
    """The weight files of a checkpoint in a supported format."""
    weights = fnmatch.filter(files, WEIGHTS)
    if not weights:
        others = sorted(path for path in files if path.endswith((".bin", ".pt", ".msgpack", ".h5")))
        raise DamagedCheckpointError(
            f"revisions: '{name}' of '{suite.model}' has no safetensors"
            + (f", only {_some(others)}, which may contain code and is not supported" if others else "")
        )
    return weights


def _ends(path: Path) -> tuple[int, bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return size, digest.digest()


def _equal_files(suite: SuiteConfig, holders: Mapping[Any, list[str]]) -> dict[str, list[str]]:
    """The checkpoints with equal files, among those whose files begin and end with the same bytes."""
    suspects = {name for names in holders.values() if len(names) > 1 for name in names}
    alike = defaultdict(list)
    for name in suspects:
        for path in sorted((Path(suite.model) / name).glob(WEIGHTS)):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(END_BYTES):
                    digest.update(chunk)
            alike[digest.hexdigest()].append(name)
    return alike


def load_model(name_or_path: str | os.PathLike, revision: str | None = None) -> PreTrainedModel:
    """
    Load a causal language model in float32.

    Args:
        name_or_path (`str` or `os.PathLike`): A repository on the Hub, or a folder.
        revision (`str`, *optional*): A branch, tag or commit of the repository.

    Raises:
        [`DamagedCheckpointError`]: It cannot be loaded, its files are not those that were saved, or weights are
            missing: Transformers would initialize them at random.
    """
    shown = f"'{name_or_path}'" if revision is None else f"'{revision}' of '{name_or_path}'"
    if revision is None and (damage := find_damage_of_model(name_or_path)) is not None:
        raise DamagedCheckpointError(f"model: {shown} is damaged: {damage}; restore it from a backup, or delete it")
    options = {} if revision is None else {"revision": revision}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        explanation = explain_hub_error(str(name_or_path), "model", error) or one_line(error)
        raise DamagedCheckpointError(f"model: {shown} cannot be loaded: {explanation}") from None
    missing = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DamagedCheckpointError(f"model: {shown} lacks weights that its configuration requires ({names})")
    return model
