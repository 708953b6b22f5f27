"""
The figure and the tables of docs/experiments.md, from the records in results/.

    python recipes/experiments.py
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

from hf_plasticity.analysis.onset import find_onset
from hf_plasticity.analysis.onset_view import onset_words, p_words
from hf_plasticity.metrics.probe_auc.definition import probe_auc
from hf_plasticity.records import RunRecord, read_run


ROOT = Path(__file__).parents[1]
ARMS = {"rotation": "permuted", "stationary": "stationary text (control)"}
COLORS = {"rotation": "#c0392b", "stationary": "#2c6fbb"}
# From this step on, the start loss has little influence on the area.
LATE = 20


def main() -> None:
    arms = read_arms()
    draw(arms)
    print_tables(arms)


def read_arms() -> dict[tuple[str, str], list[RunRecord]]:
    """The runs of each size and text, the smallest models first."""
    runs = [read_run(folder) for folder in sorted((ROOT / "results" / "permuted").iterdir()) if folder.is_dir()]
    sizes = sorted({run.config["size"] for run in runs}, key=lambda size: parameters(runs, size))
    return {
        (size, schedule): [run for run in runs if (run.config["size"], run.config["schedule"]) == (size, schedule)]
        for size in sizes
        for schedule in ARMS
    }


def print_tables(arms: dict[tuple[str, str], list[RunRecord]]) -> None:
    runs = [run for seeds in arms.values() for run in seeds]
    print("| size | text | seeds | untrained | after task 1 | after task 16 | change | onset (95% interval) | p |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (size, schedule), seeds in arms.items():
        onset = find_onset([run.probes for run in seeds])
        words = f"none; {onset.detectable_rise:.1f}% would be found" if onset.censored else onset_words(onset)
        cells = [estimate([mean_loss(run, task) for run in seeds]) for task in (0, 1, 16)]
        change = estimate([100 * (mean_loss(run, 16) / mean_loss(run, 1) - 1) for run in seeds], "{:+.1f}", "%")
        words = words.split(";")[0].replace("95% interval ", "").rstrip(")") + (")" if "(" in words else "")
        print(f"| {size} | {ARMS[schedule]} | {len(seeds)} | {' | '.join(cells)} | {change} | {words} | "
              f"{p_words(onset.p_value)} |")  # fmt: skip
    print("\n| size | text | final loss, task 1 | final loss, task 16 | AUC from step 20 | dormant units | rank |")
    print("|---|---|---|---|---|---|---|")
    for (size, schedule), seeds in arms.items():
        late = [100 * (late_area(run, 16) / late_area(run, 1) - 1) for run in seeds]
        cells = [
            *(estimate([probe(run, task)["final_loss"] for run in seeds]) for task in (1, 16)),
            estimate(late, "{:+.1f}", "%"),
            *(between_tasks(seeds, measure, text) for measure, text in
              (("dormant_units", "{:.0%}".format), ("feature_effective_rank", "{:.1f}".format))),
        ]  # fmt: skip
        print(f"| {size} | {ARMS[schedule]} | {' | '.join(cells)} |")
    print(f"\nDescent: {100 * fmean(descent_share(run) for run in runs):.0f}% of the area lies before step {LATE}.")


def parameters(runs: Sequence[RunRecord], size: str) -> int:
    return next(run.config["provenance"]["num_non_embedding_parameters"] for run in runs if run.config["size"] == size)


def probe(run: RunRecord, task: int) -> dict:
    return next(record for record in run.probes if record["task"] == task)


def mean_loss(run: RunRecord, task: int) -> float:
    return probe(run, task)["mean_loss"]


def late_area(run: RunRecord, task: int) -> float:
    """The area from step `LATE` on."""
    record = probe(run, task)
    points = [(step, loss) for step, loss in zip(record["probe_steps"], record["losses"]) if step >= LATE]
    return probe_auc(*zip(*points))["probe_auc"]


def descent_share(run: RunRecord) -> float:
    return fmean(1 - late_area(run, task) / probe(run, task)["auc"] for task in range(1, 17))


def between_tasks(seeds: Sequence[RunRecord], measure: str, text: Callable[[float], str]) -> str:
    """A diagnosis after tasks 1 and 16, mean over seeds."""
    values = {
        task: fmean(
            record["measures"][measure]["overall"] for run in seeds for record in run.diagnostics
            if record["task"] == task
        )
        for task in (1, 16)
    }  # fmt: skip
    return f"{text(values[1])} → {text(values[16])}"


def estimate(values: Sequence[float], text: str = "{:.2f}", unit: str = "") -> str:
    """Mean and standard error."""
    error = text.replace("+", "").format(stdev(values) / math.sqrt(len(values)))
    return f"{text.format(fmean(values))} ± {error}{unit}"


def draw(arms: dict[tuple[str, str], list[RunRecord]]) -> None:
    sizes = list(dict.fromkeys(size for size, _ in arms))
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, size in zip(figure.subplots(1, len(sizes), sharey=True), sizes):
        for schedule, name in ARMS.items():
            seeds = arms[size, schedule]
            tasks = [record["task"] for record in seeds[0].probes if record["task"] > 0]
            rows = [[mean_loss(run, task) for run in seeds] for task in tasks]
            means, errors = [fmean(row) for row in rows], [stdev(row) / math.sqrt(len(row)) for row in rows]
            color, label = COLORS[schedule], f"{name}, n = {len(seeds)}"
            axes.plot(tasks, means, color=color, marker="o", markersize=3, label=label)
            low, high = zip(*((mean - 2 * error, mean + 2 * error) for mean, error in zip(means, errors)))
            axes.fill_between(tasks, low, high, color=color, alpha=0.15, linewidth=0)
        untrained = fmean(mean_loss(run, 0) for schedule in ARMS for run in arms[size, schedule])
        axes.axhline(untrained, color="0.4", linestyle="--", linewidth=1, label="untrained")
        axes.set(title=f"{size} parameters", xlabel="task instances trained")
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("mean loss of the probe (AUC / steps)")
    figure.savefig(ROOT / "docs" / "images" / "permuted-auc.png", dpi=130)


if __name__ == "__main__":
    main()
