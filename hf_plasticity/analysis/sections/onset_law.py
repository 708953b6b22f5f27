"""The onsets of several runs over model size, with the fitted power law and the paper's."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ...errors import PlasticityError
from ..comparison import Comparison
from ..figures import INK, MUTED, WHOLE, compact_ticks, legend, panel
from ..groups import Group
from ..law import PAPER_LAW, OnsetLaw, fit_onset_law
from ..onset import Onset
from ..onset_view import draw_onset_marks, is_detected
from ..page import Drawing, Section, Table
from ..series import ProbeSeries, onset_of_seeds
from ..text import minus


FEWEST_SIZES = 3


def onset_sections(comparison: Comparison) -> list[Section]:
    """A section for each schedule."""
    by_schedule: dict[str | None, list[Group[ProbeSeries]]] = {}
    for group in comparison.groups:
        by_schedule.setdefault(group.schedule, []).append(group)
    return [
        onset_section(groups, ", ".join(filter(None, (comparison.name, schedule))))
        for schedule, groups in by_schedule.items()
    ]


def onset_section(groups: Sequence[Group[ProbeSeries]], name: str) -> Section:
    """Onset over size, and the law if one can be fitted."""
    section = Section(f"Onset and size: {name}", size="whole")
    known = [
        (group, onset) for group in groups if group.num_parameters and (onset := onset_of_seeds(group.members)[0])
    ]
    sizes, onsets = [group.num_parameters for group, _ in known], [onset for _, onset in known]
    if len(set(sizes)) < 2:
        return section
    if not any(map(is_detected, onsets)):
        section.notes.append(f"No onset was detected ({name}), so there is none to compare with the size.")
        return section
    law, caption = None, "Each mark is a size, its seeds taken together."
    measured = sum(onset.is_measured for onset in onsets)
    if len(known) > len(set(sizes)):
        section.text.append("No law was fitted: a size occurs with several configurations.")
    elif measured < FEWEST_SIZES:
        section.text.append(
            f"No law was fitted: it requires {FEWEST_SIZES} sizes whose 95% interval is after the start and before "
            f"the last probe, and there {'is' if measured == 1 else 'are'} {measured}."
        )
    else:
        try:
            law = fit_onset_law(sizes, onsets)
            section.text.append(law_words(law))
        except PlasticityError as error:
            section.text.append(f"No law could be fitted: {error}.")
    if law is not None and law.exponent_interval is not None:
        caption += " The band is the 95% interval for the onset of a new run."
    if law is not None and law.loo_errors:
        columns = {"Model of the onset": str, "Leave-one-out error": "{:.1%}".format}
        section.tables = [Table(columns, [[model, error] for model, error in law.loo_errors.items()])]
    seeds = max(len(group.members) for group, _ in known)
    draw = partial(onset_figure, sizes, onsets, law, seeds)
    section.drawings.append(Drawing(f"onset and size {name}", draw, caption))
    return section


def law_words(law: OnsetLaw) -> str:
    text = f"The fitted law is {law_text(law)}"
    if law.exponent_interval is not None:
        low, high = law.exponent_interval
        text += minus(f" (95% interval of the exponent: {low:.2f} to {high:.2f})")
    return f"{text}. The paper’s law for the rotation is {law_text(PAPER_LAW)}."


def law_text(law: OnsetLaw) -> str:
    """The law as text: T = 1.3e−05·P^0.827."""
    return minus(f"T = {law.coefficient:.2g}·P^{law.exponent:.3f}")


def onset_figure(sizes: Sequence[int], onsets: Sequence[Onset], law: OnsetLaw | None, seeds: int = 1) -> Figure:
    """Onset over non-embedding parameters on logarithmic axes."""
    figure, axes = panel("Onset (task instance)", WHOLE)
    axes.set(xscale="log", yscale="log", xlim=(0.7 * min(sizes), 1.5 * max(sizes)), xlabel="non-embedding parameters")
    draw_onset_marks(axes, sizes, onsets, seeds)
    grid = np.geomspace(*axes.get_xlim(), 40)
    if law is not None:
        predictions = [law.predict(size) for size in grid]
        axes.plot(grid, [one.task for one in predictions], color=INK, label=f"fit: {law_text(law)}")
        if law.exponent_interval is not None:
            lows, highs = [one.low for one in predictions], [one.high for one in predictions]
            axes.fill_between(grid, lows, highs, color=INK, alpha=0.09, linewidth=0)
    low, high = axes.get_ylim()
    paper = [PAPER_LAW.predict(size).task for size in grid]
    off = "" if max(paper) > low and min(paper) < high else ", off scale"
    axes.plot(grid, paper, color=MUTED, linestyle="--", label=f"paper: {law_text(PAPER_LAW)}{off}")
    axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    compact_ticks(axes.xaxis, axes.yaxis)
    legend(axes, 4)
    return figure
