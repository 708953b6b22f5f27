"""What the report of several runs says and shows."""

from collections.abc import Sequence
from functools import partial

from ..errors import PlasticityError
from ..records import RunRecord
from .diagnostics_report import SMALL
from .ladder import Group, comparable, grouped, run_order
from .ladder_inside import diagnostics_section, forgetting_section
from .ladder_plots import by_size_figure, law_text, onset_figure, schedules_figure, small_curves
from .law import OnsetLaw, fit_onset_law
from .page import Gallery, Page, Section, Table
from .plots import NARROW, WIDE
from .run_report import missing, number, onset_text, plural
from .series import ProbeSeries, label, language_name
from .theme import compact, signed_percent


LEAST_SIZES = 3


def ladder_page(runs: Sequence[RunRecord], gallery: Gallery, rule: str) -> Page:
    """The report of several runs side by side, their onsets read off by `rule`."""
    found = comparable(runs, rule)
    groups = {key: grouped(series) for key, series in found.items()}
    page = Page(title(runs), summary(runs, found), tiles(runs, found))
    for (language, adaptation), members in groups.items():
        name = language_name(members[0].seeds[0].run, language) + f", {adaptation}"
        page.sections += comparison(members, name if len(groups) > 1 else "", gallery, page.gaps)
    beside = [forgetting_section(runs, gallery, page.gaps), diagnostics_section(runs, gallery, page.gaps)]
    page.sections += [section for section in beside if section is not None]
    page.sections.append(runs_section(found))
    page.sections.append(curves_section(groups, gallery))
    page.gaps += gaps(runs, groups)
    return page


def title(runs: Sequence[RunRecord]) -> str:
    sizes = {run.config["size"] for run in runs if run.config.get("size")}
    return f"{len(runs)} runs, {plural(len(sizes), 'size')}" if sizes else f"{len(runs)} runs"


def summary(runs: Sequence[RunRecord], found: dict[tuple[str, str], list[ProbeSeries]]) -> str:
    """What was run, in words."""
    ordered = sorted(runs, key=run_order)
    values = {
        field: list(dict.fromkeys(str(run.config[field]) for run in ordered if run.config.get(field) is not None))
        for field in ("size", "schedule", "seed")
    }
    text = plural(len(runs), "run")
    if values["size"]:
        text += f" of {plural(len(values['size']), 'size')} ({', '.join(values['size'])})"
    if values["seed"]:
        text += f" with {plural(len(values['seed']), 'seed')}"
    if values["schedule"]:
        text += f"; {'schedule' if len(values['schedule']) == 1 else 'schedules'}: {' and '.join(values['schedule'])}"
    text += "."
    if not found:
        return text + " No probe of a trained model has been recorded yet."
    probed = [
        language_name(series[0].run, language) + f" ({adaptation})" for (language, adaptation), series in found.items()
    ]
    return f"{text} Probed on {' and '.join(probed)}."


def tiles(runs: Sequence[RunRecord], found: dict[tuple[str, str], list[ProbeSeries]]) -> list[tuple[str, str, str]]:
    """The headline numbers."""
    every = [series for members in found.values() for series in members]
    shown = [("Runs", str(len(runs)), ""), ("Probes", f"{sum(len(run.probes) for run in runs):,}", "")]
    tokens = [probe["tokens"] for series in every for probe in series.probes if probe.get("tokens") is not None]
    if tokens:
        shown.append(("Longest run", compact(max(tokens)), "training tokens"))
    onsets = [series.onset for series in every if series.onset is not None]
    if onsets:
        turned = sum(not onset.censored for onset in onsets)
        note = f"by the {onsets[0].rule.replace('_', ' ')} rule"
        known = [series.rises for series in every if series.onset is not None and series.rises is not None]
        if known:
            note += f"; {sum(known)} of {len(known)} end above their lowest AUC by more than AUCs scatter"
        shown.append(("Turned", f"{turned} of {len(onsets)}", note))
    return shown


def comparison(groups: list[Group], name: str, gallery: Gallery, missed: list[str]) -> list[Section]:
    """
    ΔAUC by size, the onsets with their law, and one schedule against another.

    Args:
        groups (`list[Group]`): All on one probe language by one adaptation.
        name (`str`): Of these two, to tell the sections of several such comparisons apart; empty where there is one.
        gallery ([`Gallery`]): Draws.
        missed (`list[str]`): Takes what cannot be shown.
    """
    by_schedule: dict[str | None, list[Group]] = {}
    for group in groups:
        by_schedule.setdefault(group.schedule, []).append(group)
    sections = [plasticity_section(by_schedule, name, gallery)]
    for schedule, members in by_schedule.items():
        words = [part for part in (name, schedule if len(by_schedule) > 1 else None) if part]
        sections.append(onset_section(members, ", ".join(words), gallery, missed))
    sections.append(schedules_section(groups, name, gallery))
    return [section for section in sections if section is not None]


def plasticity_section(by_schedule: dict[str | None, list[Group]], name: str, gallery: Gallery) -> Section:
    """ΔAUC over training, one figure a schedule."""
    section = Section(_heading("Plasticity by size", name))
    for schedule, members in by_schedule.items():
        first = all(series.reference.get("cycle") == 1 for group in members for series in group.seeds)
        caption = f"ΔAUC against {'the probe after cycle 1' if first else 'the first probe of each trained model'}"
        if any(len(group.seeds) > 1 for group in members):
            caption += ": the mean over seeds, with a band from the lowest seed to the highest"
        draw = partial(by_size_figure, members)
        section.exhibits.append(
            gallery.exhibit(f"ΔAUC by size {schedule} {name}", draw, f"{caption}.", WIDE, NARROW, "whole")
        )
    return section


def onset_section(groups: list[Group], name: str, gallery: Gallery, missed: list[str]) -> Section | None:
    """Onsets against size with the fitted law and the paper's; what stands in the way of it goes to `missed`."""
    known = [
        group
        for group in groups
        if group.num_parameters is not None and all(series.onset is not None for series in group.seeds)
    ]
    sizes = {group.num_parameters for group in known}
    which = f" ({name})" if name else ""
    if len(sizes) < 2:
        missed.append(f"No law of onsets{which}: it takes at least two sizes with known parameters and onsets.")
        return None
    law = None
    if len(known) > len(sizes):
        missed.append(
            f"No law was fitted to the onsets{which}, since a size occurs in several configurations: "
            f"{', '.join(group.name for group in known)}."
        )
    else:
        law = _fit(known, which, missed)
    section = Section(_heading("Onset and size", name))
    rule = known[0].seeds[0].rule.replace("_", " ")
    section.text.append(f"Each mark is a run; its onset is read off its AUCs by the {rule} rule.")
    caption = "Seeds of one size are set apart a little."
    if law is not None:
        section.text.append(_law_words(law))
        caption += " The band is where a new run would fall 95 times in a hundred, if the law holds."
        if law.loo_errors:
            rows = [[model, f"{100 * error:.1f}%"] for model, error in law.loo_errors.items()]
            section.tables.append(Table(["Model of the onset", "Leave-one-out error"], rows))
    draw = partial(onset_figure, known, law)
    section.exhibits.append(gallery.exhibit(f"onset and size {name}", draw, caption, WIDE, NARROW, "whole"))
    return section


def schedules_section(groups: list[Group], name: str, gallery: Gallery) -> Section | None:
    """The sizes that were trained on more than one schedule."""
    schedules: dict[int | None, set[str | None]] = {}
    for group in groups:
        schedules.setdefault(group.num_parameters, set()).add(group.schedule)
    shared = [group for group in groups if group.num_parameters and len(schedules[group.num_parameters]) > 1]
    if not shared:
        return None
    draw = partial(schedules_figure, shared)
    caption = "The sizes trained on more than one schedule, mean over seeds."
    exhibit = gallery.exhibit(f"schedules {name}", draw, caption, WIDE, NARROW, "whole")
    return Section(_heading("One schedule against another", name), exhibits=[exhibit])


def _heading(text: str, name: str) -> str:
    return f"{text}: {name}" if name else text


def _fit(groups: list[Group], which: str, missed: list[str]) -> OnsetLaw | None:
    sizes = [group.num_parameters for group in groups for _ in group.seeds]
    if len(set(sizes)) < LEAST_SIZES:
        missed.append(
            f"No law was fitted to the onsets{which}: a line goes through those of one or two sizes, whatever they "
            f"are; it takes {LEAST_SIZES} sizes."
        )
        return None
    try:
        return fit_onset_law(sizes, [series.onset for group in groups for series in group.seeds])
    except PlasticityError as error:
        missed.append(f"No law could be fitted to the onsets{which}: {error}.")
        return None


def _law_words(law: OnsetLaw) -> str:
    text = f"The fitted law is {law_text(law)}"
    if law.exponent_interval is not None:
        low, high = law.exponent_interval
        text += f", the exponent between {low:.2f} and {high:.2f} with 95% confidence".replace("-", "−")
    return f"{text}; the paper’s, for the rotation, is T = 1.3×10⁻⁵·P^0.8269."


def runs_section(found: dict[tuple[str, str], list[ProbeSeries]]) -> Section:
    """The table of every run and series."""
    rows = []
    for series in (series for members in found.values() for series in members):
        config, last = series.run.config, series.trained[-1]
        best = series.best
        rows.append(
            [
                series.run.name,
                missing(config.get("size"), str),
                missing(config.get("schedule"), str),
                missing(config.get("seed"), str),
                label(last),
                missing(last.get("tokens"), compact),
                f"{number(best['auc'])} ({label(best)})",
                signed_percent(series.changes[-1]),
                missing(series.onset, onset_text),
                f"{series.language} {series.adaptation} {series.probe_config_hash}",
            ]
        )
    header = ["Run", "Size", "Schedule", "Seed", "Last probe", "Tokens", "Lowest AUC", "ΔAUC", "Onset", "Probe"]
    return Section("Every run", tables=[Table(header, rows)])


def curves_section(groups: dict[tuple[str, str], list[Group]], gallery: Gallery) -> Section:
    """The learning curves of every run, small."""
    text = (
        "A few probes of every run, evenly spaced from the first (faint) to the last (strong), each on its own scale."
    )
    section = Section("Learning curves", [text])
    for members in groups.values():
        for group in members:
            for series in group.seeds:
                name = f"learning curves {series.run.name} {series.probe_config_hash}"
                caption = f"{series.run.name}: {group.name}"
                caption += "".join(f", {part}" for part in (group.schedule, seed_text(series.run)) if part)
                section.exhibits.append(
                    gallery.exhibit(name, partial(small_curves, series), caption, SMALL, size="small")
                )
    return section


def seed_text(run: RunRecord) -> str:
    return "" if run.config.get("seed") is None else f"seed {run.config['seed']}"


def gaps(runs: Sequence[RunRecord], groups: dict[tuple[str, str], list[Group]]) -> list[str]:
    """What the records don't hold, and what is therefore not shown."""
    found = []
    for run in runs:
        if not run.config:
            found.append(f"{run.name}: no config.yaml, so its size and schedule are unknown, and it stands alone.")
        if not any(probe["step"] for probe in run.probes):
            found.append(f"{run.name}: no probe of the trained model.")
    for members in groups.values():
        for group in members:
            lengths = {series.trained[-1]["step"] for series in group.seeds}
            if len(lengths) > 1:
                found.append(f"{group.name}: seeds of different length; mean and band end with the shortest.")
    return found
