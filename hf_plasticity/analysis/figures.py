"""
The style of figures, and how they are written to files.

Matplotlib has global settings and is not thread-safe. All figures are therefore drawn in [`render`], which applies the
style and holds the lock.
"""

import io
import threading
from collections.abc import Callable, Iterable
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .text import compact, minus


DRAWING = threading.RLock()

INK, MUTED, ACCENT = "#1f1e1c", "#6b6862", "#b5472b"
CATEGORIES = colormaps["tab10"].colors
# From first (light) to last (dark); the palest end of viridis is left out.
SEQUENCE = ListedColormap(colormaps["viridis"](np.linspace(0.85, 0, 256)))
DASHED = {"color": MUTED, "linewidth": 1.4, "linestyle": "--"}
STYLES = ("-", "--", ":", "-.")
# In CSS pixels.
HALF, SMALL, WHOLE = (480, 300), (320, 220), (984, 300)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hf-plasticity",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e1db",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 72,
    "savefig.dpi": 216,
}


def render(draw: Callable[[], Figure], *formats: str) -> list[bytes]:
    """
    Draw a figure and encode it. Safe to call from several threads.

    Args:
        draw (`Callable[[], Figure]`): Makes the figure.
        *formats (`str`): `"svg"` or `"png"`.

    Returns:
        `list[bytes]`: One file for each format.
    """
    files = []
    with DRAWING, matplotlib.rc_context(STYLE):
        figure = draw()
        for kind in formats:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
            files.append(buffer.getvalue())
    return files


def panel(title: str, size: tuple[int, int] = HALF) -> tuple[Figure, Axes]:
    """A figure of `size` CSS pixels with one pair of axes."""
    figure = Figure(figsize=(size[0] / 72, size[1] / 72))
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def shades(count: int) -> list:
    """`count` colors from the first to the last."""
    return list(SEQUENCE(np.linspace(0, 1, count) if count > 1 else [1.0]))


def legend(axes: Axes, columns: int = 0) -> None:
    """The legend of the axes: inside them, or below them in this number of columns."""
    handles, labels = axes.get_legend_handles_labels()
    if handles and columns:
        axes.figure.legend(handles, labels, loc="outside lower left", ncols=min(len(handles), columns))
    elif handles:
        axes.legend()


def at_least(axes: Axes, span: float) -> None:
    """Make the vertical axis cover at least `span`, so that noise does not fill it."""
    low, high = axes.get_ylim()
    if high - low < span:
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def is_log_spaced(places: Iterable[float]) -> bool:
    """
    Whether checkpoints are log-spaced, at least at first: three or more of them are at least 1.5 times as far as the
    one before. Of evenly spaced checkpoints (1, 2, 3, …), only two are.
    """
    known = sorted({place for place in places if place > 0})
    return sum(later >= 1.5 * earlier for earlier, later in pairwise(known)) >= 3


def training_axis(axes: Axes, unit: str, places: Iterable[float]) -> None:
    """
    The horizontal axis of a figure over training: from 0, or logarithmic for log-spaced checkpoints.

    Args:
        axes (`Axes`): The axes, with all curves.
        unit (`str`): `"tokens"` or `"steps"`.
        places (`Iterable[float]`): The positions of checkpoints.
    """
    places = set(places)
    axes.set_xlabel(f"training {unit}")
    if is_log_spaced(places):
        first = min(place for place in places if place > 0)
        axes.set_xscale("symlog", linthresh=first, linscale=0.3)
        axes.set_xlim(0 if 0 in places else first / 1.5, 1.5 * max(places))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    compact_ticks(axes.xaxis)


def compact_ticks(*axes: Axis) -> None:
    """Tick labels with units."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: minus(compact(value))))
