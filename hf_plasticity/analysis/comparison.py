"""The probes of several runs with comparable AUCs, in groups of seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..records import RunRecord
from .groups import Group, group_by_seed, mean_curve
from .series import ProbeSeries, auc, position, probe_series, shared_unit
from .text import Estimate


@dataclass(frozen=True)
class ComparableProbes:
    """
    Probes with the same language, adaptation, number of steps and validation text, which includes its tokens. Their
    AUCs cannot be compared with those of other probes.

    Args:
        name (`str`): The language, adaptation and number of probe steps in words, and the text if others differ in it.
        groups (`list[Group[ProbeSeries]]`): Each group has one probe configuration and one reference of ΔAUC.
    """

    name: str
    groups: list[Group[ProbeSeries]]

    @property
    def series(self) -> list[ProbeSeries]:
        return [series for group in self.groups for series in group.members]

    @property
    def unit(self) -> str:
        """The unit of the horizontal axis, `"tokens"` or `"steps"`."""
        return shared_unit(probe for series in self.series for probe in series.trained)

    def by_reference(self) -> dict[str, list[Group[ProbeSeries]]]:
        """The groups by the reference of their ΔAUC. Only ΔAUCs with the same reference can be compared."""
        found: dict[str, list[Group[ProbeSeries]]] = {}
        for group in self.groups:
            found.setdefault(group.members[0].label(group.members[0].reference), []).append(group)
        return found


def comparisons(runs: Sequence[RunRecord], onset_rule: str | None = None) -> list[ComparableProbes]:
    """All probes of trained models in these runs, as sets of comparable probes."""
    found: dict[str, dict[str, list[ProbeSeries]]] = {}
    for series in (series for run in runs for series in probe_series(run, onset_rule)):
        if series.trained:
            name = f"{series.language_name}, {series.adaptation}, {series.probes[0]['probe_steps'][-1]:,} steps"
            found.setdefault(name, {}).setdefault(series.validation_text or "not recorded", []).append(series)
    return [
        ComparableProbes(
            f"{name}, validation text {text}" if len(texts) > 1 else name,
            group_by_seed(members, lambda one: one.run, _apart),
        )
        for name, texts in found.items()
        for text, members in texts.items()
    ]


def _apart(series: ProbeSeries) -> dict[str, str]:
    return {"probe": series.probe_config_hash, "ΔAUC against": series.label(series.reference)}


def auc_curve(series: ProbeSeries, unit: str) -> dict[float, Estimate]:
    """AUC by position on the horizontal axis."""
    return {position(probe, unit): auc(probe) for probe in series.trained}


def delta_auc_curve(series: ProbeSeries, unit: str) -> dict[float, Estimate]:
    """ΔAUC by position on the horizontal axis."""
    changes = zip(series.trained, series.changes, series.change_errors)
    return {position(probe, unit): Estimate(change, error) for probe, change, error in changes}


def last_shared(groups: Sequence[Group[ProbeSeries]]) -> tuple[int, str] | None:
    """The last step at which every seed of these groups was probed, and its name; `None` if there is none."""
    series = [series for group in groups for series in group.members]
    steps = set.intersection(*({probe["step"] for probe in one.trained} for one in series))
    shared = [(probe["step"], series[0].label(probe)) for probe in series[0].trained if probe["step"] in steps]
    return shared[-1] if shared else None


def mean_at(
    group: Group[ProbeSeries], curve: Callable[[ProbeSeries, str], dict[float, Estimate]], step: int
) -> Estimate:
    """The mean over seeds of a curve at a step."""
    return mean_curve([curve(series, "steps") for series in group.members])[step]
