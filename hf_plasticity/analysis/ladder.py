"""Several runs in order: which are the same but for their seed, and what to call them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..records import RunRecord
from .series import ProbeSeries, num_parameters, position, probe_series


# Settings that begin so don't tell two runs apart: the seed, the length of the run, what it is computed on and what is
# kept of it. Those of the probe are in its hash. A setting that isn't listed tells runs apart, in plain sight, rather
# than pass for a seed.
HOUSEKEEPING = (
    "seed", "data_seed", "cycles", "max_steps", "num_train_epochs", "probe", "no_probe", "diagnos",
    "evaluate_forgetting", "output_dir", "data_dir", "cache_dir", "provenance", "logging_", "log_", "save_",
    "report_to", "run_name", "project", "trackio_", "push_to_hub", "hub_", "disable_tqdm", "resume_", "eval_",
    "dataloader_", "per_device_", "micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "activation_checkpointing", "ddp_", "fsdp", "deepspeed", "parallelism", "accelerator_config", "torch_compile",
    "bf16", "tf32", "use_cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """
    Runs that differ by their seed alone, under one probe configuration.

    Args:
        name (`str`): The size, and whatever else tells it from the other groups of that size and schedule.
        num_parameters (`int`, *optional*): Non-embedding parameters; `None` where the records don't tell.
        schedule (`str`, *optional*): As in the configuration; `None` where there is none.
        seeds (`list[ProbeSeries]`): One series a run.
    """

    name: str
    num_parameters: int | None
    schedule: str | None
    seeds: list[ProbeSeries]

    def mean(self, unit: str) -> tuple[list[float], list[float], list[float], list[float]]:
        """
        Places, mean ΔAUC over seeds, its lowest and its highest, where every seed was probed: a mean over fewer of
        them would jump where one ends.
        """
        return Bundle(self.name, self.schedule, [curve(series, unit) for series in self.seeds]).mean()


@dataclass(frozen=True)
class Bundle:
    """
    One quantity in runs that differ by their seed alone: a line with a band.

    Args:
        name (`str`): Of the group of runs.
        schedule (`str`, *optional*): As in the configuration.
        curves (`list[dict[float, float]]`): For each seed the values by their place on the horizontal axis.
    """

    name: str
    schedule: str | None
    curves: list[dict[float, float]]

    def mean(self) -> tuple[list[float], list[float], list[float], list[float]]:
        """Places, mean over seeds, lowest and highest, where every seed has a value."""
        places = sorted(set.intersection(*(set(one) for one in self.curves)))
        rows = [[one[place] for one in self.curves] for place in places]
        return places, [sum(row) / len(row) for row in rows], [min(row) for row in rows], [max(row) for row in rows]


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ by their seed alone; `name` and `schedule` as in [`Group`]."""

    name: str
    schedule: str | None
    runs: list[RunRecord]


def curve(series: ProbeSeries, unit: str) -> dict[float, float]:
    """ΔAUC of a series by its place on the horizontal axis."""
    return {position(probe, unit): change for probe, change in zip(series.trained, series.changes)}


def comparable(runs: Sequence[RunRecord], rule: str) -> dict[tuple[str, str], list[ProbeSeries]]:
    """
    The probes of all runs, the smallest models first, by probe language and adaptation: only within one of these does
    a difference of ΔAUC say something about models.
    """
    found: dict[tuple[str, str], list[ProbeSeries]] = {}
    for run in sorted(runs, key=run_order):
        for series in probe_series(run, rule):
            if series.trained:
                found.setdefault((series.language, series.adaptation), []).append(series)
    return found


def grouped(found: Sequence[ProbeSeries]) -> list[Group]:
    """The series in groups of seeds, in the order of their first."""
    members: dict[tuple, list[ProbeSeries]] = {}
    for series in found:
        members.setdefault((*sorted(_study(series.run).items()), series.probe_config_hash), []).append(series)
    groups = []
    for series in members.values():
        run = series[0].run
        rivals = [one for one in found if _kind(one.run) == _kind(run)]
        parts = _differences(run, [one.run for one in rivals])
        if run.config and len({one.probe_config_hash for one in rivals}) > 1:
            parts.append(f"probe {series[0].probe_config_hash}")
        name = " · ".join([str(run.config.get("size") or run.name), *parts])
        groups.append(Group(name, num_parameters(run), run.config.get("schedule"), series))
    return groups


def run_groups(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """The runs in groups of seeds, the smallest models first, whatever they were probed by."""
    members: dict[tuple, list[RunRecord]] = {}
    for run in sorted(runs, key=run_order):
        members.setdefault(tuple(sorted(_study(run).items())), []).append(run)
    groups = []
    for seeds in members.values():
        first = seeds[0]
        differences = _differences(first, [run for run in runs if _kind(run) == _kind(first)])
        name = " · ".join([str(first.config.get("size") or first.name), *differences])
        groups.append(RunGroup(name, first.config.get("schedule"), seeds))
    return groups


def run_order(run: RunRecord) -> tuple:
    """By size, the unknown last; within a size by schedule and seed."""
    size = num_parameters(run)
    return size is None, size or 0, str(run.config.get("schedule")), str(run.config.get("seed")), run.name


def _study(run: RunRecord) -> dict[str, str]:
    """The settings that two seeds share. A run that doesn't tell its settings shares them with no other."""
    if not run.config:
        return {"folder": str(run.folder)}
    return {name: str(value) for name, value in run.config.items() if not name.startswith(HOUSEKEEPING)}


def _kind(run: RunRecord) -> tuple:
    return run.config.get("size"), run.config.get("schedule")


def _differences(run: RunRecord, rivals: Sequence[RunRecord]) -> list[str]:
    if not run.config:
        return []
    studies = [_study(rival) for rival in rivals]
    names = dict.fromkeys(name for study in studies for name in study)
    own = _study(run)
    return [f"{name} {own.get(name, '–')}" for name in names if len({study.get(name) for study in studies}) > 1]
