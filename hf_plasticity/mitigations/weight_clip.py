"""Weight clipping: keep every weight within the range of its initialization."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..network import local
from .base import Mitigation, argument, sum_of_shards
from .search import LogUniform


@dataclass(eq=False, kw_only=True)
class WeightClip(Mitigation):
    """
    Weight clipping: after every step, clamp the matrices of the decoder layers to the range of their initialization.

    |w| ≤ κ·√3·σ, where σ is the standard deviation of the matrix's initial distribution. For a uniform distribution,
    √3·σ is its bound: κ / √fan_in with PyTorch's initialization, as in the paper. For GPT-2's normal distribution,
    κ = 1 clips 8.3% of the weights at initialization.

    Reference: Elsayed et al. 2024, "Weight Clipping for Deep Continual and Reinforcement Learning"
    (huggingface.co/papers/2407.01704).

    Cost: one pass over the matrices in every step.

    Limits: embeddings, norms and biases are not clipped. σ is estimated from one draw of the whole matrix (within 1%
    for 5,000 entries).

    Args:
        kappa (`float`, *optional*, defaults to 3.0):
            κ; chosen here, the middle of the 1 to 5 in the paper's code.
    """

    name: ClassVar[str] = "weight_clip"
    reference: ClassVar[str] = "Elsayed et al. 2024, huggingface.co/papers/2407.01704"

    kappa: float = argument(
        3.0,
        "κ: bound, in units of √3·σ of the initial distribution",
        "chosen here (the paper: 1 to 5)",
        LogUniform(1, 5),
    )

    def check(self) -> None:
        self.require(self.kappa > 0, "kappa", "above 0")

    def start(self) -> None:
        self.check_matrices()
        self.bounds = {
            name: self.kappa * math.sqrt(3) * self.initialization.draw(name, seed=0).std().item()
            for name in self.matrices()
        }

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        clipped = {}
        for name, parameter in self.matrices().items():
            weight, bound = local(parameter), self.bounds[name]
            clipped[name] = (weight.abs() > bound).sum()
            weight.clamp_(-bound, bound)
        amounts = sum_of_shards(torch.stack(list(clipped.values())), parameter)
        for name, amount in zip(clipped, amounts):
            self.count(name, amount)
