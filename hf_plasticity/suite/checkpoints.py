"""The checkpoints of a suite: which there are, where in the training each lies, and whether they differ."""

import fnmatch
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..data.hub_errors import explain_hub_error, one_line
from ..errors import PlasticityError
from .config import SuiteConfig


WEIGHTS = "*.safetensors"


def place(name: str) -> int | None:
    """The training step in a checkpoint's name: the number after `step`, or else the last one; `None` without any."""
    numbers = re.findall(r"step[-_]?(\d+)", name) or re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def find_checkpoints(suite: SuiteConfig) -> dict[int, str]:
    """
    The checkpoints to probe by their step, in order.

    Raises:
        [`PlasticityError`]: A pattern that fits nothing, a name without a number, or two with the same.
    """
    if Path(suite.model).is_dir():
        there = sorted(path.name for path in Path(suite.model).iterdir() if (path / "config.json").exists())
    else:
        try:
            refs = HfApi().list_repo_refs(suite.model)
        except Exception as error:
            raise _explained(suite, error) from None
        there = [ref.name for ref in [*refs.branches, *refs.tags]]
    chosen = []
    for pattern in suite.revisions or ["*[0-9]*"]:
        fitting = fnmatch.filter(there, pattern)
        if not fitting:
            raise PlasticityError(
                f"revisions: '{suite.model}' has nothing by the name of '{pattern}'; it has {_some(there)}"
            )
        chosen += fitting
    found: dict[int, str] = {}
    for name in dict.fromkeys(chosen):
        step = place(name)
        if step is None:
            raise PlasticityError(f"revisions: '{name}' has no number in its name to place it by")
        if step in found:
            raise PlasticityError(f"revisions: '{found[step]}' and '{name}' are both of step {step}; name one of them")
        found[step] = name
    return {step: found[step] for step in sorted(found)[:: suite.every]}


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "none"


def _explained(suite: SuiteConfig, error: Exception) -> Exception:
    explanation = explain_hub_error(suite.model, "model", error)
    return error if explanation is None else PlasticityError(f"model: {explanation}")


def check_weights(suite: SuiteConfig, found: Mapping[int, str]) -> None:
    """
    See to it, before anything is downloaded or computed, that every checkpoint has weights that are loaded here, and
    none those of another: published suites have had branches with the weights of the final model in place of their own
    (EleutherAI/pythia, issues 205 and 206 on GitHub), and a curve through them looks like a training that it is not.

    Raises:
        [`PlasticityError`]: A checkpoint without safetensors, or several with the same file of weights.
    """
    holders = defaultdict(list)
    for name in found.values():
        for digest in _weights(suite, name):
            holders[digest].append(name)
    shared = sorted({tuple(names) for names in holders.values() if len(names) > 1}, key=len)
    if shared and not suite.allow_duplicates:
        most = shared[-1]
        raise PlasticityError(
            f"revisions: {len(most)} checkpoints of '{suite.model}' hold the same weights ({_some(list(most))}), so "
            "they are not what their names say; choose others, or add --allow_duplicates if it is meant"
        )


def _weights(suite: SuiteConfig, name: str) -> list[str]:
    """The hashes of a checkpoint's files of weights; on the Hub without downloading them."""
    if Path(suite.model).is_dir():
        folder = Path(suite.model) / name
        files = {path.name: path for path in folder.iterdir() if path.is_file()}
        digests = [_digest(path) for path in files.values() if fnmatch.fnmatch(path.name, WEIGHTS)]
        names = list(files)
    else:
        try:
            tree = list(HfApi().list_repo_tree(suite.model, revision=name))
        except Exception as error:
            raise _explained(suite, error) from None
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
        names = [file.path for file in files]
        digests = [
            file.lfs.sha256 if file.lfs else file.blob_id for file in files if fnmatch.fnmatch(file.path, WEIGHTS)
        ]
    if not digests:
        others = sorted(path for path in names if path.endswith((".bin", ".pt", ".msgpack", ".h5")))
        raise PlasticityError(
            f"revisions: '{name}' of '{suite.model}' has no safetensors"
            + (f", only {_some(others)}, which may hold code and is not loaded" if others else "")
        )
    return digests


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_checkpoint(suite: SuiteConfig, name: str) -> PreTrainedModel:
    """
    One model of the suite, in float32; from safetensors only, and without code of its own.

    Raises:
        [`PlasticityError`]: It cannot be loaded.
    """
    where = {"pretrained_model_name_or_path": suite.model, "revision": name}
    if Path(suite.model).is_dir():
        where = {"pretrained_model_name_or_path": os.path.join(suite.model, name)}
    try:
        return AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        explanation = explain_hub_error(suite.model, "model", error) or one_line(error)
        raise PlasticityError(f"revisions: '{name}' of '{suite.model}' cannot be loaded: {explanation}") from None
