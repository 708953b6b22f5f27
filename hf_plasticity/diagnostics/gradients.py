"""Measures of the gradient: its norm, its agreement between mini-batches, and units with small gradients."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..errors import PlasticityError
from ..network import Structure
from .config import DiagnosticsConfig
from .measure import Measure, name_gaps
from .units import UnitMagnitudes, unit_measure


NAMES = ("gradient_norm", "gradient_diversity", "optimization_readiness", "gradient_activity")


@dataclass
class GradientSummary:
    """
    A summary of the gradients of n mini-batches.

    Args:
        loss (`float`): L, the mean of the mini-batch losses.
        squared_norms (`list[float]`): ‖g_B‖² of each mini-batch.
        mean_squared_norms (`dict[str, float]`): For each parameter ‖·‖² of its part of ∇L, the mean of the g_B.
    """

    loss: float
    squared_norms: list[float]
    mean_squared_norms: dict[str, float]

    @property
    def norm(self) -> float:
        """‖∇L‖₂."""
        return math.sqrt(math.fsum(self.mean_squared_norms.values()))

    @property
    def diversity(self) -> float | None:
        """Σ‖g_B‖² / ‖Σ g_B‖²; `None` if the gradients cancel."""
        count, square = len(self.squared_norms), math.fsum(self.mean_squared_norms.values())
        return math.fsum(self.squared_norms) / (count**2 * square) if square else None

    @property
    def readiness(self) -> float:
        """‖∇L‖⁴ / (L · mean ‖g_B‖²); 0 where a denominator is 0."""
        denominator = self.loss * math.fsum(self.squared_norms) / len(self.squared_norms)
        return self.norm**4 / denominator if denominator else 0.0


def summarize_gradients(
    parameters: dict[str, nn.Parameter], losses: Iterable[Callable[[], torch.Tensor]]
) -> GradientSummary:
    """
    Compute the gradient of each mini-batch's loss, with one gradient and the sum in memory at a time.

    Args:
        parameters (`dict[str, nn.Parameter]`): The parameters to differentiate with respect to; `grad` is empty
            afterwards.
        losses (`Iterable[Callable[[], torch.Tensor]]`): For each mini-batch a function that computes its loss.
    """
    sums: dict[str, torch.Tensor] = {}
    values, squared_norms = [], []
    for loss_of in losses:
        for parameter in parameters.values():
            parameter.grad = None
        # backward() instead of autograd.grad(), because only backward() gathers gradients of sharded parameters
        # (FSDP2).
        loss = loss_of()
        loss.backward()
        values.append(loss.item())
        squared_norms.append(
            math.fsum(_squared_norm(parameter.grad) for parameter in parameters.values() if parameter.grad is not None)
        )
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                sums[name] = sums[name].add_(gradient) if name in sums else gradient.clone()
            parameter.grad = None
    count = len(values)
    return GradientSummary(
        loss=math.fsum(values) / count,
        squared_norms=squared_norms,
        mean_squared_norms={name: _squared_norm(total) / count**2 for name, total in sums.items()},
    )


def measure_gradients(
    model: PreTrainedModel,
    structure: Structure,
    config: DiagnosticsConfig,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
    targets: float | None = None,
) -> dict[str, Measure]:
    """
    Four measures from one backward pass over mini-batches B of `gradient_batch_size` sequences, with dropout off, with
    respect to all parameters that require a gradient, including embeddings. L is the mean next-token cross-entropy of
    all tokens in nats. It is the mean of the mini-batches' losses, each the sum over its tokens divided by the mean
    number of tokens of a mini-batch (`targets`, with padding), and g_B are their gradients.

    - `gradient_norm`: ‖∇L‖₂, overall and of each layer's parameters. From 0 up.
    - `gradient_diversity`: Σ‖g_B‖² / ‖Σ g_B‖² (Yin et al., huggingface.co/papers/1706.05699, definition 1, with
      mini-batches as the terms of the sum). At least 1/n (n equal gradients); 1 if they are orthogonal.
    - `optimization_readiness`: ‖∇L‖⁴ / (L · E‖g_B‖²), 0 where a denominator is 0 (huggingface.co/papers/2605.09044;
      the formula is from notes on the paper, a single source). From 0 up. With few mini-batches ‖∇L‖² is
      overestimated by the noise in it: compare only diagnoses with the same blocks and batch size.
    - `gradient_activity`: GraMa (huggingface.co/papers/2505.24061): the fraction of hidden units whose score
      E|∂L/∂hᵢ| / meanₖ E|∂L/∂hₖ| is at most τ, the expectation over tokens: ReDo's score with the gradient
      instead of the activation (our reading; the paper's threshold may differ from this τ). From 0 to 1.

    Cost: the time of three forward passes, and the memory of a training step without an optimizer (one more copy of
    the parameters for ∇L, and the logits of a mini-batch).

    Raises:
        [`PlasticityError`]: No parameter requires a gradient.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise PlasticityError(
            "measures: the gradient measures require parameters with requires_grad=True; all are frozen"
        )
    magnitudes = UnitMagnitudes(len(structure.layers))
    gaps = {layer.index: layer.gap for layer in structure.layers if layer.gap is not None}
    tokens: list[torch.Tensor | None] = [None]

    def watch(index: int):
        def add(gradient: torch.Tensor) -> None:
            rows = gradient.reshape(-1, gradient.shape[-1])
            magnitudes.add(index, rows if tokens[0] is None else rows[tokens[0].reshape(-1)])

        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].requires_grad:
                args[0].register_hook(add)
            else:
                gaps[index] = "no gradient reaches its hidden units, because all parameters before them are frozen"

        return hook

    def losses() -> Iterable[Callable[[], torch.Tensor]]:
        for input_ids, mask in batches:
            tokens[0] = None if mask is None else mask.bool()
            yield lambda: causal_lm_loss(model, input_ids, mask, targets)  # noqa: B023 (called before the next round)

    with ExitStack() as stack, torch.enable_grad():
        for layer in structure.layers:
            if layer.down_projection is not None:
                handle = layer.down_projection.register_forward_pre_hook(watch(layer.index))
                stack.callback(handle.remove)
        summary = summarize_gradients(parameters, losses())

    per_layer = [
        math.sqrt(
            math.fsum(
                square for name, square in summary.mean_squared_norms.items() if structure.layer_of(name) is layer
            )
        )
        for layer in structure.layers
    ]
    detail = {"mini_batches": len(summary.squared_norms), "sequences": config.gradient_batch_size}
    return {
        "gradient_norm": Measure(summary.norm, per_layer, detail=detail | {"loss": summary.loss}),
        "gradient_diversity": Measure(
            summary.diversity, detail=detail, undefined=None if summary.norm else "the mean gradient is zero"
        ),
        "optimization_readiness": Measure(summary.readiness, detail=detail | {"loss": summary.loss}),
        "gradient_activity": unit_measure(magnitudes.scores(), config.tau, name_gaps(gaps)),
    }


def causal_lm_loss(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    targets: float | None = None,
) -> torch.Tensor:
    """
    The mean next-token cross-entropy in nats, in float32.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`): Token ids.
        attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 0 for padding, which is neither input nor
            target.
        targets (`float`, *optional*): The number by which the sum over the predicted tokens is divided; by default
            that of these tokens.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
    labels = input_ids[:, 1:]
    if attention_mask is not None:
        labels = labels.masked_fill(~predicted(attention_mask), -100)
    logits, labels = logits.flatten(0, 1).float(), labels.flatten()
    if targets is None:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / targets


def predicted(attention_mask: torch.Tensor) -> torch.Tensor:
    """Which tokens after the first are predicted: those that are not padding and follow one that is not."""
    return (attention_mask[:, 1:] != 0) & (attention_mask[:, :-1] != 0)


def _squared_norm(tensor: torch.Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor.float())
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item() ** 2
