"""The validation loss on the training languages of a run."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from matplotlib.figure import Figure

from ...records import RunRecord
from ..bands import bands_caption, bands_figure
from ..figures import WHOLE, legend, panel, training_axis
from ..groups import Group, group_by_seed
from ..page import Drawing, Section
from ..series import language_name, position, shared_unit
from ..text import Estimate, listed
from .training import language_colors, languages


def forgetting_section(run: RunRecord) -> Section:
    """The validation loss on each training language of one run."""
    section = Section("Forgetting", size="whole")
    if not run.forgetting:
        section.notes.append("No forgetting.jsonl: losses on the training languages were not measured.")
        return section
    caption = "Measured at the end of every cycle."
    if run.config.get("schedule") == "rotation":
        caption += " The first language of a cycle was trained on longest ago."
    section.drawings.append(Drawing("forgetting", partial(forgetting_figure, run), caption))
    return section


def forgetting_figure(run: RunRecord) -> Figure:
    """A line for each language."""
    figure, axes = panel("Validation loss (nats/token)", WHOLE)
    unit = shared_unit(run.forgetting)
    for name, color in language_colors(run).items():
        if points := mean_losses(run, [name], unit):
            values = [point.value for point in points.values()]
            axes.plot([*points], values, marker="o", color=color, label=language_name(run, name))
    training_axis(axes, unit, [position(record, unit) for record in run.forgetting])
    legend(axes, 8)
    return figure


def forgetting_of_runs(runs: Sequence[RunRecord]) -> Section:
    """The mean validation loss over the training languages of several runs, one figure for each set of languages."""
    section = Section("Forgetting")
    known = [run for run in runs if run.forgetting]
    if absent := [run.name for run in runs if not run.forgetting]:
        section.notes.append(f"No forgetting.jsonl in {listed(absent)}.")
    unit = shared_unit(record for run in known for record in run.forgetting)
    figures: dict[tuple[str, ...], list[Group[RunRecord]]] = {}
    for group in group_by_seed(known, lambda run: run, lambda run: {"measured on": listed(measured(run))}):
        figures.setdefault(measured(group.members[0]), []).append(group)
    for codes, groups in figures.items():
        for run in (run for group in groups for run in group.members):
            if len(mean_losses(run, codes, unit)) < len(run.forgetting):
                section.notes.append(f"{run.name}: records that lack one of {listed(codes)} have no mean loss.")
        names = listed([language_name(groups[0].members[0], code) for code in codes])
        curve, title = partial(mean_losses, codes=codes, unit=unit), "Mean validation loss (nats/token)"
        draw = partial(bands_figure, groups, curve, title, unit)
        caption = f"Mean over {names}.{bands_caption(groups)}"
        section.drawings.append(Drawing(f"forgetting {' '.join(codes)}", draw, caption))
    return section


def measured(run: RunRecord) -> tuple[str, ...]:
    """The training languages with a recorded loss."""
    recorded = {name for record in run.forgetting for name in record["losses"]}
    return tuple(name for name in languages(run) if name in recorded)


def mean_losses(run: RunRecord, codes: Sequence[str], unit: str) -> dict[float, Estimate]:
    """The mean loss over these languages by position; records that lack one of them are left out."""
    return {
        position(record, unit): Estimate(fmean(record["losses"][code] for code in codes))
        for record in run.forgetting
        if all(record["losses"].get(code) is not None for code in codes)
    }
