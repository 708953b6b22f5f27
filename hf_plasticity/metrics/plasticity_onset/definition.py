"""The task instance after which a model learns the probe language more slowly than before."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .rise import LEVEL, Rise, errors_of_rises, largest_rise, rise_test


RULES = ("rise", "turning_point", "zero_crossing", "statistical")
FEWEST_TO_SMOOTH = 5


def plasticity_onset(
    tasks: Sequence,
    aucs: Sequence,
    rule: str = "rise",
    together: bool = False,
    level: float = LEVEL,
    reference: float | Sequence[float] | None = None,
    stderrs: Sequence | None = None,
    z: float = 3.0,
) -> dict[str, Any]:
    """
    The onset of plasticity loss on a curve of probe areas over task instances.

    The study (huggingface.co/papers/2606.24752) reports an onset for each curve but does not state its rule. These
    rules are ours:

    - `"rise"`: tests whether the curve rises at its end by more than noise ([`rise_test`]). If it does, the onset is
      the minimum of the curve smoothed over the logarithm of the task (a spline by generalized cross-validation).
    - `"turning_point"`: the task of the smallest AUC, if a later one is larger; of equal minima the last. It finds an
      onset in nearly every noisy curve.
    - `"zero_crossing"`: the task at which ΔAUC returns to zero: the first crossing from below after the smallest AUC,
      linearly interpolated between the two probes around it.
    - `"statistical"`: the first task after which every AUC is above the smallest earlier AUC by more than
      `z · sqrt(s_k² + s_min²)`, where s are the standard errors of the two.

    A curve without a detected onset is censored: its last task is a lower bound of the onset, not a
    measurement. With an onset at the first task, the true onset may be earlier.

    Args:
        tasks (`Sequence[float]` or `Sequence[Sequence[float]]`): Task instances trained before each probe,
            increasing and positive: without the untrained model. For a batch of curves, one list for all of them or
            one for each.
        aucs (`Sequence[float]` or `Sequence[Sequence[float]]`): The area of each probe; a list of such lists is a
            batch of curves, which may differ in length.
        rule (`str`, *optional*, defaults to `"rise"`): One of the four above.
        together (`bool`, *optional*, defaults to `False`): Whether the curves of a batch are seeds of one
            configuration, on the same tasks. One onset is returned: that of their mean curve, with the noise
            estimated from their differences.
        level (`float`, *optional*, defaults to 0.05): For `"rise"`, the rate of false alarms.
        reference (`float` or `Sequence[float]`, *optional*): For `"zero_crossing"`, the reference of ΔAUC; for
            a batch, one for all or one for each. The first AUC of the curve by default.
        stderrs (`Sequence[float]` or `Sequence[Sequence[float]]`, *optional*): For `"statistical"`, the standard
            error of each AUC, in the shape of `aucs`.
        z (`float`, *optional*, defaults to 3.0): For `"statistical"`, the number of standard errors of the
            difference above which it is more than noise.

    Returns:
        `dict`: Lists for a batch.

        - `plasticity_onset` (`float`): in task instances; the last task if censored.
        - `censored` (`bool`): no onset was found: `plasticity_onset` is a lower bound.
        - `at_first_probe` (`bool`): the onset is the first probed task, or earlier.
        - `between` (`tuple[float, float]`): the probes before and after it, between which a curve without noise has
          its minimum: 0 before the first, infinity after the last.
        - `interval` (`tuple[float, float]` or `None`): for `"rise"`, if found, the 95% interval of the minimum: the
          probes with neither a significant rise before them nor a significant fall after them, extended to the probes
          beside them.
        - `p_value` (`float` or `None`): for `"rise"`, the p-value of the test.
        - `detectable_rise` (`float` or `None`): for `"rise"`, the height of a steady rise over the second half of
          the curve that the test finds in 80% of cases, in percent of the smallest AUC of the mean curve.

    Raises:
        `ValueError`: An unknown rule, fewer than two points, lengths that differ, a value that is not finite, tasks
            that do not increase, an invalid `z` or `level`, a statistical rule without standard errors,
            or too few probes to estimate the noise (see [`rise_test`]).

    Example:

    ```python
    >>> onset = plasticity_onset(tasks=[8, 16, 24, 32], aucs=[100.0, 90.0, 95.0, 105.0], rule="turning_point")
    >>> onset["plasticity_onset"], onset["between"]
    (16.0, (8.0, 24.0))
    >>> onset = plasticity_onset(tasks=[8, 16, 24], aucs=[[100.0, 90.0, 99.0], [101.0, 91.2, 99.8]], together=True)
    >>> onset["plasticity_onset"], onset["censored"]
    (16.0, False)
    ```
    """
    options = {"rule": rule, "level": level, "z": z}
    if len(aucs) == 0 or np.ndim(aucs[0]) == 0:
        return _one_onset(tasks, [aucs], reference, [stderrs], **options)
    curves = len(aucs)
    if together:
        if len(tasks) > 0 and np.ndim(tasks[0]) > 0:
            if any(list(one) != list(tasks[0]) for one in tasks):
                raise ValueError("tasks: they differ between curves; seeds must have the same tasks")
            tasks = tasks[0]
        errors = [None] * curves if stderrs is None else stderrs
        _check_lengths({"stderrs": errors}, curves)
        return _one_onset(tasks, aucs, reference, errors, **options)
    if len(tasks) == 0 or np.ndim(tasks[0]) == 0:
        tasks = [tasks] * curves
    references = [reference] * curves if np.ndim(reference) == 0 else reference
    stderrs = [None] * curves if stderrs is None else stderrs
    _check_lengths({"tasks": tasks, "reference": references, "stderrs": stderrs}, curves)
    onsets = [
        _one_onset(one, [curve], base, [errors], **options)
        for one, curve, base, errors in zip(tasks, aucs, references, stderrs)
    ]
    return {name: [onset[name] for onset in onsets] for name in onsets[0]}


def _check_lengths(given: dict[str, Any], curves: int) -> None:
    for name, values in given.items():
        entries = len(values) if hasattr(values, "__len__") else "no"
        if entries != curves:
            raise ValueError(f"{name}: {entries} entries, but aucs has {curves} curves")


def _one_onset(tasks, curves, reference, stderrs, rule, level, z) -> dict[str, Any]:
    """The onset of one curve, or of the mean of several seeds."""
    if rule not in RULES:
        raise ValueError(f"rule: '{rule}' is not a rule; choose one of {', '.join(RULES)}")
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    tasks, curves = _checked("tasks", tasks), [_checked("aucs", curve) for curve in curves]
    for curve in curves:
        if len(tasks) != len(curve):
            raise ValueError(f"aucs: {len(curve)} values, but tasks has {len(tasks)}; give one area for each task")
    if len(tasks) < 2:
        raise ValueError(f"tasks: {tasks.tolist()} is too short; an onset requires at least two probes")
    if (np.diff(tasks) <= 0).any():
        position = np.flatnonzero(np.diff(tasks) <= 0)[0]
        raise ValueError(f"tasks: {tasks[position + 1]:g} comes after {tasks[position]:g}; tasks must increase")
    mean = np.mean(curves, axis=0)
    rise, place, interval = None, None, None
    if rule == "rise":
        if tasks[0] <= 0:
            raise ValueError(f"tasks: {tasks[0]:g} is not positive; leave out the untrained model")
        rise = rise_test(np.array(curves), level)
        place = smoothed_minimum(tasks, mean) if rise.detected else None
        onset = None if place is None else tasks[place]
    elif rule == "turning_point":
        onset = _turning_point(tasks, mean)
    elif rule == "zero_crossing":
        if np.ndim(reference) > 0:
            raise ValueError(f"reference: {reference} is not one number; aucs has one curve")
        base = mean[0] if reference is None else _checked("reference", [reference])[0]
        onset = _zero_crossing(tasks, mean - base)
    else:
        onset = _statistical(tasks, mean, _mean_errors(stderrs, len(mean)), z)
    if onset is None:
        between = (float(tasks[-1]), math.inf)
    else:
        before, after = tasks[tasks < onset], tasks[tasks > onset]
        between = (float(before[-1]) if len(before) else 0.0, float(after[0]) if len(after) else math.inf)
        if rise is not None:
            interval = _interval(tasks, mean, rise, int(place))
    return {
        "plasticity_onset": float(tasks[-1] if onset is None else onset),
        "censored": onset is None,
        "at_first_probe": bool(onset == tasks[0]),
        "between": between,
        "interval": interval,
        "p_value": None if rise is None else rise.p_value,
        "detectable_rise": None if rise is None or mean.min() <= 0 else float(100 * rise.detectable / mean.min()),
    }


def smoothed_minimum(tasks: np.ndarray, aucs: np.ndarray) -> np.ndarray:
    """
    The position of the minimum of curves `(..., probes)`, smoothed over log(task) if they have five probes. The last
    probe is excluded, because a rising curve has its minimum before it.
    """
    return np.argmin(smooth(tasks, aucs)[..., :-1], axis=-1)


def smooth(tasks: np.ndarray, aucs: np.ndarray) -> np.ndarray:
    """
    Cubic smoothing splines over log(task) through curves `(..., probes)`, with the smoothness that minimizes
    generalized cross-validation (Craven & Wahba 1978). Curves with fewer than five probes are not smoothed.
    """
    if len(tasks) < FEWEST_TO_SMOOTH:
        return aucs
    roughness, vectors = _roughness(tuple(tasks))
    coordinates = aucs @ vectors
    kept = 1 / (1 + np.geomspace(1e-8, 1e8, 129)[:, None] * roughness)  # (smoothness, probes)
    squares = (((1 - kept) * coordinates[..., None, :]) ** 2).sum(-1)
    chosen = np.argmin(squares / (1 - kept.mean(-1)).clip(1e-12) ** 2, axis=-1)
    return (kept[chosen] * coordinates) @ vectors.T


@lru_cache(maxsize=8)
def _roughness(tasks: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the integrated squared second derivative of the interpolating natural spline."""
    x = np.log(tasks)
    h = np.diff(x / (x[-1] - x[0]))
    n = len(x)
    second, gram = np.zeros((n, n - 2)), np.zeros((n - 2, n - 2))
    for k in range(n - 2):
        second[k : k + 3, k] = 1 / h[k], -1 / h[k] - 1 / h[k + 1], 1 / h[k + 1]
        gram[k, k] = (h[k] + h[k + 1]) / 3
        if k:
            gram[k, k - 1] = gram[k - 1, k] = h[k] / 6
    roughness, vectors = np.linalg.eigh(second @ np.linalg.solve(gram, second.T))
    return roughness.clip(0), vectors


def _interval(tasks: np.ndarray, mean: np.ndarray, rise: Rise, place: int) -> tuple[float, float]:
    """
    All probes at which the curve may have its minimum, extended to the probes beside them: those with neither a
    significant rise before them nor a significant fall after them. The threshold is that of the whole curve, which is
    conservative for its parts.
    """
    probes, possible = len(mean), [place]
    errors = rise.scatter * errors_of_rises(probes, rise.correlation) if rise.scatter else None
    for k in range(probes if rise.scatter else 0):
        risen = k > 0 and largest_rise(mean[: k + 1], errors[probes - k - 1 :, probes - k - 1 :]) > rise.threshold
        falls = k < probes - 1 and largest_rise(mean[k:][::-1], errors[k:, k:]) > rise.threshold
        if not risen and not falls:
            possible.append(k)
    low, high = min(possible), max(possible)
    return (
        float(tasks[low - 1]) if low else 0.0,
        float(tasks[high + 1]) if high < probes - 1 else math.inf,
    )


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
    if not z > 0:
        raise ValueError(f"z: {z} is not a positive number of standard errors")
    lowest = np.array([_last_minimum(aucs[: k + 1]) for k in range(len(aucs))])
    above = aucs - aucs[lowest] > z * np.hypot(stderrs, stderrs[lowest])
    # The onset is after the last probe that is not above the noise. The first probe is its own minimum, so never
    # above.
    start = np.flatnonzero(~above)[-1] + 1
    return None if start == len(aucs) else tasks[start]


def _mean_errors(stderrs: Sequence, probes: int) -> np.ndarray:
    """Standard errors of the mean of curves with these standard errors."""
    if any(one is None for one in stderrs):
        raise ValueError("stderrs: missing; the statistical rule requires the standard error of each area")
    checked = [_checked("stderrs", one) for one in stderrs]
    for one in checked:
        if one.shape != (probes,) or (one < 0).any():
            raise ValueError(f"stderrs: {one.tolist()} is not one standard error, zero or more, for each area")
    return np.sqrt(np.sum(np.square(checked), axis=0)) / len(checked)


def _last_minimum(values: np.ndarray) -> int:
    return int(np.flatnonzero(values == values.min())[-1])


def _checked(name: str, values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        position = np.flatnonzero(~np.isfinite(values))[0]
        raise ValueError(f"{name}: {values[position]} at position {position} is not a finite number")
    return values
