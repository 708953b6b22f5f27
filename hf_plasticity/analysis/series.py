"""From records to what is drawn: the probes of a run that may be compared, their ΔAUC, and how to name them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from ..metrics.delta_auc.definition import delta_auc
from ..metrics.probe_auc.definition import probe_auc
from ..models import MODEL_SIZES
from ..records import RunRecord
from .onset import Onset, find_onset, probe_scatter


LANGUAGE_NAMES = {
    "en": "English",
    "zh": "Chinese",
    "fr": "French",
    "ja": "Japanese",
    "es": "Spanish",
    "de": "German",
    "pt": "Portuguese",
    "ru": "Russian",
    "vi": "Vietnamese",
}


@dataclass(frozen=True)
class ProbeSeries:
    """
    The probes of one run that differ by the model alone: one language, one adaptation, one probe configuration.

    Args:
        run ([`~records.RunRecord`]): Where they come from.
        language (`str`): The probe language.
        adaptation (`str`): `"full"` or `"lora"`.
        probe_config_hash (`str`): Stands for everything else the probe depends on.
        probes (`list[dict]`): The probe records, by step.
        rule (`str`, *optional*, defaults to `"turning_point"`): The rule by which the onset is read off.
    """

    run: RunRecord
    language: str
    adaptation: str
    probe_config_hash: str
    probes: list[dict[str, Any]]
    rule: str = "turning_point"

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The probes of the trained model, without the one before the first step."""
        return [probe for probe in self.probes if not is_untrained(probe)]

    @property
    def untrained(self) -> dict[str, Any] | None:
        """The probe before the first step, cycle 0."""
        return next((probe for probe in self.probes if is_untrained(probe)), None)

    @property
    def reference(self) -> dict[str, Any] | None:
        """
        The probe that ΔAUC is measured against: the one after cycle 1, or, where cycle 1 was not probed or cycles are
        unknown, the first of the trained model.
        """
        trained = self.trained
        return next((probe for probe in trained if probe.get("cycle") == 1), trained[0] if trained else None)

    @property
    def best(self) -> dict[str, Any]:
        """The probe of the trained model with the lowest AUC."""
        return min(self.trained, key=lambda probe: probe["auc"])

    @property
    def changes(self) -> list[float]:
        """ΔAUC in percent, one for each of `trained`."""
        return [delta_auc(probe["auc"], self.reference["auc"]) for probe in self.trained]

    @property
    def change_errors(self) -> list[float | None]:
        """
        Standard errors of `changes`, `None` where a probe was not repeated. A repeat is compared with the same repeat
        of the reference, which saw the same data, so that what they share doesn't count as noise.
        """
        return [_paired_error(probe, self.reference) for probe in self.trained]

    @property
    def scatter(self) -> float | None:
        """By how much an AUC differs from the trend of its neighbours; `None` with fewer than five."""
        return probe_scatter([probe["step"] for probe in self.trained], [probe["auc"] for probe in self.trained])

    @property
    def rises(self) -> bool | None:
        """
        Whether the last AUC lies above the lowest by more than AUCs of this run scatter by: three standard errors of
        a difference. `None` with fewer than five.
        """
        if self.scatter is None:
            return None
        return self.trained[-1]["auc"] - self.best["auc"] > 3 * math.sqrt(2) * self.scatter

    @property
    def no_onset(self) -> str | None:
        """What stands in the way of reading an onset off these probes, or `None`."""
        places = [(probe.get("task"), probe.get("tokens")) for probe in self.trained]
        if len(places) < 2:
            return "it takes two probes of the trained model"
        if any(None in place for place in places):
            return "its probes don't know their task instance and tokens"
        if len({task for task, _ in places}) < len(places):
            return "several of its probes fall in one task instance"
        return None

    @property
    def onset(self) -> Onset | None:
        """Where the curve turns; `None` where `no_onset` says why."""
        return find_onset(self.trained, rule=self.rule) if self.no_onset is None else None


def _paired_error(probe: dict[str, Any], reference: dict[str, Any]) -> float | None:
    curves, references = probe.get("repeats") or [], reference.get("repeats") or []
    if len(curves) < 2 or len(curves) != len(references):
        return None
    aucs = probe_auc(probe["probe_steps"], curves)["probe_auc"]
    changes = delta_auc(aucs, probe_auc(reference["probe_steps"], references)["probe_auc"])
    return stdev(changes) / math.sqrt(len(changes))


def is_untrained(probe: dict[str, Any]) -> bool:
    """Whether a probe record is of the model before its first step."""
    return probe.get("cycle") == 0 or (probe.get("cycle") is None and probe["step"] == 0)


def probe_series(run: RunRecord, rule: str) -> list[ProbeSeries]:
    """The probes of a run in groups that may be compared, in the order of their first probe."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for probe in run.probes:
        groups.setdefault((probe["language"], probe["adaptation"], probe["probe_config_hash"]), []).append(probe)
    return [ProbeSeries(run, *key, probes, rule) for key, probes in groups.items()]


def position(record: dict[str, Any], unit: str) -> float:
    """Where a record stands on the horizontal axis."""
    return record["tokens" if unit == "tokens" else "step"]


def shared_unit(records: Iterable[dict[str, Any]]) -> str:
    """`"tokens"` where every record knows how many its model had seen, `"steps"` otherwise."""
    return "tokens" if all(record.get("tokens") is not None for record in records) else "steps"


def label(record: dict[str, Any]) -> str:
    """What a probe is called: by its cycle, or by its step where the run has no cycles."""
    return f"step {record['step']:,}" if record.get("cycle") is None else f"cycle {record['cycle']}"


def language_name(run: RunRecord, code: str) -> str:
    """
    A language in words. Synthetic languages, and those of a run that doesn't say where its text comes from, keep the
    code they have, since a code alone doesn't make a text Vietnamese.
    """
    source = run.config.get("source")
    return LANGUAGE_NAMES.get(code, code) if source not in (None, "synthetic") else code


def num_parameters(run: RunRecord) -> int | None:
    """Non-embedding parameters of a run's model, or `None` where its records don't tell."""
    provenance = run.config.get("provenance") or {}
    if provenance.get("num_non_embedding_parameters") is not None:
        return provenance["num_non_embedding_parameters"]
    size = run.config.get("size")
    return MODEL_SIZES[size].num_non_embedding_parameters if size in MODEL_SIZES else None
