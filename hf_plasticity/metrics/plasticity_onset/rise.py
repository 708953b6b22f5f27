"""A test whether a curve of probe areas rises by more than noise, and the smallest rise that it detects."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


LEVEL, POWER = 0.05, 0.8
SHARED_LEVEL = 0.2  # of the comparison that decides whether all seeds share noise
FEWEST_PROBES, FEWEST_PROBES_OF_SEEDS = 8, 3
STEEP_PROBES = 10  # from this number on, the trend of one curve may have a steep start
CORRELATIONS = np.arange(0, 0.85, 0.05)
REPLICATES, CALIBRATION_REPLICATES = 1999, 400
# The distance of two seeds in mean steps from probe to probe, below which one is a copy of the other with rounding.
NEARLY_EQUAL = 1e-3


@dataclass(frozen=True)
class Rise:
    """
    The result of [`rise_test`].

    Args:
        p_value (`float`): The probability of a rise at least this large in a curve that does not rise.
        detected (`bool`): Whether `p_value` is at most the level.
        scatter (`float`): Standard deviation of the noise of the curve, or of the mean curve of several seeds, in the
            unit of the AUCs.
        correlation (`float`): Of the noise of neighboring probes.
        detectable (`float`): The height of a steady rise over the second half of the curve, in the unit of the AUCs,
            that the test finds in 80% of cases.
        threshold (`float`): The largest standardized difference that is not significant.
    """

    p_value: float
    detected: bool
    scatter: float
    correlation: float
    detectable: float
    threshold: float


def rise_test(aucs: np.ndarray, level: float = LEVEL) -> Rise:
    """
    Test whether the curve rises at its end. The null hypothesis is any curve that only falls or stays level.

    The statistic is the largest standardized difference between the mean of the last probes, from probe j on, and the
    mean of the probes from i to j, over all i < j. On a curve that never rises, these differences are positive only
    because of noise. The level curve is the worst case, so the null distribution is that of a level curve (as in the
    test of monotonicity of Dümbgen & Spokoiny 2001, Annals of Statistics 29, 124-152). It is simulated, with normal
    noise of the same autocorrelation, from which the scatter is estimated in the same way.

    The noise of one curve is estimated from its differences from a trend: a constant, a line, a parabola, a hyperbola
    for the steep start, and one jump. The noise of several seeds is estimated from their differences from the mean
    curve. That does not include what all seeds share, such as the effect of the text that they were trained on last.
    If the mean curve is rougher than the differences between seeds explain, it is therefore also tested as one curve,
    and the larger p-value counts. The roughness is the mean square of second differences, and the level of this
    comparison is 20%. With fewer than eight probes, noise that all seeds share cannot be seen. The bias of the
    estimated scatter and autocorrelation is simulated and corrected.

    Args:
        aucs (`np.ndarray` of shape `(seeds, probes)`): The areas. One row for each seed, the same probes in each.
        level (`float`, *optional*, defaults to 0.05): Rate of false alarms.

    Returns:
        [`Rise`]: The result.

    Raises:
        `ValueError`: An area is not finite. Too few probes to estimate the noise: eight of one seed, or three of each
            of several seeds. Two rows are equal, or nearly equal.
    """
    seeds, probes = aucs.shape
    fewest = FEWEST_PROBES if seeds == 1 else FEWEST_PROBES_OF_SEEDS
    if probes < fewest:
        raise ValueError(
            f"aucs: {probes} probes of {seeds} seed{'s' if seeds > 1 else ''}; a test for a rise requires "
            f"{FEWEST_PROBES} probes of one seed, or {FEWEST_PROBES_OF_SEEDS} of each of several"
        )
    if not np.isfinite(aucs).all():
        raise ValueError("aucs: an area is not finite")
    if seeds > 1 and _nearest(aucs) < NEARLY_EQUAL * np.abs(np.diff(aucs, axis=1)).mean():
        raise ValueError("aucs: two seeds have the same areas; a copy of a run is not another seed")
    rise = _test(aucs, level)
    if seeds > 1 and probes >= FEWEST_PROBES:
        expected = _roughness_without_shared_noise(seeds, probes, rise.correlation)
        if _roughness(aucs) > expected:
            as_one_curve = _test(aucs.mean(0, keepdims=True), level)
            rise = max(rise, as_one_curve, key=lambda one: one.p_value)
    return rise


def _nearest(aucs: np.ndarray) -> float:
    """The smallest distance between two of `(seeds, probes)`: the mean absolute difference."""
    return min(float(np.abs(aucs[other] - aucs[one]).mean()) for one in range(len(aucs)) for other in range(one))


def _test(aucs: np.ndarray, level: float) -> Rise:
    """The test with the noise of the curve if there is one, or else with that between seeds."""
    curves, probes = aucs.shape
    noise = noise_of(aucs)
    mean, smallest = aucs.mean(0), 1e-12 * np.abs(aucs).max()
    if noise.scatter <= smallest:
        rises = bool(largest_rise(mean, np.ones((probes, probes))) > smallest)
        return Rise(0.0 if rises else 1.0, rises, 0.0, 0.0, 0.0, 0.0)
    statistic = largest_rise(mean, errors_of_rises(probes, noise.correlation)) / noise.scatter
    null = _null_distribution(curves, probes, noise.correlation)
    p_value = float((1 + np.sum(null >= statistic)) / (len(null) + 1))
    detectable = noise.scatter * _detectable_rise(curves, probes, noise.correlation, level)
    threshold = float(np.quantile(null, 1 - level))
    return Rise(p_value, p_value <= level, noise.scatter, noise.correlation, detectable, threshold)


@dataclass(frozen=True)
class Noise:
    """
    The noise of a curve, or of the mean curve of several seeds.

    Args:
        scatter (`float`): Its standard deviation.
        correlation (`float`): Of neighboring probes; one of `CORRELATIONS`.
    """

    scatter: float
    correlation: float


def noise_of(aucs: np.ndarray) -> Noise:
    """
    The noise of the mean of `(seeds, probes)`: of one curve about its trend, or of several seeds from their
    differences from the mean.
    """
    scatter, correlation = _moments(aucs)
    scatters, correlations = _expected_moments(*aucs.shape)
    nearest = int(np.argmin(np.abs(correlations - correlation)))
    return Noise(float(scatter / scatters[nearest]), float(CORRELATIONS[nearest]))


def _roughness(aucs: np.ndarray) -> np.ndarray:
    """
    The mean square of the second differences of the mean of `(..., seeds, probes)`, where that of a seed's difference
    from the mean is 1. A trend hardly contributes.
    """
    mean = aucs.mean(-2, keepdims=True)
    of_mean, of_differences = ((np.diff(curves, n=2, axis=-1) ** 2).sum((-1, -2)) for curves in (mean, aucs - mean))
    return of_mean / np.maximum(of_differences, np.finfo(float).tiny)


@lru_cache(maxsize=64)
def _roughness_without_shared_noise(seeds: int, probes: int, rho: float) -> float:
    """The roughness that noise without a shared part exceeds with the probability `SHARED_LEVEL`."""
    rng = np.random.default_rng([seeds, probes, round(100 * rho), 2])
    roughness = _roughness(autocorrelated(rho, (REPLICATES, seeds, probes), rng))
    return float(np.quantile(roughness, 1 - SHARED_LEVEL))


def _moments(aucs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scatter and the lag-1 autocorrelation of the noise of the mean of `(..., seeds, probes)`, both biased."""
    seeds, probes = aucs.shape[-2:]
    if seeds > 1:
        residuals = aucs - aucs.mean(-2, keepdims=True)
        residuals = residuals - residuals.mean(-1, keepdims=True)  # a seed may be better at all probes
    else:
        trend, jumps = _trend(probes)
        residuals = aucs - aucs @ trend @ trend.T
        heights = residuals @ jumps.T
        largest = np.abs(heights).argmax(-1, keepdims=True)
        residuals = residuals - np.take_along_axis(heights, largest, -1) * jumps[largest[..., 0]]
    squares = (residuals**2).sum((-1, -2))
    neighbors = (residuals[..., 1:] * residuals[..., :-1]).sum((-1, -2))
    return np.sqrt(squares), neighbors / np.maximum(squares, np.finfo(float).tiny)


@lru_cache(maxsize=16)
def _trend(probes: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Orthonormal columns that span a smooth trend, `(probes, 4)` (three below `STEEP_PROBES`), and the jumps after each
    probe but the last two, orthogonal to it and of unit length: `(probes - 2, probes)`.
    """
    k = np.arange(probes)
    columns = [np.ones(probes), k, k**2, 1 / (k + 1)]
    trend = np.linalg.qr(np.stack(columns[: 4 if probes >= STEEP_PROBES else 3], axis=1))[0]
    jumps = (k >= np.arange(1, probes - 1)[:, None]).astype(float)
    jumps -= jumps @ trend @ trend.T
    return trend, jumps / np.linalg.norm(jumps, axis=1, keepdims=True)


@lru_cache(maxsize=16)
def _expected_moments(curves: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """
    For noise with each of `CORRELATIONS`: the estimated scatter, where that of the mean is 1, and the mean estimated
    autocorrelation.
    """
    rng, shape = np.random.default_rng([curves, probes]), (CALIBRATION_REPLICATES, curves, probes)
    simulated = [_moments(np.sqrt(curves) * autocorrelated(rho, shape, rng)) for rho in CORRELATIONS]
    scatters = [np.sqrt(np.mean(scatter**2)) for scatter, _ in simulated]
    return np.array(scatters), np.array([correlation.mean() for _, correlation in simulated])


def largest_rise(curves: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """
    The largest difference, divided by its error, between the mean from probe j on and the mean from i to j: one for
    each curve of `(..., probes)`. `errors` has one row for each j and one column for each i.
    """
    probes = curves.shape[-1]
    sums = (curves - curves.mean(-1, keepdims=True)).cumsum(-1)
    sums = np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)
    largest = np.full(curves.shape[:-1], -np.inf)
    for j in range(1, probes):
        after = (sums[..., -1:] - sums[..., j : j + 1]) / (probes - j)
        before = (sums[..., j : j + 1] - sums[..., :j]) / (j - np.arange(j))
        largest = np.maximum(largest, ((after - before) / errors[j, :j]).max(-1))
    return largest


@lru_cache(maxsize=32)
def errors_of_rises(probes: int, rho: float) -> np.ndarray:
    """
    Standard errors of the differences of [`largest_rise`] for noise of unit variance and autocorrelation `rho`:
    `(probes, probes)`, infinite for i >= j.
    """
    k = np.arange(probes)
    sums = np.zeros((probes + 1, probes + 1))  # of the covariances of all probes before two of them
    sums[1:, 1:] = (rho ** np.abs(k[:, None] - k)).cumsum(0).cumsum(1)
    errors = np.full((probes, probes), np.inf)
    for j in range(1, probes):
        i, after, before = np.arange(j), probes - j, j - np.arange(j)
        variance_after = sums[probes, probes] - 2 * sums[probes, j] + sums[j, j]
        variance_before = sums[j, j] - 2 * sums[j, i] + sums[i, i]
        covariance = sums[probes, j] - sums[probes, i] - sums[j, j] + sums[j, i]
        errors[j, :j] = np.sqrt(
            variance_after / after**2 + variance_before / before**2 - 2 * covariance / (after * before)
        )
    return errors


@lru_cache(maxsize=256)
def _null_distribution(curves: int, probes: int, rho: float) -> np.ndarray:
    """The statistic of level curves, from the lowest to the highest: `(REPLICATES,)`."""
    rng = np.random.default_rng([curves, probes, round(100 * rho)])
    return np.sort(_statistics(autocorrelated(rho, (REPLICATES, curves, probes), rng), rho))


def _statistics(aucs: np.ndarray, rho: float) -> np.ndarray:
    """The statistic of runs `(n, curves, probes)` with a known autocorrelation."""
    expected = _expected_moments(*aucs.shape[-2:])[0][int(np.argmin(np.abs(CORRELATIONS - rho)))]
    return largest_rise(aucs.mean(1), errors_of_rises(aucs.shape[-1], rho)) / (_moments(aucs)[0] / expected)


@lru_cache(maxsize=64)
def _detectable_rise(curves: int, probes: int, rho: float, level: float) -> float:
    """The steady rise over the second half that is found with the probability `POWER`, where the scatter is 1."""
    rng = np.random.default_rng([curves, probes, round(100 * rho), 1])
    noise = np.sqrt(curves) * autocorrelated(rho, (CALIBRATION_REPLICATES, curves, probes), rng)
    start = probes // 2
    ramp = np.clip((np.arange(probes) - start + 1) / (probes - start), 0, None)
    low, high = 0.0, 1.0
    while _detected(noise + high * ramp, level).mean() < POWER:
        low, high = high, 2 * high
        if high > 1e6:
            return np.inf
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _detected(noise + middle * ramp, level).mean() >= POWER else (middle, high)
    return high


def _detected(aucs: np.ndarray, level: float) -> np.ndarray:
    """Whether [`rise_test`] finds a rise in each of the runs `(n, curves, probes)`."""
    _, curves, probes = aucs.shape
    correlations = _moments(aucs)[1]
    nearest = np.abs(_expected_moments(curves, probes)[1] - correlations[:, None]).argmin(1)
    found = np.zeros(len(aucs), dtype=bool)
    for place in np.unique(nearest):
        rho, chosen = float(CORRELATIONS[place]), nearest == place
        null = _null_distribution(curves, probes, rho)
        # The smallest statistic with a p-value of at most the level.
        most = int(level * (len(null) + 1))
        found[chosen] = _statistics(aucs[chosen], rho) > (null[-most] if most else np.inf)
        if curves > 1 and probes >= FEWEST_PROBES:
            rough = chosen & (_roughness(aucs) > _roughness_without_shared_noise(curves, probes, rho))
            if rough.any():
                found[rough] &= _detected(aucs[rough].mean(1, keepdims=True), level)
    return found


def autocorrelated(rho: float, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal noise of unit variance whose neighbors along the last axis have the correlation `rho`."""
    noise = rng.standard_normal(shape)
    for k in range(1, noise.shape[-1]):
        noise[..., k] = rho * noise[..., k - 1] + np.sqrt(1 - rho**2) * noise[..., k]
    return noise
