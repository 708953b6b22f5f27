"""The comparison of several runs: AUC and ΔAUC over training, and tables of groups, runs and probes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..bands import bands_caption, bands_figure
from ..comparison import ComparableProbes, auc_curve, delta_auc_curve, last_shared, mean_at
from ..groups import Group
from ..onset_view import detectable_cell, onset_cell
from ..page import Drawing, Section, Table
from ..series import ProbeSeries, auc, onset_of_seeds
from ..text import Estimate, auc_text, change_text, compact


def comparison_section(comparison: ComparableProbes) -> Section:
    """AUC first, then ΔAUC; a figure and a table for each reference."""
    groups, unit, span = comparison.groups, comparison.unit, max(one.least_span for one in comparison.series)
    section = Section(f"Probes on {comparison.name}")
    least = span / 100 * min(one.best["auc"] for one in comparison.series)
    draw = partial(bands_figure, groups, partial(auc_curve, unit=unit), "AUC (nats/token × steps)", unit, span=least)
    section.drawings.append(Drawing("AUC", draw, f"Lower is faster learning.{bands_caption(groups)}"))
    for reference, members in comparison.by_reference().items():
        title, curve = f"ΔAUC against {reference} (%)", partial(delta_auc_curve, unit=unit)
        caption = f"Change of the AUC of each run against {reference}. A rise beyond the noise is loss of plasticity."
        draw = partial(bands_figure, members, curve, title, unit, span=span)
        section.drawings.append(Drawing(f"ΔAUC against {reference}", draw, caption))
        if any(len(group.members) > 1 for group in members):
            section.tables.append(groups_table(members, reference))
    return section


def groups_table(groups: Sequence[Group[ProbeSeries]], reference: str) -> Table:
    """Groups of seeds at the last probe that all seeds of a group have."""
    rows = []
    for group in groups:
        last, cells = last_shared([group]), [None, None, None]
        if last is not None:
            cells = [last[1], *(mean_at(group, curve, last[0]) for curve in (auc_curve, delta_auc_curve))]
        onset = onset_of_seeds(group.members)[0]
        rows.append(
            [group.name, group.schedule, len(group.members), *cells, onset_cell(onset), detectable_cell(onset)]
        )
    columns = {"Runs": str, "Schedule": str, "Seeds": str, "Last probe of all": str, "AUC": auc_text}
    columns |= {f"ΔAUC against {reference}": change_text, "Onset": str, "Detectable rise": str}
    return Table(
        columns,
        rows,
        "Means over seeds. ±: one standard error over seeds, or over repeats of one seed. Onset of the mean curve. "
        "Each is tested on its own; about one in twenty curves that do not rise has an onset",
    )


def runs_section(comparisons: Sequence[ComparableProbes]) -> Section:
    """A table of the runs for each reference of ΔAUC, and one of all probes."""
    section = Section("Every run")
    for comparison in comparisons:
        for reference, groups in comparison.by_reference().items():
            columns = dict.fromkeys(("Run", "Size", "Schedule", "Seed"), str)
            columns |= {"Lowest AUC": auc_text, "After": str, "Last AUC": auc_text, "Last probe": str}
            columns |= {f"ΔAUC against {reference}": change_text, "Onset": str}
            rows = [_run_row(series) for group in groups for series in group.members]
            caption = f"{comparison.name}. ±: one standard error over repeats of the probe"
            section.tables.append(Table(columns, rows, caption))
    rows = [
        [*_names(series), series.language, series.adaptation, series.probe_config_hash, series.label(probe),
         probe["step"], probe.get("tokens"), auc(probe), probe["start_loss"], probe["final_loss"]]
        for comparison in comparisons for series in comparison.series for probe in series.probes
    ]  # fmt: skip
    names = ("Run", "Size", "Schedule", "Seed", "Language", "Adaptation", "Configuration", "Probe", "Step")
    columns = dict.fromkeys(names, str) | {"Tokens": compact, "AUC": auc_text}
    columns |= dict.fromkeys(("Start loss", "Final loss"), "{:.3f}".format)
    section.tables.append(Table(columns, rows, f"all {len(rows)} probes", folded=True))
    return section


def _names(series: ProbeSeries) -> list[Any]:
    return [series.run.name, *(series.run.config.get(name) for name in ("size", "schedule", "seed"))]


def _run_row(series: ProbeSeries) -> list[Any]:
    best, last = series.best, series.trained[-1]
    change = Estimate(series.changes[-1], series.change_errors[-1])
    return [
        *_names(series),
        auc(best),
        series.label(best),
        auc(last),
        series.label(last),
        change,
        onset_cell(series.onset),
    ]
