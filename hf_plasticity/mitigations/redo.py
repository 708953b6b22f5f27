"""ReDo: reset dormant hidden units."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..diagnostics.units import unit_scores
from ..network import Layer
from .base import argument
from .search import LogUniform, Steps
from .units import UnitMitigation


@dataclass(eq=False, kw_only=True)
class Redo(UnitMitigation):
    """
    ReDo: every F steps, reset the hidden units that are dormant.

    sᵢ = E|hᵢ| / meanₖ E|hₖ|, over the tokens of the last W steps; unit i is reset if sᵢ ≤ τ. In a gated MLP
    h = act(gate)·up. The incoming weights are drawn from the initial distribution, and the outgoing weights and the
    moments of both become 0. If h is 0, the output of the model does not change.

    Reference: Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning"
    (huggingface.co/papers/2302.12902), section 4. The score is that of the diagnosis `dormant_units`.

    Relation: [`RandomReset`] resets as many units, chosen at random. [`CBP`] ranks units instead of thresholding.

    Cost: one reading of h in W of F steps, and one sum over processes in each of them.

    Limits: the score is relative to the layer, and a unit that is active on few tokens appears dormant. Padding tokens
    are included. With GELU, few units are exactly silent: without weight decay, check `dormant_units` before choosing
    τ.

    Args:
        threshold (`float`, *optional*, defaults to 0.025):
            τ. 0.025 and 0.1 in the PyTorch port timoklein/redo.
        every (`int`, *optional*, defaults to 1000):
            F, optimizer steps between two resets (timoklein/redo).
        window (`int`, *optional*, defaults to 10):
            W, optimizer steps over which the score is averaged; chosen here. The reference uses one batch.
        exact_moments (`bool`, *optional*, defaults to `False`):
            Whether Adam's bias correction of reset entries restarts; see [`UnitMitigation`].
    """

    name: ClassVar[str] = "redo"
    reference: ClassVar[str] = "Sokar et al. 2023, huggingface.co/papers/2302.12902"

    threshold: float = argument(
        0.025, "τ: units with a score of at most this are reset", "timoklein/redo (or 0.1)", LogUniform(0.01, 0.3)
    )
    every: int = argument(1000, "F: optimizer steps between two resets", "timoklein/redo", Steps(0.1, 1, least=10))
    window: int = argument(10, "W: optimizer steps that the score is averaged over", "chosen here")

    def check(self) -> None:
        self.require(self.threshold >= 0, "threshold", "0 or more")
        self.require(self.every >= 1, "every", "1 or more")
        self.require(1 <= self.window <= self.every, "window", f"between 1 and every = {self.every}")

    def start(self) -> None:
        super().start()
        self.sums: list[torch.Tensor] | None = None

    def watches(self, step: int) -> bool:
        return (step - 1) % self.every >= self.every - self.window

    def observe(self, step: int, taken: list[dict[str, torch.Tensor]]) -> None:
        # Every step has the same number of tokens, and gradient checkpointing counts both sums twice.
        means = [one[self.watched[0]] / one["tokens"] for one in taken]
        self.sums = means if self.sums is None else [a + b for a, b in zip(self.sums, means)]

    def step_end(self, step: int) -> None:
        if step % self.every == 0 and self.sums is not None:
            chosen = {}
            for layer, total in zip(self.layers, self.sums):
                flagged = (unit_scores(total) <= self.threshold).nonzero().flatten()
                units = self.choose(step, layer, flagged).tolist()
                if units:
                    self.changing()
                    self.reset(layer, units, draw_step=step)
                    chosen[str(layer.index)] = units
            self.sums = None
            if chosen:
                self.record(step, "reset", chosen)
        super().step_end(step)

    def choose(self, step: int, layer: Layer, flagged: torch.Tensor) -> torch.Tensor:
        """The units of a layer to reset, given those with a score of at most τ."""
        return flagged

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums = state["sums"]
