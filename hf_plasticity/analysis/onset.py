"""When a run begins to lose plasticity, read off its probe records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PlasticityError
from ..metrics.plasticity_onset.definition import RULES, plasticity_onset
from ..metrics.probe_auc.definition import probe_auc


SCATTER_PROBES = 5
# Of a normal distribution, the standard deviation over the median of the absolute values.
NORMAL_MEDIAN = 1.4826
COMPARABLE = ("language", "adaptation", "probe_config_hash")


@dataclass(frozen=True)
class Onset:
    """
    The onset of plasticity loss in a run.

    Args:
        task (`float`): The onset in task instances. Where `censored`, the last task seen: a lower bound.
        tokens (`float`): The training tokens at `task`, on a straight line between the probes around it.
        censored (`bool`): The run has not turned while it was watched.
        rule (`str`): The rule by which the onset was read off.
        at_first_probe (`bool`, *optional*, defaults to `False`): The curve rises from its first probe on: `task` is an
            upper bound.
    """

    task: float
    tokens: float
    censored: bool
    rule: str
    at_first_probe: bool = False

    def __str__(self) -> str:
        bound = "after " if self.censored else "by " if self.at_first_probe else ""
        return f"{bound}task {self.task:.4g} ({self.tokens:.3g} tokens)"


def find_onset(probes: Sequence[Mapping[str, Any]], rule: str = "turning_point", z: float = 3.0) -> Onset:
    """
    The onset of plasticity loss: the task instance from which the probe's area rises.

    The study (huggingface.co/papers/2606.24752) reads an onset off each curve of areas and leaves open by which rule.
    The rules offered here are ours, defined in `plasticity_onset`:

    - `"turning_point"`: the smallest area after which a larger one was seen.
    - `"zero_crossing"`: where ΔAUC comes back to zero after the dip, linearly interpolated between probes.
    - `"statistical"`: the first task from which on the area stays above its running minimum by more than `z` standard
      errors. Of 24 areas that only scatter about a flat level, it finds an onset in 5% of cases with the default `z`,
      and in 20% with a `z` of 2, since the smallest of many areas is small by chance; `turning_point` nearly always.

    The probe of the untrained model (task 0) is left out: it has nothing to lose yet, and its area lies far above all
    others. A run that has not turned gives a censored onset: its last task, a lower bound.

    Args:
        probes (`Sequence[Mapping]`): Probe records (`records.PROBE_FIELDS`) of one run, or of several seeds of it,
            told apart by their `seed` and then averaged task by task. A record may carry `repeats`, a list of loss
            curves on the steps `probe_steps`, one for each probe data seed; their mean area is then its area.
        rule (`str`, *optional*, defaults to `"turning_point"`): One of the three above.
        z (`float`, *optional*, defaults to 3.0): For `"statistical"`, how many standard errors are more than noise.
            The standard error of an area comes from the seeds where there are several, else from a record's
            `repeats`, else from its `auc_stderr`; where `probe_scatter` is larger, it is that. Repeats know the noise
            of the probe alone, and not that two checkpoints of one training differ for no lasting reason.

    Returns:
        [`Onset`]: In task instances and in tokens.

    Raises:
        [`PlasticityError`]: Records of different probes, a task probed twice by a seed or not by all seeds, a missing
            field, fewer than two probes of the trained model, no probe after cycle 1 for `"zero_crossing"`, or
            neither standard errors nor five probes for `"statistical"`.

    Example:

    ```python
    >>> from hf_plasticity.analysis.onset import find_onset

    >>> probe = {"language": "vi", "adaptation": "full", "probe_config_hash": "0", "seed": 0}
    >>> areas = {8: 100.0, 16: 90.0, 24: 95.0}
    >>> find_onset([probe | {"cycle": k // 8, "task": k, "tokens": k * 5e9, "auc": auc} for k, auc in areas.items()])
    Onset(task=16.0, tokens=80000000000.0, censored=False, rule='turning_point', at_first_probe=False)
    ```
    """
    _check_comparable(probes)
    if rule not in RULES:
        raise PlasticityError(f"rule: '{rule}' is not an onset rule; choose one of {', '.join(RULES)}")
    by_task = _by_task([probe for probe in probes if _field(probe, "task") > 0])
    tasks = sorted(by_task)
    if rule == "zero_crossing":
        first = [task for task in tasks if _field(by_task[task][0], "cycle") == 1]
        if not first:
            raise PlasticityError("probes: there is none after cycle 1, against which zero_crossing takes ΔAUC")
        tasks = [task for task in tasks if task >= first[0]]
    areas = [float(np.mean([_area(probe) for probe in by_task[task]])) for task in tasks]
    stderrs = _standard_errors(tasks, areas, by_task) if rule == "statistical" else None
    try:
        onset = plasticity_onset(tasks, areas, rule=rule, stderrs=stderrs, z=z)
    except ValueError as error:
        raise PlasticityError(str(error)) from None
    tokens = [float(np.mean([_field(probe, "tokens") for probe in by_task[task]])) for task in tasks]
    return Onset(
        task=onset["plasticity_onset"],
        tokens=float(np.interp(onset["plasticity_onset"], tasks, tokens)),
        censored=onset["censored"],
        rule=rule,
        at_first_probe=onset["at_first_probe"],
    )


def _check_comparable(probes: Sequence[Mapping[str, Any]]) -> None:
    for name in COMPARABLE:
        values = sorted({str(_field(probe, name)) for probe in probes})
        if len(values) > 1:
            raise PlasticityError(
                f"probes: records of different probes cannot be compared: {name} is {' and '.join(values)}; "
                "pass those of one probe"
            )


def _by_task(probes: Sequence[Mapping[str, Any]]) -> dict[float, list[Mapping[str, Any]]]:
    by_task: dict[float, dict[Any, Mapping[str, Any]]] = {}
    for probe in probes:
        task, seed = _field(probe, "task"), _field(probe, "seed")
        if seed in by_task.setdefault(task, {}):
            raise PlasticityError(f"probes: task {task} occurs twice with seed {seed}; pass the records of one run")
        by_task[task][seed] = probe
    seeds = {seed for seeds in by_task.values() for seed in seeds}
    for task, found in by_task.items():
        if missing := sorted(seeds - set(found)):
            raise PlasticityError(
                f"probes: task {task} has no probe with seed {missing[0]}; give every seed every task"
            )
    return {task: list(found.values()) for task, found in by_task.items()}


def _repeated_areas(probe: Mapping[str, Any]) -> list[float]:
    repeats = probe.get("repeats")
    if not repeats:
        return []
    try:
        return probe_auc(_field(probe, "probe_steps"), repeats)["probe_auc"]
    except ValueError as error:
        raise PlasticityError(f"probes: the repeats at task {probe['task']}: {error}") from None


def _area(probe: Mapping[str, Any]) -> float:
    repeated = _repeated_areas(probe)
    return float(np.mean(repeated)) if repeated else float(_field(probe, "auc"))


def probe_scatter(tasks: Sequence[float], areas: Sequence[float]) -> float | None:
    """
    By how much an area differs from the trend of its neighbours, as a standard deviation in the unit of the areas.

    Each area is compared with the straight line between the two beside it (Gasser, Sroka & Jennen-Steinmetz 1986,
    Biometrika 73, 625-633); the median of the differences keeps a bend of the curve, or one area that stands out, from
    being taken for noise.

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


def _standard_errors(
    tasks: list[float], areas: list[float], by_task: Mapping[float, list[Mapping[str, Any]]]
) -> list[float]:
    """What an area may be off by, by what is known of it: its repeats or seeds, and its neighbours."""
    scatter = probe_scatter(tasks, areas)
    stderrs = [_standard_error(by_task[task]) for task in tasks]
    for task, stderr in zip(tasks, stderrs):
        if stderr is None and scatter is None:
            raise PlasticityError(
                f"probes: the noise at task {task} is not known, which the statistical rule needs; pass five or more "
                "probes, several seeds, or records with two or more repeats or an auc_stderr"
            )
    return [max(stderr or 0.0, scatter or 0.0) for stderr in stderrs]


def _standard_error(probes: Sequence[Mapping[str, Any]]) -> float | None:
    sample = [_area(probe) for probe in probes] if len(probes) > 1 else _repeated_areas(probes[0])
    if len(sample) > 1:
        return float(np.std(sample, ddof=1) / math.sqrt(len(sample)))
    return probes[0].get("auc_stderr")


def _field(probe: Mapping[str, Any], name: str) -> Any:
    if probe.get(name) is None:
        raise PlasticityError(f"probes: the record of task {probe.get('task', '?')} has no {name}")
    return probe[name]
