"""Continual backpropagation: continuously replace a few units of low utility."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import PlasticityError
from ..network import Layer, local, shard_of
from .base import argument
from .search import LogUniform, Steps
from .units import UnitMitigation


TASK, STEP = "task", "step"


@dataclass(eq=False, kw_only=True)
class CBP(UnitMitigation):
    """
    Continual backpropagation: in every step, replace a small share of the hidden units with the lowest utility.

    uᵢ ← η uᵢ + (1 − η) · mean|w_out,i| · E|hᵢ|, and units are ranked by uᵢ / (1 − η^ageᵢ). A unit is eligible if its
    age is above the maturity. A layer replaces ⌊Σ ρ·eligible⌋ units, where the sum is over steps. A replaced unit has
    new incoming weights, outgoing weights 0, moments 0, utility 0 and age 0.

    Reference: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632
    (huggingface.co/papers/2306.13812); bias-corrected utility and compensation as in its code (lop).

    Relation: [`Redo`] resets all units below a threshold at once; CBP always replaces the lowest.

    Cost: one reading of h, one of the outgoing weights and one sum over processes in every step; one copy of the
    incoming matrices on the CPU.

    Limits: the rate is per task instance, because the usual rates per step replace every unit several times in a task
    instance of 10,000 steps. A new unit starts with outgoing weights 0, so its utility is meaningful only after the
    maturity.

    Args:
        replacement_rate (`float`, *optional*, defaults to 0.1):
            ρ, the share of the eligible units that is replaced in a task instance, or in a step. The code of the
            paper uses 1e-5 to 3e-4 per step, which is 0.1 to 2.9 in a task instance of 9,537 steps.
        rate_per (`str`, *optional*, defaults to `"task"`):
            `"task"` or `"step"`.
        utility_decay (`float`, *optional*, defaults to 0.99):
            η (lop).
        maturity (`int`, *optional*, defaults to 100):
            Optimizer steps before a unit is eligible (lop: 100 or 1,000).
        compensate (`bool`, *optional*):
            Whether the mean output of a replaced unit is added to the bias of the down projection, so that the mean
            output of the layer does not change. By default `True` if there is such a bias (lop).
        exact_moments (`bool`, *optional*, defaults to `False`):
            Whether Adam's bias correction of reset entries restarts; see [`UnitMitigation`].
    """

    name: ClassVar[str] = "cbp"
    reference: ClassVar[str] = "Dohare et al. 2024, huggingface.co/papers/2306.13812"

    replacement_rate: float = argument(
        0.1,
        "ρ: share of the eligible units replaced in a task instance (or step)",
        "lop: 1e-5 a step, in 9,537 steps",
        LogUniform(0.03, 3),
    )
    rate_per: str = argument(TASK, "task or step", "chosen here; lop: step")
    utility_decay: float = argument(0.99, "η: decay of the utility", "lop")
    maturity: int = argument(100, "optimizer steps before a unit is eligible", "lop (or 1000)", Steps(0.01, 0.1))
    compensate: bool | None = argument(
        None, "whether the output bias compensates the mean output; null: if there is a bias", "lop"
    )

    watched: ClassVar[tuple[str, ...]] = ("absolute", "signed")

    def check(self) -> None:
        self.require(self.rate_per in (TASK, STEP), "rate_per", f"{TASK} or {STEP}")
        self.require(self.replacement_rate > 0, "replacement_rate", "above 0")
        self.require(self.rate_per == TASK or self.replacement_rate <= 1, "replacement_rate", "at most 1 a step")
        self.require(0 <= self.utility_decay < 1, "utility_decay", "from 0 to below 1")
        self.require(self.maturity >= 0, "maturity", "0 or more")

    def start(self) -> None:
        super().start()
        if self.rate_per == TASK and self.task_steps is None:
            raise PlasticityError("task_steps: required by cbp with rate_per='task'; or use rate_per='step'")
        self.rho = self.replacement_rate / (self.task_steps if self.rate_per == TASK else 1)
        if self.rho > 1:
            raise PlasticityError(
                f"mitigation_args: replacement_rate of cbp is {self.replacement_rate} in a task instance of "
                f"{self.task_steps} steps and must be at most one in a step"
            )
        biases = [layer.units.output_bias is not None for layer in self.layers]
        if self.compensate and not all(biases):
            raise PlasticityError(
                f"mitigation_args: compensate of cbp requires a bias of the down projection, and "
                f"'{type(self.model).__name__}' has none"
            )
        self.compensates = all(biases) if self.compensate is None else self.compensate
        counts = [layer.units.count for layer in self.layers]
        self.utility, self.mean, self.age = (
            [torch.zeros(count, dtype=torch.float64) for count in counts] for _ in range(3)
        )
        self.due = [0.0] * len(counts)
        self._draws: dict[str, tuple[int, torch.Tensor]] = {}

    def observe(self, step: int, taken: list[dict[str, torch.Tensor]]) -> None:
        decay = self.utility_decay
        for number, (layer, one) in enumerate(zip(self.layers, taken)):
            contribution = self.outgoing_magnitudes(layer) * one["absolute"] / one["tokens"]
            self.age[number] += 1
            self.utility[number] = decay * self.utility[number] + (1 - decay) * contribution
            self.mean[number] = decay * self.mean[number] + (1 - decay) * one["signed"] / one["tokens"]

    def step_end(self, step: int) -> None:
        for number, layer in enumerate(self.layers):
            age = self.age[number]
            eligible = (age > self.maturity).nonzero().flatten()
            self.due[number] += self.rho * len(eligible)
            number_due = min(int(self.due[number]), len(eligible))
            if not number_due:
                continue
            self.due[number] -= number_due
            correction = 1 - self.utility_decay ** age[eligible]
            order = (self.utility[number][eligible] / correction).argsort(stable=True)
            units = eligible[order[:number_due]].sort().values
            if self.compensates:
                self._compensate(layer, units, (self.mean[number] / (1 - self.utility_decay**age))[units])
            # A unit is replaced at most once in the number of steps after which it is eligible again, so one draw is
            # enough for all units of these steps.
            self.reset(layer, units.tolist(), draw_step=step - step % (self.maturity + 1))
            for values in (self.utility, self.mean, self.age):
                values[number][units] = 0
            self.count(str(layer.index), len(units))
        super().step_end(step)

    def summary_details(self) -> dict[str, Any]:
        return {"rate_per_step": self.rho}

    def fresh(self, name: str, draw_step: int) -> torch.Tensor:
        known = self._draws.get(name)
        if known is None or known[0] != draw_step:
            known = self._draws[name] = (draw_step, super().fresh(name, draw_step))
        return known[1]

    @torch.no_grad()
    def _compensate(self, layer: Layer, units: torch.Tensor, means: torch.Tensor) -> None:
        """Add the mean output of some units to the bias of the down projection."""
        [outgoing] = layer.units.outgoing.slices(units)
        weights = outgoing.read().double().cpu()  # (units, width) or (width, units)
        removed = (weights * (means[:, None] if outgoing.dim == 0 else means)).sum(outgoing.dim)
        bias = layer.units.output_bias
        local(bias).add_(shard_of(removed, bias).to(local(bias)))

    def state(self) -> dict[str, Any]:
        return {"utility": self.utility, "mean": self.mean, "age": self.age, "due": self.due}

    def load_state(self, state: dict[str, Any]) -> None:
        self.utility, self.mean, self.age, self.due = (state[name] for name in ("utility", "mean", "age", "due"))
