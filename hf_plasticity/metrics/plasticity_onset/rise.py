"""A test whether a curve of probe areas rises by more than noise, and the smallest rise that it detects."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


LEVEL = 0.05
POWER_QUANTILE = (
    0.8416  # of the normal distribution at 0.8: a rise that is larger by this many standard errors is found in 80%
)
FEWEST_PROBES, FEWEST_PROBES_OF_SEEDS = 8, 3
STEEP_PROBES = 10  # from this number on, the trend of one seed may have a steep start
CORRELATIONS = np.arange(0, 0.85, 0.05)
REPLICATES, CALIBRATION_REPLICATES = 1999, 400


@dataclass(frozen=True)
class Rise:
    """
    The result of [`rise_test`].

    Args:
        p_value (`float`): The probability of a rise at least this large in a curve that does not rise.
        detected (`bool`): Whether `p_value` is at most the level.
        scatter (`float`): Standard deviation of one AUC about the trend, in the unit of the AUCs.
        correlation (`float`): Of the noise of neighboring probes.
        detectable (`float`): A lasting rise from the middle of the curve, in the unit of the AUCs, that the test
            finds in 80% of cases.
    """

    p_value: float
    detected: bool
    scatter: float
    correlation: float
    detectable: float


def rise_test(aucs: np.ndarray, level: float = LEVEL) -> Rise:
    """
    Test whether the curve rises at its end. The null hypothesis is any curve that only falls or stays level.

    The statistic is the largest standardized difference between the mean of the last probes, from probe j on, and the
    mean of the probes from i to j, over all i < j. On a curve that never rises, these differences are positive only
    because of noise. The level curve is the worst case, so the null distribution is that of a level curve (as in the
    test of monotonicity of Dümbgen & Spokoiny 2001, Annals of Statistics 29, 124-152). It is simulated, with normal
    noise of the same autocorrelation, from which the scatter and the autocorrelation are estimated in the same way.

    With several seeds, the noise is estimated from their differences from the mean curve. With one seed, it is
    estimated from the differences from a smooth trend (a constant, a line, a parabola and a hyperbola for the steep
    start). The estimated autocorrelation is corrected for its bias, which is simulated.

    Args:
        aucs (`np.ndarray` of shape `(seeds, probes)`): The areas. One row for each seed, the same probes in each.
        level (`float`, *optional*, defaults to 0.05): Rate of false alarms.

    Returns:
        [`Rise`]: The result.

    Raises:
        `ValueError`: Too few probes to estimate the noise: eight of one seed, or three of each of several seeds.
    """
    seeds, probes = aucs.shape
    fewest = FEWEST_PROBES if seeds == 1 else FEWEST_PROBES_OF_SEEDS
    if probes < fewest:
        raise ValueError(
            f"aucs: {probes} probes of {seeds} seed{'s' if seeds > 1 else ''}; a test for a rise requires "
            f"{FEWEST_PROBES} probes of one seed, or {FEWEST_PROBES_OF_SEEDS} of each of several"
        )
    mean = aucs.mean(0)
    differences = mean @ _contrasts(probes).T
    scatter, correlation = (float(one) for one in noise_of(aucs))
    if scatter <= 1e-12 * np.abs(mean).max():
        rises = bool(differences.max() > 1e-12 * np.abs(mean).max())
        return Rise(0.0 if rises else 1.0, rises, 0.0, 0.0, 0.0)
    rho = _unbiased(correlation, seeds, probes)
    errors = scatter * _errors(probes, rho) / np.sqrt(seeds)
    null = _null_distribution(seeds, probes, rho)
    p_value = float((1 + np.sum(null >= (differences / errors).max())) / (len(null) + 1))
    middle = _errors(probes, rho)[_middle(probes)] * scatter / np.sqrt(seeds)
    detectable = (np.quantile(null, 1 - level) + POWER_QUANTILE) * middle
    return Rise(p_value, p_value <= level, scatter, rho, float(detectable))


@lru_cache(maxsize=8)
def _contrasts(probes: int) -> np.ndarray:
    """One row for each pair i < j: the mean from probe j on, minus the mean from i to j. `(pairs, probes)`."""
    rows = np.zeros((probes * (probes - 1) // 2, probes))
    for row, (i, j) in zip(rows, _pairs(probes)):
        row[j:], row[i:j] = 1 / (probes - j), -1 / (j - i)
    return rows


def _pairs(probes: int) -> list[tuple[int, int]]:
    return [(i, j) for j in range(1, probes) for i in range(j)]


def _middle(probes: int) -> int:
    """The contrast between the second half and the first."""
    return _pairs(probes).index((0, (probes + 1) // 2))


@lru_cache(maxsize=32)
def _errors(probes: int, rho: float) -> np.ndarray:
    """Standard errors of the contrasts for noise of unit variance and autocorrelation `rho`: `(pairs,)`."""
    lags = np.abs(np.subtract.outer(np.arange(probes), np.arange(probes)))
    contrasts = _contrasts(probes)
    return np.sqrt(np.einsum("ci,ij,cj->c", contrasts, rho**lags, contrasts, optimize=True))


def noise_of(aucs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation and lag-1 autocorrelation of the noise of `(..., seeds, probes)`, the latter biased."""
    seeds, probes = aucs.shape[-2:]
    if seeds > 1:
        residuals = aucs - aucs.mean(-2, keepdims=True)
        residuals = residuals - residuals.mean(-1, keepdims=True)  # a seed may be better at all probes
        freedom = (seeds - 1) * (probes - 1)
    else:
        trend = _trend(probes)
        residuals = aucs - aucs @ trend @ trend.T
        freedom = probes - trend.shape[1]
    squares = (residuals**2).sum((-1, -2))
    neighbors = (residuals[..., 1:] * residuals[..., :-1]).sum((-1, -2))
    return np.sqrt(squares / freedom), neighbors / np.maximum(squares, np.finfo(float).tiny)


@lru_cache(maxsize=8)
def _trend(probes: int) -> np.ndarray:
    """Orthonormal columns that span a smooth trend: `(probes, 4)`; three below `STEEP_PROBES`."""
    k = np.arange(probes)
    columns = [np.ones(probes), k, k**2, 1 / (k + 1)]
    return np.linalg.qr(np.stack(columns[: 4 if probes >= STEEP_PROBES else 3], axis=1))[0]


def _unbiased(correlation: float, seeds: int, probes: int) -> float:
    """The autocorrelation whose estimate is `correlation` on average, to the nearest of `CORRELATIONS`."""
    return float(CORRELATIONS[np.argmin(np.abs(_mean_estimates(seeds, probes) - correlation))])


@lru_cache(maxsize=8)
def _mean_estimates(seeds: int, probes: int) -> np.ndarray:
    rng = np.random.default_rng([seeds, probes])
    shape = (CALIBRATION_REPLICATES, seeds, probes)
    return np.array([noise_of(autocorrelated(rho, shape, rng))[1].mean() for rho in CORRELATIONS])


@lru_cache(maxsize=32)
def _null_distribution(seeds: int, probes: int, rho: float) -> np.ndarray:
    """The statistic of level curves: `(REPLICATES,)`."""
    noise = autocorrelated(rho, (REPLICATES, seeds, probes), np.random.default_rng([seeds, probes, int(100 * rho)]))
    errors = _errors(probes, rho) / np.sqrt(seeds)
    return (noise.mean(-2) @ _contrasts(probes).T / errors).max(-1) / noise_of(noise)[0]


def autocorrelated(rho: float, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal noise of unit variance whose neighbors along the last axis have the correlation `rho`."""
    noise = rng.standard_normal(shape)
    for k in range(1, noise.shape[-1]):
        noise[..., k] = rho * noise[..., k - 1] + np.sqrt(1 - rho**2) * noise[..., k]
    return noise
