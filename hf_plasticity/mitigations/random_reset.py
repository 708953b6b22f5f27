"""The control for ReDo: reset the same number of units, chosen at random."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..network import Layer
from .redo import Redo


@dataclass(eq=False, kw_only=True)
class RandomReset(Redo):
    """
    The control for ReDo: in each layer reset as many hidden units as ReDo would, chosen at random.

    The number in a layer is that of the units with sᵢ = E|hᵢ| / meanₖ E|hₖ| ≤ τ. The units are drawn uniformly from
    (seed, step, layer). If ReDo is not better than this control, its choice of units does not help.

    Reference: a control for [`Redo`] (huggingface.co/papers/2302.12902).

    Cost and limits: as for ReDo. Active units are also reset, so the loss rises at every reset.

    Args:
        threshold (`float`, *optional*, defaults to 0.025): τ, as in [`Redo`].
        every (`int`, *optional*, defaults to 1000): F, as in [`Redo`].
        window (`int`, *optional*, defaults to 10): W, as in [`Redo`].
        exact_moments (`bool`, *optional*, defaults to `False`): As in [`Redo`].
    """

    name: ClassVar[str] = "random_reset"
    control_of: ClassVar[str | None] = "redo"

    def choose(self, step: int, layer: Layer, flagged: torch.Tensor) -> torch.Tensor:
        order = torch.randperm(layer.units.count, generator=self.generator(step, layer.name))
        return order[: len(flagged)].sort().values
