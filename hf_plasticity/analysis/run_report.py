"""What the report of one run says and shows."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from ..records import RunRecord
from .diagnostics_report import diagnostics_gaps, diagnostics_sections
from .onset import Onset
from .page import Gallery, Page, Section, Table
from .plots import (
    HALF,
    NARROW,
    WIDE,
    auc_figure,
    delta_auc_figure,
    forgetting_figure,
    learning_curves,
    training_loss_figure,
    zoom_start,
)
from .series import ProbeSeries, is_untrained, label, language_name, num_parameters, probe_series
from .theme import compact, signed_percent


STUDY_SETTINGS = (
    "size", "schedule", "blend", "languages", "probe_language", "source", "dataset", "data_dir", "validation_fraction",
    "tokenizer", "vocab_size", "context_length", "seed", "cycles", "task_steps", "reset_optimizer", "warmup_steps",
    "global_batch_tokens", "allow_repeats", "learning_rate", "lr_scheduler_type", "optim", "weight_decay",
    "adam_beta1", "adam_beta2", "max_grad_norm", "bf16", "probe_every_cycles", "probe_steps", "probe_eval_every",
    "probe_eval_sequences", "probe_dense_start", "probe_learning_rate", "probe_warmup_steps", "probe_adaptation",
    "probe_seed", "probe_repeats",
)  # fmt: skip
SECRETS = ("hub_token", "push_to_hub_token")


def run_page(run: RunRecord, gallery: Gallery, rule: str) -> Page:
    """The report of one run, its onset read off by `rule`."""
    series = probe_series(run, rule)
    page = Page(run.name, summary(run, series), gaps=list(dict.fromkeys(gaps(run, series))))
    if series:
        page.tiles = tiles(series[0], f", probe {series[0].probe_config_hash}" if len(series) > 1 else "")
    for one in series:
        page.sections.append(probe_section(one, gallery, several=len(series) > 1))
    if any("loss" in entry for entry in run.training_log):
        page.sections.append(training_section(run, gallery))
    if run.forgetting:
        page.sections.append(forgetting_section(run, gallery))
    page.sections += diagnostics_sections(run, series, gallery)
    page.sections += [probes_section(series), configuration_section(run)]
    page.sections = [section for section in page.sections if section is not None]
    return page


def summary(run: RunRecord, series: list[ProbeSeries]) -> str:
    """What was run and what came out, in words."""
    config, count = run.config, num_parameters(run)
    model = f"A {config['size']} model" if config.get("size") else "A model"
    if count is not None:
        model += f" ({count:,} non-embedding parameters)"
    if not run.probes:
        return f"{model}. No probe has been recorded yet."
    last, languages = run.probes[-1], config.get("languages") or []
    amount = f"{last['step']:,} steps" if last.get("tokens") is None else f"{compact(last['tokens'])} tokens"
    trained = f"trained for {amount}"
    if is_untrained(last):
        trained = "about to be trained"
    elif last.get("cycle") is not None:
        trained = f"trained for {plural(last['cycle'], 'cycle')} ({amount})"
    if languages:
        kind = "synthetic language" if config.get("source") == "synthetic" else "language"
        trained += f" on {plural(len(languages), kind)}"
    schedules = {None: "", "rotation": " in rotation", "stationary": " mixed uniformly"}
    schedule = config.get("schedule")
    trained += schedules.get(schedule, f", schedule {schedule}")
    times = "once" if len(run.probes) == 1 else f"{len(run.probes):,} times"
    probed = " and ".join(dict.fromkeys(language_name(run, one.language) for one in series))
    return f"{model}, {trained}, probed {times} on {probed}. " + " ".join(
        f"Probe {one.probe_config_hash}: {outcome(one)}" if len(series) > 1 else outcome(one) for one in series
    )


def outcome(series: ProbeSeries) -> str:
    """What the probes came to, in a sentence."""
    if len(series.trained) < 2:
        return "There are too few probes of the trained model to speak of a trend."
    best, last, change = series.best, series.trained[-1], series.changes[-1]
    side, against = "below" if change < 0 else "above", label(series.reference)
    text = f"It learned {language_name(series.run, series.language)} fastest after {label(best)}"
    if series.untrained is not None and series.untrained["auc"] < best["auc"]:
        text = f"Once trained, it never learned {language_name(series.run, series.language)} as fast as untrained"
        text += f" (AUC {number(series.untrained['auc'])}), and fastest after {label(best)}"
    if best is last:
        return f"{text}, the last one probed, with an AUC {abs(change):.1f}% {side} that after {against}."
    above = 100 * (last["auc"] / best["auc"] - 1)
    text += f"; after {label(last)}, its AUC was {above:.1f}% above that lowest point and {abs(change):.1f}% {side} "
    text += f"the one after {against}."
    if series.scatter is None:
        return text
    scatter = 100 * series.scatter / best["auc"]
    text += f" Its AUCs scatter by {scatter:.1f}% about the trend of their neighbours"
    return f"{text}." if series.rises else f"{text}, so that this rise is no sign of a turn."


def tiles(series: ProbeSeries, which: str) -> list[tuple[str, str, str]]:
    """The headline numbers; `which` names the probe where a run has several."""
    last, planned = series.probes[-1], series.run.config.get("cycles")
    found = []
    if last.get("cycle") is not None:
        found.append(("Cycles", f"{last['cycle']}", f"of {planned} planned" if planned else ""))
    if last.get("tokens") is not None:
        found.append(("Training tokens", compact(last["tokens"]), f"{last['step']:,} steps"))
    else:
        found.append(("Training steps", f"{last['step']:,}", "tokens not recorded"))
    if series.trained:
        best = series.best
        found.append(("Lowest AUC", number(best["auc"]), f"after {label(best)}{which}"))
        against = label(series.reference)
        found.append(("ΔAUC at the end", signed_percent(series.changes[-1]), f"against {against}{which}"))
    if series.onset is not None:
        rule = f"by the {series.rule.replace('_', ' ')} rule"
        if series.onset.censored:
            found.append(("Onset", "not yet", f"not turned by {label(last)} (censored), {rule}{which}"))
        else:
            rise = 100 * (series.trained[-1]["auc"] / series.best["auc"] - 1)
            found.append(
                ("Onset", onset_text(series.onset), f"{rule}; {signed_percent(rise)} since the lowest AUC{which}")
            )
    return found


def probe_section(series: ProbeSeries, gallery: Gallery, several: bool) -> Section:
    """The learning curves of one series of probes, its AUC and ΔAUC."""
    name = language_name(series.run, series.language)
    section = Section(f"Learning a new language: {name}" + (f" (probe {series.probe_config_hash})" if several else ""))
    how = {"full": "full fine-tuning", "lora": "LoRA"}.get(series.adaptation, series.adaptation)
    steps = series.probes[0]["probe_steps"][-1]
    section.text.append(
        f"Each curve is one probe: a copy of the model at that point, trained for {steps:,} steps by {how}, then "
        f"thrown away. Probe configuration {series.probe_config_hash}."
    )
    suffix = f"-{series.probe_config_hash}" if several else ""
    caption = "Validation loss during every probe"
    caption += "." if zoom_start(series) is None else "; the second panel has the later part on a scale of its own."
    draw = partial(learning_curves, series)
    section.exhibits.append(gallery.exhibit(f"learning curves{suffix}", draw, caption, WIDE, NARROW, "whole"))
    if not series.trained:
        return section
    bars = " Bars: one standard error over repeated probes."
    caption = "The area under each curve."
    caption += bars if any(probe.get("auc_stderr") is not None for probe in series.trained) else ""
    section.exhibits.append(gallery.exhibit(f"AUC{suffix}", partial(auc_figure, series), caption, HALF, NARROW))
    caption = f"The same in percent of the area after {label(series.reference)}."
    caption += bars if any(error is not None for error in series.change_errors) else ""
    draw = partial(delta_auc_figure, series)
    section.exhibits.append(gallery.exhibit(f"ΔAUC{suffix}", draw, caption, HALF, NARROW))
    return section


def training_section(run: RunRecord, gallery: Gallery) -> Section:
    """The training loss by language."""
    caption = "Training loss of the main run, averaged over neighbouring log entries. "
    caption += "A first descent from above everything later is cut off."
    draw = partial(training_loss_figure, run)
    return Section("Training", exhibits=[gallery.exhibit("training loss", draw, caption, WIDE, NARROW, "whole")])


def forgetting_section(run: RunRecord, gallery: Gallery) -> Section:
    """Validation loss on the training languages."""
    caption = "Each language, measured at the end of every cycle."
    if run.config.get("schedule") == "rotation":
        caption += " At that point the first language of the cycle was last seen longest ago."
    draw = partial(forgetting_figure, run)
    return Section("Forgetting", exhibits=[gallery.exhibit("forgetting", draw, caption, WIDE, NARROW, "whole")])


def probes_section(series: list[ProbeSeries]) -> Section | None:
    """The table of every probe, one table a series."""
    if not series:
        return None
    tables = []
    for one in series:
        changes = iter(one.changes)
        rows = []
        for probe in one.probes:
            change = "–" if is_untrained(probe) else signed_percent(next(changes), 2)
            rows.append(
                [
                    label(probe),
                    missing(probe.get("tokens"), compact),
                    f"{probe['start_loss']:.3f}",
                    f"{probe['final_loss']:.3f}",
                    number(probe["auc"]),
                    "reference" if probe is one.reference else change,
                    missing(probe.get("bits_per_byte"), lambda value: f"{value:.3f}"),
                ]
            )
        caption = f"{language_name(one.run, one.language)}, {one.adaptation}, configuration {one.probe_config_hash}"
        header = ["Probe", "Tokens", "Start loss", "Final loss", "AUC", "ΔAUC", "Bits per byte"]
        tables.append(Table(header, rows, caption))
    return Section("Every probe", tables=tables)


def configuration_section(run: RunRecord) -> Section | None:
    """The configuration, what the study varies first, and the versions it ran with."""
    if not run.config:
        return None
    config = {name: value for name, value in run.config.items() if name not in (*SECRETS, "provenance")}
    provenance = run.config.get("provenance") or {}
    study = {name: config[name] for name in STUDY_SETTINGS if name in config}
    facts = {name: value for name, value in provenance.items() if not isinstance(value, dict)}
    facts |= provenance.get("versions") or {}
    rest = {name: value for name, value in (provenance | config).items() if name not in (*study, *facts, "versions")}
    lists = [[(name, setting(value)) for name, value in part.items()] for part in (study, facts) if part]
    return Section("Configuration", lists=lists, more=[(name, setting(value)) for name, value in rest.items()])


def gaps(run: RunRecord, series: list[ProbeSeries]) -> list[str]:
    """What the records of a run don't hold, and what therefore is not shown."""
    found = []
    if not run.config:
        found.append("No config.yaml: the model, its size and the training settings are unknown here.")
    if not run.probes:
        found.append("No probes.jsonl: there is no AUC to report.")
    elif any(probe.get("cycle") is None for probe in run.probes):
        found.append("Probes without a cycle: they are named by their step.")
    if any(probe.get("tokens") is None for probe in run.probes):
        found.append("Probes without a token count: the horizontal axis is the optimizer step.")
    for one in series:
        if one.untrained is None:
            found.append(f"No probe before training (cycle 0) under configuration {one.probe_config_hash}.")
        if one.no_onset is not None:
            found.append(f"No onset under configuration {one.probe_config_hash}: {one.no_onset}.")
        if one.trained and one.reference.get("cycle") != 1:
            found.append(f"No probe known to be of cycle 1: ΔAUC is against {label(one.reference)} instead.")
        if any(probe.get("bits_per_byte") is None for probe in one.probes):
            found.append("Bits per byte of some probes: the length of the validation text in bytes was not known.")
    if not any("loss" in entry for entry in run.training_log):
        found.append("No training log: the loss of the main run is not shown.")
    elif any(entry.get("language") is None for entry in run.training_log if "loss" in entry):
        found.append("Training log entries without a language: they are drawn in one colour.")
    if not run.forgetting:
        found.append("No forgetting.jsonl: losses on the training languages were not measured.")
    if not run.diagnostics:
        found.append("No diagnostics.jsonl: the inside of the network was not measured.")
    return found + diagnostics_gaps(run, series)


def number(value: float) -> str:
    """An AUC in four digits or all before the point."""
    return f"{value:,.{max(0, 3 - math.floor(math.log10(value)))}f}" if value > 0 else f"{value:g}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def onset_text(onset: Onset) -> str:
    """An onset in tasks, or the bound that it is where the run was not watched long or early enough."""
    bound = "after " if onset.censored else "by " if onset.at_first_probe else ""
    return f"{bound}task {onset.task:,.4g}"


def missing(value: Any, form: Callable[[Any], str]) -> str:
    """`value` in its form, or a dash for what was not recorded."""
    return "–" if value is None else form(value)


def setting(value: Any) -> str:
    """The value of a setting as it would be written in YAML, nearly."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {setting(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(setting(item) for item in value) or "none"
    return str(value)
