"""Shrink and perturb: at the end of a task instance, mix the weights with fresh or initial ones."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..network import local, shard_of, whole
from .base import Mitigation, argument
from .search import LogUniform, Uniform


FRESH, INITIAL = "fresh", "initial"


@dataclass(eq=False, kw_only=True)
class ShrinkPerturb(Mitigation):
    """
    Shrink and perturb: at the end of every task instance, θ ← s θ + p θ', on the matrices of the decoder layers.

    θ' is drawn from the model's initial distribution (`toward="fresh"`), or θ' are the weights at the start of the
    training (`toward="initial"`).

    Reference: Ash & Adams 2020, "On Warm-Starting Neural Network Training" (huggingface.co/papers/1910.08475), with
    s = 0.4 and p = 0.1. Three published methods share the name. The second, (1 − λ) θ + λ θ₀ with λ = 0.5 or 0.8 (the
    GPT experiment of FIRE, huggingface.co/papers/2602.08040), is `toward="initial"` with s = 1 − λ and p = λ. The
    third, weight decay with noise in every step (lop), is not supported.

    Relation: (1, 0) changes nothing; (0, 1) is a reset of all matrices, see [`FullReset`].

    Cost: one pass over the matrices in a task instance; with `"initial"`, one copy of them in memory and in every
    checkpoint.

    Limits: requires task instances. Embeddings, norms, biases and the optimizer's moments do not change. In a
    continual run, every task instance starts with an empty optimizer anyway.

    Args:
        shrink (`float`, *optional*, defaults to 0.4):
            s, the factor of the current weights (Ash & Adams).
        perturb (`float`, *optional*, defaults to 0.1):
            p, the factor of the fresh or initial weights (Ash & Adams).
        toward (`str`, *optional*, defaults to `"fresh"`):
            `"fresh"` or `"initial"`.
    """

    name: ClassVar[str] = "shrink_perturb"
    reference: ClassVar[str] = "Ash & Adams 2020, huggingface.co/papers/1910.08475"
    requires_tasks: ClassVar[bool] = True

    shrink: float = argument(0.4, "s: factor of the current weights", "Ash & Adams 2020", Uniform(0.2, 0.95))
    perturb: float = argument(
        0.1, "p: factor of the fresh or initial weights", "Ash & Adams 2020", LogUniform(0.02, 0.5)
    )
    toward: str = argument(FRESH, "fresh or initial", "Ash & Adams 2020")

    def check(self) -> None:
        self.require(0 <= self.shrink <= 1, "shrink", "between 0 and 1")
        self.require(self.perturb >= 0, "perturb", "0 or more")
        self.require(self.toward in (FRESH, INITIAL), "toward", f"{FRESH} or {INITIAL}")

    def start(self) -> None:
        self.check_matrices()
        self.initial: dict[str, torch.Tensor] = {}
        for name, parameter in self.matrices().items():
            if self.toward == INITIAL:
                self.initial[name] = parameter.detach().clone()
            elif not self.initial:
                self.initialization.draw(
                    name, self.seed
                )  # report an unknown distribution now, not at the end of a task

    @torch.no_grad()
    def task_end(self, step: int) -> None:
        touched = {}
        self.changing()
        for name, parameter in self.matrices().items():
            if self.toward == INITIAL:
                other = local(self.initial[name])
            else:
                other = shard_of(self.initialization.draw(name, self.seed, step), parameter)
            weight = local(parameter)
            weight.mul_(self.shrink).add_(other.to(weight), alpha=self.perturb)
            touched[name] = parameter.numel()
        if (self.shrink, self.perturb) != (1, 0):
            self.record(step, "shrink_perturb", touched)

    def state(self) -> dict[str, Any]:
        return {"initial": {name: whole(value).cpu() for name, value in self.initial.items()}}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for name, value in self.initial.items():
            local(value).copy_(shard_of(state["initial"][name], value))
