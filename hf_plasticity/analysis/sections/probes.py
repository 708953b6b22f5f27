"""The probes of a run: AUC, ΔAUC, learning curves, and their table."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from ..figures import DASHED, INK, at_least, legend, panel, shades, training_axis
from ..onset_view import draw_onset_line
from ..page import Drawing, Section, Table
from ..series import ProbeSeries, auc, is_untrained, position, shared_unit
from ..text import Estimate, auc_text, change_text, compact, number


HOW = {"full": "full fine-tuning", "lora": "LoRA", "partial": "fine-tuning a part of its parameters"}


def probes_section(series: ProbeSeries) -> Section:
    """The figures of one series of probes."""
    how = HOW.get(series.adaptation, series.adaptation)
    steps, repeats = series.probes[0]["probe_steps"], len(series.probes[0].get("repeats") or [1])
    text = f"Each probe trains a copy of the model for {steps[-1]:,} steps by {how}"
    text += f", {repeats} times. Error bars are one standard error over these repeats." if repeats > 1 else "."
    section = Section(f"Probes on {series.language_name}", [text])
    if series.trained:
        if series.scatter is not None:
            scatter = 100 * series.scatter / series.best["auc"]
            section.text[0] += f" AUCs scatter about their trend by {scatter:.2g}% (standard deviation)."
        against = series.label(series.reference)
        caption = f"Change of the AUC against {against}. A rise beyond the noise is loss of plasticity."
        section.drawings = [
            Drawing("AUC", partial(auc_figure, series), "Area under each learning curve. Lower is faster learning."),
            Drawing("ΔAUC", partial(delta_auc_figure, series), caption),
        ]
        if against != "cycle 1":
            section.notes.append(f"ΔAUC is against {against}, the first probe of the trained model.")
    caption = "A curve for each probe, from the first (light) to the last (dark)."
    late = next(step for step in steps if step >= 0.2 * steps[-1])
    section.drawings += [
        Drawing("learning curves", partial(learning_curves, series), caption),
        Drawing("late learning curves", partial(learning_curves, series, late), f"The same from step {late:,} on."),
    ]
    if series.untrained is None:
        section.notes.append(f"No probe of the {series.start_model} (configuration {series.probe_config_hash}).")
    if any(probe.get("tokens") is None for probe in series.probes):
        section.notes.append("The tokens of some probes are not recorded: the horizontal axis is the optimizer step.")
    return section


def auc_figure(series: ProbeSeries) -> Figure:
    """AUC of every probe of the trained model, and a line for the model before training if its AUC is near."""
    values = [auc(probe) for probe in series.trained]
    lines = {}
    if series.untrained is not None:
        untrained, aucs = series.untrained["auc"], [value.value for value in values]
        room = 1.5 * (max(aucs) - min(aucs))
        near = min(aucs) - room <= untrained <= max(aucs) + room
        label = f"{series.start_model}: {number(untrained)}{'' if near else ', off scale'}"
        lines = {label: untrained if near else None}
    return _over_training(series, "AUC (nats/token × steps)", values, series.best["auc"] / 100, lines)


def delta_auc_figure(series: ProbeSeries) -> Figure:
    """ΔAUC of every probe of the trained model, with the onset if one was detected."""
    values = [Estimate(*one) for one in zip(series.changes, series.change_errors)]
    return _over_training(series, f"ΔAUC against {series.label(series.reference)} (%)", values, 1.0, {"": 0.0})


def _over_training(
    series: ProbeSeries, title: str, values: Sequence[Estimate], percent: float, lines: dict[str, float | None]
) -> Figure:
    figure, axes = panel(title)
    unit = shared_unit(series.trained)
    xs = [position(probe, unit) for probe in series.trained]
    errors = [value.error or np.nan for value in values]
    axes.errorbar(xs, [value.value for value in values], errors, marker="o", elinewidth=1.2, color=INK)
    for name, height in lines.items():
        if height is not None:
            axes.axhline(height, label=name, **DASHED)
        else:
            axes.plot([], [], label=name, **DASHED)
    draw_onset_line(axes, series, unit)
    at_least(axes, percent * series.least_span)
    training_axis(axes, unit, xs)
    legend(axes)
    return figure


def learning_curves(series: ProbeSeries, start: int = 0) -> Figure:
    """The loss curve of every probe, from probe step `start` on."""
    figure, axes = panel("Validation loss in the probe (nats/token)")

    def draw(probe: dict, **style) -> None:
        pairs = [pair for pair in zip(probe["probe_steps"], probe["losses"]) if pair[0] >= start]
        axes.plot(*zip(*pairs), **style)

    for probe, color in zip(series.trained, shades(len(series.trained))):
        draw(probe, color=color, linewidth=1.2)
    limits = axes.get_ylim() if start else None
    if series.untrained is not None:
        draw(series.untrained, label=series.start_model, **DASHED)
    axes.set_ylim(limits)
    axes.set_xlabel("probe step")
    legend(axes)
    return figure


def probes_table(series: ProbeSeries) -> Section:
    """Every probe of one series with its numbers."""
    against = f"ΔAUC against {series.label(series.reference)}" if series.trained else "ΔAUC"
    changes = dict(zip((probe["step"] for probe in series.trained), zip(series.changes, series.change_errors)))
    rows = [
        [
            series.label(probe),
            probe["step"],
            probe.get("tokens"),
            auc(probe),
            None if is_untrained(probe) else Estimate(*changes[probe["step"]]),
            probe["start_loss"],
            probe["final_loss"],
            probe.get("bits_per_byte"),
            *([] if series.late_step is None else [series.late_auc(probe)]),
        ]
        for probe in series.probes
    ]
    columns = {"Probe": str, "Step": "{:,}".format, "Tokens": compact, "AUC": auc_text, against: change_text}
    columns |= dict.fromkeys(("Start loss", "Final loss", "Bits per byte"), "{:.3f}".format)
    caption = f"{series.language_name}, {series.adaptation}, probe configuration {series.probe_config_hash}"
    if any(probe.get("auc_stderr") is not None for probe in series.probes):
        caption += ". ±: one standard error over repeats"
    if series.late_step is not None:
        columns[f"AUC from step {series.late_step}"] = number
        early = fmean(1 - series.late_auc(probe) / probe["auc"] for probe in series.probes)
        caption += f". {early:.0%} of the AUC lies before step {series.late_step}, where it depends on the start loss"
    section = Section("Every probe", tables=[Table(columns, rows, caption)])
    if any(probe.get("bits_per_byte") is None for probe in series.probes):
        section.notes.append("Bits per byte of some probes: the validation text has no known length in bytes.")
    return section
