"""The trials of each method: learning rate, weight decay and the arguments of the mitigation."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..mitigations import MITIGATIONS
from ..mitigations.search import LogUniform


BASELINE = "none"
# Searched for every method, including the baseline. The learning rate is a factor of the configured one.
LEARNING_RATE_FACTOR, WEIGHT_DECAY = LogUniform(1 / 3, 3), LogUniform(0.01, 1)


@dataclass(frozen=True)
class Trial:
    """
    One way to train with a method.

    Args:
        method (`str`): A key of `MITIGATIONS`, or `"none"`.
        number (`int`): From 0. Trial 0 has the default arguments, and learning rate and weight decay as configured.
        learning_rate (`float`): The learning rate of the training.
        weight_decay (`float`): The weight decay of the training.
        arguments (`dict`, *optional*): The arguments of the mitigation that differ from the defaults.
    """

    method: str
    number: int
    learning_rate: float
    weight_decay: float
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`redo-trial2`."""
        return f"{self.method}-trial{self.number}"

    def settings(self) -> list[str]:
        """The settings of `hf-plasticity train`."""
        words = [f"--learning_rate={self.learning_rate}", f"--weight_decay={self.weight_decay}"]
        if self.method != BASELINE:
            words.append(f"--mitigation={self.method}")
        if self.arguments:
            words.append(f"--mitigation_args={json.dumps({self.method: self.arguments})}")
        return words


def trials_of(method: str, count: int, learning_rate: float, weight_decay: float, task_steps: int) -> list[Trial]:
    """
    The trials of a method. Trial 0 is the given configuration with the default arguments. The others are random draws,
    which depend only on the method and the number of the trial. Learning rates and weight decays depend only on the
    number, so that all methods try the same ones.

    Args:
        method (`str`): A key of `MITIGATIONS`, or `"none"`.
        count (`int`): The number of trials.
        learning_rate (`float`): As configured.
        weight_decay (`float`): As configured.
        task_steps (`int`): Optimizer steps of a task instance.
    """
    trials = [Trial(method, 0, learning_rate, weight_decay)]
    for number in range(1, count):
        generator = _generator(BASELINE, number)
        rate = float(f"{learning_rate * LEARNING_RATE_FACTOR.draw(generator, task_steps):.3g}")
        decay = WEIGHT_DECAY.draw(generator, task_steps)
        trials.append(Trial(method, number, rate, decay, _arguments(method, number, task_steps)))
    return trials


def with_chosen_arguments(control: str, chosen: Trial) -> Trial:
    """The trial of a control that corresponds to the chosen trial of its method, with the same arguments."""
    return dataclasses.replace(chosen, method=control, arguments=_known_to(control, chosen.arguments))


def _arguments(method: str, number: int, task_steps: int) -> dict[str, Any]:
    if method == BASELINE:
        return {}
    if MITIGATIONS[method].control_of is not None:  # so that it has the same runs if its method is compared later
        return _known_to(method, _arguments(MITIGATIONS[method].control_of, number, task_steps))
    generator = _generator(method, number)
    searched = [one for one in dataclasses.fields(MITIGATIONS[method]) if one.metadata["search"] is not None]
    return {one.name: one.metadata["search"].draw(generator, task_steps) for one in searched}


def _known_to(control: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a method's arguments that its control has too."""
    known = {one.name for one in dataclasses.fields(MITIGATIONS[control])}
    return {name: value for name, value in arguments.items() if name in known}


def _generator(method: str, number: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{method}/{number}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
