"""L2 Init: regularize toward the initial weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..network import local, shard_of, whole
from .base import Mitigation, argument
from .search import LogUniform


@dataclass(eq=False, kw_only=True)
class L2Init(Mitigation):
    """
    L2 Init, decoupled: after every step, pull all weights toward their initial values, instead of weight decay.

    w ← w − η_t λ (w − w₀), after the optimizer's update, with the optimizer's own weight decay set to 0.

    Reference: Kumar et al. 2023, "Maintaining Plasticity in Continual Learning via Regenerative Regularization"
    (huggingface.co/papers/2308.11958). The paper adds λ‖θ − θ₀‖² to the loss. Adam divides the gradient of such a
    term by √v, so this class uses the decoupled form, as in AdamW. The values of λ are not comparable between the two.

    Relation: [`ShrinkPerturb`] moves the weights once in a task instance. [`WeightDecay`] pulls them toward 0.

    Cost: one copy of the initial weights in memory and in every checkpoint; one pass over the weights in every step.

    Limits: requires float32 weights, because the pull would be lost to rounding. w₀ are the weights at `attach`.

    Args:
        strength (`float`, *optional*, defaults to 0.1):
            λ; chosen here: the usual value of weight decay. The coupled λ of the paper is 1e-2 to 1e-5.
    """

    name: ClassVar[str] = "l2_init"
    reference: ClassVar[str] = "Kumar et al. 2023, huggingface.co/papers/2308.11958"
    replaces_weight_decay: ClassVar[bool] = True
    requires_float32: ClassVar[bool] = True

    strength: float = argument(
        0.1, "λ: strength of the pull, times the learning rate", "chosen here", LogUniform(0.01, 1)
    )

    def check(self) -> None:
        self.require(self.strength > 0, "strength", "above 0")

    def start(self) -> None:
        self.check_trained(self.trained())
        self.initial = {name: parameter.detach().clone() for name, parameter in self.trained().items()}
        self.replace_weight_decay([group for group in self.optimizer.param_groups if "weight_decay" in group], 0.0)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        rates = self.learning_rates()
        for name, parameter in self.trained().items():
            weight, initial = local(parameter), local(self.initial[name])
            weight.sub_(weight - initial, alpha=rates[id(parameter)] * self.strength)
            self.count("parameters", parameter.numel())

    def state(self) -> dict[str, Any]:
        return {"initial": {name: whole(value).cpu() for name, value in self.initial.items()}}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for name, value in self.initial.items():
            local(value).copy_(shard_of(state["initial"][name], value))
