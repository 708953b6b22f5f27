"""Comparable probes of a run: their AUCs, ΔAUCs, noise and onset."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median, stdev
from typing import Any

from ..data.sources import SOURCES
from ..errors import PlasticityError
from ..metrics.delta_auc.definition import delta_auc
from ..metrics.plasticity_onset.definition import RULES
from ..metrics.plasticity_onset.rise import FEWEST_PROBES, FEWEST_PROBES_OF_SEEDS
from ..metrics.probe_auc.definition import probe_auc
from ..models import MODEL_SIZES
from ..records import PROVENANCE, RunRecord
from .onset import Onset, change_error, find_onset, probe_scatter
from .text import Estimate, plural


LANGUAGE_NAMES = {
    "en": "English", "zh": "Chinese", "fr": "French", "ja": "Japanese", "es": "Spanish", "de": "German",
    "pt": "Portuguese", "ru": "Russian", "vi": "Vietnamese",
}  # fmt: skip

# The share of a probe's steps that counts as the descent from its start loss.
LATE = 0.05


@dataclass(frozen=True)
class ProbeSeries:
    """
    The probes of one run that share language, adaptation and probe configuration, so that only the model differs.

    Args:
        run ([`~records.RunRecord`]): The run.
        language (`str`): The probe language.
        adaptation (`str`): `"full"` or `"lora"`.
        probe_config_hash (`str`): The hash of all other settings and the data of the probe.
        probes (`list[dict]`): The probe records, by step.
        onset_rule (`str`, *optional*): As in [`find_onset`].
    """

    run: RunRecord
    language: str
    adaptation: str
    probe_config_hash: str
    probes: list[dict[str, Any]]
    onset_rule: str | None = None

    @property
    def language_name(self) -> str:
        return language_name(self.run, self.language)

    @property
    def validation_text(self) -> str | None:
        """The hash of the validation blocks, which depends on text and tokenizer; `None` if it is not recorded."""
        return self.run.protocols.get(self.probe_config_hash, {}).get("evaluation")

    def label(self, probe: dict[str, Any]) -> str:
        return label(self.run, probe)

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """The probes of the trained model, without the one before the first step."""
        return [probe for probe in self.probes if not is_untrained(probe)]

    @property
    def untrained(self) -> dict[str, Any] | None:
        """The probe before the first step (cycle 0)."""
        return next((probe for probe in self.probes if is_untrained(probe)), None)

    @property
    def start_model(self) -> str:
        """What the model of step 0 is called. Outside of the study, it may be a pretrained one."""
        return "untrained model" if "schedule" in self.run.config else "model before training"

    @property
    def reference(self) -> dict[str, Any] | None:
        """The reference of ΔAUC, as in the records: the first probe of the trained model."""
        return self.trained[0] if self.trained else None

    @property
    def best(self) -> dict[str, Any]:
        """The probe of the trained model with the lowest AUC."""
        return min(self.trained, key=lambda probe: probe["auc"])

    @cached_property
    def changes(self) -> list[float]:
        """ΔAUC in percent of each of `trained`."""
        return [delta_auc(probe["auc"], self.reference["auc"]) for probe in self.trained]

    @cached_property
    def change_errors(self) -> list[float | None]:
        """
        Standard errors of `changes`, `None` if a probe was not repeated. Each repeat is compared with the repeat of
        the reference that has the same data, so that shared effects do not count as noise.
        """
        return [_paired_error(probe, self.reference) for probe in self.trained]

    @cached_property
    def scatter(self) -> float | None:
        """The scatter of an AUC about the trend of its neighbors; `None` with fewer than five."""
        return probe_scatter([probe["step"] for probe in self.trained], [probe["auc"] for probe in self.trained])

    @property
    def late_step(self) -> int | None:
        """
        The first measured step after a twentieth of the probe, from which on the start loss has little influence on
        the area. `None` where fewer than two losses were measured from there on.
        """
        steps = self.probes[0]["probe_steps"]
        late = [step for step in steps if step >= LATE * steps[-1]]
        return late[0] if len(late) > 1 else None

    def late_auc(self, probe: dict[str, Any]) -> float:
        """The AUC of a probe from `late_step` on."""
        return probe_auc(probe["probe_steps"], probe["losses"], self.late_step)["probe_auc"]

    @property
    def least_span(self) -> float:
        """
        The smallest range of an axis in percent of the AUC, so that noise does not fill it: ten times the noise (the
        larger of the scatter and the median error over repeats) and at least 1%, or 5% if the noise is not known.
        """
        errors = [probe["auc_stderr"] for probe in self.trained if probe.get("auc_stderr") is not None]
        noise = max(median(errors or [0.0]), self.scatter or 0.0)
        return max(1.0, 1000 * noise / self.best["auc"]) if errors or self.scatter is not None else 5.0

    def change_since(self, other: dict[str, Any]) -> Estimate:
        """
        The change of AUC from another probe of the run to the last, in percent, with the standard error of
        [`change_error`]; `None` with fewer than eight probes.
        """
        error = change_error([probe["step"] for probe in self.trained], [probe["auc"] for probe in self.trained])
        change = delta_auc(self.trained[-1]["auc"], other["auc"])
        return Estimate(change, None if error is None else 100 * error / other["auc"])

    @cached_property
    def onset(self) -> Onset | None:
        """The onset of plasticity loss in this run; `None` if none can be determined, see [`onset_of_seeds`]."""
        return onset_of_seeds([self])[0]


def onset_of_seeds(seeds: Sequence[ProbeSeries]) -> tuple[Onset | None, str | None]:
    """The common onset of runs that differ only by their seed; or `None` and the reason."""
    probes = [probe for series in seeds for probe in series.trained]
    if any(probe.get("task") is None or probe.get("tokens") is None for probe in probes):
        return None, "the task instance or the tokens of its probes are not recorded"
    if any(len({probe["task"] for probe in series.trained}) < len(series.trained) for series in seeds):
        return None, "several of its probes are in one task instance"
    rule = seeds[0].onset_rule or RULES[0]
    shared = len(set.intersection(*({probe["task"] for probe in series.trained} for series in seeds)))
    if rule == "rise" and shared < (FEWEST_PROBES if len(seeds) == 1 else FEWEST_PROBES_OF_SEEDS):
        return None, (
            f"{plural(shared, 'probe')} of {plural(len(seeds), 'seed')} are too few: the test for a rise requires "
            f"{FEWEST_PROBES} probes of one seed, or {FEWEST_PROBES_OF_SEEDS} of each of several"
        )
    try:
        return find_onset([series.trained for series in seeds], rule), None
    except PlasticityError as error:
        return None, str(error)


def _paired_error(probe: dict[str, Any], reference: dict[str, Any]) -> float | None:
    curves, references = probe.get("repeats") or [], reference.get("repeats") or []
    if len(curves) < 2 or len(curves) != len(references):
        return None
    aucs = probe_auc(probe["probe_steps"], curves)["probe_auc"]
    changes = delta_auc(aucs, probe_auc(reference["probe_steps"], references)["probe_auc"])
    return stdev(changes) / math.sqrt(len(changes))


def probe_series(run: RunRecord, onset_rule: str | None = None) -> list[ProbeSeries]:
    """The probes of a run in comparable groups, in the order of their first probe."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for probe in run.probes:
        groups.setdefault((probe["language"], probe["adaptation"], probe["probe_config_hash"]), []).append(probe)
    return [ProbeSeries(run, *key, probes, onset_rule) for key, probes in groups.items()]


def is_untrained(probe: dict[str, Any]) -> bool:
    """Whether a probe record is that of the untrained model."""
    return probe["step"] == 0


def auc(probe: dict[str, Any]) -> Estimate:
    """The AUC of a probe with its standard error over repeats."""
    return Estimate(probe["auc"], probe.get("auc_stderr"))


def position(record: dict[str, Any], unit: str) -> float:
    """The position of a record on the horizontal axis."""
    return record["tokens" if unit == "tokens" else "step"]


def shared_unit(records: Iterable[dict[str, Any]]) -> str:
    """`"tokens"` where every record has a token count, `"steps"` otherwise."""
    return "tokens" if all(record.get("tokens") is not None for record in records) else "steps"


def label(run: RunRecord, record: dict[str, Any]) -> str:
    """
    The name of the point of a probe or diagnosis: its cycle, its task instance within a cycle, or its step where the
    training has no task instances, or within one.
    """
    if record.get("task") is None or (run.task_steps and record["step"] % run.task_steps):
        return f"step {record['step']:,}"
    if record.get("cycle") is None or not run.tasks_per_cycle or record["task"] % run.tasks_per_cycle:
        return f"task {record['task']}"
    return f"cycle {record['cycle']}"


def language_name(run: RunRecord, code: str) -> str:
    """
    The name of a language. Generated languages, and languages of a run without a recorded text source, are named by
    their code.
    """
    source = SOURCES.get(run.config.get("source"))
    return LANGUAGE_NAMES.get(code, code) if source is not None and source.natural else code


def num_parameters(run: RunRecord) -> int | None:
    """Non-embedding parameters of a run's model, or `None` if they are not recorded."""
    provenance = run.config.get(PROVENANCE) or {}
    if provenance.get("num_non_embedding_parameters") is not None:
        return provenance["num_non_embedding_parameters"]
    size = run.config.get("size")
    return MODEL_SIZES[size].num_non_embedding_parameters if size in MODEL_SIZES else None
