"""The leaderboard as a page and as a table on the terminal."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from ..analysis.figures import ACCENT, INK, MUTED, WHOLE, panel
from ..analysis.page import Drawing, Page, Section, Table
from ..analysis.paired import LEVEL, Change, seeds_needed
from ..analysis.text import compact, listed, minus, missing, plural, signed_percent
from .leaderboard import Entry, Leaderboard, Row
from .plan import Comparison
from .trials import BASELINE


Columns = dict[str, Callable[[Any], str]]


def leaderboard_page(comparison: Comparison, board: Leaderboard, entries: list[Entry]) -> Page:
    """The page of a comparison."""
    language, cycle = comparison.base.data.probe_language, comparison.last_cycle
    summary = (
        f"{comparison.base.model.size} model, {plural(len(board.rows) - 1, 'method')} and the baseline, "
        f"{plural(len(board.seeds), 'seed')} ({listed([str(seed) for seed in board.seeds])}), "
        f"{plural(comparison.trials, 'trial')} for each method. AUC of the probe on {language} after cycle {cycle}."
    )
    sections = [
        leaderboard_section(comparison, board),
        pairs_section(board),
        trials_section(comparison, entries),
        runs_section(comparison, entries),
    ]
    return Page("Mitigations compared", result(board), summary, sections)


def result(board: Leaderboard) -> list[str]:
    """The result of the comparison."""
    sentences = []
    for row in board.supported():
        sentences.append(
            f"{row.method} {'lowers' if row.change.percent < 0 else 'raises'} the AUC by "
            f"{abs(row.change.percent):.1f}% against the baseline (95% interval {interval(row.change)}, corrected "
            f"p = {row.corrected_p:.2g})."
        )
    if not sentences:
        sentences.append("No method differs significantly from the baseline.")
    if board.smallest_p > LEVEL:
        tests = sum(row.corrected_p is not None for row in board.rows)
        sentences.append(
            f"With {plural(len(board.seeds), 'seed')} and {plural(tests, 'method')}, none can: the "
            f"smallest corrected p-value is {board.smallest_p:.2g}. At least {seeds_needed(tests)} seeds are required."
        )
    baseline = next(row for row in board.rows if row.method == BASELINE)
    sentences.append(
        f"Without mitigation, the AUC is {abs(baseline.against_untrained.percent):.1f}% "
        f"{'below' if baseline.against_untrained.percent < 0 else 'above'} that of the untrained model."
    )
    return sentences


def leaderboard_section(comparison: Comparison, board: Leaderboard) -> Section:
    """The table with its figure and an explanation."""
    section = Section("Leaderboard", size="whole")
    section.text = [
        "“Against baseline” is the mean ratio of the AUC to that of the baseline with the same seed: below zero is "
        "faster learning. The 95% interval is by Student’s t over seeds. p is from the exact sign-flip test over "
        "seeds; the corrected p accounts for the number of methods (Holm). A rank is a range: a method is above "
        "another only if the sign-flip test of the two, corrected for all pairs, is below 0.05.",
        "“Against untrained” is the mean ratio of the AUC to that of the untrained model with the same seed. Above "
        "zero, the model learns more slowly than before any training.",
        f"Every method had {plural(comparison.trials, 'trial')}, scored on {comparison.tune_probe_language} with "
        f"{plural(len(comparison.tune_seeds), 'other seed')}. Learning rate and weight decay were searched for every "
        "method, including the baseline, together with the arguments of the method. “With defaults”, among the "
        "further numbers, compares a method with default arguments to the baseline, both in the given configuration.",
    ]
    draw = partial(changes_figure, board)
    caption = "Change of the AUC against the baseline with its 95% interval. Filled: significant after correction."
    section.drawings.append(Drawing("AUC against the baseline", draw, caption))
    section.tables += [leaderboard_table(board), further_table(board)]
    return section


def leaderboard_table(board: Leaderboard) -> Table:
    """A row for each method, with its result."""
    columns: Columns = {
        "Method": str, "Rank": rank_text, "Against baseline": percent, "from": percent, "to": percent,
        "p corrected": "{:.2g}".format, "Against untrained": percent, "Note": str,
    }  # fmt: skip
    rows = [
        [row.method, row.rank, *_parts(row.change), row.corrected_p, _parts(row.against_untrained)[0], _note(row)]
        for row in board.rows
    ]
    return Table(columns, rows)


def further_table(board: Leaderboard) -> Table:
    """What else was measured of each method."""
    columns: Columns = {
        "Method": str,
        "p": "{:.2g}".format,
        "With defaults": percent,
        "with defaults, from": percent,
        "with defaults, to": percent,
        "AUC": "{:.2f}".format,
        "ΔAUC": partial(signed_percent, digits=2),
        "Training loss": gap,
        "Forgetting": gap,
        "ms a step": "{:.1f}".format,
        "Memory": size,
        "Resets": compact,
        "Trials": str,
    }
    rows = [
        [
            row.method,
            row.p,
            *_parts(row.with_defaults),
            row.auc,
            row.delta_auc,
            (row.training_loss_gap or (None,))[0],
            (row.forgetting_gap or (None,))[0],
            row.ms_per_step,
            row.state_bytes,
            None if row.method == BASELINE else row.touched,
            row.trials,
        ]
        for row in board.rows
    ]
    caption = (
        "further numbers: training loss and forgetting as mean difference to the baseline in nats per token; memory "
        "of the method, in addition to model and optimizer; units or weights reset or changed in a run"
    )
    return Table(columns, rows, caption, folded=True)


def _parts(change: Change | None) -> tuple[float | None, ...]:
    return (None,) * 3 if change is None else change


def _note(row: Row) -> str | None:
    notes = []
    if row.diverged:
        notes.append(f"diverged with seed {listed([str(seed) for seed in row.diverged])}")
    if row.control_of is not None:
        notes.append(f"with the arguments of {row.control_of}")
    if row.touched == 0 and row.method != BASELINE:
        notes.append("did nothing")
    return "; ".join(notes) or None


def changes_figure(board: Leaderboard) -> Figure:
    """A point with its interval for each method."""
    rows = [row for row in board.rows if row.change is not None]
    figure, axes = panel("AUC against the baseline (%)", (WHOLE[0], 90 + 26 * len(rows)))
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, row in enumerate(reversed(rows)):
        significant = row.corrected_p is not None and row.corrected_p <= LEVEL
        color = ACCENT if significant else MUTED
        if row.change.low is not None:
            axes.plot([row.change.low, row.change.high], [place, place], color=color)
        axes.plot(row.change.percent, place, "o", color=color, markerfacecolor=color if significant else "white")
    axes.set_yticks(range(len(rows)), labels=[row.method for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(False)
    return figure


def pairs_section(board: Leaderboard) -> Section:
    """The comparison of each pair of methods."""
    columns: Columns = {
        "Method": str, "against": str, "AUC": percent, "from": percent, "to": percent, "p": "{:.2g}".format,
        "p corrected": "{:.2g}".format,
    }  # fmt: skip
    rows = [[pair.better, pair.worse, *pair.change, pair.p, pair.corrected_p] for pair in board.pairs]
    caption = "the AUC of the first method relative to the second, paired by seed, and corrected for all pairs"
    return Section("Pairs", tables=[Table(columns, rows, caption, folded=True)])


def trials_section(comparison: Comparison, entries: list[Entry]) -> Section:
    """Every trial with its scores."""
    columns: Columns = {
        "Method": str, "Trial": str, "Learning rate": "{:.3g}".format, "Weight decay": "{:.3g}".format,
        "Arguments": json.dumps, f"AUC on {comparison.tune_probe_language}": str, "Chosen": str,
    }  # fmt: skip
    rows = []
    for entry in entries:
        for scored in entry.scored:
            trial = scored.trial
            aucs = ", ".join(missing(auc, "{:.2f}".format) for auc in scored.aucs.values())
            chosen = "yes" if trial == entry.chosen else ""
            rows.append(
                [trial.method, trial.number, trial.learning_rate, trial.weight_decay, trial.arguments, aucs, chosen]
            )
    caption = "trial 0 is the given configuration with default arguments; –: the run diverged"
    return Section("Trials", tables=[Table(columns, rows, caption, folded=True)])


def runs_section(comparison: Comparison, entries: list[Entry]) -> Section:
    """The AUC of every final run."""
    columns: Columns = {"Method": str, "Trial": str} | {f"Seed {seed}": "{:.2f}".format for seed in comparison.seeds}
    rows = []
    for entry in entries:
        for number, results in ((entry.chosen.number, entry.results), (0, entry.defaults)):
            if results is entry.results or entry.chosen.number != 0:
                rows.append([entry.method, number, *(one and one.auc for one in results.values())])
    caption = f"AUC of each run in {comparison.output_dir}/final"
    return Section("Runs", tables=[Table(columns, rows, caption, folded=True)])


def terminal_table(board: Leaderboard) -> str:
    """The leaderboard in plain text."""
    lines = [
        f"{'method':<18} {'rank':>7} {'AUC':>10} {'against untrained':>17} {'against baseline':>17} "
        f"{'95% interval':>20} {'p corr.':>8} {'defaults':>9} {'ms/step':>8}"
    ]
    for row in board.rows:
        untrained = missing(row.against_untrained and row.against_untrained.percent, percent)
        changes = [missing(row.change and row.change.percent, percent), missing(row.change, interval)]
        lines.append(
            f"{row.method:<18} {missing(row.rank, rank_text):>7} {missing(row.auc, '{:.2f}'.format):>10} "
            f"{untrained:>17} {changes[0]:>17} {changes[1]:>20} {missing(row.corrected_p, '{:.2g}'.format):>8} "
            f"{missing(row.with_defaults and row.with_defaults.percent, percent):>9} "
            f"{missing(row.ms_per_step, '{:.1f}'.format):>8}"
        )
    return "\n".join([*lines, "", *result(board)])


def rank_text(rank: tuple[int, int]) -> str:
    """A range of ranks: 1, or 1–3 for a tie."""
    best, worst = rank
    return str(best) if best == worst else f"{best}–{worst}"


def percent(value: float) -> str:
    return signed_percent(value, 2)


def gap(value: float) -> str:
    return minus(f"{value:+.4f}")


def interval(change: Change) -> str:
    """`−3.1% to +0.4%`."""
    if change.low is None:
        return "–"
    return f"{signed_percent(change.low)} to {signed_percent(change.high)}"


def size(count: float) -> str:
    return f"{compact(count)}B"
