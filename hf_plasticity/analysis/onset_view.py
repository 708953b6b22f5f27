"""The presentation of an onset. Only this module reads the fields of an [`Onset`] for the report."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from ..metrics.plasticity_onset.rise import FEWEST_PROBES
from .figures import ACCENT
from .onset import Onset
from .series import ProbeSeries, onset_of_seeds
from .text import MISSING, plural


def is_detected(onset: Onset | None) -> bool:
    """Whether the run has a detected onset."""
    return onset is not None and not onset.censored


def onset_sentence(seeds: Sequence[ProbeSeries]) -> str:
    """A sentence about the onset of a run or of several seeds."""
    onset, reason = onset_of_seeds(seeds)
    if onset is None:
        return f"No onset of plasticity loss can be stated: {reason}."
    shared = len(set.intersection(*({probe["task"] for probe in series.trained} for series in seeds)))
    assumption = ""
    if onset.p_value is not None and len(seeds) > 1 and shared < FEWEST_PROBES:
        assumption = f", if the seeds share no noise (not known with fewer than {FEWEST_PROBES} probes)"
    most = max(len(series.trained) for series in seeds)
    left_out = "" if most == shared else f" Only the {shared} probes that all seeds have count; a seed has {most}."
    if is_detected(onset):
        return f"Onset of plasticity loss: {onset_words(onset)}{assumption}.{left_out}"
    text = f"No onset of plasticity loss was detected up to task {onset.task:,.4g}"
    if onset.detectable_rise is not None:
        text += f" (a steady rise of {onset.detectable_rise:.2g}% would have been detected with 80% probability)"
    return f"{text}{assumption}.{left_out}"


def onset_words(onset: Onset) -> str:
    """`"task 16 (95% interval 8 to 24; rise: p = 0.003)"`, or a bound."""
    if onset.interval is not None:
        low, high = onset.interval
        interval = f"95% interval {low:,.4g} to {_or_later(high)}"
        return f"task {onset.task:,.4g} ({interval}; rise: {p_words(onset.p_value)})"
    return f"{'the first probe, ' if onset.at_first_probe else ''}task {onset.task:,.4g} (rule {onset.rule})"


def _or_later(task: float) -> str:
    return "the last probe" if math.isinf(task) else f"{task:,.4g}"


def p_words(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def onset_cell(onset: Onset | None) -> str:
    """An onset in a table."""
    if onset is None:
        return MISSING
    if not is_detected(onset):
        return f"none up to task {onset.task:,.4g}"
    if onset.interval is not None:
        low, high = onset.interval
        return f"task {onset.task:,.4g} ({low:,.4g} to {_or_later(high)})"
    return f"task {onset.task:,.4g}{' or earlier' if onset.at_first_probe else ''}"


def detectable_cell(onset: Onset | None) -> str:
    """The rise that would have been detected, in a table."""
    return MISSING if onset is None or onset.detectable_rise is None else f"{onset.detectable_rise:.2g}%"


def draw_onset_line(axes: Axes, series: ProbeSeries, unit: str) -> None:
    """A vertical line at the onset of a run, if one was detected and the axis has tokens."""
    if is_detected(series.onset) and unit == "tokens":
        label = f"onset: {onset_cell(series.onset)}"
        axes.axvline(series.onset.tokens, color=ACCENT, linewidth=1.4, linestyle="--", label=label)


def _upper_end(onset: Onset) -> float:
    """The upper end of an error bar. An interval without one is drawn up to the next probe, if there is one."""
    return next((ends[1] for ends in (onset.bounds, onset.between) if ends and math.isfinite(ends[1])), onset.task)


def draw_onset_marks(axes: Axes, sizes: Sequence[float], onsets: Sequence[Onset], seeds: int) -> None:
    """A mark for each onset over the size of its model: measured (with its bounds), at least, or at most."""
    of = f"onset of {plural(seeds, 'seed')}" if seeds > 1 else "onset of one run"
    bounds = "its 95% interval" if any(one.interval for one in onsets) else "the probes around it"
    style = {"color": ACCENT, "markersize": 6, "elinewidth": 1.2, "zorder": 3}
    pairs = list(zip(sizes, onsets))
    if measured := [(size, one) for size, one in pairs if not one.censored and not one.at_first_probe]:
        xs, ys = [size for size, _ in measured], [one.task for _, one in measured]
        lows = [(one.bounds or (one.task,))[0] for _, one in measured]
        errors = [[y - low for y, low in zip(ys, lows)], [_upper_end(one) - one.task for _, one in measured]]
        axes.errorbar(xs, ys, errors, fmt="o", label=f"{of}, and {bounds}", **style)
    if missed := [(size, one.task) for size, one in pairs if one.censored]:
        axes.errorbar(*zip(*missed), fmt="^", label="no onset detected: at least", **style)
    early = [(size, one.bounds[1]) for size, one in pairs if one.at_first_probe and not one.censored]
    if early := [(size, bound) for size, bound in early if math.isfinite(bound)]:
        axes.errorbar(*zip(*early), fmt="v", label="lowest at the first probe: at most", **style)
