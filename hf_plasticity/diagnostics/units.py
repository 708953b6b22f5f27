"""Dormant units: hidden units of the MLP that hardly activate."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from ..network import Structure
from .config import DiagnosticsConfig
from .measure import Measure, name_gaps
from .observer import Observer


# Fractions at or below each of these are recorded, so that another τ requires no new run.
TAU_GRID = (0.0, *(digit * 10.0**exponent for exponent in range(-6, 1) for digit in (1.0, 2.5, 5.0)), 10.0)


def unit_scores(magnitudes: torch.Tensor) -> torch.Tensor:
    """
    sᵢ = E|hᵢ| / meanₖ E|hₖ|: the score of each unit of a layer, mean 1 over the layer (Sokar et al.,
    huggingface.co/papers/2302.12902, definition 3.1). All zero in a layer without any active unit.

    Args:
        magnitudes (`torch.Tensor` of shape `(units,)`): E|hᵢ|, the mean over tokens.
    """
    mean = magnitudes.mean()
    return torch.zeros_like(magnitudes) if mean == 0 else magnitudes / mean


def fraction_at_or_below(scores: torch.Tensor, tau: float) -> float:
    """The fraction of units whose score is at most τ; NaN if a score is NaN."""
    return torch.nan if scores.isnan().any() else (scores <= tau).double().mean().item()


def unit_measure(scores: list[torch.Tensor | None], tau: float, gap: str | None) -> Measure:
    """
    The fraction of units with a score of at most τ: per layer, and overall among all units of the measured layers.

    Args:
        scores (`list[torch.Tensor | None]`): For each layer the score of each unit.
        tau (`float`): The threshold.
        gap (`str`, *optional*): Why layers have no scores.
    """
    measured = [layer for layer in scores if layer is not None]
    return Measure(
        overall=fraction_at_or_below(torch.cat(measured), tau) if measured else None,
        per_layer=[None if layer is None else fraction_at_or_below(layer, tau) for layer in scores],
        detail={
            "tau": tau,
            "units": [None if layer is None else len(layer) for layer in scores],
            "tau_grid": list(TAU_GRID),
            "fraction_at_or_below": [
                None if layer is None else [round(fraction_at_or_below(layer, grid), 6) for grid in TAU_GRID]
                for layer in scores
            ],
        },
        scores=scores,
        gap=gap,
    )


class UnitMagnitudes:
    """
    The sum of |x| over tokens for each unit of each layer, in float64.

    Args:
        num_layers (`int`): Decoder layers.
    """

    def __init__(self, num_layers: int):
        self.sums: list[torch.Tensor | None] = [None] * num_layers
        self.counts = [0] * num_layers

    def add(self, layer: int, rows: torch.Tensor) -> None:
        """Add the values (n, units) of n tokens."""
        magnitudes = rows.abs().sum(0, dtype=torch.float32).cpu().double()
        self.sums[layer] = magnitudes if self.sums[layer] is None else self.sums[layer] + magnitudes
        self.counts[layer] += len(rows)

    def scores(self) -> list[torch.Tensor | None]:
        """The score of each unit of each layer."""
        return [
            None if total is None or count == 0 else unit_scores(total / count)
            for total, count in zip(self.sums, self.counts)
        ]


class UnitObserver(Observer):
    """
    `dormant_units`: the fraction of MLP hidden units, after the activation, whose score `unit_scores` is at most τ;
    the expectation is over every token of every sequence. In a gated MLP a unit is act(gate)·up.

    Range 0 to 1. Cost: one pass over the hidden units, negligible compared with the forward pass.
    """

    names = ("dormant_units",)

    def __init__(self, model: PreTrainedModel, structure: Structure, config: DiagnosticsConfig):
        super().__init__(model, structure, config)
        self.magnitudes = UnitMagnitudes(len(self.structure.layers))

    @contextmanager
    def watch(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self.structure.layers:
                if layer.down_projection is not None:
                    handle = layer.down_projection.register_forward_pre_hook(self._hook(layer.index))
                    stack.callback(handle.remove)
            yield

    def measures(self) -> dict[str, Measure]:
        gaps = {layer.index: layer.gap for layer in self.structure.layers if layer.gap is not None}
        return {"dormant_units": unit_measure(self.magnitudes.scores(), self.config.tau, name_gaps(gaps))}

    def _hook(self, index: int) -> Callable:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.magnitudes.add(index, self.rows(args[0]))

        return hook
