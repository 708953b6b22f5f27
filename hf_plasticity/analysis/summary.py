"""The first lines of a report or a model card: the result, and a description of the runs."""

from collections.abc import Sequence

from ..data.sources import SOURCES
from ..metrics.plasticity_onset.rise import FEWEST_PROBES
from ..records import RunRecord
from .comparison import ComparableProbes, auc_curve, last_shared, mean_at
from .groups import Group, run_order
from .onset_view import is_detected, onset_sentence
from .series import ProbeSeries, auc, is_untrained, label, num_parameters, onset_of_seeds
from .text import Estimate, auc_text, compact, listed, plural, signed_percent


SCHEDULES = {None: "", "rotation": " in rotation", "stationary": " mixed evenly"}
# With more sizes, their AUCs are only in the table.
MOST_NAMES = 3
# With more configurations, their onsets are only in the table.
MOST_ONSETS = 6
# A change in percent that is shown as 0.0%.
NO_CHANGE = 0.05


def run_result(series: Sequence[ProbeSeries]) -> list[str]:
    """The result of a run in one or two sentences for each series of probes."""
    if not series:
        return ["No result yet: no probe has been recorded."]
    several = len(series) > 1
    return [
        f"Probe {one.probe_config_hash}: {series_result(one)}" if several else series_result(one) for one in series
    ]


def series_result(series: ProbeSeries) -> str:
    """How fast the model learns at the last probe of a series, the onset, and the lowest AUC."""
    trained = series.trained
    if len(trained) < 2:
        return f"No result yet: {plural(len(trained), 'probe')} of the trained model, and a trend requires two."
    best, last, reference = series.best, trained[-1], series.reference
    after = f"after {series.label(reference)}"
    others = [(reference, after, f"that {after}")]
    if series.untrained is not None:
        others.insert(0, (series.untrained, f"the {series.start_model}", f"that of the {series.start_model}"))
    changes = [series.change_since(other) for other, *_ in others]
    if changes[0].error is None:
        differences = [_difference(change, name) for change, (*_, name) in zip(changes, others)]
        text = f"the AUC on {series.language_name} is {listed(differences)}"
        text += f" (with fewer than {FEWEST_PROBES} probes, the noise is not known)"
    else:
        speeds = [_speed(change, name) for change, (_, name, _) in zip(changes, others)]
        text = f"the model learns {series.language_name} {listed(speeds)}"
    lowest = "at the last probe" if best is last else f"after {series.label(best)}"
    return (
        f"After {series.label(last)}, {text}. {onset_sentence([series])} "
        f"Of the probes of the trained model, the AUC was lowest {lowest} ({auc_text(auc(best))})."
    )


def _speed(change: Estimate, name: str) -> str:
    """`"12.0 ± 3.9% more slowly than after task 1"`, if the change is more than noise."""
    if abs(change.value) < max(2 * change.error, NO_CHANGE):
        shown = signed_percent(change.value, error=change.error)
        return f"not significantly faster or more slowly than {name} (AUC {shown})"
    return f"{_percent(change)} {'faster' if change.value < 0 else 'more slowly'} than {name}"


def _difference(change: Estimate, name: str) -> str:
    """`"5.0% below that after cycle 1"`."""
    if abs(change.value) < NO_CHANGE:
        return f"equal to {name}"
    return f"{_percent(change)} {'below' if change.value < 0 else 'above'} {name}"


def _percent(change: Estimate) -> str:
    return signed_percent(abs(change.value), error=change.error).removeprefix("+")


def unit_sentence(run: RunRecord) -> str:
    """
    The share of dormant MLP units at the first and the last diagnosis of the same configuration; empty if they were
    not diagnosed.
    """
    diagnoses = [record for record in run.diagnostics if "dormant_units" in record.get("measures", {})]
    same = [one for one in diagnoses if one["diagnostics_config_hash"] == diagnoses[-1]["diagnostics_config_hash"]]
    if len(same) < 2:
        return ""
    first, last = (
        f"{one['measures']['dormant_units']['overall']:.0%} after {label(run, one)}" for one in (same[0], same[-1])
    )
    return f"Dormant MLP units: {first}, {last}."


def run_summary(run: RunRecord, series: Sequence[ProbeSeries]) -> str:
    """A description of the training and the probes of a run."""
    config, count = run.config, num_parameters(run)
    text = f"{config['size']} model" if config.get("size") else str(config.get("model") or "Model")
    if count is not None:
        text += f" with {count:,} non-embedding parameters"
    if not run.probes:
        return f"{text}."
    last, languages = run.probes[-1], config.get("languages")
    text += ", not trained yet" if is_untrained(last) else ", trained" if languages else ""
    if languages:
        source = config.get("source")
        generated = source in SOURCES and not SOURCES[source].natural
        text += f" on {plural(len(languages), f'{source} language' if generated else 'language')}"
    schedule = config.get("schedule")
    text += SCHEDULES.get(schedule, f", schedule {schedule}")
    times = "once" if len(run.probes) == 1 else f"{len(run.probes):,} times"
    text += f". Probed {times} on {listed(list(dict.fromkeys(one.language_name for one in series)))}"
    if not is_untrained(last):
        tokens = "" if last.get("tokens") is None else f" ({compact(last['tokens'])} tokens)"
        text += f", last after {label(run, last)}{tokens}"
    return f"{text}."


def runs_result(comparisons: Sequence[ComparableProbes]) -> list[str]:
    """The result of several runs: the AUCs of the schedules of each size, and the onset of each configuration."""
    every = [series for comparison in comparisons for series in comparison.series]
    if not every:
        return ["No result yet: no probe of a trained model has been recorded."]
    found = [sentence for one in comparisons for sentence in schedule_sentences(one)]
    return [*found, *(sentence for one in comparisons for sentence in onset_sentences(one))]


def onset_sentences(comparison: ComparableProbes) -> list[str]:
    """The onset of each group of seeds, or the number of groups with an onset if there are many."""
    groups = [group for group in comparison.groups if group.members]
    if len(groups) <= MOST_ONSETS:
        several = len({group.schedule for group in groups}) > 1
        return [
            f"{group.name}{f', {group.schedule}' if several else ''} ({plural(len(group.members), 'seed')}): "
            + onset_sentence(group.members)
            for group in groups
        ]
    onsets = [onset_of_seeds(group.members)[0] for group in groups]
    known = [one for one in onsets if one is not None]
    if not known:
        return [f"No onset of plasticity loss can be stated: {onset_of_seeds(groups[0].members)[1]}."]
    detected, of = sum(map(is_detected, known)), plural(len(known), "configuration")
    of += " in which it can be stated" if len(known) < len(groups) else ""
    return [f"An onset of plasticity loss was detected in {detected or 'none'} of {of} (seeds taken together)."]


def schedule_sentences(comparison: ComparableProbes) -> list[str]:
    """The AUCs of the schedules, in a sentence for each size with more than one schedule."""
    named: dict[str, list[Group[ProbeSeries]]] = {}
    for group in comparison.groups:
        named.setdefault(group.name, []).append(group)
    sentences = []
    for name, groups in named.items():
        last = last_shared(groups)
        if len({group.schedule for group in groups}) > 1 and last is not None:
            aucs = [(mean_at(group, auc_curve, last[0]), group.schedule) for group in groups]
            values = listed([f"{auc_text(value)} ({schedule})" for value, schedule in aucs])
            sentences.append(f"{name}: AUC after {last[1]} was {values}.")
    return [" ".join(sentences)] if 0 < len(sentences) <= MOST_NAMES else []


def runs_summary(runs: Sequence[RunRecord]) -> str:
    """A description of the runs: sizes, schedules, seeds."""
    ordered, parts = sorted(runs, key=run_order), []
    for field in ("size", "schedule", "seed"):
        values = list(dict.fromkeys(str(run.config[field]) for run in ordered if run.config.get(field) is not None))
        if values:
            parts.append(f"{plural(len(values), field)} ({', '.join(values)})")
    return f"{plural(len(runs), 'run')}{': ' if parts else ''}{', '.join(parts)}."
