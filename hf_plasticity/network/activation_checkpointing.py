"""Activation checkpointing, enabled as the Trainer does."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel


def enable_activation_checkpointing(model: PreTrainedModel, settings: Mapping[str, Any] | None) -> None:
    """
    Recompute the activations of the layers in the backward pass.

    Args:
        model (`PreTrainedModel`): The model.
        settings (`Mapping[str, Any]`, *optional*): `TrainingArguments.activation_checkpointing_kwargs`:
            `every_n_layers`, `offload`, and the arguments of `torch.utils.checkpoint.checkpoint`.
    """
    arguments = dict(settings or {})
    options = {name: arguments.pop(name) for name in ("every_n_layers", "offload") if name in arguments}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(arguments or None, **options)
    else:  # its name before transformers 5.23
        model.gradient_checkpointing_enable(arguments or None, **options)
