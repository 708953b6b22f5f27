"""The power law between a model's size and the onset of plasticity loss."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .line import Line, fit_line


# Model name -> whether its line is in the logarithm of the size, and in that of the onset.
MODELS = {
    "power": (True, True),
    "linear": (False, False),
    "log-linear": (True, False),
    "exponential": (False, True),
}


def onset_law(
    sizes: Sequence[float],
    onsets: Sequence[float],
    censored: Sequence[bool] | None = None,
    between: Sequence[Sequence[float]] | None = None,
    level: float = 0.95,
    compare: bool = True,
) -> dict[str, Any]:
    """
    Fit T = coefficient · P^exponent, the law of huggingface.co/papers/2606.24752 ("Findings"), and compare it with
    three others.

    The law is a straight line in the logarithms: log T = log coefficient + exponent · log P + deviation of the size +
    deviation of the seed, where both deviations are normal. Onsets of the same size are seeds, which are not
    independent evidence on the law, so intervals count sizes. An onset between two probes (`between`) contributes to
    the likelihood the probability of that interval, and a censored onset the probability above its bound. Fitting
    such onsets as points biases the law: with one probe per eight task instances, the exponent 0.83 becomes 0.65.

    Intervals are Student's t intervals with (sizes with a measured onset − 2) degrees of freedom ([`fit_line`]). They
    are exact for exact onsets with the same number of seeds per size. They extend 12.7 standard errors to either side
    with three sizes, 4.3 with four, and 2.4 with eight.

    The four models are fitted in the same way, each on its own scale:

    - `power`: log T = a + b · log P
    - `linear`: T = a + b · P
    - `log-linear`: T = a + b · log P
    - `exponential`: log T = a + b · P

    Args:
        sizes (`Sequence[float]`): Non-embedding parameters P; a size may occur more than once, as with several seeds.
        onsets (`Sequence[float]`): Onsets T in task instances, one for each run.
        censored (`Sequence[bool]`, *optional*): Which onsets are lower bounds; none by default.
        between (`Sequence[tuple[float, float]]`, *optional*): The bounds of each onset: the probes before and after
            it, 0 before the first and infinity after the last, as `plasticity_onset` returns. By default onsets are
            exact. An onset whose lower bound is 0 is an upper bound.
        level (`float`, *optional*, defaults to 0.95): Coverage of the intervals.
        compare (`bool`, *optional*, defaults to `True`): Whether to compare the four models by leave-one-out errors.

    Returns:
        `dict`: With

        - `coefficient`, `exponent` (`float`);
        - `coefficient_interval`, `exponent_interval` (`tuple[float, float]`, or `None` with only two sizes, from
          which the scatter cannot be estimated);
        - `sublinear_p_value` (`float` or `None`): from the one-sided test against an exponent of 1 or more: small if
          the onset grows less than proportionally with size;
        - `loo_errors` (`dict[str, float]`, or `None` if a fit without one of the sizes is impossible): for each model
          the mean over the sizes of |prediction / T − 1|, where T is the geometric mean of a size's onsets and the
          prediction is made without that size. For a size with only bounds (the geometric means of those of its
          seeds), the error is relative to the bound that the prediction is beyond, and 0 within the bounds.

    Raises:
        `ValueError`: Fewer than two measured onsets at different sizes, lengths that differ, a size or an onset that
            is not a positive number, bounds that do not include the onset, or a level outside (0, 1).

    Example:

    ```python
    >>> law = onset_law(sizes=[1e6, 1e8], onsets=[10.0, 1000.0])
    >>> round(law["coefficient"], 9), round(law["exponent"], 9), law["exponent_interval"]
    (1e-05, 1.0, None)
    ```
    """
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    line = power_law_line(sizes, onsets, censored, between)
    intervals: dict[str, Any] = {"coefficient_interval": None, "exponent_interval": None, "sublinear_p_value": None}
    if line.degrees_of_freedom > 0:
        intervals = {
            "coefficient_interval": tuple(map(to_onset, line.interval(0.0, level, new_point=False))),
            "exponent_interval": line.slope_interval(level),
            "sublinear_p_value": line.p_value_below(1.0),
        }
    return {
        "coefficient": to_onset(line.at(0.0)),
        "exponent": line.slope,
        **intervals,
        "loo_errors": leave_one_out(*_checked(sizes, onsets, censored, between)) if compare else None,
    }


def power_law_line(
    sizes: Sequence[float],
    onsets: Sequence[float],
    censored: Sequence[bool] | None = None,
    between: Sequence[Sequence[float]] | None = None,
) -> Line:
    """The power law as a straight line: x = log P, y = log T. Arguments and errors as in `onset_law`."""
    sizes, _, low, high = _checked(sizes, onsets, censored, between)
    with np.errstate(divide="ignore"):
        return fit_line(np.log(sizes), np.log(low), np.log(high))


def to_onset(y: float) -> float:
    """Convert the line's y = log T to T; infinite if an interval is too wide for a float."""
    return math.exp(y) if y < 700 else math.inf


def leave_one_out(sizes: np.ndarray, onsets: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, float] | None:
    """Mean relative error of each of `MODELS` at sizes that were left out of the fit; see `onset_law`."""
    left_out, measured = np.unique(sizes), (low > 0) & np.isfinite(high)
    folds = [sizes != size for size in left_out]
    # As in `fit_line`: a size is measured if all its seeds are.
    known = {size for size in left_out if measured[sizes == size].all()}
    if any(len(known & set(sizes[fold])) < 2 for fold in folds):
        return None
    errors = {}
    for name, (log_size, log_onset) in MODELS.items():
        x = np.log(sizes) if log_size else sizes
        with np.errstate(divide="ignore"):
            lows, highs = (np.log(low), np.log(high)) if log_onset else (np.where(low > 0, low, -np.inf), high)
        predictions = [_prediction_at(fold, x, lows, highs, log_onset) for fold in folds]
        own = [(onsets[~fold & measured], low[~fold], high[~fold]) for fold in folds]
        errors[name] = float(np.mean([_error_of(one, *values) for one, values in zip(predictions, own)]))
    return errors


def _prediction_at(fold: np.ndarray, x: np.ndarray, lows: np.ndarray, highs: np.ndarray, log_onset: bool) -> float:
    """The onset that the other sizes predict for the size that the fold leaves out."""
    prediction = fit_line(x[fold], lows[fold], highs[fold], errors=False).at(float(x[~fold][0]))
    # Far from its points, an exponential may exceed the range of floats; e^700 is equally wrong.
    return math.exp(min(prediction, 700.0)) if log_onset else prediction


def _error_of(prediction: float, measured: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The relative error of a prediction: of the measured onsets, or of the bounds if there are none."""
    if len(measured):
        return abs(prediction / math.exp(np.log(measured).mean()) - 1)
    with np.errstate(divide="ignore"):
        least, most = (math.exp(np.log(bounds).mean()) for bounds in (low, high))
    if prediction > most:
        return prediction / most - 1
    # An onset is positive, so a prediction of zero or less is wrong also without a lower bound.
    return max(0.0, 1 - prediction / (least or most)) if least or prediction <= 0 else 0.0


def _checked(
    sizes: Sequence[float],
    onsets: Sequence[float],
    censored: Sequence[bool] | None,
    between: Sequence[Sequence[float]] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, onsets, and the bounds of each onset."""
    sizes, onsets = np.asarray(sizes, dtype=np.float64), np.asarray(onsets, dtype=np.float64)
    censored = np.zeros(len(onsets), dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
    exact = np.stack([onsets, onsets], axis=1)
    bounds = exact if between is None or not len(between) else np.asarray(between, dtype=np.float64)
    for name, values in (("sizes", sizes), ("onsets", onsets)):
        if not (np.isfinite(values) & (values > 0)).all():
            position = np.flatnonzero(~(np.isfinite(values) & (values > 0)))[0]
            raise ValueError(f"{name}: {values[position]} at position {position} is not a positive number")
    for name, values in (("onsets", onsets), ("censored", censored), ("between", bounds)):
        if len(values) != len(sizes):
            raise ValueError(f"{name}: {len(values)} values, but sizes has {len(sizes)}; give one for each size")
    if bounds.size and bounds.shape != (len(sizes), 2):
        raise ValueError("between: not a pair of bounds for each onset")
    low, high = np.where(censored, onsets, bounds[:, 0]), np.where(censored, np.inf, bounds[:, 1])
    outside = ~((low >= 0) & (low <= onsets) & (onsets <= high) & (high > 0))
    if outside.any():
        position = np.flatnonzero(outside)[0]
        raise ValueError(
            f"between: {low[position]:g} and {high[position]:g} at position {position} do not include the onset "
            f"{onsets[position]:g}"
        )
    return sizes, onsets, low, high
