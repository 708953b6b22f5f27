"""Spectral regularization: keep the largest singular value of every matrix near its initial value."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..network import local, shard_offset, whole
from .base import Mitigation, argument, sum_of_shards
from .search import LogUniform


@dataclass(eq=False, kw_only=True)
class Spectral(Mitigation):
    """
    Spectral regularization, decoupled: after every step, move the largest singular value of each matrix toward its
    initial value.

    W ← W − η_t λ · 2k (σ₁ᵏ − σ₀ᵏ) σ₁^(k−1) u vᵀ: the gradient step of λ (σ₁ᵏ − σ₀ᵏ)² for the largest singular value
    σ₁ of the matrix with its vectors u and v, and σ₀ its value at `attach`. One power iteration in every step follows
    u and v.

    Reference: Lewandowski et al. 2025, "Learning Continually by Spectral Regularization"
    (huggingface.co/papers/2406.06811). The paper adds (σ₁ᵏ − 1)² to the loss and also regularizes biases and norms.
    Here the target is the initial value, which is not 1 in language models, and the step is decoupled from Adam, like
    weight decay in AdamW.

    Relation: [`WeightClip`] bounds single weights, [`L2Init`] the distance from the initial weights.

    Cost: two matrix-vector products for each matrix in every step, and one singular value decomposition of each at
    the start. Under FSDP2, two sums over processes for each matrix in every step.

    Limits: requires float32 weights. Only the largest singular value is regularized.

    Args:
        strength (`float`, *optional*, defaults to 0.1):
            λ; chosen here.
        exponent (`int`, *optional*, defaults to 2):
            k; the exponent of the paper could not be verified.
    """

    name: ClassVar[str] = "spectral"
    reference: ClassVar[str] = "Lewandowski et al. 2025, huggingface.co/papers/2406.06811"
    requires_float32: ClassVar[bool] = True

    strength: float = argument(
        0.1, "λ: strength of the regularization, times the learning rate", "chosen here", LogUniform(0.01, 1)
    )
    exponent: int = argument(2, "k: exponent of the singular value", "chosen here; the paper's is not verified")

    def check(self) -> None:
        self.require(self.strength > 0, "strength", "above 0")
        self.require(self.exponent >= 1, "exponent", "1 or more")

    def start(self) -> None:
        self.check_matrices()
        self.target: dict[str, float] = {}
        self.right: dict[str, torch.Tensor] = {}
        for name, parameter in self.matrices().items():
            _, values, right = torch.linalg.svd(whole(parameter), full_matrices=False)
            self.target[name], self.right[name] = values[0].item(), right[0].clone()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        rates, k = self.learning_rates(), self.exponent
        for name, parameter in self.matrices().items():
            left = _unit(self._times(parameter, self.right[name], transposed=False))
            image = self._times(parameter, left, transposed=True)
            sigma, right = image.norm(), _unit(image)
            self.right[name] = right
            slope = 2 * k * (sigma**k - self.target[name] ** k) * sigma ** (k - 1)
            rows, columns = (
                vector.narrow(0, start, length)
                for vector, start, length in zip((left, right), shard_offset(parameter), local(parameter).shape)
            )
            local(parameter).sub_(torch.outer(rows, columns) * (rates[id(parameter)] * self.strength * slope))
            self.count(name, 1)

    @staticmethod
    def _times(parameter: nn.Parameter, vector: torch.Tensor, transposed: bool) -> torch.Tensor:
        """W v, or Wᵀ v, of a matrix that may be sharded."""
        shard, offset = local(parameter), shard_offset(parameter)
        inner, outer = (0, 1) if transposed else (1, 0)
        product = vector.new_zeros(parameter.shape[outer])
        part = vector.narrow(0, offset[inner], shard.shape[inner])
        product.narrow(0, offset[outer], shard.shape[outer]).copy_((shard.T if transposed else shard) @ part)
        return sum_of_shards(product, parameter)

    def state(self) -> dict[str, Any]:
        return {"target": self.target, "right": {name: vector.cpu() for name, vector in self.right.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.target = state["target"]
        self.right = {name: vector.to(self.right[name]) for name, vector in state["right"].items()}


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
