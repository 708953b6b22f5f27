"""The two stages of a comparison: the trials of every method, and the final runs with the chosen trials."""

import math
import sys
from collections.abc import Sequence

from ..errors import PlasticityError
from ..experiment import parse_experiment
from ..experiment.folder import is_finished
from ..ladder.command import run_in_parallel
from ..ladder.jobs import FAILED
from ..records import differences, read_config
from .leaderboard import Entry, Scored
from .plan import Comparison, Run
from .results import Result, divergence, read_result
from .trials import Trial, with_chosen_arguments


class IncompleteError(Exception):
    """Some runs failed, so the next stage cannot start."""


def tune(comparison: Comparison, at_once: int | None = None) -> dict[str, list[Scored]]:
    """
    Run the trials that are not complete.

    Args:
        comparison ([`Comparison`]): The comparison.
        at_once (`int`, *optional*): Runs at the same time.

    Returns:
        `dict[str, list[Scored]]`: The trials with their scores, for each method; none for a control.

    Raises:
        [`IncompleteError`]: A run failed for another reason than divergence.
    """
    runs = comparison.tuning_runs()
    run_missing(runs, at_once)
    scored: dict[str, list[Scored]] = {method: [] for method in comparison.methods}
    for method in comparison.tuned_methods():
        for trial in comparison.trials_of(method):
            results = {run.seed: result_of(run, comparison.last_step) for run in runs if run.trial == trial}
            scored[method].append(
                Scored(trial, {seed: None if one is None else one.auc for seed, one in results.items()})
            )
    return scored


def choose(comparison: Comparison, scored: dict[str, list[Scored]]) -> dict[str, Trial]:
    """
    The best trial of each method; a control shares the choice of its method.

    Raises:
        [`PlasticityError`]: Every trial of a method diverged.
    """
    chosen = {}
    for method in comparison.tuned_methods():
        best = min(scored[method], key=lambda one: one.score)
        if not math.isfinite(best.score):
            raise PlasticityError(
                f"mitigations: every trial of {method} diverged; lower learning_rate, or leave {method} out"
            )
        chosen[method] = best.trial
    for method in comparison.methods:
        if (original := comparison.method_of(method)) is not None:
            chosen[method] = with_chosen_arguments(method, chosen[original])
    return chosen


def run_final(
    comparison: Comparison, scored: dict[str, list[Scored]], chosen: dict[str, Trial], at_once: int | None = None
) -> list[Entry]:
    """
    Run all seeds with the chosen trials and with the default arguments, unless they are complete.

    Args:
        comparison ([`Comparison`]): The comparison.
        scored (`dict[str, list[Scored]]`): The trials.
        chosen (`dict[str, Trial]`): The chosen ones.
        at_once (`int`, *optional*): Runs at the same time.

    Returns:
        `list[Entry]`: The methods with their results.

    Raises:
        [`IncompleteError`]: A run failed for another reason than divergence.
    """
    defaults = {method: comparison.trials_of(method)[0] for method in comparison.methods}
    runs = {run.folder: run for run in comparison.final_runs([*chosen.values(), *defaults.values()])}
    run_missing(list(runs.values()), at_once)
    results = {(run.trial.name, run.seed): result_of(run, comparison.last_step) for run in runs.values()}

    def by_seed(trial: Trial) -> dict[int, Result | None]:
        return {seed: results[trial.name, seed] for seed in comparison.seeds}

    return [
        Entry(
            method,
            comparison.method_of(method),
            chosen[method],
            by_seed(chosen[method]),
            by_seed(defaults[method]),
            scored[method],
        )
        for method in comparison.methods
    ]


def run_missing(runs: Sequence[Run], at_once: int | None) -> None:
    """
    Run everything that is neither complete nor known to diverge.

    Raises:
        [`IncompleteError`]: A run failed for another reason than divergence.
    """
    missing = [run for run in runs if not is_done(run)]
    if not missing:
        return
    cpu_threads = parse_experiment(missing[0].settings).training.cpu_threads
    jobs = run_in_parallel(
        {run.folder: run.command for run in missing}, at_once, runs_in_total=len(runs), cpu_threads=cpu_threads
    )
    failed = [job for job in jobs if job.state == FAILED and divergence(job.folder) is None]
    for job in failed:
        print(f"failed: {job.folder}: {job.last_line()}", file=sys.stderr)
    if failed:
        raise IncompleteError


def is_done(run: Run) -> bool:
    """Whether a run with these settings is complete, or diverged."""
    config, recorded = parse_experiment(run.settings), read_config(run.folder)
    if recorded is None or differences(recorded, config.numerics()):
        return False  # if it has begun with other settings, the run reports it
    return is_finished(config) or divergence(run.folder) is not None


def result_of(run: Run, step: int) -> Result | None:
    """The result of a run that is done; `None` if it diverged."""
    return None if divergence(run.folder) is not None else read_result(run.folder, step)
