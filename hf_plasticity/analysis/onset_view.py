"""How an onset is shown. Nothing else in the report reads the fields of an [`Onset`]."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from .figures import ACCENT
from .onset import Onset
from .series import ProbeSeries
from .text import MISSING


def is_detected(series: ProbeSeries) -> bool:
    """Whether the run loses plasticity while it is watched."""
    return series.onset is not None and not series.onset.censored


def onset_sentence(series: ProbeSeries) -> str:
    """The onset of a run, or that there is none, with the reason."""
    if series.onset is None:
        return f"No onset of plasticity loss can be stated: {series.no_onset}."
    if not is_detected(series):
        return f"No onset of plasticity loss was detected up to task {series.onset.task:,.4g}."
    return f"Onset of plasticity loss: {series.onset}."


def onset_cell(series: ProbeSeries) -> str:
    """The onset of a run in a table."""
    onset = series.onset
    if onset is None:
        return MISSING
    if not is_detected(series):
        return f"none up to task {onset.task:,.4g}"
    return f"{'by ' if onset.at_first_probe else ''}task {onset.task:,.4g}"


def draw_onset_line(axes: Axes, series: ProbeSeries, unit: str) -> None:
    """A vertical line at the onset of a run, where one was detected and the axis counts tokens."""
    if is_detected(series) and unit == "tokens":
        label = f"onset: {onset_cell(series)}"
        axes.axvline(series.onset.tokens, color=ACCENT, linewidth=1.4, linestyle="--", label=label)


def draw_onset_marks(axes: Axes, sizes: Sequence[float], onsets: Sequence[Onset]) -> None:
    """A mark for each onset over the size of its model: measured, at least, or at most."""
    for marker, text, censored, at_first_probe in (
        ("o", "onset of one run", False, False),
        ("^", "no onset yet: at least", True, False),
        ("v", "rising from the first probe on: at most", False, True),
    ):
        kind = (censored, at_first_probe)
        points = [(size, one.task) for size, one in zip(sizes, onsets) if (one.censored, one.at_first_probe) == kind]
        if points:
            axes.plot(*zip(*points), marker, color=ACCENT, markersize=6, label=text, zorder=3)
