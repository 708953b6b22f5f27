"""Self-normalized resets: reset units that have been silent for unusually long."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import argument
from .search import LogUniform
from .units import UnitMitigation


BINS_PER_DOUBLING = 8


@dataclass(eq=False, kw_only=True)
class SNR(UnitMitigation):
    """
    Self-normalized resets (experimental): reset a hidden unit that has been silent for improbably long.

    A unit fires in a step if it is active on any token: h > 0 in a plain MLP, act(gate) > 0 in a gated one. For each
    unit, the lengths of the gaps between two firings are counted. A unit is reset if its current gap is at least as
    long as `patience`, and longer than τ_max or the (1 − η) quantile of its own gaps.

    Reference: Farias & Jozefiak 2024, "Self-Normalized Resets for Plasticity in Continual Learning"
    (huggingface.co/papers/2410.20098).

    Relation: [`Redo`] compares a unit with its layer, and SNR compares it with its own past.

    Cost: one reading of the activations and one sum over processes in every step; about 100 counts for each unit
    (logarithmic bins: the reference's 20,001 counts for each unit would be 6.6 GB in a model of 314M parameters).

    Limits: experimental. The reference counts sequences. This class counts steps, so that results do not depend on how
    a batch is divided. With GELU and thousands of tokens per step, nearly every unit fires in every step.

    Args:
        rejection (`float`, *optional*, defaults to 0.08):
            η, the probability below which a gap is improbable: 0.08 in one public port. Another takes the 0.9 quantile
            of the gaps, which is η = 0.1.
        max_gap (`int`, *optional*, defaults to 20000):
            τ_max, a gap in steps that is too long for every unit (public ports, there in sequences).
        patience (`int`, *optional*, defaults to 10):
            Gaps shorter than this are never too long; chosen here.
        exact_moments (`bool`, *optional*, defaults to `False`):
            Whether Adam's bias correction of reset entries restarts; see [`UnitMitigation`].
    """

    name: ClassVar[str] = "snr"
    reference: ClassVar[str] = "Farias & Jozefiak 2024, huggingface.co/papers/2410.20098 (experimental)"

    rejection: float = argument(
        0.08,
        "η: probability below which a gap is improbable",
        "a public port (another: the 0.9 quantile, η = 0.1)",
        LogUniform(0.01, 0.3),
    )
    max_gap: int = argument(20000, "τ_max: a gap in steps that is too long for every unit", "a public port")
    patience: int = argument(10, "gaps of fewer steps are never too long", "chosen here")

    watched: ClassVar[tuple[str, ...]] = ("fired",)

    def check(self) -> None:
        self.require(0 < self.rejection < 1, "rejection", "between 0 and 1")
        self.require(self.max_gap >= 1, "max_gap", "1 or more")
        self.require(1 <= self.patience <= self.max_gap, "patience", f"between 1 and max_gap = {self.max_gap}")

    def start(self) -> None:
        super().start()
        counts, bins = [layer.units.count for layer in self.layers], gap_bin(self.max_gap) + 1
        self.bins = torch.tensor([0, *(gap_bin(gap) for gap in range(1, self.max_gap + 1))])
        self.gap = [torch.zeros(count, dtype=torch.int64) for count in counts]
        self.histogram = [torch.zeros(count, bins, dtype=torch.int64) for count in counts]
        self.longest = torch.tensor([longest_gap(number) for number in range(bins)])

    def observe(self, step: int, taken: list[dict[str, torch.Tensor]]) -> None:
        for gap, histogram, one in zip(self.gap, self.histogram, taken):
            gap += 1
            fired = (one["fired"] > 0).nonzero().flatten()
            histogram[fired, self.bins[gap[fired].clamp(max=self.max_gap)]] += 1
            gap[fired] = 0

    def limits(self, number: int) -> torch.Tensor:
        """The gap in steps above which each unit of a layer is reset."""
        histogram = self.histogram[number]
        share = histogram.cumsum(1) / histogram.sum(1, keepdim=True).clamp(min=1)
        quantile = self.longest[(share >= 1 - self.rejection).int().argmax(1)]
        quantile[histogram.sum(1) == 0] = self.max_gap
        return quantile.clamp(min=self.patience - 1, max=self.max_gap)

    def step_end(self, step: int) -> None:
        chosen = {}
        for number, layer in enumerate(self.layers):
            if not (self.gap[number] >= self.patience).any():
                continue
            units = (self.gap[number] > self.limits(number)).nonzero().flatten()
            if len(units):
                self.changing()
                self.reset(layer, units.tolist(), draw_step=step)
                self.gap[number][units] = 0
                self.histogram[number][units] = 0
                chosen[str(layer.index)] = units.tolist()
        if chosen:
            self.record(step, "reset", chosen)
        super().step_end(step)

    def state(self) -> dict[str, Any]:
        return {"gap": self.gap, "histogram": self.histogram}

    def load_state(self, state: dict[str, Any]) -> None:
        self.gap, self.histogram = state["gap"], state["histogram"]


def gap_bin(gap: int) -> int:
    """The bin of a gap: one bin for each gap up to 16, then eight bins for each doubling."""
    doubling = max(0, (gap - 1).bit_length() - BINS_PER_DOUBLING.bit_length())
    return BINS_PER_DOUBLING * doubling + ((gap - 1) >> doubling)


def longest_gap(number: int) -> int:
    """The longest gap in a bin."""
    doubling = max(0, number // BINS_PER_DOUBLING - 1)
    return (number - BINS_PER_DOUBLING * doubling + 1) << doubling
