"""Active forgetting: reset the token embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..network import local, shard_of
from .base import Mitigation, argument
from .search import Steps


@dataclass(eq=False, kw_only=True)
class ActiveForgetting(Mitigation):
    """
    Active forgetting: every K steps, or at the end of task instances, reinitialize the token embeddings.

    The embeddings are drawn from the initial distribution, and their optimizer state is reset. The body of the model
    does not change.

    Reference: Chen et al. 2023, "Improving Language Plasticity via Pretraining with Active Forgetting"
    (huggingface.co/papers/2307.01163).

    Cost: one write of the embedding.

    Limits: an output head that is tied to the embedding is also reset. The authors advise against the method if there
    is much text in the new language. Position embeddings do not change.

    Args:
        every (`int`, *optional*, defaults to 1000):
            K, optimizer steps between two resets (the paper); `None` for the end of every task instance.
    """

    name: ClassVar[str] = "active_forgetting"
    reference: ClassVar[str] = "Chen et al. 2023, huggingface.co/papers/2307.01163"
    resets_moments: ClassVar[bool] = True

    every: int | None = argument(
        1000, "K: optimizer steps between two resets; null: at the end of tasks", "the paper", Steps(0.1, 1)
    )

    def check(self) -> None:
        self.require(self.every is None or self.every >= 1, "every", "1 or more, or null")

    @property
    def requires_tasks(self) -> bool:  # type: ignore[override]
        return self.every is None

    def start(self) -> None:
        weight = self.model.get_input_embeddings().weight
        [self.embedding] = [name for name, one in self.model.named_parameters() if one is weight]
        self.check_trained({self.embedding: weight})
        self.initialization.draw(self.embedding, self.seed)

    def step_end(self, step: int) -> None:
        if self.every is not None and step % self.every == 0:
            self._reset(step)

    def task_end(self, step: int) -> None:
        if self.every is None:
            self._reset(step)

    @torch.no_grad()
    def _reset(self, step: int) -> None:
        self.changing()
        parameter = self.trained()[self.embedding]
        local(parameter).copy_(shard_of(self.initialization.draw(self.embedding, self.seed, step), parameter))
        self.restart_moments(parameter)
        self.record(step, "reset", {self.embedding: parameter.numel()})
