"""
The statistics of a comparison of methods on the same seeds: intervals, sign-flip tests, Holm's correction, ranks.

All functions use differences that are paired by seed, ln(AUC of a method / AUC of the other), so that effects of the
seed on all methods cancel. They do not depend on runs.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ..errors import PlasticityError


LEVEL = 0.05
# The test enumerates all 2ⁿ assignments of signs.
MOST_SEEDS = 20


class Change(NamedTuple):
    """
    A change in percent: the mean ratio of two methods over seeds (geometric), minus 1.

    Args:
        percent (`float`): The change; below 0 if the method is lower.
        low (`float`, *optional*): Lower end of the 95% interval; `None` with one seed.
        high (`float`, *optional*): Upper end.
    """

    percent: float
    low: float | None
    high: float | None


def log_ratios(values: ArrayLike, others: ArrayLike) -> np.ndarray:
    """ln(value / other) for each seed."""
    return np.log(np.asarray(values, dtype=float)) - np.log(np.asarray(others, dtype=float))


def mean_interval(differences: ArrayLike, level: float = LEVEL) -> tuple[float, float] | None:
    """
    The interval of the mean of differences by Student's t.

    It is exact if the differences are normal. In simulations with six seeds
    (tests/analysis/test_paired.py) a 95% interval contains the true mean in 95% of cases with normal differences, in
    96% with heavy tails (Student's t with three degrees of freedom), and in 82% with strong skew (log-normal).

    Args:
        differences (`ArrayLike`): One for each seed.
        level (`float`, *optional*, defaults to 0.05): One minus the coverage.

    Returns:
        `tuple[float, float]`: Its ends, or `None` with one seed.
    """
    values = np.asarray(differences, dtype=float)
    count = len(values)
    if count < 2:
        return None
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(count)
    half = _t_quantile(1 - level / 2, count - 1) * error
    return float(mean - half), float(mean + half)


@lru_cache
def _t_quantile(probability: float, degrees: int) -> float:
    return float(stats.t.ppf(probability, degrees))


def percent_change(differences: ArrayLike, level: float = LEVEL) -> Change:
    """The change in percent for differences of logarithms, with its interval."""
    ends = mean_interval(differences, level) or (None, None)
    return Change(*(None if one is None else 100 * math.expm1(one) for one in (float(np.mean(differences)), *ends)))


def sign_flip_p(differences: ArrayLike) -> float:
    """
    The exact two-sided p-value of a mean difference of zero: the share of the 2ⁿ assignments of signs to the
    differences whose mean is at least as far from zero. It only assumes that the differences are symmetric about zero
    if there is no effect.

    Args:
        differences (`ArrayLike`): One for each seed, at most 20.

    Raises:
        [`PlasticityError`]: There are more than 20.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) > MOST_SEEDS:
        raise PlasticityError(f"seeds: {len(values)} are more than the supported {MOST_SEEDS}")
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    # Sums that are equal by symmetry may differ in their last bits.
    reached = np.abs(sums) >= abs(values.sum()) - 1e-12 * np.abs(values).sum()
    return float(reached.mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """
    p-values corrected for the number of tests by Holm's step-down method: if those below α are called significant,
    the probability of at least one false positive among all tests is at most α.
    """
    count = len(p_values)
    corrected, largest = [0.0] * count, 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def smallest_p(seeds: int, tests: int) -> float:
    """The smallest possible corrected p-value for this number of seeds and tests."""
    return min(1.0, tests * 2.0 ** (1 - seeds))


def seeds_needed(tests: int, level: float = LEVEL) -> int:
    """The smallest number of seeds with which one of the tests can be significant after the correction."""
    seeds = 1
    while smallest_p(seeds, tests) > level:
        seeds += 1
    return seeds


def ranks(values: Sequence[ArrayLike], level: float = LEVEL) -> list[tuple[int, int]]:
    """
    The ranges of ranks of methods. A method is above another only if the sign-flip test of the two, corrected for all
    pairs, is significant.

    Args:
        values (`Sequence[ArrayLike]`): For each method one value for each seed, such as ln AUC; lower is better.
        level (`float`, *optional*, defaults to 0.05): The level of the tests.

    Returns:
        `list[tuple[int, int]]`: For each method its best and its worst possible rank. A method has a single rank if
        every comparison with another is significant; tied methods share a range.
    """
    found = [[1, len(values)] for _ in values]
    for (better, worse), _, corrected in pairwise_tests(values):
        if corrected <= level:
            found[worse][0] += 1
            found[better][1] -= 1
    return [(best, worst) for best, worst in found]


def pairwise_tests(values: Sequence[ArrayLike]) -> list[tuple[tuple[int, int], float, float]]:
    """
    The sign-flip test of each pair of methods.

    Args:
        values (`Sequence[ArrayLike]`): As in [`ranks`].

    Returns:
        `list`: For each pair the two methods, that with the lower mean first; p; and p corrected for all pairs.
    """
    table = [np.asarray(one, dtype=float) for one in values]
    pairs = [
        (first, second) if table[first].mean() <= table[second].mean() else (second, first)
        for first in range(len(table))
        for second in range(first + 1, len(table))
    ]
    p_values = [sign_flip_p(table[better] - table[worse]) for better, worse in pairs]
    return list(zip(pairs, p_values, holm(p_values)))
