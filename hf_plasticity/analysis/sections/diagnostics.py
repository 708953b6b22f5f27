"""The diagnostics of a run: every measure over training, by layer and by head."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ...records import RunRecord
from ..bands import bands_caption, bands_figure
from ..figures import INK, SEQUENCE, SMALL, WHOLE, panel, shades, training_axis
from ..groups import group_by_seed
from ..page import Drawing, Section
from ..series import label, position, shared_unit
from ..text import Estimate, listed


TITLE = "Inside the network"
# Measures between 0 and 1 by definition.
FRACTIONS = (
    "dormant_units", "gradient_activity", "lazy_heads", "collapsed_heads", "attention_entropy",
    "first_token_attention",
)  # fmt: skip
MOST_MAPS = 6

Record = dict[str, Any]


def by_configuration(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The comparable diagnoses, by the hash of their configuration."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["diagnostics_config_hash"], []).append(record)
    return found


def measure_names(records: Iterable[Record]) -> list[str]:
    """All measures in the records, in the order of their first appearance."""
    return list(dict.fromkeys(name for record in records for name in record["measures"]))


def words(measure: str) -> str:
    return measure.replace("_", " ")


def limits(measure: str) -> tuple[float, float] | None:
    """The limits of an axis: 0 and 1 for a fraction."""
    return (0.0, 1.0) if measure in FRACTIONS else None


def overall(record: Record, measure: str) -> float | None:
    return (record["measures"].get(measure) or {}).get("overall")


def as_grid(record: Record, measure: str, kind: str) -> np.ndarray:
    """A measure `per_layer` (one column) or `per_head` in one diagnosis, one row per layer, NaN if not measured."""
    rows = (record["measures"].get(measure) or {}).get(kind) or []
    rows = [row if isinstance(row, list) else [row] for row in rows]
    grid = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, row in enumerate(rows):
        grid[index, : len(row)] = row
    return grid


def diagnostics_sections(run: RunRecord) -> list[Section]:
    """The measures of a run over training and by head, separately for each configuration."""
    if not run.diagnostics:
        return [Section(TITLE, notes=["No diagnostics.jsonl: the inside of the network was not measured."])]
    sections = []
    for name, records in by_configuration(run.diagnostics).items():
        suffix = f" ({name})" if len(records) < len(run.diagnostics) else ""
        sections += [layers_section(records, suffix), heads_section(run, records, suffix)]
    return sections


def layers_section(records: Sequence[Record], suffix: str) -> Section:
    """Every measure over the run, overall and by layer."""
    text = "Black: the whole model. Colors: its layers, from the first (light) to the last (dark)."
    section = Section(f"{TITLE}{suffix}", [text], size="small")
    for measure in measure_names(records):
        layers = [as_grid(record, measure, "per_layer") for record in records]
        if any(np.isfinite(layer).any() for layer in layers) or any(
            overall(one, measure) is not None for one in records
        ):
            section.drawings.append(Drawing(words(measure), partial(measure_figure, records, measure)))
    reasons = {name: reason for record in records for name, reason in (record.get("not_measured") or {}).items()}
    section.notes += [f"Not measured: {words(name)} ({reason})." for name, reason in reasons.items()]
    return section


def measure_figure(records: Sequence[Record], measure: str) -> Figure:
    """One measure over the run: a thin line for each layer, a strong one for the whole model."""
    figure, axes = panel(words(measure), SMALL)
    unit = shared_unit(records)
    places = [position(record, unit) for record in records]
    columns = [as_grid(record, measure, "per_layer").ravel() for record in records]
    layers = max(map(len, columns))
    for layer, color in enumerate(shades(layers)):
        values = [column[layer] if layer < len(column) else np.nan for column in columns]
        axes.plot(places, values, color=color, linewidth=1.0)
    axes.plot(places, np.array([overall(one, measure) for one in records], dtype=float), color=INK, linewidth=2)
    axes.set_ylim(limits(measure))
    training_axis(axes, unit, places)
    return figure


def heads_section(run: RunRecord, records: Sequence[Record], suffix: str) -> Section:
    """Maps of layer and head for the measures with values by head."""
    section = Section(f"Attention heads{suffix}", size="whole")
    caption = "Head (across) and layer (up) in some of the diagnoses. Hatched: not measured."
    for measure in measure_names(records):
        known = [record for record in records if np.isfinite(as_grid(record, measure, "per_head")).any()]
        if known:
            chosen = sorted({round(index) for index in np.linspace(0, len(known) - 1, MOST_MAPS)})
            draw = partial(heads_figure, {label(run, known[index]): known[index] for index in chosen}, measure)
            section.drawings.append(Drawing(f"{words(measure)} by head", draw, caption))
    return section


def heads_figure(records: dict[str, Record], measure: str) -> Figure:
    """A map for each record, all on one scale."""
    grids = [as_grid(record, measure, "per_head") for record in records.values()]
    every = np.concatenate([grid.ravel() for grid in grids])
    norm = Normalize(*(limits(measure) or (np.nanmin(every), np.nanmax(every))))
    figure = Figure(figsize=(WHOLE[0] / 72, 230 / 72))
    figure.suptitle(words(measure), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    panels = figure.subplots(1, MOST_MAPS, sharey=True)
    for axes, name, grid in zip(panels, records, grids):
        axes.set_title(name, fontsize="small", fontweight="normal")
        axes.patch.set(hatch="////", edgecolor="#b9b5ad")
        axes.pcolormesh(np.ma.masked_invalid(grid), cmap=SEQUENCE, norm=norm, rasterized=True)
        axes.grid(False)
        axes.set_xticks(np.arange(grid.shape[1]) + 0.5, labels=range(grid.shape[1]))
        axes.set_yticks(np.arange(grid.shape[0]) + 0.5, labels=range(grid.shape[0]))
    for axes in panels[len(records) :]:
        axes.set_visible(False)
    figure.colorbar(ScalarMappable(norm, SEQUENCE), ax=panels, aspect=12).outline.set_visible(False)
    return figure


def diagnostics_of_runs(runs: Sequence[RunRecord]) -> Section:
    """The overall value of every measure in several runs, for their most frequent configuration."""
    section = Section(TITLE, size="small")
    if absent := [run.name for run in runs if not run.diagnostics]:
        section.notes.append(f"No diagnostics.jsonl in {listed(absent)}.")
    counts = Counter(name for run in runs for name in by_configuration(run.diagnostics))
    if not counts:
        return section
    (chosen, count), *others = counts.most_common()
    if others:
        section.notes.append(
            f"Diagnoses of configuration {listed([name for name, _ in others])} are not shown: they cannot be "
            f"compared with those of {chosen}, which {count} runs have."
        )
    known = [run for run in runs if chosen in by_configuration(run.diagnostics)]
    every = [record for run in known for record in by_configuration(run.diagnostics)[chosen]]
    unit, groups = shared_unit(every), group_by_seed(known, lambda run: run)
    section.text = [f"The overall value of each measure.{bands_caption(groups)}"]
    for measure in measure_names(every):
        if any(overall(record, measure) is not None for record in every):
            curve = partial(overall_curve, configuration=chosen, measure=measure, unit=unit)
            draw = partial(bands_figure, groups, curve, words(measure), unit, SMALL, limits=limits(measure))
            section.drawings.append(Drawing(words(measure), draw))
    return section


def overall_curve(run: RunRecord, configuration: str, measure: str, unit: str) -> dict[float, Estimate]:
    """The overall value of a measure by position."""
    return {
        position(record, unit): Estimate(value)
        for record in by_configuration(run.diagnostics)[configuration]
        if (value := overall(record, measure)) is not None
    }
