"""The task instance from which a model learns the probe language more slowly than it did before."""

from collections.abc import Sequence

import numpy as np


RULES = ("turning_point", "zero_crossing", "statistical")


def plasticity_onset(
    tasks: Sequence,
    aucs: Sequence,
    rule: str = "turning_point",
    reference: float | Sequence[float] | None = None,
    stderrs: Sequence | None = None,
    z: float = 3.0,
) -> dict[str, float | bool | list[float] | list[bool]]:
    """
    The onset of plasticity loss on a curve of probe areas over task instances.

    The study (huggingface.co/papers/2606.24752) reads an onset off each curve and leaves open by which rule. These
    three are ours:

    - `"turning_point"`: the task of the smallest AUC, where a later one is larger; of equal minima the last.
    - `"zero_crossing"`: where ΔAUC, negative since the dip, comes back to zero: the first crossing from below after
      the smallest AUC, on a straight line between the two probes around it.
    - `"statistical"`: the first task from which on every AUC lies above the smallest AUC before it by more than
      `z · sqrt(s_k² + s_min²)`, with s the standard errors of the two.

    A curve on which the rule finds nothing has not turned while it was watched: it is censored, and its last task is
    a lower bound of the onset, not a measurement. An onset at the first task is an upper bound: the curve rises from
    its first probe on, and what came before was not seen.

    Args:
        tasks (`Sequence[float]` or `Sequence[Sequence[float]]`): Task instances trained before each probe,
            increasing; without the untrained model, whose AUC lies above all others. For a batch of curves, one list
            for all of them or one for each.
        aucs (`Sequence[float]` or `Sequence[Sequence[float]]`): The area of each probe; a list of such lists is a
            batch of curves, which may differ in length.
        rule (`str`, *optional*, defaults to `"turning_point"`): One of the three above.
        reference (`float` or `Sequence[float]`, *optional*): For `"zero_crossing"`, the AUC after cycle 1; for a
            batch, one for all or one for each. The first AUC of the curve where it is not given.
        stderrs (`Sequence[float]` or `Sequence[Sequence[float]]`, *optional*): For `"statistical"`, the standard
            error of each AUC, in the shape of `aucs`.
        z (`float`, *optional*, defaults to 3.0): For `"statistical"`, how many standard errors of the difference
            count as more than noise.

    Returns:
        `dict`: `plasticity_onset`, in task instances; `censored`, whether it is the last task seen and a lower bound;
        `at_first_probe`, whether it is the first task seen and an upper bound. Lists for a batch.

    Raises:
        `ValueError`: An unknown rule, fewer than two points, lengths that differ, a value that is not finite, tasks
            that do not increase, a `z` that is not positive, or a statistical rule without standard errors.

    Example:

    ```python
    >>> plasticity_onset(tasks=[8, 16, 24, 32], aucs=[100.0, 90.0, 95.0, 105.0])
    {'plasticity_onset': 16.0, 'censored': False, 'at_first_probe': False}
    >>> plasticity_onset(tasks=[8, 16, 24, 32], aucs=[100.0, 90.0, 95.0, 105.0], rule="zero_crossing")
    {'plasticity_onset': 28.0, 'censored': False, 'at_first_probe': False}
    ```
    """
    if len(aucs) == 0 or np.ndim(aucs[0]) == 0:
        return _one_curve(tasks, aucs, rule, reference, stderrs, z)
    curves = len(aucs)
    if len(tasks) == 0 or np.ndim(tasks[0]) == 0:
        tasks = [tasks] * curves
    references = [reference] * curves if np.ndim(reference) == 0 else reference
    stderrs = [None] * curves if stderrs is None else stderrs
    for name, values in (("tasks", tasks), ("reference", references), ("stderrs", stderrs)):
        if len(values) != curves:
            raise ValueError(f"{name}: {len(values)} entries, but aucs has {curves} curves")
    onsets = [_one_curve(*curve, z) for curve in zip(tasks, aucs, [rule] * curves, references, stderrs)]
    return {name: [onset[name] for onset in onsets] for name in onsets[0]}


def _one_curve(tasks, aucs, rule, reference, stderrs, z) -> dict[str, float | bool]:
    if rule not in RULES:
        raise ValueError(f"rule: '{rule}' is not a rule; choose one of {', '.join(RULES)}")
    tasks, aucs = _checked("tasks", tasks), _checked("aucs", aucs)
    if len(tasks) != len(aucs):
        raise ValueError(f"aucs: {len(aucs)} values, but tasks has {len(tasks)}; give one area for each task")
    if len(tasks) < 2:
        raise ValueError(f"tasks: {tasks.tolist()} is too short; an onset needs at least two probes")
    if (np.diff(tasks) <= 0).any():
        position = np.flatnonzero(np.diff(tasks) <= 0)[0]
        raise ValueError(f"tasks: {tasks[position + 1]:g} comes after {tasks[position]:g}; tasks must increase")
    if rule == "turning_point":
        onset = _turning_point(tasks, aucs)
    elif rule == "zero_crossing":
        if np.ndim(reference) > 0:
            raise ValueError(f"reference: {reference} is not one number, as the one curve of aucs takes")
        onset = _zero_crossing(tasks, aucs - (aucs[0] if reference is None else _checked("reference", [reference])[0]))
    else:
        if stderrs is None:
            raise ValueError("stderrs: missing; the statistical rule needs the standard error of each area")
        if not z > 0:
            raise ValueError(f"z: {z} is not a positive number of standard errors")
        stderrs = _checked("stderrs", stderrs)
        if len(stderrs) != len(aucs) or (stderrs < 0).any():
            raise ValueError(f"stderrs: {stderrs.tolist()} is not one standard error, zero or more, for each area")
        onset = _statistical(tasks, aucs, stderrs, z)
    return {
        "plasticity_onset": float(tasks[-1] if onset is None else onset),
        "censored": onset is None,
        "at_first_probe": bool(onset == tasks[0]),
    }


def _turning_point(tasks: np.ndarray, aucs: np.ndarray) -> float | None:
    lowest = _last_minimum(aucs)
    return None if lowest == len(aucs) - 1 else tasks[lowest]


def _zero_crossing(tasks: np.ndarray, excess: np.ndarray) -> float | None:
    lowest = _last_minimum(excess)
    if excess[lowest] > 0:
        return tasks[0]
    for before in range(lowest, len(excess) - 1):
        if excess[before + 1] > 0:
            fraction = -excess[before] / (excess[before + 1] - excess[before])
            return tasks[before] + fraction * (tasks[before + 1] - tasks[before])
    return None


def _statistical(tasks: np.ndarray, aucs: np.ndarray, stderrs: np.ndarray, z: float) -> float | None:
    lowest = np.array([_last_minimum(aucs[: k + 1]) for k in range(len(aucs))])
    above = aucs - aucs[lowest] > z * np.hypot(stderrs, stderrs[lowest])
    # The onset follows the last probe that is not above the noise; the first probe never is, being its own minimum.
    start = np.flatnonzero(~above)[-1] + 1
    return None if start == len(aucs) else tasks[start]


def _last_minimum(values: np.ndarray) -> int:
    return int(np.flatnonzero(values == values.min())[-1])


def _checked(name: str, values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        position = np.flatnonzero(~np.isfinite(values))[0]
        raise ValueError(f"{name}: {values[position]} at position {position} is not a finite number")
    return values
