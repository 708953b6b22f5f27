"""The onsets of several runs over model size, with the fitted power law and the paper's."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ...errors import PlasticityError
from ..comparison import ComparableProbes
from ..figures import INK, MUTED, WHOLE, compact_ticks, legend, panel
from ..groups import Group
from ..law import PAPER_LAW, TOKENS_PER_TASK, OnsetLaw, fit_onset_law
from ..onset import Onset
from ..onset_view import draw_onset_marks, is_detected
from ..page import Drawing, Section, Table
from ..series import ProbeSeries, onset_of_seeds
from ..text import compact, listed, minus


FEWEST_SIZES = 3


def onset_sections(comparison: ComparableProbes) -> list[Section]:
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
    lengths = sorted({tokens_per_task(group) for group, _ in known})
    paper = in_tasks_of(PAPER_LAW, lengths[0]) if len(lengths) == 1 else None
    if paper is None:
        section.text.append(
            f"No law was fitted: a task instance has {listed([compact(one) for one in lengths])} tokens, depending on "
            "the run, so that onsets in task instances cannot be compared."
        )
    elif len(known) > len(set(sizes)):
        section.text.append("No law was fitted: a size occurs with several configurations.")
    elif measured < FEWEST_SIZES:
        bounded = any(one.interval for one in onsets)
        start = "95% interval is after the start" if bounded else "onset is after the first"
        section.text.append(
            f"No law was fitted: it requires {FEWEST_SIZES} sizes whose {start} and before the last probe, and there "
            f"{'is' if measured == 1 else 'are'} {measured}."
        )
    else:
        try:
            law = fit_onset_law(sizes, onsets, tokens_per_task=lengths[0])
            section.text.append(law_words(law, paper))
        except PlasticityError as error:
            section.text.append(f"No law could be fitted: {error}.")
    if law is not None and law.exponent_interval is not None:
        caption += " The band is the 95% interval for the onset of a new run."
    if law is not None and law.loo_errors:
        columns = {"Model of the onset": str, "Leave-one-out error": "{:.1%}".format}
        section.tables = [Table(columns, [[model, error] for model, error in law.loo_errors.items()])]
    seeds = max(len(group.members) for group, _ in known)
    draw = partial(onset_figure, sizes, onsets, law, paper, seeds)
    section.drawings.append(Drawing(f"onset and size {name}", draw, caption))
    return section


def tokens_per_task(group: Group[ProbeSeries]) -> float:
    """The tokens in a task instance of these runs."""
    first = group.members[0].trained[0]  # not the last, which may be within a task instance
    return first["tokens"] / first["task"]


def in_tasks_of(law: OnsetLaw, tokens: float) -> OnsetLaw:
    """The same law in task instances of this many tokens. The paper's are 5B, rounded."""
    if math.isclose(tokens, law.tokens_per_task, rel_tol=0.01):
        return law
    return replace(law, coefficient=law.coefficient * law.tokens_per_task / tokens, tokens_per_task=tokens)


def law_words(law: OnsetLaw, paper: OnsetLaw) -> str:
    """The fitted law and the paper's, in the same task instances."""
    text = f"The fitted law is {law_text(law)}"
    if law.exponent_interval is not None:
        low, high = law.exponent_interval
        text += minus(f" (95% interval of the exponent: {low:.2f} to {high:.2f})")
    text += f". The paper’s law for the rotation is {law_text(paper)}"
    if paper.tokens_per_task != TOKENS_PER_TASK:
        text += f" in task instances of {compact(paper.tokens_per_task)} tokens"
    return f"{text}."


def law_text(law: OnsetLaw) -> str:
    """The law as text: T = 1.3e−05·P^0.827."""
    return minus(f"T = {law.coefficient:.2g}·P^{law.exponent:.3f}")


def onset_figure(
    sizes: Sequence[int], onsets: Sequence[Onset], law: OnsetLaw | None, paper: OnsetLaw | None, seeds: int = 1
) -> Figure:
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
    if paper is not None:
        low, high = axes.get_ylim()
        expected = [paper.predict(size).task for size in grid]
        off = "" if max(expected) > low and min(expected) < high else ", off scale"
        axes.plot(grid, expected, color=MUTED, linestyle="--", label=f"paper: {law_text(paper)}{off}")
        axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    compact_ticks(axes.xaxis, axes.yaxis)
    legend(axes, 4)
    return figure
