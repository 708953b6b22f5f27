"""The leaderboard: the change of each method relative to the baseline, and its rank."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from ..analysis.paired import (
    LEVEL,
    Change,
    holm,
    log_ratios,
    mean_interval,
    pairwise_tests,
    percent_change,
    ranks,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)
from ..errors import PlasticityError
from .results import Result
from .trials import BASELINE, Trial


@dataclass(frozen=True)
class Scored:
    """
    A trial with its scores.

    Args:
        trial ([`Trial`]): The trial.
        aucs (`dict[int, float | None]`): On the tuning language, by tuning seed; `None` if the run diverged.
    """

    trial: Trial
    aucs: dict[int, float | None]

    @property
    def score(self) -> float:
        """The mean ln AUC; infinite if a run diverged."""
        if any(auc is None for auc in self.aucs.values()):
            return float("inf")
        return fmean(np.log(list(self.aucs.values())).tolist())


@dataclass(frozen=True)
class Entry:
    """
    A method with its runs.

    Args:
        method (`str`): Its name.
        control_of (`str`, *optional*): The compared method for which it is a control, and whose choice it shares.
        chosen ([`Trial`]): The trial of its final runs.
        results (`dict[int, Result | None]`): By seed, of the chosen trial; `None` if the run diverged.
        defaults (`dict[int, Result | None]`): By seed, with the given configuration and default arguments.
        scored (`Sequence[Scored]`): Its trials; none for a control.
    """

    method: str
    control_of: str | None
    chosen: Trial
    results: Mapping[int, Result | None]
    defaults: Mapping[int, Result | None]
    scored: Sequence[Scored]

    @property
    def diverged(self) -> list[int]:
        """The seeds with which the chosen trial diverged."""
        return [seed for seed, result in self.results.items() if result is None]


@dataclass
class Row:
    """
    A line of the leaderboard. All numbers except those of the trials are over seeds, paired with the baseline.

    Args:
        method (`str`): The name.
        rank (`tuple[int, int]`, *optional*): Best and worst rank that the tests allow; `None` if a run diverged.
        change (`Change`, *optional*): 100·(AUC / AUC of the baseline − 1) with its 95% interval.
        p (`float`, *optional*): The p-value of the sign-flip test against the baseline.
        corrected_p (`float`, *optional*): The same, corrected for the number of methods.
        with_defaults (`Change`, *optional*): `change` with default arguments, relative to the baseline as configured.
        auc, delta_auc (`float`, *optional*): The means over seeds.
        against_untrained (`Change`, *optional*): 100·(AUC / AUC of the untrained model − 1) with its 95% interval.
        training_loss_gap, forgetting_gap (`tuple`, *optional*): The mean difference to the baseline in nats per token,
            with the ends of its 95% interval.
        ms_per_step (`float`, *optional*): The mean over seeds.
        state_bytes (`int`, *optional*): The memory of the method.
        touched (`float`, *optional*): Units or entries reset or changed in a run, the mean over seeds.
        trials (`int`): The number of trials.
        chosen (`dict`): The chosen trial.
        control_of (`str`, *optional*): The method for which it is a control.
        diverged (`list[int]`): Seeds with which the chosen trial diverged.
    """

    method: str
    rank: tuple[int, int] | None = None
    change: Change | None = None
    p: float | None = None
    corrected_p: float | None = None
    with_defaults: Change | None = None
    auc: float | None = None
    delta_auc: float | None = None
    against_untrained: Change | None = None
    training_loss_gap: tuple[float | None, ...] | None = None
    forgetting_gap: tuple[float | None, ...] | None = None
    ms_per_step: float | None = None
    state_bytes: int | None = None
    touched: float | None = None
    trials: int = 0
    chosen: dict[str, Any] = field(default_factory=dict)
    control_of: str | None = None
    diverged: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """
    A comparison of two methods.

    Args:
        better, worse (`str`): Their names; the first has the lower mean AUC.
        change (`Change`): 100·(AUC of the first / AUC of the second − 1) with its 95% interval.
        p, corrected_p (`float`): The p-value of the sign-flip test, and the same corrected for all pairs.
    """

    better: str
    worse: str
    change: Change
    p: float
    corrected_p: float


@dataclass
class Leaderboard:
    """
    The result of a comparison.

    Args:
        rows (`list[Row]`): Ordered by mean; methods that diverged are last.
        pairs (`list[Pair]`): All pairs of methods that did not diverge.
        seeds (`list[int]`): Of the final runs.
    """

    rows: list[Row]
    pairs: list[Pair]
    seeds: list[int]

    @property
    def smallest_p(self) -> float:
        """The smallest corrected p-value that a method can reach against the baseline."""
        return smallest_p(len(self.seeds), max(1, sum(row.rank is not None for row in self.rows) - 1))

    def supported(self) -> list[Row]:
        """The methods that differ significantly from the baseline."""
        return [row for row in self.rows if row.corrected_p is not None and row.corrected_p <= LEVEL]

    def to_dict(self) -> dict[str, Any]:
        """The content of `leaderboard.json`."""
        tests = max(1, len(self.pairs))
        return {
            "seeds": self.seeds,
            "smallest_corrected_p": self.smallest_p,
            "seeds_needed_for_ranks": seeds_needed(tests),
            "rows": [_named(asdict(row)) for row in self.rows],
            "pairs": [_named(asdict(pair)) for pair in self.pairs],
        }


def _named(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Change) else value for name, value in record.items()}


def make_leaderboard(entries: Sequence[Entry]) -> Leaderboard:
    """
    Compare methods on the same seeds.

    Args:
        entries (`Sequence[Entry]`): The methods, including the baseline.

    Raises:
        [`PlasticityError`]: The baseline diverged, or the final runs have different probes.
    """
    baseline = next(entry for entry in entries if entry.method == BASELINE)
    if baseline.diverged:
        raise PlasticityError(
            f"mitigations: the baseline diverged with seed {baseline.diverged[0]}, and the methods are compared "
            "with it; lower learning_rate"
        )
    _check_probes(entries)
    seeds = list(baseline.results)
    complete = [entry for entry in entries if not entry.diverged]
    complete.sort(key=lambda entry: float(_logs(entry).mean()))
    tests = pairwise_tests([_logs(entry) for entry in complete])
    pairs = [
        Pair(complete[i].method, complete[j].method, percent_change(_logs(complete[i]) - _logs(complete[j])), p, one)
        for (i, j), p, one in tests
    ]
    rows = [_row(entry, baseline) for entry in complete]
    for row, rank in zip(rows, ranks([_logs(entry) for entry in complete])):
        row.rank = rank
    tested = [row for row in rows if row.method != BASELINE]
    for row, corrected in zip(tested, holm([row.p for row in tested])):
        row.corrected_p = corrected
    rows += [_row(entry, baseline) for entry in entries if entry.diverged]
    return Leaderboard(rows, pairs, seeds)


def _check_probes(entries: Sequence[Entry]) -> None:
    """AUCs of different probes cannot be compared."""
    results = [one for entry in entries for one in entry.results.values() if one is not None]
    hashes = {one.probe_config_hash for one in results}
    if len(hashes) > 1:
        raise PlasticityError(
            f"output_dir: the final runs have {len(hashes)} different probes ({', '.join(sorted(hashes))}), whose "
            "AUCs cannot be compared; choose another folder"
        )


def _logs(entry: Entry) -> np.ndarray:
    return np.log([result.auc for result in entry.results.values()])


def _row(entry: Entry, baseline: Entry) -> Row:
    row = Row(
        entry.method,
        trials=len(entry.scored),
        chosen=asdict(entry.chosen),
        control_of=entry.control_of,
        diverged=entry.diverged,
    )
    if entry.diverged:
        return row
    results = list(entry.results.values())
    row.auc, row.delta_auc = (fmean(getattr(one, name) for one in results) for name in ("auc", "delta_auc"))
    row.against_untrained = percent_change(
        log_ratios([one.auc for one in results], [one.untrained_auc for one in results])
    )
    row.ms_per_step, row.state_bytes, row.touched = (
        _mean(results, name) for name in ("ms_per_step", "state_bytes", "touched")
    )
    if entry is baseline:
        return row
    others = list(baseline.results.values())
    differences = log_ratios([one.auc for one in results], [one.auc for one in others])
    row.change, row.p = percent_change(differences), sign_flip_p(differences)
    row.training_loss_gap = _gap(results, others, lambda one: one.training_loss)
    row.forgetting_gap = _gap(results, others, lambda one: one.forgetting_loss)
    own, plain = list(entry.defaults.values()), list(baseline.defaults.values())
    if None not in own and None not in plain:
        row.with_defaults = percent_change(log_ratios([one.auc for one in own], [one.auc for one in plain]))
    return row


def _mean(results: Sequence[Result], name: str) -> Any:
    values = [getattr(one, name) for one in results]
    return None if None in values else fmean(values)


def _gap(
    results: Sequence[Result], others: Sequence[Result], value: Callable[[Result], float | None]
) -> tuple[float | None, ...] | None:
    """The mean difference with the ends of its interval."""
    values = [(value(one), value(other)) for one, other in zip(results, others)]
    if any(None in pair for pair in values):
        return None
    differences = [one - other for one, other in values]
    return (fmean(differences), *(mean_interval(differences) or (None, None)))
