"""Rank correlations between the measures of the network and ΔAUC over the probes of a run."""

from collections.abc import Sequence
from typing import Any

from scipy import stats

from ..page import Section, Table
from ..series import ProbeSeries
from ..text import minus
from .diagnostics import by_configuration, measure_names, overall, words


FEWEST, PERMUTATIONS = 4, 9_999


def correlation_sections(series: ProbeSeries) -> list[Section]:
    """The correlations of one series of probes with the diagnoses of each configuration."""
    configurations = by_configuration(series.run.diagnostics)
    return [
        correlation_section(series, records, f" ({name})" if len(configurations) > 1 else "")
        for name, records in configurations.items()
    ]


def correlation_section(series: ProbeSeries, records: Sequence[dict[str, Any]], suffix: str) -> Section:
    """The table of every measure, the strongest correlation first."""
    section = Section(f"What moves with ΔAUC{suffix}")
    rows = []
    for measure in measure_names(records):
        steps, values, changes = paired(series, records, measure)
        rho, p_value = spearman(values, changes)
        if steps:
            rows.append([words(measure), rho, p_value, spearman(values, steps)[0], len(steps)])
    if not rows:
        section.notes.append("No diagnosis was taken at a probe of the trained model: none is compared with ΔAUC.")
        return section
    tested = sum(row[1] is not None for row in rows)
    section.text = [
        f"ρ is Spearman’s rank correlation over the probes of the trained model; it requires {FEWEST} probes and "
        "values that differ. p is the share of random orders of the probes that reach such a ρ. It is not corrected "
        f"for the number of tests: by chance, about {0.05 * tested:.2g} of {tested} would be below 0.05. It assumes "
        "independent probes, which they are not: whatever drifts over training (ρ with steps) correlates with "
        "whatever else drifts. Confirm a correlation on other seeds.",
    ]
    columns = {"Measure": str, "ρ with ΔAUC": signed, "p": "{:.2g}".format, "ρ with steps": signed, "Probes": str}
    rows.sort(key=lambda row: -1.0 if row[1] is None else abs(row[1]), reverse=True)
    section.tables = [Table(columns, rows)]
    return section


def paired(
    series: ProbeSeries, records: Sequence[dict[str, Any]], measure: str
) -> tuple[list[int], list[float], list[float]]:
    """Steps, overall values and ΔAUCs at the probes of the trained model that have this measure."""
    by_step = {record["step"]: value for record in records if (value := overall(record, measure)) is not None}
    kept = [
        (probe["step"], change) for probe, change in zip(series.trained, series.changes) if probe["step"] in by_step
    ]
    return [step for step, _ in kept], [by_step[step] for step, _ in kept], [change for _, change in kept]


def spearman(xs: Sequence[float], ys: Sequence[float]) -> tuple[float | None, float | None]:
    """
    Spearman’s ρ and its two-sided p-value by permutation, exact up to seven pairs, and from 9,999 permutations for
    more.

    Args:
        xs, ys (`Sequence[float]`): The pairs.

    Returns:
        `tuple[float, float]`: `None` for both with fewer than four pairs, or if one side is constant.
    """
    if len(xs) < FEWEST or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None, None
    centered = stats.rankdata(ys) - (len(ys) + 1) / 2
    test = stats.permutation_test(
        (stats.rankdata(xs),),
        lambda ranks, axis: (ranks * centered).sum(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=0,
    )
    return float(stats.spearmanr(xs, ys).statistic), float(test.pvalue)


def signed(rho: float) -> str:
    return minus(f"{rho:+.2f}")
