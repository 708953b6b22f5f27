"""A straight line through onsets that are bounded on two sides, with sizes as independent observations."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special


LEVEL = 0.95
# In units of the spread of y. Without it, the likelihood of points exactly on a line has no maximum.
LEAST_SCATTER = 1e-3


@dataclass(frozen=True)
class Line:
    """
    A fitted line y = height + slope · (x − center).

    Args:
        center (`float`): The x at which height and slope are uncorrelated.
        height (`float`): The y of the line at the center.
        slope (`float`): Its slope.
        scatter (`float` or `None`): Standard deviation of the onset of one run about the line; `None` with fewer than
            three sizes.
        height_error, slope_error (`float` or `None`): Standard errors; `None` with fewer than three sizes.
        degrees_of_freedom (`int`): Sizes with a measured onset, minus two.
    """

    center: float
    height: float
    slope: float
    scatter: float | None
    height_error: float | None
    slope_error: float | None
    degrees_of_freedom: int

    def at(self, x: float) -> float:
        return self.height + self.slope * (x - self.center)

    def interval(self, x: float, level: float, new_point: bool = True) -> tuple[float, float]:
        """The ends of the interval for the onset of a new run at `x`, or for the line itself."""
        variance = self.height_error**2 + (self.slope_error * (x - self.center)) ** 2
        reach = quantile(level, self.degrees_of_freedom) * math.sqrt(variance + new_point * self.scatter**2)
        return self.at(x) - reach, self.at(x) + reach

    def slope_interval(self, level: float) -> tuple[float, float]:
        reach = quantile(level, self.degrees_of_freedom) * self.slope_error
        return self.slope - reach, self.slope + reach

    def p_value_below(self, slope: float) -> float:
        """One-sided p-value for a true slope below `slope`."""
        if self.slope_error == 0:
            return 0.0 if self.slope < slope else 1.0
        return float(special.stdtr(self.degrees_of_freedom, (self.slope - slope) / self.slope_error))


def quantile(level: float, degrees_of_freedom: int) -> float:
    """The half width of an interval of this level in standard errors (Student's t)."""
    return float(special.stdtrit(degrees_of_freedom, (1 + level) / 2))


def fit_line(x: np.ndarray, low: np.ndarray, high: np.ndarray, errors: bool = True) -> Line:
    """
    Fit the most likely line through intervals: y = a + b · x + (deviation of the size) + (deviation of the seed).

    Points with the same x are seeds of one size. A size is represented by the mean of its seeds, which lies between
    the means of their bounds. Its deviation is normal: that of the size plus the mean of those of its seeds. It
    contributes the probability between its bounds, or the density if they coincide.

    Standard errors are from the profile likelihood. The relation between its ratio and Student's t for exact points,
    2 · log ratio = m · log(1 + t² / (m − 2)) for m sizes, is used. For exact points this is least squares.

    Args:
        x (`np.ndarray` of shape `(points,)`): Positions.
        low, high (`np.ndarray` of shape `(points,)`): Bounds of y; `-inf` and `inf` if there is none.
        errors (`bool`, *optional*, defaults to `True`): Whether to compute standard errors.

    Raises:
        `ValueError`: Fewer than two different x with a point that is bounded on both sides.
    """
    sizes = np.unique(x)
    lows, highs = (np.array([bound[x == size].mean() for size in sizes]) for bound in (low, high))
    measured = np.isfinite(lows) & np.isfinite(highs)
    if measured.sum() < 2:
        raise ValueError(
            f"onsets: {measured.sum()} measured at different sizes; a law requires two measured onsets at "
            "different sizes (a bound is not a measurement)"
        )
    freedom = int(measured.sum()) - 2
    middles = (lows[measured] + highs[measured]) / 2
    center = float(sizes[measured].mean())
    slope, height = (float(one) for one in np.polyfit(sizes[measured] - center, middles, 1))
    residuals = middles - height - slope * (sizes[measured] - center)
    noise = math.sqrt(float(residuals @ residuals))
    exact = bool((lows == highs)[measured].all())
    slack = 1e-9 * float(np.abs(middles).max())
    line = height + slope * (sizes - center)
    satisfied = bool(((lows - slack <= line) & (line <= highs + slack)).all())
    if not freedom and satisfied:
        return Line(center, height, slope, None, None, None, freedom)
    if exact and (measured.all() or (noise <= slack and satisfied)):
        if not freedom:
            return Line(center, height, slope, None, None, None, freedom)
        noise = noise / math.sqrt(freedom) if noise > slack else 0.0
        spread = math.sqrt(float(np.sum((sizes[measured] - center) ** 2)))
        scatter = _of_one_run(noise, x, low, high)
        return Line(center, height, slope, scatter, noise / math.sqrt(measured.sum()), noise / spread, freedom)
    likelihood = _Likelihood(sizes - center, lows, highs, freedom)
    return likelihood.line(center, height, slope, (x, low, high), errors and freedom > 0)


def _of_one_run(scatter: float, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The scatter of single runs about the line, from the scatter of sizes and of seeds."""
    squares, freedom, counts = 0.0, 0, []
    for size in np.unique(x):
        own = (x == size) & np.isfinite(low) & np.isfinite(high)
        middles = (low[own] + high[own]) / 2
        if len(middles):
            squares, freedom = squares + float(np.var(middles)) * len(middles), freedom + len(middles) - 1
            counts.append(len(middles))
    within = squares / freedom if freedom else 0.0
    return math.sqrt(scatter**2 + within * (1 - float(np.mean(1 / np.array(counts)))))


class _Likelihood:
    """The likelihood of a line, in units in which y has a spread of 1 and x a maximum of 1."""

    def __init__(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, freedom: int):
        edges = np.concatenate([low, high])
        self.reach, self.unit = float(np.abs(x).max()), float(np.ptp(edges[np.isfinite(edges)]))
        self.low, self.high, self.freedom = low / self.unit, high / self.unit, freedom
        self.columns = np.stack([np.ones_like(x), x / self.reach])  # of height and slope

    def line(self, center: float, height: float, slope: float, points: tuple, with_errors: bool) -> Line:
        start = np.array([height / self.unit, slope * self.reach / self.unit, math.log(0.1)])
        best, least = self.minimum(start)
        errors: tuple = (None, None)
        scatter = None
        if with_errors:
            errors = (self._error(best, least, 0) * self.unit, self._error(best, least, 1) * self.unit / self.reach)
            size_scatter = math.exp(best[2]) * math.sqrt((self.freedom + 2) / self.freedom)
            scatter = _of_one_run(size_scatter * self.unit, *points)
        slope = float(best[1]) * self.unit / self.reach
        return Line(center, float(best[0]) * self.unit, slope, scatter, *errors, self.freedom)

    def negative(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log likelihood of (height, slope, log scatter), and its gradient."""
        scatter = math.exp(parameters[2])
        expected = parameters[:2] @ self.columns
        low, high = (self.low - expected) / scatter, (self.high - expected) / scatter
        log_probability, by_low, by_high = _log_probability(low, high, scatter)
        moved = self.columns @ (by_low + by_high) / -scatter
        with np.errstate(invalid="ignore"):
            scaled = np.nansum(by_low * low) + np.nansum(by_high * high) + np.sum(low == high)
        return -float(log_probability.sum()), -np.array([*moved, -scaled])

    def minimum(self, start: np.ndarray, fixed: int | None = None) -> tuple[np.ndarray, float]:
        """The most likely parameters and their negative log likelihood; one of them may be fixed at its start."""
        bounds = [(None, None), (None, None), (math.log(LEAST_SCATTER), math.log(1e4))]
        if fixed is not None:
            bounds[fixed] = (start[fixed], start[fixed])
        found = optimize.minimize(
            self.negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-11, "gtol": 1e-7}
        )
        return found.x, float(found.fun)

    def _error(self, best: np.ndarray, least: float, which: int) -> float:
        """The standard error of a parameter, from the width of its 95% interval in the profile likelihood."""
        m, t = self.freedom + 2, quantile(LEVEL, self.freedom)
        allowed = least + m / 2 * math.log1p(t**2 / self.freedom)

        def excess(distance: float, sign: int) -> float:
            start = best.copy()
            start[which] += sign * distance
            # For a distant value, start from the scatter that explains it.
            start[2] = max(best[2], math.log(distance + LEAST_SCATTER))
            return self.minimum(start, fixed=which)[1] - allowed

        ends = []
        for sign in (-1, 1):
            step = 4 * math.exp(best[2])
            while excess(step, sign) < 0 and step < 1e3:
                step *= 2
            ends.append(optimize.brentq(excess, 0, step, args=(sign,), rtol=1e-4) if step < 1e3 else step)
        return sum(ends) / (2 * t)


def _log_probability(low: np.ndarray, high: np.ndarray, scatter: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Log of the probability between two standardized bounds, or of the density if they coincide, and its derivatives
    with respect to the lower and the upper bound.
    """
    exact = low == high
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        density = -(low**2) / 2 - math.log(scatter * math.sqrt(2 * math.pi))
        # Use the tail in which both are small, so that their difference is not lost to rounding.
        flip = low > 0
        lower, upper = special.log_ndtr(np.where(flip, -high, low)), special.log_ndtr(np.where(flip, -low, high))
        between = upper + np.log1p(-np.exp(np.minimum(lower - upper, -1e-15)))
        by_low = np.where(np.isfinite(low), -np.exp(-(low**2) / 2 - between) / math.sqrt(2 * math.pi), 0.0)
        by_high = np.where(np.isfinite(high), np.exp(-(high**2) / 2 - between) / math.sqrt(2 * math.pi), 0.0)
    return np.where(exact, density, between), np.where(exact, -low, by_low), np.where(exact, 0.0, by_high)
