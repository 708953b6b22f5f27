"""The training loss of a run."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from ...records import RunRecord
from ..figures import CATEGORIES, INK, WHOLE, legend, panel, training_axis
from ..page import Drawing, Section
from ..series import language_name, position, shared_unit


POINTS = 2000


def training_section(run: RunRecord) -> Section:
    """The training loss by language."""
    entries = [entry for entry in run.training_log if "loss" in entry]
    section = Section("Training", size="whole")
    if not entries:
        section.notes.append("No training log: the training loss is not shown.")
        return section
    if any(entry.get("language") is None for entry in entries):
        section.notes.append("Entries of the training log without a language are drawn in black.")
    caption = "Mean of neighboring log entries. The start of the run is cut off where it is above everything later."
    section.drawings.append(Drawing("training loss", partial(training_figure, run, entries), caption))
    return section


def training_figure(run: RunRecord, entries: Sequence[dict[str, Any]]) -> Figure:
    """The training loss; the color of a task instance is that of its language."""
    figure, axes = panel("Training loss (nats/token)", WHOLE)
    unit, colors = shared_unit(entries), language_colors(run)
    size = -(-len(entries) // POINTS)
    tasks = [list(task) for _, task in groupby(entries, lambda entry: (entry.get("task"), entry.get("language")))]
    lines: dict[str | None, list[tuple[float, float]]] = {}
    for task in tasks:
        line = lines.setdefault(task[0].get("language"), [])
        for start in range(0, len(task), size):
            part = task[start : start + size]
            line.append((fmean(position(one, unit) for one in part), fmean(one["loss"] for one in part)))
        line.append((float("nan"), float("nan")))
    for language, line in lines.items():
        name = "all languages mixed" if language == "mixture" else language and language_name(run, language)
        axes.plot(*zip(*line), color=colors.get(language, INK), linewidth=1.2, label=name)
    if later := [entry["loss"] for task in tasks[1:] for entry in task]:
        axes.set_ylim(top=max(later) + 0.05 * (max(later) - min(later)))
    training_axis(axes, unit, ())
    legend(axes, 8)
    return figure


def languages(run: RunRecord) -> list[str]:
    """The training languages: those of the configuration, then others in the order in which they appear."""
    seen = [entry["language"] for entry in run.training_log if "loss" in entry and entry.get("language")]
    seen += [language for record in run.forgetting for language in record["losses"]]
    return [name for name in dict.fromkeys([*(run.config.get("languages") or []), *seen]) if name != "mixture"]


def language_colors(run: RunRecord) -> dict[str, Any]:
    """A color for each training language; they repeat after ten."""
    return {name: CATEGORIES[index % len(CATEGORIES)] for index, name in enumerate(languages(run))}
