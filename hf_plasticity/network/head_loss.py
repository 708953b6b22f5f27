"""
The loss of a causal language model without the logits of a whole batch.

Over a vocabulary of V tokens, the logits of a micro-batch of N tokens, their log-probabilities and their gradients
take about 12 bytes for each of N · V entries, nearly all of the memory of a small model. The fused loss computes the
output head, the loss and the gradients of both in chunks of tokens. It has the same matrix products as the plain loss:
the gradients are computed in the forward pass, and the backward pass scales them.
"""

import functools
import inspect
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._triton import has_triton
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from ..errors import PlasticityError
from .restore import evaluation_mode


AUTO, LOGITS, FUSED, FUSED_TRITON = "auto", "logits", "fused", "fused-triton"
HEAD_LOSSES = (AUTO, LOGITS, FUSED)
# From this size on, the logits take more memory than the blocks of the models in `MODEL_SIZES`.
FUSED_FROM_VOCABULARY = 16_384
# Logits in memory at a time: 512 MiB in float32. On a CPU, the time hardly depends on it. On a GPU, each chunk reads
# and writes the gradient of the head once, so fewer and larger chunks are better.
CHUNK_LOGITS = 2**27
CHUNK_MULTIPLE = 64


def use_head_loss(model: PreTrainedModel, mode: str = AUTO, device: torch.device | None = None) -> str:
    """
    Choose how a model computes `model(input_ids=..., labels=...).loss`, for all callers.

    A model without a `loss_type`, such as GPT-2, gets `"ForCausalLM"`. Call it before the model is wrapped by DDP,
    FSDP2, `torch.compile`, PEFT or Accelerate. All of them call the model's own `forward`, which this function
    replaces. Without `labels` the model returns its logits as before. With `labels`, the outputs of the fused loss
    have no `logits`. Weights, configuration and saved files do not change.

    The fused loss requires a model of Transformers that applies `ForCausalLMLoss` to the output of an `nn.Linear`,
    tied or not, with or without bias. A family that changes its logits afterwards (softcapping, logit scaling) is
    not supported. Both losses and their gradients agree up to rounding. Second derivatives require `"logits"`.

    Args:
        model (`PreTrainedModel`): A causal language model that is not wrapped, with its weights in memory.
        mode (`str`, *optional*, defaults to `"auto"`):
            - `"logits"`: the model's own loss, which keeps the logits of the whole micro-batch in memory.
            - `"fused"`: the loss in chunks of tokens.
            - `"auto"`: `"fused"` for a vocabulary of at least 16,384 tokens if the model supports it, `"logits"`
              otherwise.
        device (`torch.device`, *optional*): The device of the training; by default that of the model.

    Returns:
        `str`: The loss that is used: `"logits"`, `"fused"`, or `"fused-triton"`, which is `"fused"` on a CUDA
        device with Triton and a C compiler: `torch.compile` fuses what is computed between the matrix products.

    Raises:
        [`PlasticityError`]: An unknown mode, `"fused"` for an unsupported model, or a model that is already
            prepared by Accelerate.

    Example:

    ```python
    >>> use_head_loss(model, "fused")
    'fused'
    >>> model(input_ids=input_ids, labels=input_ids).loss.backward()
    >>> use_head_loss(model, "logits")
    'logits'
    ```
    """
    if mode not in HEAD_LOSSES:
        raise PlasticityError(f"head_loss: '{mode}' is unknown; choose one of {', '.join(HEAD_LOSSES)}")
    # GPT2LMHeadModel has no loss_type, and computes this loss with a warning (seen in transformers 5.23.0). The
    # Trainer counts the T - 1 predictions of a sequence only if a model has this type, and otherwise its T labels,
    # which scales loss and gradients by (T - 1) / T (https://github.com/huggingface/transformers/pull/46204).
    if model.loss_type is None:
        model.loss_type = "ForCausalLM"
    small = model.config.get_text_config().vocab_size < FUSED_FROM_VOCABULARY
    if mode == LOGITS or (mode == AUTO and small):
        _uninstall(model)
        return LOGITS
    triton = (device or model.device).type == "cuda" and has_triton() and _has_c_compiler()
    if _installed(model) is not None:
        _installed(model).triton = triton
    elif (obstacle := _obstacle(model)) is None:
        _install(model, triton)
    elif mode == AUTO:
        return LOGITS
    else:
        raise PlasticityError(
            f"head_loss: 'fused' is not supported for {type(model).__name__}, {obstacle}; choose 'logits' or 'auto'"
        )
    return FUSED_TRITON if triton else FUSED


def head_loss_of(model: PreTrainedModel) -> str:
    """The loss that a model computes: `"logits"` or `"fused"`."""
    return LOGITS if _installed(model) is None else FUSED


def head_loss_bytes(head_loss: str, tokens: int, vocab_size: int, width: int, bf16: bool = False) -> int:
    """
    The peak memory of the output head, the loss and their backward pass, in addition to the weights, the gradients in
    `.grad` and the hidden states.

    With `"logits"`, float32 log-probabilities and their gradient, and the gradient of the logits: 12 bytes for each
    token and entry of the vocabulary. Fused, 8 bytes (of which Triton saves 4) for each token of a chunk, and the
    gradient of the head, twice if the backward pass scales it; in bfloat16 also the head in this type.

    Args:
        head_loss (`str`): The result of [`use_head_loss`].
        tokens (`int`): Tokens in a micro-batch: sequences times context length.
        vocab_size, width (`int`): Rows and columns of the head.
        bf16 (`bool`, *optional*, defaults to `False`): Whether training is under autocast to bfloat16.

    Returns:
        `int`: Bytes.
    """
    if head_loss == LOGITS:
        return 12 * tokens * vocab_size
    head = vocab_size * width
    chunk = (4 if head_loss == FUSED_TRITON and bf16 else 8) * chunk_size(tokens, vocab_size) * vocab_size
    return max(4 * head + (2 * head if bf16 else 0) + chunk, 8 * head)


def _has_c_compiler() -> bool:
    """Whether there is a C compiler, with which Triton builds the launchers of its kernels."""
    return "CC" in os.environ or any(shutil.which(name) for name in ("cc", "gcc", "clang"))


def _obstacle(model: PreTrainedModel) -> str | None:
    """The reason why a model does not support the fused loss, found by a forward pass on four tokens."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return "whose output head is not an nn.Linear"
    if model.loss_function is not ForCausalLMLoss:
        return "whose loss is not ForCausalLMLoss"
    head_outputs, loss_inputs = [], []

    def loss(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss_inputs.append(logits)
        return logits.new_zeros(())

    hook = head.register_forward_hook(lambda module, args, output: head_outputs.append(output))
    model.loss_function = loss
    input_ids = torch.ones(1, 4, dtype=torch.long, device=model.device)
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=input_ids, use_cache=False)
    finally:
        hook.remove()
        del model._loss_function
    if len(head_outputs) == len(loss_inputs) == 1 and head_outputs[0] is loss_inputs[0]:
        return None
    return "whose loss does not only depend on the output of its head"


@dataclass
class _Fused:
    """The state that the replaced methods of a model and of its head share."""

    head: nn.Linear
    forward: Callable  # the function that replaces the model's
    triton: bool
    labelled: bool = False  # within a forward pass with labels


def _installed(model: PreTrainedModel) -> _Fused | None:
    return model.__dict__.get("_fused_head_loss")


def _install(model: PreTrainedModel, triton: bool) -> None:
    def forward(self: PreTrainedModel, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if labels is None:
            return type(self).forward(self, *args, **kwargs)
        fused = _installed(self)
        if self.get_output_embeddings() is not fused.head:
            raise PlasticityError(
                "head_loss: 'fused' requires an output head without adapters or a copy; "
                "leave it out of the adapted modules, or choose 'logits'"
            )
        fused.labelled = True
        try:
            outputs = type(self).forward(self, *args, labels=labels, **kwargs)
        finally:
            fused.labelled = False
        # The hidden states replace the logits.
        if isinstance(outputs, tuple):
            return outputs[:1] + outputs[2:]
        return type(outputs)(**{name: value for name, value in outputs.items() if name != "logits"})

    _check_not_prepared("forward" not in model.__dict__)
    # The Trainer reads a model's arguments from its signature.
    setattr(forward, "__signature__", inspect.signature(type(model).forward))  # noqa: B010
    head = model.get_output_embeddings()
    model._fused_head_loss = head._fused_head_loss = _Fused(head, forward, triton)
    # As methods, so that a copy of the model binds them to itself.
    model.forward = MethodType(forward, model)
    model.loss_function = MethodType(_loss_function, model)
    head.forward = MethodType(_head_forward, head)


def _uninstall(model: PreTrainedModel) -> None:
    fused = _installed(model)
    if fused is not None:
        _check_not_prepared(model.forward.__func__ is fused.forward)
        del model._fused_head_loss, model.forward, model._loss_function
        del fused.head._fused_head_loss, fused.head.forward


def _check_not_prepared(satisfied: bool) -> None:
    if not satisfied:
        raise PlasticityError(
            "head_loss: the model is already prepared by Accelerate, which wraps its forward; choose the loss before"
        )


def _head_forward(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The hidden states within a forward pass with labels, otherwise the logits."""
    return hidden if self._fused_head_loss.labelled else type(self).forward(self, hidden)


def _loss_function(
    self: PreTrainedModel,
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """`ForCausalLMLoss` of Transformers, with the hidden states `(batch, length, width)` instead of the logits."""
    fused, hidden = _installed(self), logits
    if not fused.labelled:
        raise ValueError("labels: must be given by name, as in model(input_ids=..., labels=...)")
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    if shift_labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels: {tuple(shift_labels.shape)} of them for {tuple(hidden.shape[:-1])} hidden states")
    targets = shift_labels.to(hidden.device).reshape(-1)
    loss = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), fused.head.weight, fused.head.bias, targets, ignore_index, fused.triton
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != ignore_index).sum()
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(hidden.device)
    return loss / num_items_in_batch


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    ignore_index: int = -100,
    triton: bool = False,
) -> torch.Tensor:
    """
    The sum of the cross-entropies of `targets` with the logits `hidden @ weight.T + bias`, computed in chunks of
    tokens.

    Under autocast the matrix products use its type, as in `nn.Linear`. The softmax and the sums over tokens use
    float32. Two calls with the same arguments give the same bits. There are no second derivatives.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, width)`): Last hidden states.
        weight (`torch.Tensor` of shape `(vocabulary, width)`): The weight of the output head.
        bias (`torch.Tensor` of shape `(vocabulary,)`, *optional*): The bias of the output head.
        targets (`torch.Tensor` of shape `(tokens,)`): Token ids, or `ignore_index`.
        ignore_index (`int`, *optional*, defaults to -100): Marks tokens that do not count.
        triton (`bool`, *optional*, defaults to `False`): Whether `torch.compile` fuses the operations between the
            matrix products.

    Returns:
        `torch.Tensor`: A float32 scalar, in nats.
    """
    if isinstance(weight, DTensor):
        raise PlasticityError(
            "head_loss: 'fused' requires the output head in FSDP2's root group, but it is a separate group; "
            "wrap only the transformer layers, or choose 'logits'"
        )
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    needed = [torch.is_grad_enabled() and one is not None and one.requires_grad for one in (hidden, weight, bias)]
    return _chunked(hidden, weight, bias, targets, ignore_index, dtype, *needed, triton)[0]


def chunk_size(tokens: int, vocab_size: int) -> int:
    """Tokens in a chunk: as few chunks of (nearly) equal size as `CHUNK_LOGITS` allows."""
    chunks = math.ceil(tokens * vocab_size / CHUNK_LOGITS)
    return min(tokens, math.ceil(tokens / chunks / CHUNK_MULTIPLE) * CHUNK_MULTIPLE)


# One operator for `torch.compile`: if it traced into this function, its partitioner would keep the logits of all
# chunks for the backward pass.
@torch.library.custom_op("hf_plasticity::linear_cross_entropy", mutates_args=())
def _chunked(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
    triton: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The summed loss and its gradients; gradients that are not required are empty."""
    gradient = needs_hidden or needs_weight or needs_bias
    chunk_loss = _compiled_chunk_loss() if triton else _chunk_loss
    loss = hidden.new_zeros((), dtype=torch.float32)
    d_hidden = hidden.new_empty(hidden.shape if needs_hidden else 0)
    d_weight = weight.new_zeros(weight.shape if needs_weight else 0, dtype=torch.float32)
    d_bias = weight.new_zeros(len(weight) if needs_bias else 0, dtype=torch.float32)
    head, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
    counted = targets != ignore_index
    targets = torch.where(counted, targets, 0)
    size = chunk_size(len(hidden), len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            x, keep = hidden[rows].to(dtype), counted[rows, None]
            losses, d_logits = chunk_loss(F.linear(x, head, offset), targets[rows], gradient)
            loss += torch.where(counted[rows], losses, 0).sum()
            # Tokens that do not count are left out of the products, which are smaller than the gradient of the logits.
            if needs_hidden:
                d_hidden[rows] = torch.where(keep, d_logits @ head, 0)
            if needs_weight and dtype == torch.float32:
                d_weight.addmm_(d_logits.T, x * keep)
            elif needs_weight:
                d_weight += d_logits.T @ (x * keep)
            if needs_bias:
                d_bias += counted[rows].to(dtype) @ d_logits
            del d_logits
    return loss, d_hidden, d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def _chunk_loss(
    logits: torch.Tensor, targets: torch.Tensor, gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Losses `(tokens,)`, and their gradient with respect to the logits `(tokens, vocabulary)`: the probabilities, minus
    1 for the target.
    """
    dtype, logits = logits.dtype, logits.float()
    log_probabilities = torch.log_softmax(logits, dim=-1)
    del logits
    losses = -log_probabilities.gather(1, targets[:, None])[:, 0]
    if not gradient:
        return losses, None
    d_logits = log_probabilities.exp_().to(dtype)
    # Not by `scatter_`, which on a CPU converts all of a bfloat16 tensor to float32 (seen in torch 2.13.0).
    d_logits[torch.arange(len(targets), device=targets.device), targets] = torch.expm1(-losses).to(dtype)
    return losses, d_logits


@functools.cache
def _compiled_chunk_loss() -> Callable:
    # Dynamic shapes, because otherwise the last chunk and the evaluation would be compiled separately.
    return torch.compile(_chunk_loss, dynamic=True)


@_chunked.register_fake
def _(hidden, weight, bias, targets, ignore_index, dtype, needs_hidden, needs_weight, needs_bias, triton):
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if needs_hidden else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
        weight.new_empty(len(weight) if needs_bias else 0),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.needs = inputs[6:9]
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, d_loss: torch.Tensor, *_: Any) -> tuple:
    if torch.is_grad_enabled():
        raise RuntimeError("the fused head loss has no second derivatives; choose head_loss='logits'")
    gradients = [d_loss * one if needed else None for one, needed in zip(ctx.saved_tensors, ctx.needs)]
    return (*gradients, *[None] * 7)


_chunked.register_autograd(_backward, setup_context=_setup_context)
