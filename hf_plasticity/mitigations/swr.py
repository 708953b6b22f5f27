"""Selective weight reinitialization: resample the single weights with the lowest utility."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..network import local, optimizer_moments, shard_of, whole
from .base import Mitigation, argument
from .search import LogUniform, Steps


GRADIENT, MAGNITUDE, RANDOM = "gradient", "magnitude", "random"


@dataclass(eq=False, kw_only=True)
class SWR(Mitigation):
    """
    Selective weight reinitialization: every F steps, resample the weights with the lowest utility in each matrix.

    The utility of a weight is |w·g| with the gradient g of the step (`"gradient"`), |w| (`"magnitude"`) or a random
    number (`"random"`, a control). In each matrix of the decoder layers, the fraction φ with the lowest utility is
    drawn from the model's initial distribution. Fractions of a weight carry over to the next reset. The moments of
    these entries become 0.

    Reference: Hernandez-Garcia et al. 2025, "Reinitializing weights vs units for maintaining plasticity in neural
    networks" (huggingface.co/papers/2508.00212). Its code does not reset the optimizer's moments.

    Relation: in networks with layer normalization, resetting weights works better than resetting units ([`Redo`],
    [`CBP`]), according to the paper.

    Cost: |w·g| and a sort of each matrix every F steps. Under FSDP2, one matrix at a time is gathered.

    Limits: the gradient is that of one step. Embeddings, norms and biases do not change.

    Args:
        fraction (`float`, *optional*, defaults to 0.01):
            φ, the fraction of each matrix; chosen here, since the paper's values could not be verified.
        every (`int`, *optional*, defaults to 1000):
            F, optimizer steps between two resets; chosen here.
        utility (`str`, *optional*, defaults to `"gradient"`):
            `"gradient"`, `"magnitude"` or `"random"`.
        exact_moments (`bool`, *optional*, defaults to `False`):
            Whether Adam's bias correction of reset entries restarts. Requires one integer for each weight.
    """

    name: ClassVar[str] = "swr"
    reference: ClassVar[str] = "Hernandez-Garcia et al. 2025, huggingface.co/papers/2508.00212"
    resets_moments: ClassVar[bool] = True

    fraction: float = argument(
        0.01, "φ: fraction of each matrix that is resampled", "chosen here", LogUniform(0.001, 0.1)
    )
    every: int = argument(1000, "F: optimizer steps between two resets", "chosen here", Steps(0.03, 0.3))
    utility: str = argument(GRADIENT, "gradient |w·g|, magnitude |w|, or random", "the paper's code")
    exact_moments: bool = argument(
        False, "whether Adam's bias correction of reset entries restarts", "chosen here; the reference does not"
    )

    def check(self) -> None:
        self.require(0 < self.fraction <= 1, "fraction", "above 0 and at most 1")
        self.require(self.every >= 1, "every", "1 or more")
        self.require(self.utility in (GRADIENT, MAGNITUDE, RANDOM), "utility", "gradient, magnitude or random")

    def start(self) -> None:
        self.check_matrices()
        matrices = self.matrices()
        self.due = dict.fromkeys(matrices, 0.0)
        self.lowest: dict[str, torch.Tensor] = {}
        self.initialization.draw(next(iter(matrices)), self.seed)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if step % self.every:
            return
        for name, parameter in self.matrices().items():
            self.due[name] += self.fraction * parameter.numel()
            amount = int(self.due[name])
            self.due[name] -= amount
            if amount and parameter.grad is not None:
                order = self._utility(step, name, parameter).flatten().argsort(stable=True)
                self.lowest[name] = order[:amount].cpu()

    def _utility(self, step: int, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        if self.utility == RANDOM:
            return torch.rand(parameter.shape, generator=self.generator(step, name))
        weight = whole(parameter).float()
        return weight.abs() if self.utility == MAGNITUDE else (weight * whole(parameter.grad).float()).abs()

    @torch.no_grad()
    def step_end(self, step: int) -> None:
        touched = {}
        if self.lowest:
            self.changing()
        for name, parameter in self.matrices().items() if self.lowest else ():
            if name not in self.lowest:
                continue
            entries = torch.zeros(parameter.numel(), dtype=torch.bool)
            entries[self.lowest[name]] = True
            entries = entries.view(parameter.shape)
            weight = local(parameter)
            here = shard_of(entries, parameter).to(weight.device)
            fresh = shard_of(self.initialization.draw(name, self.seed, step), parameter)
            weight.copy_(torch.where(here, fresh.to(weight), weight))
            for moment in optimizer_moments(self.optimizer, parameter).values():
                local(moment).masked_fill_(here, 0)
            if self.exact_moments:
                self.entry_steps.add(name, parameter, entries)
            touched[name] = len(self.lowest[name])
        self.lowest = {}
        if touched:
            self.record(step, "reset", touched)

    def state(self) -> dict[str, Any]:
        return {"due": self.due}

    def load_state(self, state: dict[str, Any]) -> None:
        self.due = state["due"]
