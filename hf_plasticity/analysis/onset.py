"""The onset of plasticity loss, from the probe records of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PlasticityError
from ..metrics.plasticity_onset.definition import RULES, plasticity_onset
from ..metrics.plasticity_onset.rise import FEWEST_PROBES, STEEP_PROBES, noise_of
from ..metrics.probe_auc.definition import probe_auc


SCATTER_PROBES = 5
# The standard deviation of a normal distribution divided by the median of its absolute values.
NORMAL_MEDIAN = 1.4826
COMPARABLE = ("language", "adaptation", "probe_config_hash")

Probes = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Onset:
    """
    The onset of plasticity loss in a run, or in several seeds of it.

    Args:
        task (`float`): The onset in task instances. If `censored`, the last probed task, a lower bound.
        tokens (`float`): The training tokens at `task`, linearly interpolated between the probes around it.
        censored (`bool`): No onset was detected.
        rule (`str`): The rule by which the onset was determined.
        at_first_probe (`bool`, *optional*, defaults to `False`): The curve is lowest at its first probe: the onset may
            be earlier, and the upper end of `bounds` is an upper bound.
        between (`tuple[float, float]`, *optional*): The probes before and after it, in task instances; 0 before the
            first and infinity after the last.
        interval (`tuple[float, float]`, *optional*): The 95% interval; for the rule `"rise"`.
        p_value (`float`, *optional*): The p-value of the test for a rise; for the rule `"rise"`.
        detectable_rise (`float`, *optional*): The steady rise, in percent, that would have been detected with a
            probability of 80%; for the rule `"rise"`.
    """

    task: float
    tokens: float
    censored: bool
    rule: str
    at_first_probe: bool = False
    between: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    detectable_rise: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """What is known of the onset: its 95% interval if there is one, otherwise `between`."""
        return self.between if self.interval is None else self.interval

    @property
    def is_measured(self) -> bool:
        """Whether the onset is bounded on both sides."""
        low, high = self.bounds or (self.task, self.task)
        return not self.censored and low > 0 and math.isfinite(high)

    def __str__(self) -> str:
        before, beyond = "after " if self.censored else "", " or earlier" if self.at_first_probe else ""
        return f"{before}task {self.task:.4g}{beyond} ({self.tokens:.3g} tokens)"


def find_onset(probes: Probes | Sequence[Probes], rule: str = "rise", z: float = 3.0) -> Onset:
    """
    Find the onset of plasticity loss: the task instance after which the probe's area rises.

    The study (huggingface.co/papers/2606.24752) reports an onset for each curve but does not state its rule. These
    rules are ours, defined in `plasticity_onset`:

    - `"rise"`: a test whether the area rises by more than noise; if it does, the minimum of the smoothed curve.
    - `"turning_point"`: the smallest area, unless it is the last. It finds an onset in nearly every noisy curve.
    - `"zero_crossing"`: the task at which ΔAUC, relative to the first of these probes, returns to zero, linearly
      interpolated between probes.
    - `"statistical"`: the first task after which the area stays above its running minimum by more than `z` standard
      errors.

    The probe of the untrained model (task 0) is left out, because it cannot have lost plasticity. A run without a
    detected onset has a censored onset: its last task, a lower bound.

    Args:
        probes (`Sequence[Mapping]` or `Sequence[Sequence[Mapping]]`): Probe records (lines of `probes.jsonl`) of one
            run, or one such list for each of several runs that differ only by their seed. Seeds are averaged task by
            task, over the tasks that all of them have. `auc` is the area of a probe, and the mean over `repeats` if a
            record has them: loss curves on the steps `probe_steps`, one for each probe data seed.
        rule (`str`, *optional*, defaults to `"rise"`): One of the four above.
        z (`float`, *optional*, defaults to 3.0): For `"statistical"`, the number of standard errors that are more than
            noise. The standard error of an area is from the seeds if there are several, otherwise from a record's
            `repeats`, otherwise from its `auc_stderr`. `probe_scatter` is used if it is larger.

    Returns:
        [`Onset`]: In task instances and in tokens.

    Raises:
        [`PlasticityError`]: Records of different probes, a task probed twice in a run, a missing field, fewer than
            two probes of the trained model, too few to estimate the noise for `"rise"` (eight of one run, three of
            each of several), or neither standard errors nor five probes for `"statistical"`.

    Example:

    ```python
    >>> from hf_plasticity.analysis.onset import find_onset

    >>> probe = {"language": "vi", "adaptation": "full", "probe_config_hash": "0", "seed": 0}
    >>> areas = {8: (100.0, 101.0), 16: (90.0, 90.2), 24: (99.0, 99.8)}
    >>> seeds = [
    ...     [probe | {"cycle": k // 8, "task": k, "tokens": k * 5e9, "auc": auc[seed]} for k, auc in areas.items()]
    ...     for seed in (0, 1)
    ... ]
    >>> onset = find_onset(seeds)
    >>> onset.task, onset.between, onset.censored
    (16.0, (8.0, 24.0), False)
    ```
    """
    runs: list[Probes] = [probes] if not probes or isinstance(probes[0], Mapping) else list(probes)  # type: ignore
    _check_comparable([probe for run in runs for probe in run])
    if rule not in RULES:
        raise PlasticityError(f"rule: '{rule}' is not an onset rule; choose one of {', '.join(RULES)}")
    by_task = [_by_task([probe for probe in run if _field(probe, "task") > 0]) for run in runs]
    tasks = sorted(set.intersection(*map(set, by_task)))
    curves = [[_area(run[task]) for task in tasks] for run in by_task]
    stderrs = [_standard_errors(tasks, curves, by_task)] * len(runs) if rule == "statistical" else None
    try:
        onset = plasticity_onset(tasks, curves, rule=rule, together=True, stderrs=stderrs, z=z)
    except ValueError as error:
        raise PlasticityError(str(error)) from None
    tokens = [float(np.mean([_field(run[task], "tokens") for run in by_task])) for task in tasks]
    return Onset(
        task=onset["plasticity_onset"],
        tokens=float(np.interp(onset["plasticity_onset"], tasks, tokens)),
        rule=rule,
        **{name: onset[name] for name in ("censored", "at_first_probe", "between", "interval", "p_value")},
        detectable_rise=onset["detectable_rise"],
    )


def _check_comparable(probes: Probes) -> None:
    for name in COMPARABLE:
        values = sorted({str(_field(probe, name)) for probe in probes})
        if len(values) > 1:
            raise PlasticityError(
                f"probes: records of different probes cannot be compared: {name} is {' and '.join(values)}; "
                "pass those of one probe"
            )


def _by_task(probes: Probes) -> dict[float, Mapping[str, Any]]:
    by_task: dict[float, Mapping[str, Any]] = {}
    for probe in probes:
        task = _field(probe, "task")
        if task in by_task:
            raise PlasticityError(f"probes: task {task} occurs twice; give each run its own list of records")
        by_task[task] = probe
    return by_task


def _repeated_areas(probe: Mapping[str, Any]) -> list[float]:
    repeats = probe.get("repeats")
    if not repeats:
        return []
    try:
        return probe_auc(_field(probe, "probe_steps"), repeats)["probe_auc"]
    except ValueError as error:
        raise PlasticityError(f"probes: the repeats at task {probe['task']}: {error}") from None


def _area(probe: Mapping[str, Any]) -> float:
    return float(_field(probe, "auc"))


def probe_scatter(tasks: Sequence[float], areas: Sequence[float]) -> float | None:
    """
    The scatter of an area about the trend of its neighbors, as a standard deviation in the unit of the areas.

    Each area is compared with the straight line between the two beside it (Gasser, Sroka & Jennen-Steinmetz 1986,
    Biometrika 73, 625-633); the median of the differences is robust against a bend of the curve and against one
    outlier.

    Args:
        tasks (`Sequence[float]`): Task instances trained before each probe, increasing.
        areas (`Sequence[float]`): The area of each probe.

    Returns:
        `float`: `None` for fewer than five probes.
    """
    if len(areas) < SCATTER_PROBES:
        return None
    tasks, areas = np.asarray(tasks, dtype=np.float64), np.asarray(areas, dtype=np.float64)
    right = (tasks[1:-1] - tasks[:-2]) / (tasks[2:] - tasks[:-2])
    left = 1 - right
    aside = (left * areas[:-2] + right * areas[2:] - areas[1:-1]) / np.sqrt(left**2 + right**2 + 1)
    return float(NORMAL_MEDIAN * np.median(np.abs(aside)))


def change_error(tasks: Sequence[float], areas: Sequence[float]) -> float | None:
    """
    The standard error of the difference between two areas of a run, in the unit of the areas.

    The noise of an area is that of the test for a rise, which also holds for correlated noise. With fewer than ten
    probes, the test cannot tell a steep start from noise, so `probe_scatter` is used. Its coverage is simulated
    (docs/experiments.md).

    Args:
        tasks (`Sequence[float]`): Task instances (or steps) trained before each probe, increasing.
        areas (`Sequence[float]`): The area of each probe.

    Returns:
        `float`: `None` for fewer than eight probes.
    """
    if len(areas) < FEWEST_PROBES:
        return None
    if len(areas) < STEEP_PROBES:
        return math.sqrt(2) * probe_scatter(tasks, areas)
    return math.sqrt(2) * noise_of(np.array([areas], dtype=np.float64)).scatter


def _standard_errors(
    tasks: list[float], curves: list[list[float]], runs: Sequence[Mapping[float, Mapping[str, Any]]]
) -> list[float]:
    """
    The standard error of one area, from its repeats or seeds and its neighbors. With several seeds, the error of their
    mean times the root of their number.
    """
    scatter = probe_scatter(tasks, np.mean(curves, axis=0).tolist())
    stderrs = [_standard_error([run[task] for run in runs]) for task in tasks]
    for task, stderr in zip(tasks, stderrs):
        if stderr is None and scatter is None:
            raise PlasticityError(
                f"probes: the noise at task {task} is not known; the statistical rule requires five or more "
                "probes, several seeds, or records with two or more repeats or an auc_stderr"
            )
    return [math.sqrt(len(runs)) * max(stderr or 0.0, scatter or 0.0) for stderr in stderrs]


def _standard_error(probes: Probes) -> float | None:
    sample = [_area(probe) for probe in probes] if len(probes) > 1 else _repeated_areas(probes[0])
    if len(sample) > 1:
        return float(np.std(sample, ddof=1) / math.sqrt(len(sample)))
    return probes[0].get("auc_stderr")


def _field(probe: Mapping[str, Any], name: str) -> Any:
    if probe.get(name) is None:
        raise PlasticityError(f"probes: the record of task {probe.get('task', '?')} has no {name}")
    return probe[name]
