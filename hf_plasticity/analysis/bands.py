"""The figure of one quantity over training in several groups of runs: mean over seeds, its interval, the seeds."""

import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from .figures import CATEGORIES, HALF, INK, STYLES, at_least, legend, panel, shades, training_axis
from .groups import FEWEST_SEEDS, Group, Member, interval_factor, mean_curve
from .text import Estimate


def bands_figure(
    groups: Sequence[Group[Member]],
    curve: Callable[[Member], dict[float, Estimate]],
    title: str,
    unit: str,
    size: tuple[int, int] = HALF,
    span: float = 0.0,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """
    Draw the groups over training. Colors distinguish names, and line styles schedules. With one name, colors
    distinguish schedules.

    Args:
        groups (`Sequence[Group]`): The groups, with one line each.
        curve (`Callable`): Returns the values of a member by their position on the horizontal axis.
        title (`str`): The quantity with its unit.
        unit (`str`): The unit of the horizontal axis, `"tokens"` or `"steps"`.
        size (`tuple[int, int]`, *optional*): In CSS pixels.
        span (`float`, *optional*, defaults to 0): The vertical axis covers at least this much.
        limits (`tuple[float, float]`, *optional*): Limits of the vertical axis.
    """
    figure, axes = panel(title, size)
    names = list(dict.fromkeys(group.name for group in groups))
    schedules = list(dict.fromkeys(group.schedule for group in groups))
    colors = dict(zip(names, shades(len(names))))
    places = set()
    for group in groups:
        seeds = [found for member in group.members if (found := curve(member))]
        places |= {place for seed in seeds for place in seed}
        means = mean_curve(seeds)
        values, errors = ([one[part] for one in means.values()] for part in (0, 1))
        index = schedules.index(group.schedule)
        color = colors[group.name] if len(names) > 1 else CATEGORIES[index % len(CATEGORIES)]
        style = {"color": color, "linestyle": STYLES[index % len(STYLES)]}
        parts = [group.name] * (len(names) > 1) + [str(group.schedule)] * (len(schedules) > 1)
        mean_style = style | {"marker": "o" if len(means) < 12 else None, "label": ", ".join(parts)}
        if len(seeds) == 1:
            axes.errorbar([*means], values, [error or math.nan for error in errors], elinewidth=1.2, **mean_style)
            continue
        axes.plot([*means], values, **mean_style)
        for seed in seeds:
            axes.plot([*seed], [one.value for one in seed.values()], linewidth=0.7, alpha=0.5, **style)
        if factor := interval_factor(len(seeds)):
            low, high = ([v + sign * factor * e for v, e in zip(values, errors)] for sign in (-1, 1))
            axes.fill_between([*means], low, high, color=color, alpha=0.13, linewidth=0)
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    training_axis(axes, unit, places)
    at_least(axes, span)
    axes.set_ylim(limits)
    legend(axes, 3 if size == HALF else 2)
    return figure


def bands_caption(groups: Sequence[Group]) -> str:
    """An explanation of the lines; empty if each is one run."""
    most = max((len(group.members) for group in groups), default=1)
    if most == 1:
        return ""
    text = " Strong lines are means where every seed has a value, thin lines single seeds"
    if most >= FEWEST_SEEDS:
        text += "; bands are 95% intervals of the mean (Student’s t), drawn for three or more seeds"
    return f"{text}."
