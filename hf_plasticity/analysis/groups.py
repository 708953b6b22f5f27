"""Runs that differ only by their seed, and the mean of a quantity over them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Generic, TypeVar

from scipy import stats

from ..records import PROVENANCE, RunRecord, numerics_of
from .series import num_parameters
from .text import MISSING, Estimate


SEEDS = ("seed", "data_seed")
# Settings that earlier versions recorded, with the only value that is supported now. Any other setting that a record
# does not have may have had another value.
REMOVED = {"use_liger_kernel": False}
# With two seeds, the 95% interval of a mean is more than twelve times as wide as the distance of the seeds.
FEWEST_SEEDS, LEVEL = 3, 0.95

Member = TypeVar("Member")


@dataclass(frozen=True)
class Group(Generic[Member]):
    """
    Runs, or series of probes, that differ only by their seed.

    Args:
        name (`str`): The size, and the settings other than the schedule that distinguish it from other groups of
            that size. Groups with the same name differ only by their schedule.
        schedule (`str`, *optional*): The schedule in the configuration.
        num_parameters (`int`, *optional*): Non-embedding parameters; `None` if they are not recorded.
        members (`list`): One for each seed.
    """

    name: str
    schedule: str | None
    num_parameters: int | None
    members: list[Member]


def group_by_seed(
    members: Sequence[Member],
    run_of: Callable[[Member], RunRecord],
    apart: Callable[[Member], dict[str, str]] = lambda member: {},
) -> list[Group[Member]]:
    """
    Group members that differ only by seed, the smallest models first.

    Args:
        members (`Sequence`): Runs, or objects of a run.
        run_of (`Callable`): Returns the run of a member.
        apart (`Callable`, *optional*): Further values that must be equal in a group, by name.
    """
    found: dict[tuple, list[Member]] = {}
    for member in sorted(members, key=lambda member: run_order(run_of(member))):
        run = run_of(member)
        found.setdefault((run.config.get("size"), *(identity(run) | apart(member)).items()), []).append(member)
    groups = []
    for (size, *settings), seeds in found.items():
        rivals, own = [dict(other) for rival, *other in found if rival == size], dict(settings)
        names = dict.fromkeys(name for rival in rivals for name in rival if name != "schedule")
        differing = [name for name in names if len({rival.get(name) for rival in rivals}) > 1]
        run = run_of(seeds[0])
        parts = [f"{name} {own.get(name, MISSING)}" for name in differing] if run.config else []
        name = str(run.config.get("size") or run.config.get("model") or run.name)
        groups.append(Group(" · ".join([name, *parts]), run.config.get("schedule"), num_parameters(run), seeds))
    return groups


def run_order(run: RunRecord) -> tuple:
    """The sort key: by size (unknown sizes last), then by schedule and seed."""
    size = num_parameters(run)
    return size is None, size or 0, str(run.config.get("schedule")), str(run.config.get("seed")), run.name


def identity(run: RunRecord) -> dict[str, str]:
    """
    The settings that identify a run, except its seed: those in its list `provenance.numerics`, or all settings without
    such a list. A run without a configuration is different from all others.
    """
    if not run.config:
        return {"folder": str(run.folder)}
    listed = "numerics" in (run.config.get(PROVENANCE) or {})
    settings = numerics_of(run.config) if listed else run.config
    ignored = (*SEEDS, PROVENANCE, *(name for name, value in REMOVED.items() if settings.get(name) == value))
    return {name: str(settings[name]) for name in sorted(settings) if name not in ignored}


def mean_curve(seeds: Sequence[dict[float, Estimate]]) -> dict[float, Estimate]:
    """
    The mean over seeds with its standard error, at every position at which all seeds have a value, because the mean
    would jump if one is missing. A single seed keeps its values and errors.
    """
    if len(seeds) < 2:
        return dict(*seeds)
    rows = {place: [seed[place].value for seed in seeds] for place in sorted(set.intersection(*map(set, seeds)))}
    return {place: Estimate(fmean(row), stdev(row) / math.sqrt(len(row))) for place, row in rows.items()}


def interval_factor(count: int) -> float:
    """Half the 95% interval of a mean over seeds, in standard errors (Student's t); 0 below three seeds."""
    return float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) if count >= FEWEST_SEEDS else 0.0
