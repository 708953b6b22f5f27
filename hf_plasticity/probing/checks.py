"""Checks of a model before it is probed."""

import re

import numpy as np
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..data.token_blocks import TokenBlocks
from ..errors import PlasticityError, one_line
from ..network import evaluation_mode, is_fsdp
from ..network.supported import check_gradients, check_sharding
from .config import ProbeConfig


# Length of the sequence with which a model is checked.
SAMPLE_TOKENS = 16
# Tolerance, relative to the largest logit, for the effect of later tokens in a causal model (rounding).
ROUNDING, LOW_PRECISION_ROUNDING = 1e-4, 2e-2


def without_compilation(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`."""
    return model._orig_mod if isinstance(model, OptimizedModule) else model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, `nn.DataParallel` and `torch.compile`."""
    model = without_compilation(model)
    return without_compilation(model.module) if isinstance(model, DistributedDataParallel | nn.DataParallel) else model


def without_adapters(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def precision(weights: torch.dtype) -> str:
    """The precision of a probe: `"float32"`, or `"float32, bf16 autocast"` under Accelerate's mixed precision."""
    autocast = AcceleratorState().mixed_precision if AcceleratorState._shared_state else "no"
    name = str(weights).removeprefix("torch.")
    return name if autocast == "no" else f"{name}, {autocast} autocast"


def check_model(model: nn.Module, train_blocks: TokenBlocks, eval_blocks: TokenBlocks, config: ProbeConfig) -> None:
    """
    Check that a model can be probed on these blocks. Every process that shares it must call this.

    The model is called three times on a few tokens and is not changed.

    Raises:
        [`PlasticityError`]: It has no trained parameters, already has adapters before a LoRA probe, does not fit the
            blocks, returns no loss, or is not a causal language model.
    """
    whole, model = model, unwrapped(model)
    check_sharding(model)
    check_gradients(model)
    _check_trained(model, config)
    if isinstance(without_adapters(model), PreTrainedModel):
        _check_kind(without_adapters(model))
        for blocks in (train_blocks, eval_blocks):
            _check_fit(without_adapters(model), blocks)
    device = next(model.parameters()).device
    sample = torch.as_tensor(eval_blocks[np.arange(1)], dtype=torch.long)[:, :SAMPLE_TOKENS].to(device)
    # Accelerate shards a model after its compilation, so that its root is the compiled module (seen in 1.15.0).
    called = whole if is_fsdp(model) else model
    with evaluation_mode(model), torch.no_grad():
        name = type(without_adapters(model)).__name__
        _check_loss(called, name, sample)
        if isinstance(without_adapters(model), PreTrainedModel):
            _check_causal(called, name, sample)


def _check_trained(model: nn.Module, config: ProbeConfig) -> None:
    if config.adaptation == "full" and not any(parameter.requires_grad for parameter in model.parameters()):
        raise PlasticityError(
            f"model: no parameter of '{type(model).__name__}' is trained; set requires_grad for some, or use the "
            "adaptation 'lora'"
        )
    if config.adaptation == "lora" and not isinstance(without_adapters(model), PreTrainedModel):
        raise PlasticityError(
            f"probe_adaptation: 'lora' requires a model of Transformers, not '{type(model).__name__}'; use 'full'"
        )
    # The second is set by `model.add_adapter`.
    if config.adaptation == "lora" and (isinstance(model, PeftModel) or model._hf_peft_config_loaded):
        raise PlasticityError(
            "probe_adaptation: 'lora' adds adapters, but the model already has adapters; use 'full', which trains the "
            "same parameters as the training"
        )
    if config.adaptation == "lora":
        _check_targets(model, config.lora_target_modules)


def _check_targets(model: nn.Module, targets: str | list[str]) -> None:
    """Check that a module gets an adapter, by the rules of PEFT."""
    if targets == "all-linear":
        return
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        found = any(re.fullmatch(targets, name) for name in names)
    else:
        found = any(name == target or name.endswith(f".{target}") for name in names for target in targets)
    if not found:
        raise PlasticityError(
            f"lora_target_modules: {targets!r} matches no module of '{type(model).__name__}'; choose others, or "
            "'all-linear'"
        )


def _check_kind(model: PreTrainedModel) -> None:
    name = type(model).__name__
    masked = name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    if model.config.is_encoder_decoder or masked:
        kind = "an encoder-decoder model" if model.config.is_encoder_decoder else "a masked language model"
        raise PlasticityError(f"model: '{name}' is {kind}; the probe requires a causal language model")


def _check_fit(model: PreTrainedModel, blocks: TokenBlocks) -> None:
    name, length = type(model).__name__, blocks[np.arange(1)].shape[1]
    if length < 2:
        raise PlasticityError(f"blocks: sequences of {length} token have nothing to predict; use 2 or more")
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise PlasticityError(f"blocks: sequences of {length} tokens; the context of '{name}' is {longest}")
    embedding = model.get_input_embeddings()
    if isinstance(blocks, np.ndarray | torch.Tensor) and isinstance(embedding, nn.Embedding):
        lowest, highest = int(blocks.min()), int(blocks.max())
        if lowest < 0 or highest >= embedding.num_embeddings:
            raise PlasticityError(
                f"blocks: token ids from {lowest} to {highest}; '{name}' supports 0 to {embedding.num_embeddings - 1}"
            )


def _check_loss(model: nn.Module, name: str, sample: torch.Tensor) -> None:
    try:
        loss = getattr(model(input_ids=sample, labels=sample), "loss", None)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise PlasticityError(
            f"model: '{name}' cannot be called with input_ids and labels alone ({type(error).__name__}: "
            f"{one_line(error)}); the probe requires a causal language model"
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise PlasticityError(
            f"model: '{name}' does not return the mean loss of its labels as `.loss`; the probe requires a causal "
            "language model"
        )


def _check_causal(model: nn.Module, name: str, sample: torch.Tensor) -> None:
    """Models such as `BertLMHeadModel` see later tokens unless they are configured as decoders."""
    other = sample.clone()
    other[:, -1] = int(sample[0, -1] == 0)
    logits = model(input_ids=sample).logits.float()
    change = (model(input_ids=other).logits.float() - logits)[:, :-1].abs().max()
    exact = precision(next(model.parameters()).dtype) in ("float32", "float64")
    if change > (ROUNDING if exact else LOW_PRECISION_ROUNDING) * logits.abs().max():
        raise PlasticityError(
            f"model: '{name}' predicts a token from the tokens after it; the probe "
            "requires a causal language model (an encoder with is_decoder=True in its configuration)"
        )
