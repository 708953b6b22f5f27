"""
The figures and the tables of docs/experiments.md and docs/mitigations.md, from the records in results/.

    python recipes/experiments.py
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import combine_pvalues, ttest_1samp

from hf_plasticity.analysis.law import PAPER_LAW
from hf_plasticity.analysis.onset import find_onset, probe_scatter
from hf_plasticity.analysis.onset_view import detectable_cell, onset_cell, p_words
from hf_plasticity.analysis.paired import holm
from hf_plasticity.analysis.series import ProbeSeries, probe_series
from hf_plasticity.records import read_run


ROOT = Path(__file__).parents[1]
GRAY = "0.4"
# The name of each kind of run in results/permuted: whether the text is permuted, the schedule, the weight decay.
PERMUTED_ARMS = {
    (True, "rotation", 0.1): "permuted",
    (True, "rotation", 0.0): "permuted, weight decay 0",
    (False, "rotation", 0.1): "rotation (control)",
    (False, "stationary", 0.1): "stationary text (control)",
}
# Of those in results/scaled: the schedule, whether task instances restart optimizer and warmup, the weight decay.
SCALED_ARMS = {
    ("rotation", True, 0.1): "rotation",
    ("rotation", True, 0.0): "rotation, weight decay 0",
    ("stationary", True, 0.1): "stationary text",
    ("stationary", False, 0.1): "stationary text, no restarts",
}
# The kinds whose changes are compared: the first minus the second.
COMPARED = (
    ("stationary text", "stationary text, no restarts"),
    ("rotation", "stationary text"),
    ("rotation", "stationary text, no restarts"),
    ("rotation, weight decay 0", "rotation"),
)
# The figures show only these kinds.
COLORS = {
    "permuted": "#c0392b",
    "rotation (control)": "#3a8f5c",
    "stationary text (control)": "#2c6fbb",
    "rotation": "#c0392b",
    "rotation, weight decay 0": "#d68910",
    "stationary text": "#2c6fbb",
    "stationary text, no restarts": "#3a8f5c",
}

Arms = dict[tuple[str, str], list[ProbeSeries]]


def main() -> None:
    draw_permuted(permuted_arms())
    draw_scaled(scaled_arms())
    print_tables()


def print_tables() -> None:
    permuted, scaled = permuted_arms(), scaled_arms()
    for table in (
        learning_rate_table(),
        onset_table(scaled, "cycle"),
        onset_table(scaled, "cycle", "final_loss"),
        parts_table(scaled),
        combined_table(scaled),
        difference_table(scaled),
        onset_table(permuted, "task"),
        cause_table(permuted),
        fit_table(scaled),
        variance_table({**permuted, **repeated_arms(), **scaled}),
        quickstart_table(),
        comparison_table(),
    ):
        print("\n".join(table), end="\n\n")


# Reading


def read(folder: str) -> list[ProbeSeries]:
    """The probes of every run in a folder of results/."""
    folders = sorted(path for path in (ROOT / "results" / folder).glob("*") if path.is_dir())
    return [probe_series(read_run(path))[0] for path in folders]


def parameters(series: ProbeSeries) -> int:
    return series.run.config["provenance"]["num_non_embedding_parameters"]


def permuted_arms() -> Arms:
    """The runs of each size and kind, the smallest models first."""

    def kind(config: dict) -> str:
        return PERMUTED_ARMS[bool(config["permute_tokens"]), config["schedule"], config["weight_decay"]]

    return arms(read("permuted"), kind, list(PERMUTED_ARMS.values()))


def repeated_arms() -> Arms:
    """Runs of the permuted regime with several repeats of each probe."""
    return arms(read("repeats"), lambda config: f"permuted, {config['probe_repeats']} repeats")


def scaled_arms() -> Arms:
    """The runs of the paper's regime, of each size and kind."""

    def kind(config: dict) -> str:
        return SCALED_ARMS[config["schedule"], config["restart_warmup"], config["weight_decay"]]

    return arms(read("scaled"), kind, list(SCALED_ARMS.values()))


def arms(runs: Sequence[ProbeSeries], kind: Callable[[dict], str], order: Sequence[str] = ()) -> Arms:
    """Runs by size and kind: the smallest models first, and the kinds in the given order."""
    groups: Arms = {}
    for one in sorted(runs, key=lambda one: (parameters(one), order and order.index(kind(one.run.config)))):
        groups.setdefault((one.run.config["size"], kind(one.run.config)), []).append(one)
    return groups


def probe(series: ProbeSeries, position: int) -> dict:
    """A probe by its number: 0 is that of the untrained model, -1 the last."""
    return series.probes[position]


def mean_loss(series: ProbeSeries, position: int) -> float:
    return probe(series, position)["mean_loss"]


def change(series: ProbeSeries, value: Callable[[dict], float]) -> float:
    """From the first probe of the trained model to the last, in percent."""
    return 100 * (value(probe(series, -1)) / value(probe(series, 1)) - 1)


def measured(series: ProbeSeries, measure: str, position: int) -> float:
    """A diagnosis at a probe."""
    step = probe(series, position)["step"]
    record = next(record for record in series.run.diagnostics if record["step"] == step)
    return record["measures"][measure]["overall"]


# Tables


def learning_rate_table() -> Iterator[str]:
    """The sweep of learning rates over a cycle."""
    runs = sorted(read("sweep"), key=lambda one: (parameters(one), one.run.config["learning_rate"]))
    yield "| size | context | learning rate | untrained | after a cycle | final loss | dormant units | rank |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in runs:
        config = one.run.config
        cells = [
            config["size"],
            config["context_length"],
            f"{config['learning_rate']:g}",
            *(f"{mean_loss(one, position):.2f}" for position in (0, 1)),
            f"{probe(one, 1)['final_loss']:.3f}",
            f"{measured(one, 'dormant_units', 1):.0%}",
            f"{measured(one, 'feature_effective_rank', 1):.1f}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def onset_table(groups: Arms, unit: str, field: str = "mean_loss") -> Iterator[str]:
    """The mean or final losses of the probes, their change, and the onset of each group of seeds."""
    losses = f"untrained | after {unit} 1 | after the last | change"
    yield f"| size | text | seeds | {unit}s | {losses} | onset (95% interval) | p | detectable rise | alone |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for (size, name), seeds in groups.items():
        curves = [[record | {"auc": record[field]} for record in one.trained] for one in seeds]
        onset = find_onset(curves)
        cells = [
            size,
            name,
            len(seeds),
            probe(seeds[0], -1)[unit],
            *(estimate([probe(one, position)[field] for one in seeds]) for position in (0, 1, -1)),
            estimate([change(one, lambda record: record[field]) for one in seeds], "{:+.1f}", "%"),
            onset_cell(onset),
            p_words(onset.p_value),
            detectable_cell(onset),
            f"{sum(not find_onset(curve).censored for curve in curves)} of {len(seeds)}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def parts_table(groups: Arms) -> Iterator[str]:
    """The change since the first probe of the trained model, and the test for a rise, of each part of a probe."""
    step = next(iter(groups.values()))[0].late_step
    yield f"| size | text | seeds | AUC | AUC from step {step} | start loss | final loss |"
    yield "|---|---|---|---|---|---|---|"
    for (size, name), seeds in groups.items():
        cells = [size, name, len(seeds)]
        parts: tuple[Callable[[ProbeSeries, dict], float], ...] = (
            lambda one, record: record["auc"],
            ProbeSeries.late_auc,
            lambda one, record: record["start_loss"],
            lambda one, record: record["final_loss"],
        )
        for part in parts:
            onset = find_onset([[record | {"auc": part(one, record)} for record in one.trained] for one in seeds])
            changes = fmean(change(one, partial(part, one)) for one in seeds)
            cells.append(f"{changes:+.1f}%, {p_words(onset.p_value)}")
        yield f"| {' | '.join(map(str, cells))} |"


def combined_table(groups: Arms) -> Iterator[str]:
    """
    Whether the loss rises at any size: the p-values of all sizes of a kind, combined by Fisher's method, and the same
    corrected for the number of combinations by Holm's method.
    """
    yield "| text | sizes | mean loss of the probes | corrected | final loss of the probes | corrected |"
    yield "|---|---|---|---|---|---|"
    rows, p_values = [], []
    for name in dict.fromkeys(name for _, name in groups):
        of_sizes = {size: seeds for (size, kind), seeds in groups.items() if kind == name}
        if len(of_sizes) == 1:
            continue
        rows.append([name, ", ".join(of_sizes)])
        for field in ("mean_loss", "final_loss"):
            onsets = [
                find_onset([[record | {"auc": record[field]} for record in one.trained] for one in seeds])
                for seeds in of_sizes.values()
            ]
            p_values.append(float(combine_pvalues([onset.p_value for onset in onsets]).pvalue))
    pairs = iter(zip(map(p_words, p_values), map(p_words, holm(p_values))))
    for row in rows:
        yield f"| {' | '.join([*row, *next(pairs), *next(pairs)])} |"


def difference_table(groups: Arms) -> Iterator[str]:
    """
    Whether two kinds of runs change differently: the difference of their changes since the first probe of the trained
    model, in percentage points, paired by seed, with the p-value of Student's t-test.
    """
    yield "| size | compared | seeds | AUC | p | final loss | p |"
    yield "|---|---|---|---|---|---|---|"
    for one, other in COMPARED:
        for size in dict.fromkeys(size for size, name in groups if name == one):
            pairs = same_seeds(groups[size, one], groups.get((size, other), []))
            if len(pairs) < 2:
                continue
            cells = [size, f"{one} − {other}", len(pairs)]
            for field in ("auc", "final_loss"):
                value = itemgetter(field)
                differences = [change(first, value) - change(second, value) for first, second in pairs]
                p_value = float(ttest_1samp(differences, 0).pvalue)
                cells += [estimate(differences, "{:+.1f}"), p_words(p_value)]
            yield f"| {' | '.join(map(str, cells))} |"


def same_seeds(group: Sequence[ProbeSeries], others: Sequence[ProbeSeries]) -> list[tuple[ProbeSeries, ProbeSeries]]:
    """The runs of two groups with the same seed."""
    by_seed = {one.run.config["seed"]: one for one in others}
    return [(one, by_seed[seed]) for one in group if (seed := one.run.config["seed"]) in by_seed]


def cause_table(groups: Arms) -> Iterator[str]:
    """What else changes from the first probe of the trained model to the last."""
    step = next(iter(groups.values()))[0].late_step
    yield (
        f"| size | text | final loss, task 1 | final loss, task 16 | AUC from step {step} | dormant units | rank | "
        "mean weight |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for (size, name), seeds in groups.items():
        cells = [
            *(estimate([probe(one, position)["final_loss"] for one in seeds]) for position in (1, -1)),
            estimate([change(one, one.late_auc) for one in seeds], "{:+.1f}", "%"),
            first_to_last(seeds, "dormant_units", "{:.0%}"),
            first_to_last(seeds, "feature_effective_rank", "{:.1f}"),
            first_to_last(seeds, "parameter_magnitude", "{:.3f}"),
        ]
        yield f"| {size} | {name} | {' | '.join(cells)} |"


def variance_table(groups: Arms) -> Iterator[str]:
    """Where the scatter of AUCs comes from, as standard deviations in percent of the AUC."""
    yield "| size | text | checkpoints | of which start loss | repeats | seeds | descent |"
    yield "|---|---|---|---|---|---|---|"
    for (size, name), seeds in groups.items():
        cells = [
            f"{fmean(scatter(one) for one in seeds):.1f}%",
            f"{100 * explained_by_start_loss(seeds):.0f}%",
            repeat_scatter(seeds),
            seed_scatter(seeds),
            f"{100 * fmean(descent(one) for one in seeds):.0f}%",
        ]
        yield f"| {size} | {name} | {' | '.join(cells)} |"


def fit_table(groups: Arms) -> Iterator[str]:
    """Whether the models memorize repeated text: training and validation loss of stationary training, in the run."""
    losses = "training loss, cycle 1 | validation loss | training loss, last cycle | validation loss"
    yield f"| size | text | seeds | tokens, M | {losses} |"
    yield "|---|---|---|---|---|---|---|---|"
    for (size, name), seeds in groups.items():
        if seeds[0].run.config["schedule"] == "rotation":
            continue  # its training loss includes the switch to another language
        cells = [
            size,
            name,
            len(seeds),
            f"{seeds[0].run.forgetting[-1]['tokens'] / 1e6:.0f}",
            *(
                estimate([loss(one, cycle) for one in seeds], "{:.3f}")
                for cycle in (0, -1)
                for loss in (training_loss, validation_loss)
            ),
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def training_loss(series: ProbeSeries, cycle: int) -> float:
    """The mean over the last task instance of a cycle."""
    step = series.run.forgetting[cycle]["step"]
    return next(entry["loss"] for entry in series.run.training_log if entry["step"] == step and "loss" in entry)


def validation_loss(series: ProbeSeries, cycle: int) -> float:
    """The mean over the languages, after that task instance."""
    return fmean(series.run.forgetting[cycle]["losses"].values())


def quickstart_table() -> Iterator[str]:
    """The quickstart with several seeds."""
    yield "| seed | untrained | after task 1 | after task 16 | against untrained | change | p | dormant units |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in sorted(read("quickstart"), key=lambda one: one.run.config["seed"]):
        last, untrained = mean_loss(one, -1), mean_loss(one, 0)
        cells = [
            one.run.config["seed"],
            *(f"{mean_loss(one, position):.2f}" for position in (0, 1, -1)),
            f"{100 * (last / untrained - 1):+.0f}%",
            f"{change(one, lambda record: record['auc']):+.0f}%",
            p_words(find_onset(one.trained).p_value),
            f"{measured(one, 'dormant_units', -1):.0%}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def comparison_table() -> Iterator[str]:
    """The leaderboard of results/compare."""
    path = ROOT / "results" / "compare" / "leaderboard.json"
    against = "AUC against none (95% interval) | p, corrected | AUC against untrained"
    yield f"| method | rank | {against} | with default arguments | training loss |"
    yield "|---|---|---|---|---|---|---|"
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        cells = [
            f"`{row['method']}`",
            "–".join(map(str, sorted(set(row["rank"])))),
            interval(row["change"]),
            "" if row["corrected_p"] is None else f"{row['corrected_p']:.3f}",
            interval(row["against_untrained"]),
            interval(row["with_defaults"]),
            "" if row["method"] == "none" else f"{row['training_loss_gap'][0]:+.2f}",
        ]
        yield f"| {' | '.join(cells)} |"


def interval(change: dict | None) -> str:
    """A change in percent with its interval."""
    return "" if change is None else f"{change['percent']:+.1f}% ({change['low']:+.1f} to {change['high']:+.1f})"


def scatter(series: ProbeSeries) -> float:
    """Of the AUCs of one run about the trend of its neighbors."""
    aucs = [record["auc"] for record in series.trained]
    return 100 * probe_scatter([record["task"] for record in series.trained], aucs) / fmean(aucs)


def explained_by_start_loss(seeds: Sequence[ProbeSeries]) -> float:
    """The share of that scatter which goes along with the start losses: the squared correlation of both."""

    def beside_neighbors(name: str) -> np.ndarray:
        values = [np.array([record[name] for record in one.trained]) for one in seeds]
        return np.concatenate([one[1:-1] - (one[:-2] + one[2:]) / 2 for one in values])

    return float(np.corrcoef(beside_neighbors("auc"), beside_neighbors("start_loss"))[0, 1] ** 2)


def repeat_scatter(seeds: Sequence[ProbeSeries]) -> str:
    """Of the AUCs of one checkpoint with other orders of the probe's data; empty without repeats."""
    repeated = [record for one in seeds for record in one.trained if "repeats" in record]
    if not repeated:
        return ""
    spreads = [record["auc_stderr"] * math.sqrt(len(record["repeats"])) / record["auc"] for record in repeated]
    return f"{100 * math.sqrt(fmean(spread**2 for spread in spreads)):.1f}%"


def seed_scatter(seeds: Sequence[ProbeSeries]) -> str:
    """
    Of the AUCs of several seeds at the same position, of which the scatter within a run is a part; empty for one seed.
    """
    if len(seeds) == 1:
        return ""
    rows = zip(*([record["auc"] for record in one.trained] for one in seeds))
    return f"{100 * math.sqrt(fmean((stdev(row) / fmean(row)) ** 2 for row in rows)):.1f}%"


def descent(series: ProbeSeries) -> float:
    """The share of the AUC before `late_step`."""
    return fmean(1 - series.late_auc(record) / record["auc"] for record in series.trained)


def first_to_last(seeds: Sequence[ProbeSeries], measure: str, text: str) -> str:
    """A diagnosis at the first and at the last probe of the trained model, mean over seeds."""
    return " → ".join(text.format(fmean(measured(one, measure, position) for one in seeds)) for position in (1, -1))


def estimate(values: Sequence[float], text: str = "{:.2f}", unit: str = "") -> str:
    """Mean and standard error; one value has none."""
    if len(values) == 1:
        return f"{text.format(values[0])}{unit}"
    error = text.replace("+", "").format(stdev(values) / math.sqrt(len(values)))
    return f"{text.format(fmean(values))} ± {error}{unit}"


# Figures


def draw_permuted(groups: Arms) -> None:
    sizes = list(dict.fromkeys(size for size, _ in groups))
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    for axes, size in zip(figure.subplots(1, len(sizes), sharey=True), sizes):
        here = {name: seeds for (one, name), seeds in groups.items() if one == size and name in COLORS}
        for name, seeds in here.items():
            draw_band(axes, seeds, "task", COLORS[name], name)
        untrained = fmean(mean_loss(one, 0) for seeds in here.values() for one in seeds)
        axes.axhline(untrained, color=GRAY, linestyle="--", linewidth=1, label="untrained")
        finish(axes, size, "task instances trained")
    figure.axes[0].set_ylabel("mean loss of the probe (AUC / steps)")
    shared_legend(figure)
    figure.savefig(ROOT / "docs" / "images" / "permuted-auc.png", dpi=130)


def draw_scaled(groups: Arms) -> None:
    """
    Mean loss and final loss of the probes against training tokens, with the onset that the paper's law gives. Without
    groups of a single seed, whose curves are mostly noise.
    """
    groups = {key: seeds for key, seeds in groups.items() if len(seeds) > 1}
    sizes = list(dict.fromkeys(size for size, _ in groups))
    figure = Figure(figsize=(10, 3.0 * len(sizes)), layout="constrained")
    for row, size in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes):
        here = {name: seeds for (one, name), seeds in groups.items() if one == size}
        law = PAPER_LAW.predict(parameters(next(iter(here.values()))[0])).tokens / 1e6
        for axes, field, title in zip(row, ("mean_loss", "final_loss"), ("AUC / steps", "final loss")):
            for name, seeds in here.items():
                draw_band(axes, seeds, "tokens", COLORS[name], name, field)
            axes.axvline(law, color=GRAY, linestyle="--", linewidth=1, label="onset by the paper's law")
            finish(axes, size, "training tokens (millions)")
            axes.set_ylabel(f"{title} (nats per byte)")
    shared_legend(figure)
    figure.savefig(ROOT / "docs" / "images" / "scaled-auc.png", dpi=130)


def shared_legend(figure: Figure) -> None:
    """One legend for all axes, below them."""
    handles = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels())}
    columns = len(handles) if len(handles) < 5 else 3
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def draw_band(
    axes: Axes, seeds: Sequence[ProbeSeries], unit: str, color: str, label: str, field: str = "mean_loss"
) -> None:
    """The mean over seeds with two standard errors."""
    scale = 1e6 if unit == "tokens" else 1
    places = [record[unit] / scale for record in seeds[0].trained]
    rows = list(zip(*([record[field] for record in one.trained] for one in seeds)))
    means = [fmean(row) for row in rows]
    axes.plot(places, means, color=color, marker="o", markersize=3, label=label)
    if len(seeds) > 1:
        errors = [2 * stdev(row) / math.sqrt(len(row)) for row in rows]
        low, high = zip(*((mean - error, mean + error) for mean, error in zip(means, errors)))
        axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)


def finish(axes: Axes, size: str, label: str) -> None:
    axes.set(title=f"{size} parameters", xlabel=label)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
