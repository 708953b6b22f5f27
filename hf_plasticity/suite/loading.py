"""A checkpoint as a model: whole, and from nothing that could run code."""

import os

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..data.hub_errors import explain_hub_error, one_line
from ..errors import PlasticityError


def load_model(name_or_path: str | os.PathLike, revision: str | None = None) -> PreTrainedModel:
    """
    A causal language model in float32.

    Args:
        name_or_path (`str` or `os.PathLike`): A repository on the Hub, or a folder.
        revision (`str`, *optional*): A branch, tag or commit of the repository.

    Raises:
        [`PlasticityError`]: It cannot be loaded, or not all of it: what Transformers does not find in a checkpoint it
            makes up at random.
    """
    shown = f"'{name_or_path}'" if revision is None else f"'{revision}' of '{name_or_path}'"
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
        raise PlasticityError(f"model: {shown} cannot be loaded: {explanation}") from None
    missing = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise PlasticityError(f"model: {shown} lacks weights that its configuration asks for ({names})")
    return model
