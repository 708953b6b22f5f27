"""GraMa: reset hidden units whose gradient is small."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..network import Layer
from .base import argument
from .redo import Redo
from .search import LogUniform, Steps


@dataclass(eq=False, kw_only=True)
class Grama(Redo):
    """
    ReGraMa: every F steps, reset the hidden units with a small gradient.

    gᵢ = E|∂L/∂hᵢ| / meanₖ E|∂L/∂hₖ|, over the tokens of the last W steps; unit i is reset if gᵢ ≤ τ. The reset is
    that of ReDo.

    Reference: Liu et al. 2025, "Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement
    learning" (huggingface.co/papers/2505.24061). The gradient is taken with respect to the unit's output h. AgileRL's
    port uses the gradient with respect to the pre-activation.

    Relation: [`Redo`] uses activations. A unit with outgoing weights 0 has g = 0 for any activation, so a reset unit
    would be reset again. Therefore a unit is not reset for `grace` steps after its reset.

    Cost: one reading of ∂L/∂h in W of F steps.

    Limits: the score is relative to the layer.

    Args:
        threshold (`float`, *optional*, defaults to 0.01):
            τ (the reference).
        every (`int`, *optional*, defaults to 1000):
            F, optimizer steps between two resets (the reference).
        window (`int`, *optional*, defaults to 10):
            W, optimizer steps that the score is averaged over; chosen here.
        grace (`int`, *optional*, defaults to 100):
            Optimizer steps after a reset in which a unit is not reset again; chosen here: with AdamW at 1e-3 the score
            reaches half of the layer's mean after 5 steps.
        exact_moments (`bool`, *optional*, defaults to `False`):
            Whether Adam's bias correction of reset entries restarts; see [`UnitMitigation`].
    """

    name: ClassVar[str] = "grama"
    reference: ClassVar[str] = "Liu et al. 2025, huggingface.co/papers/2505.24061"

    threshold: float = argument(
        0.01, "τ: units with a score of at most this are reset", "the reference", LogUniform(0.001, 0.1)
    )
    every: int = argument(1000, "F: optimizer steps between two resets", "the reference", Steps(0.1, 1, least=10))
    grace: int = argument(100, "optimizer steps after a reset in which a unit is not reset again", "chosen here")

    watched: ClassVar[tuple[str, ...]] = ("gradient",)

    def check(self) -> None:
        super().check()
        self.require(self.grace >= 0, "grace", "0 or more")

    def start(self) -> None:
        super().start()
        self.reset_at = [torch.full((layer.units.count,), -1) for layer in self.layers]

    def choose(self, step: int, layer: Layer, flagged: torch.Tensor) -> torch.Tensor:
        reset_at = self.reset_at[layer.index]
        free = (reset_at[flagged] < 0) | (step - reset_at[flagged] > self.grace)
        reset_at[flagged[free]] = step
        return flagged[free]

    def state(self) -> dict:
        return super().state() | {"reset_at": self.reset_at}

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        self.reset_at = state["reset_at"]
