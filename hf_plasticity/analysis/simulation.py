"""
Simulated curves and ladders with known onsets, to measure the errors of the onset rules and of the law.

The documented numbers for false alarms, power, bias and coverage are computed here.
"""

import math
from collections.abc import Sequence

import numpy as np

from ..metrics.onset_law.definition import onset_law
from ..metrics.plasticity_onset.definition import plasticity_onset
from ..metrics.plasticity_onset.rise import autocorrelated
from .law import PAPER_LAW
from .onset import change_error


TASKS_PER_PROBE = 8
# Non-embedding parameters of the paper's sizes, the smallest first.
SIZES = (5e6, 12e6, 27e6, 39e6, 53e6, 83e6, 106e6, 314e6)
RULES = ("rise", "statistical", "turning_point")


def level_curve(probes: int) -> np.ndarray:
    """A curve that does not change: the worst case of a curve without an onset."""
    return np.ones(probes)


def falling_curve(probes: int) -> np.ndarray:
    """A curve that falls by 15%, most of it in the first probes, and stays level."""
    return 1 + 0.15 * np.exp(-np.arange(probes) / 2)


def turning_curve(probes: int, rise: float, turn: float = 0.5) -> np.ndarray:
    """
    A curve that falls, first steeply and then by 4%, and from the share `turn` of its length rises by `rise`, both
    linearly.
    """
    share = np.arange(probes) / (probes - 1)
    fall = 0.15 * np.exp(-np.arange(probes) / 2) + 0.04 * np.clip(1 - share / turn, 0, None)
    return 1 + fall + rise * np.clip((share - turn) / (1 - turn), 0, None)


def find(rule: str, curves: np.ndarray, noise: float) -> dict:
    """The onset of seeds `(seeds, probes)`, probed once a cycle, by a rule."""
    tasks = TASKS_PER_PROBE * np.arange(1, curves.shape[1] + 1)
    errors = np.full(curves.shape, noise) if rule == "statistical" else None
    return plasticity_onset(tasks, curves, rule=rule, together=True, stderrs=errors)


def detection_rate(
    curve: np.ndarray,
    seeds: int,
    noise: float,
    correlation: float,
    rule: str,
    replicates: int,
    seed: int = 0,
    shared: float = 0.0,
) -> float:
    """
    The share of simulated runs in which a rule finds an onset. `shared` is the standard deviation of further noise
    that is the same for all seeds, such as the effect of the text that a model was trained on last.
    """
    rng = np.random.default_rng([seed, seeds, len(curve)])
    found = 0
    for _ in range(replicates):
        curves = curve + noise * autocorrelated(correlation, (seeds, len(curve)), rng)
        curves += shared * autocorrelated(correlation, (1, len(curve)), rng)
        found += not find(rule, curves, noise)["censored"]
    return found / replicates


def location_errors(
    probes: int, turn: float, rise: float, seeds: int, noise: float, correlation: float, replicates: int, seed: int = 0
) -> dict[str, float]:
    """
    The power of the rule `"rise"`: the share of onsets that are found, and for these the mean error and the root mean
    squared error in shares of the curve, and the coverage of the interval.
    """
    curve, rng = turning_curve(probes, rise, turn), np.random.default_rng([seed, seeds, probes])
    truth = TASKS_PER_PROBE * (1 + float(np.argmin(curve)))
    errors, held = [], []
    for _ in range(replicates):
        onset = find("rise", curve + noise * autocorrelated(correlation, (seeds, probes), rng), noise)
        if not onset["censored"]:
            errors.append((onset["plasticity_onset"] - truth) / (TASKS_PER_PROBE * (probes - 1)))
            held.append(onset["interval"][0] <= truth <= onset["interval"][1])
    if not errors:
        return {"found": 0.0, "bias": math.nan, "rmse": math.nan, "coverage": math.nan}
    return {
        "found": len(errors) / replicates,
        "bias": float(np.mean(errors)),
        "rmse": float(np.sqrt(np.mean(np.square(errors)))),
        "coverage": float(np.mean(held)),
    }


def change_coverage(curve: np.ndarray, noise: float, correlation: float, replicates: int, seed: int = 0) -> float:
    """The share of simulated runs whose change from the first probe to the last is within two standard errors."""
    rng, held = np.random.default_rng([seed, len(curve)]), 0
    for _ in range(replicates):
        aucs = curve + noise * autocorrelated(correlation, (1, len(curve)), rng)
        error = (aucs[0, -1] - aucs[0, 0]) - (curve[-1] - curve[0])
        held += abs(error) <= 2 * change_error(range(len(curve)), aucs[0])
    return held / replicates


def law_of_flat_ladders(sizes: int, seeds: int, probes: int, noise: float, replicates: int, seed: int = 0) -> float:
    """
    The share of ladders without an onset in which a law is fitted, because three sizes have an onset after the first
    probe.
    """
    rng, laws = np.random.default_rng([seed, sizes]), 0
    for _ in range(replicates):
        ladders = level_curve(probes) + noise * rng.standard_normal((sizes, seeds, probes))
        bounds = [onset["interval"] or onset["between"] for onset in (find("rise", one, noise) for one in ladders)]
        laws += sum(low > 0 and math.isfinite(high) for low, high in bounds) >= 3
    return laws / replicates


def law_errors(
    sizes: Sequence[float],
    seeds: int,
    scatter_of_sizes: float,
    scatter_of_seeds: float,
    probe_every: float,
    length: float,
    replicates: int,
    seed: int = 0,
) -> dict[str, float]:
    """
    Fits to onsets of the paper's law with scatter (standard deviations of log T), known to be between two probes
    `probe_every` tasks apart, in runs of `length` tasks. Returns the mean exponent fitted to bounds and to points, and
    the coverage of the 95% interval of the exponent.
    """
    rng = np.random.default_rng([seed, len(sizes), seeds])
    exponents, points, held = [], [], []
    for _ in range(replicates):
        deviations = scatter_of_sizes * np.repeat(rng.standard_normal(len(sizes)), seeds)
        deviations += scatter_of_seeds * rng.standard_normal(len(sizes) * seeds)
        parameters = np.repeat(sizes, seeds)
        truth = PAPER_LAW.coefficient * parameters**PAPER_LAW.exponent * np.exp(deviations)
        nearest = np.maximum(probe_every, probe_every * np.round(truth / probe_every))
        censored = nearest >= length
        onsets = np.where(censored, length, nearest)
        low = np.where(onsets <= probe_every, 0.0, onsets - probe_every)
        between = np.stack([low, onsets + probe_every], axis=1)
        if len(np.unique(parameters[~censored & (low > 0)])) < 3:
            continue
        law = onset_law(parameters, onsets, censored, between, compare=False)
        exponents.append(law["exponent"])
        held.append(law["exponent_interval"][0] <= PAPER_LAW.exponent <= law["exponent_interval"][1])
        points.append(onset_law(parameters, onsets, censored, compare=False)["exponent"])
    return {
        "exponent": float(np.mean(exponents)),
        "as_points": float(np.mean(points)),
        "coverage": float(np.mean(held)),
        "fitted": len(held) / replicates,
    }


def located_law_errors(
    seeds: int, probes: int, noise: float, scatter_of_sizes: float, replicates: int, seed: int = 0
) -> dict[str, float]:
    """
    Fits to onsets that are located on simulated curves with a kink at the onset: before it they fall by 4%, after it
    they rise by 6%, both linearly. The onsets follow the paper's law with scatter between its sizes. Returns the mean
    exponent, the coverage of its 95% interval, and the share of ladders with a law.
    """
    rng, tasks = np.random.default_rng([seed, seeds, probes]), TASKS_PER_PROBE * np.arange(1, probes + 1)
    exponents, held = [], []
    for _ in range(replicates):
        onsets = []
        for size in SIZES:
            truth = PAPER_LAW.predict(size).task * math.exp(scatter_of_sizes * rng.standard_normal())
            after = np.clip((tasks - truth) / max(tasks[-1] - truth, 1), 0, None)
            curve = 1 + 0.04 * np.clip(1 - tasks / truth, 0, None) + 0.06 * after
            onsets.append(find("rise", curve + noise * rng.standard_normal((seeds, probes)), noise))
        bounds = [onset["interval"] or onset["between"] for onset in onsets]
        if sum(low > 0 and math.isfinite(high) for low, high in bounds) < 3:
            continue
        columns = ([onset[name] for onset in onsets] for name in ("plasticity_onset", "censored"))
        law = onset_law(SIZES, *columns, bounds, compare=False)
        if law["exponent_interval"] is None:
            continue
        exponents.append(law["exponent"])
        held.append(law["exponent_interval"][0] <= PAPER_LAW.exponent <= law["exponent_interval"][1])
    return {
        "exponent": float(np.mean(exponents)),
        "coverage": float(np.mean(held)),
        "fitted": len(held) / replicates,
    }


def tables(replicates: int) -> str:
    """All simulations as Markdown tables."""
    lines = [
        "| probes | seeds | noise | shared | correlation | level: rise | falling: rise | level: statistical "
        "| level: turning_point |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for probes, seeds, shared, correlation in (
        (8, 1, 0, 0), (24, 1, 0, 0), (24, 1, 0, 0.5), (24, 1, 0, 0.8), (48, 1, 0, 0), (48, 1, 0, 0.5),
        (3, 3, 0, 0), (4, 3, 0, 0), (8, 3, 0, 0), (16, 5, 0, 0), (24, 3, 0, 0), (24, 3, 0, 0.5), (24, 5, 0, 0),
        (24, 5, 0, 0.5), (4, 3, 0.02, 0), (8, 3, 0.02, 0), (16, 5, 0.02, 0), (24, 3, 0.02, 0), (24, 5, 0.02, 0),
        (16, 5, 0.02, 0.5), (24, 5, 0.02, 0.5),
    ):  # fmt: skip
        rates = [
            detection_rate(curve(probes), seeds, 0.02, correlation, rule, replicates, shared=shared)
            for curve, rule in (
                (level_curve, "rise"),
                (falling_curve, "rise"),
                (level_curve, "statistical"),
                (level_curve, "turning_point"),
            )
        ]
        cells = [f"{rate:.0%}" for rate in rates]
        lines.append(f"| {probes} | {seeds} | 2% | {shared:.0%} | {correlation} | {' | '.join(cells)} |")
    lines += [
        "",
        "| probes | seeds | noise | correlation | rise starts at | its size | found | bias | RMSE | coverage |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for probes, seeds, noise, correlation, turn, rise in (
        (24, 1, 0.01, 0, 0.5, 0.06), (24, 1, 0.02, 0, 0.5, 0.06), (24, 1, 0.02, 0.5, 0.5, 0.06),
        (24, 1, 0.03, 0, 0.5, 0.06), (48, 1, 0.02, 0, 0.5, 0.06), (48, 1, 0.02, 0.5, 0.5, 0.06),
        (24, 3, 0.02, 0, 0.3, 0.06), (24, 3, 0.02, 0, 0.5, 0.06), (24, 3, 0.02, 0, 0.7, 0.06),
        (24, 5, 0.02, 0.5, 0.5, 0.06), (16, 5, 0.03, 0, 0.2, 0.12),
    ):  # fmt: skip
        found = location_errors(probes, turn, rise, seeds, noise, correlation, replicates)
        cells = [f"{found['found']:.0%}", f"{found['bias']:+.0%}", f"{found['rmse']:.0%}", f"{found['coverage']:.0%}"]
        lines.append(
            f"| {probes} | {seeds} | {noise:.0%} | {correlation} | {turn:.0%} | {rise:.0%} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        "| probes | correlation | level: change ± 2 errors | turning: change ± 2 errors |",
        "|---|---|---|---|",
    ]
    for probes, correlation in ((8, 0), (8, 0.5), (16, 0), (16, 0.5), (48, 0), (48, 0.5)):
        curves = level_curve(probes), turning_curve(probes, 0.06)
        cells = [f"{change_coverage(curve, 0.02, correlation, replicates):.0%}" for curve in curves]
        lines.append(f"| {probes} | {correlation} | {' | '.join(cells)} |")
    flat = law_of_flat_ladders(5, 3, 24, 0.02, replicates)
    lines += ["", f"A law is fitted in {flat:.1%} of ladders with five sizes, three seeds and no onset.", ""]
    lines += [
        "| sizes | seeds | scatter of sizes, seeds | probe every | exponent | as points | coverage |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, seeds, of_sizes, of_seeds, every, length in (
        (8, 1, 0.0, 0.05, 8, math.inf), (8, 1, 0.2, 0.1, 1, math.inf), (8, 1, 0.2, 0.1, 8, math.inf),
        (8, 3, 0.2, 0.1, 4, 80.0), (5, 3, 0.2, 0.1, 1, math.inf), (4, 3, 0.1, 0.1, 1, math.inf),
        (3, 3, 0.1, 0.1, 1, math.inf), (3, 3, 0.2, 0.1, 1, math.inf),
    ):  # fmt: skip
        sizes = SIZES[:: len(SIZES) // count][:count]
        found = law_errors(sizes, seeds, of_sizes, of_seeds, every, length, max(50, replicates // 4))
        cells = [f"{found['exponent']:.2f}", f"{found['as_points']:.2f}", f"{found['coverage']:.0%}"]
        period = f"{every} task{'s' if every > 1 else ''}"
        lines.append(f"| {count} | {seeds} | {of_sizes}, {of_seeds} | {period} | {' | '.join(cells)} |")
    lines += [
        "",
        "| probes | seeds | noise | scatter of sizes | ladders with a law | exponent | coverage |",
        "|---|---|---|---|---|---|---|",
    ]
    for probes, seeds, noise, of_sizes in ((48, 3, 0.005, 0.1), (48, 3, 0.01, 0.1), (48, 3, 0.02, 0.1)):
        found = located_law_errors(seeds, probes, noise, of_sizes, max(50, replicates // 4))
        cells = [f"{found['fitted']:.0%}", f"{found['exponent']:.2f}", f"{found['coverage']:.0%}"]
        lines.append(f"| {probes} | {seeds} | {noise:.1%} | {of_sizes} | {' | '.join(cells)} |")
    return "\n".join(lines)
