"""The search spaces of arguments for `hf-plasticity compare`."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Search(Protocol):
    """The values that are tried. `str()` describes them."""

    def draw(self, generator: np.random.Generator, task_steps: int) -> Any:
        """
        One value.

        Args:
            generator (`np.random.Generator`): The source of random numbers.
            task_steps (`int`): Optimizer steps of a task instance.
        """


@dataclass(frozen=True)
class LogUniform:
    """
    Numbers between two bounds, drawn log-uniformly, with three significant digits.

    Args:
        low (`float`): The lower bound, above 0.
        high (`float`): The upper bound.
    """

    low: float
    high: float

    def draw(self, generator: np.random.Generator, task_steps: int) -> float:
        return float(f"{math.exp(generator.uniform(math.log(self.low), math.log(self.high))):.3g}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, log-uniform"


@dataclass(frozen=True)
class Uniform:
    """
    Numbers between two bounds, drawn uniformly, with three significant digits.

    Args:
        low (`float`): The lower bound.
        high (`float`): The upper bound.
    """

    low: float
    high: float

    def draw(self, generator: np.random.Generator, task_steps: int) -> float:
        return float(f"{generator.uniform(self.low, self.high):.3g}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, uniform"


@dataclass(frozen=True)
class Steps:
    """
    Numbers of optimizer steps, drawn log-uniformly as shares of a task instance, so that they fit task instances of
    any length.

    Args:
        low (`float`): The lower bound, in task instances.
        high (`float`): The upper bound, in task instances.
        least (`int`, *optional*, defaults to 1): No fewer steps than this.
    """

    low: float
    high: float
    least: int = 1

    def draw(self, generator: np.random.Generator, task_steps: int) -> int:
        share = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return max(self.least, round(share * task_steps))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g} task instances, log-uniform"


@dataclass(frozen=True)
class Choice:
    """
    One of a few values, drawn uniformly.

    Args:
        values (`tuple`): The values.
    """

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator, task_steps: int) -> Any:
        return self.values[int(generator.integers(len(self.values)))]

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))
