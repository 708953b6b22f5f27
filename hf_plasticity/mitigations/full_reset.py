"""The control for resets: a new model for every task instance."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..network import local, shard_of
from .base import Mitigation


@dataclass(eq=False, kw_only=True)
class FullReset(Mitigation):
    """
    The control for resets: reinitialize all weights at the end of every task instance.

    This includes embeddings, norms and biases, and resets the optimizer. The model cannot lose plasticity, and it
    keeps nothing from earlier task instances.

    Reference: a control; there is no paper.

    Cost: one pass over the weights in a task instance.

    Limits: requires task instances, and a model in which all parameters are trained.
    """

    name: ClassVar[str] = "full_reset"
    reference: ClassVar[str] = "a control"
    requires_tasks: ClassVar[bool] = True
    resets_moments: ClassVar[bool] = True

    def start(self) -> None:
        self.check_trained(dict(self.model.named_parameters()))
        for name in dict(self.model.named_parameters()):
            self.initialization.draw(name, self.seed)

    @torch.no_grad()
    def task_end(self, step: int) -> None:
        touched = {}
        self.changing()
        for name, parameter in self.trained().items():
            weight = local(parameter)
            weight.copy_(shard_of(self.initialization.draw(name, self.seed, step), parameter))
            self.restart_moments(parameter)
            touched[name] = parameter.numel()
        self.record(step, "reset", touched)
