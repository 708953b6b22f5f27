"""FIRE: replace every matrix by the nearest isometry at the end of a task instance."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers.pytorch_utils import Conv1D

from ..errors import PlasticityError
from ..network import Partition, find_structure, local, shard_of, whole
from .base import Mitigation, argument
from .search import Choice


NEWTON_SCHULZ, EXACT = "newton_schulz", "exact"


@dataclass(eq=False, kw_only=True)
class Fire(Mitigation):
    """
    FIRE: at the end of every task instance, replace the matrices of the decoder layers by their orthogonal factors.

    W ← √(out / in) · U Vᵀ, where W = U Σ Vᵀ. The factor is approximated by n Newton–Schulz iterations
    X ← 1.5 X − 0.5 X Xᵀ X from X = W / ‖W‖_F, or computed by a singular value decomposition. A fused matrix is divided
    into its blocks: queries, keys and values, gate and up projection.

    Reference: Han et al. 2026, "FIRE: Frobenius-Isometry Reinitialization for Balancing the Stability–Plasticity
    Tradeoff" (huggingface.co/papers/2602.08040).

    Relation: unlike [`ShrinkPerturb`] and [`FullReset`], it uses no random numbers and keeps directions.

    Cost: n matrix products of cubic cost in a task instance. Under FSDP2 one matrix at a time is gathered.

    Limits: requires task instances. Five iterations, as in the paper's code, do not give an isometry: the median
    singular value of a 320² matrix is then about a third of the target. About 30 iterations are required, or
    `method="exact"`. Embeddings and output head do not change. The optimizer state of the matrices is reset.

    Args:
        iterations (`int`, *optional*, defaults to 5):
            n, Newton–Schulz iterations (the paper's code).
        method (`str`, *optional*, defaults to `"newton_schulz"`):
            `"newton_schulz"` or `"exact"`.
    """

    name: ClassVar[str] = "fire"
    reference: ClassVar[str] = "Han et al. 2026, huggingface.co/papers/2602.08040"
    requires_tasks: ClassVar[bool] = True
    resets_moments: ClassVar[bool] = True

    iterations: int = argument(5, "n: Newton–Schulz iterations", "the paper's code", Choice((5, 10, 30)))
    method: str = argument(NEWTON_SCHULZ, "newton_schulz or exact (by SVD)", "the paper")

    def check(self) -> None:
        self.require(self.iterations >= 1, "iterations", "1 or more")
        self.require(self.method in (NEWTON_SCHULZ, EXACT), "method", f"{NEWTON_SCHULZ} or {EXACT}")

    def start(self) -> None:
        self.check_matrices()
        modules = {f"{name}.weight": module for name, module in self.model.named_modules()}
        # For each matrix: whether it is stored as (in, out), and the positions of each block along its outputs.
        self.transposed = {name: isinstance(modules[name], Conv1D) for name in self.matrices()}
        self.blocks: dict[str, list[torch.Tensor]] = {}
        for layer in find_structure(self.model).layers:
            if layer.heads is None or layer.units is None:
                raise PlasticityError(
                    f"model: fire requires the blocks of every matrix of '{type(self.model).__name__}', and layer "
                    f"{layer.index} is not known: {layer.heads_gap or layer.units_gap}"
                )
            for partition in (layer.heads.query, layer.heads.key, layer.heads.value):
                self._add(partition, partition.index.flatten())
            for partition in layer.units.incoming:
                for column in partition.index.unbind(1):
                    self._add(partition, column)

    def _add(self, partition: Partition, positions: torch.Tensor) -> None:
        self.blocks.setdefault(f"{partition.name}.weight", []).append(positions.sort().values)

    @torch.no_grad()
    def task_end(self, step: int) -> None:
        touched = {}
        self.changing()
        for name, parameter in self.matrices().items():
            weight = whole(parameter).float()
            if self.transposed[name]:
                weight = weight.T
            result = weight.clone()
            for rows in self.blocks.get(name, [torch.arange(len(weight))]):
                result[rows] = self.isometry(weight[rows])
            result = result.T if self.transposed[name] else result
            local(parameter).copy_(shard_of(result, parameter))
            self.restart_moments(parameter)
            touched[name] = parameter.numel()
        self.record(step, "isometry", touched)

    def isometry(self, weight: torch.Tensor) -> torch.Tensor:
        """The scaled orthogonal factor of a matrix `(out, in)`; of a zero matrix, itself."""
        if self.method == EXACT:
            u, _, vh = torch.linalg.svd(weight, full_matrices=False)
            factor = u @ vh
        else:
            factor = weight / weight.norm().clamp(min=torch.finfo(weight.dtype).tiny)
            tall = weight.shape[0] > weight.shape[1]
            factor = factor.T if tall else factor
            for _ in range(self.iterations):
                factor = 1.5 * factor - 0.5 * (factor @ factor.T) @ factor
            factor = factor.T if tall else factor
        return math.sqrt(weight.shape[0] / weight.shape[1]) * factor
