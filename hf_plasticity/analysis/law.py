"""The power law between the size of a model and the onset of plasticity loss: the study's, and your own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import PlasticityError
from ..metrics.onset_law.definition import Line, onset_law, power_law_line, to_onset
from ..models import model_size
from .onset import Onset


# 9,537 optimizer steps of 524,288 tokens, as the study counts them.
TOKENS_PER_TASK = 5e9


@dataclass(frozen=True)
class Prediction:
    """
    The onset expected of one model.

    Args:
        task (`float`): In task instances.
        low, high (`float` or `None`): The interval for the onset of one model of this size at the law's level,
            including its scatter. `None` if the law has no interval.
        tokens (`float`): `task` in training tokens.
    """

    task: float
    low: float | None
    high: float | None
    tokens: float


@dataclass(frozen=True)
class OnsetLaw:
    """
    T = coefficient · P^exponent: the onset T in task instances for P non-embedding parameters.

    Args:
        coefficient, exponent (`float`): The law.
        coefficient_interval, exponent_interval (`tuple[float, float]`, *optional*): Confidence intervals at `level`;
            `None` with two measured onsets, from which the noise cannot be estimated.
        level (`float`, *optional*): Coverage of all intervals.
        sublinear_p_value (`float`, *optional*): From the one-sided test against an exponent of 1 or more. It is small
            if the onset grows less than proportionally with size.
        loo_errors (`dict[str, float]`, *optional*): Mean relative leave-one-out error of the models `power`, `linear`,
            `log-linear` and `exponential`; `None` with too few points to leave one out.
        tokens_per_task (`float`, *optional*, defaults to 5e9): Training tokens in a task instance.
    """

    coefficient: float
    exponent: float
    coefficient_interval: tuple[float, float] | None = None
    exponent_interval: tuple[float, float] | None = None
    level: float | None = None
    sublinear_p_value: float | None = None
    loo_errors: dict[str, float] | None = None
    tokens_per_task: float = TOKENS_PER_TASK
    _line: Line | None = field(default=None, repr=False)

    def predict(self, size: float | str) -> Prediction:
        """
        The onset of a model of this size.

        Args:
            size (`float` or `str`): Non-embedding parameters, or a name of `MODEL_SIZES`.

        Example:

        ```python
        >>> from hf_plasticity.analysis.law import PAPER_LAW

        >>> prediction = PAPER_LAW.predict(1e9)
        >>> f"task {prediction.task:.0f}, {prediction.tokens:.1e} tokens"
        'task 360, 1.8e+12 tokens'
        ```
        """
        parameters = _parameters(size)
        task = self.coefficient * parameters**self.exponent
        low = high = None
        if self.exponent_interval is not None:
            low, high = map(to_onset, self._line.interval(math.log(parameters), self.level))
        return Prediction(task=task, low=low, high=high, tokens=task * self.tokens_per_task)


# huggingface.co/papers/2606.24752, "Findings": eight sizes from 5M to 314M. It states no intervals.
PAPER_LAW = OnsetLaw(coefficient=1.3e-5, exponent=0.8269)


def fit_onset_law(
    sizes: Sequence[float | str],
    onsets: Sequence[float | Onset],
    censored: Sequence[bool] | None = None,
    level: float = 0.95,
    tokens_per_task: float = TOKENS_PER_TASK,
) -> OnsetLaw:
    """
    Fit the power law between size and onset. `onset_law` in `hf_plasticity.metrics` defines the fit, its intervals and
    the four models that are compared.

    Args:
        sizes (`Sequence[float | str]`): Non-embedding parameters, or names of `MODEL_SIZES`. A size may occur more
            than once, as with several seeds; the law and its intervals count sizes.
        onsets (`Sequence[float | Onset]`): Onsets in task instances, or results of `find_onset`. An [`Onset`] is its
            95% interval, or an upper or lower bound. A number is an exact onset.
        censored (`Sequence[bool]`, *optional*): Which onsets are lower bounds; an [`Onset`] has this information.
        level (`float`, *optional*, defaults to 0.95): Coverage of the intervals. docs/experiments.md has the measured
            coverage.
        tokens_per_task (`float`, *optional*, defaults to 5e9): Training tokens in a task instance of these runs.

    Returns:
        [`OnsetLaw`]: Without intervals if only two onsets were measured.

    Raises:
        [`PlasticityError`]: Fewer than two measured onsets at different sizes, lengths that differ, or a value that is
            not a positive number.

    Example:

    ```python
    >>> from hf_plasticity.analysis.law import PAPER_LAW, fit_onset_law

    >>> sizes = ["5M", "12M", "27M", "83M", "314M"]
    >>> law = fit_onset_law(sizes, [PAPER_LAW.predict(size).task for size in sizes])
    >>> round(law.exponent, 4)
    0.8269
    ```
    """
    tasks = [onset.task if isinstance(onset, Onset) else onset for onset in onsets]
    between = [
        one.bounds if isinstance(one, Onset) and one.bounds else (task, task) for one, task in zip(onsets, tasks)
    ]
    bounds = [isinstance(onset, Onset) and onset.censored for onset in onsets]
    if censored is not None:
        if len(censored) != len(bounds):
            raise PlasticityError(f"censored: {len(censored)} values, but onsets has {len(bounds)}; give one for each")
        bounds = [bound or bool(given) for bound, given in zip(bounds, censored)]
    if not tokens_per_task > 0:
        raise PlasticityError(f"tokens_per_task: {tokens_per_task} is not a positive number of tokens")
    parameters = [_parameters(size) for size in sizes]
    try:
        law = onset_law(parameters, tasks, bounds, between, level=level)
        line = power_law_line(parameters, tasks, bounds, between)
    except ValueError as error:
        raise PlasticityError(str(error)) from None
    return OnsetLaw(**law, level=level, tokens_per_task=tokens_per_task, _line=line)


def _parameters(size: float | str) -> float:
    parameters = model_size(size).num_non_embedding_parameters if isinstance(size, str) else float(size)
    if not 0 < parameters < math.inf:
        raise PlasticityError(f"sizes: {size} is not a positive number of non-embedding parameters")
    return float(parameters)
