"""`hf-plasticity compare`: compare mitigations under equal conditions, and write a leaderboard."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PlasticityError
from ..records import run_lock, write_atomically


if TYPE_CHECKING:
    from .leaderboard import Entry
    from .plan import Comparison

LEADERBOARD_FILE, PAGE_FILE = "leaderboard.json", "leaderboard.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command; all other arguments are passed to `hf-plasticity train`."""
    parser.add_argument(
        "--mitigations", nargs="+", required=True, metavar="NAME", help="none (the baseline), and mitigations"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5, 6], help="seeds of the final runs (default: 1 to 6)"
    )
    parser.add_argument("--trials", type=int, default=3, metavar="N", help="trials for each method (default: 3)")
    parser.add_argument(
        "--tune_probe_language", required=True, metavar="LANGUAGE", help="held-out language on which trials are scored"
    )
    parser.add_argument(
        "--tune_seeds", nargs="+", type=int, metavar="SEED", help="seeds of the trials (default: one, not in --seeds)"
    )
    parser.add_argument(
        "--cycle", type=int, metavar="K", help="the cycle after which AUCs are compared (default: the last)"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/comparison"),
        help="parent of the run folders (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at the same time (default: one for each GPU, or each CPU core)"
    )


def run_comparison(options: argparse.Namespace) -> int:
    """
    Tune every method, run all seeds with the chosen trials, and write the leaderboard. The same command resumes.

    Raises:
        [`PlasticityError`]: An invalid value, or a baseline that diverges.
    """
    from .plan import Comparison
    from .stages import IncompleteError, choose, is_done, run_final, tune

    comparison = Comparison(
        options.output_dir,
        options.mitigations,
        options.seeds,
        options.tune_seeds or [max(options.seeds) + 1],
        options.trials,
        options.tune_probe_language,
        options.cycle,
        options.settings,
    )
    if options.jobs is not None and options.jobs < 1:
        raise PlasticityError(f"jobs: {options.jobs} is not a positive number")
    with run_lock(comparison.output_dir):
        comparison.check_folder()
        announce(comparison)
        if not all(is_done(run) for run in comparison.tuning_runs()):
            prepare_final(comparison)
        comparison.take_folder()
        try:
            scored = tune(comparison, options.jobs)
            entries = run_final(comparison, scored, choose(comparison, scored), options.jobs)
        except IncompleteError:
            return 1
        write_leaderboard(comparison, entries)
    return 0


def prepare_final(comparison: "Comparison") -> None:
    """
    Prepare the text of the final runs, so that what they lack is reported before the trials.

    Raises:
        [`PlasticityError`]: Text that does not exist, or too little of it.
    """
    from ..experiment.data import open_data
    from ..planning.prepare import prepare_study
    from ..planning.study import parse_planned_study
    from .trials import BASELINE

    [run, *_] = comparison.final_runs(comparison.trials_of(BASELINE)[:1])
    config = parse_planned_study(run.settings, on_cpu=True)
    if config.data.streaming:
        open_data(config)
    else:
        prepare_study(config)


def announce(comparison: "Comparison") -> None:
    """Print the number of runs, and whether the seeds are enough to show a difference."""
    from ..analysis.paired import LEVEL, seeds_needed, smallest_p

    methods, seeds = len(comparison.methods), len(comparison.seeds)
    tuning, final = len(comparison.tuning_runs()), methods * seeds
    print(f"{tuning} runs to tune {methods} methods, then {final} to {2 * final} final runs with {seeds} seeds")
    if smallest_p(seeds, methods - 1) > LEVEL:
        print(
            f"note: with {seeds} seeds, the smallest corrected p-value of {methods - 1} comparisons is "
            f"{smallest_p(seeds, methods - 1):.2g}; {seeds_needed(methods - 1)} seeds can show a difference"
        )


def write_leaderboard(comparison: "Comparison", entries: "Sequence[Entry]") -> None:
    """Write `leaderboard.json` and `leaderboard.html`, and print the leaderboard."""
    from ..analysis.page import write_page
    from .leaderboard import make_leaderboard
    from .page import leaderboard_page, terminal_table

    board, folder = make_leaderboard(entries), comparison.output_dir
    data = {"comparison": comparison.identity()} | board.to_dict() | {"entries": [asdict(entry) for entry in entries]}
    write_atomically(folder / LEADERBOARD_FILE, json.dumps(data, indent=1, ensure_ascii=False).encode())
    write_page(leaderboard_page(comparison, board, list(entries)), folder / PAGE_FILE)
    print(f"\n{terminal_table(board)}\n\nleaderboard  {folder / PAGE_FILE}\nnumbers      {folder / LEADERBOARD_FILE}")
