"""The diagnostics in the report: layers, heads, and correlations with ΔAUC."""

import math

import numpy as np
import pytest

from hf_plasticity.analysis.sections.correlation import paired, spearman
from hf_plasticity.analysis.sections.diagnostics import heads_figure, measure_figure
from hf_plasticity.analysis.series import probe_series
from hf_plasticity.records import read_run
from support.reports import diagnosis, figures_of, make_run, report, text_of, write_lines


# ΔAUC against cycle 1 (60): 0, −10, −5, +5, +10 percent.
AREAS = {0: 90.0, 1: 60.0, 2: 54.0, 3: 57.0, 4: 63.0, 5: 66.0}


def diagnosed(folder, values, **config):
    """A run whose measures have these overall values, a list over its cycles for each."""
    make_run(folder, AREAS, **config)
    lines = [
        diagnosis(cycle, {name: {"overall": column[cycle], "per_layer": []} for name, column in values.items()})
        for cycle in AREAS
    ]
    write_lines(folder / "diagnostics.jsonl", *lines)
    return folder


@pytest.mark.parametrize(
    "xs, ys, rho",
    [
        ([1, 2, 3, 4, 5], [10, 20, 30, 50, 40], 1 - 6 * 2 / (5 * 24)),
        ([1, 2, 3, 4], [8, 4, 2, 1], -1.0),
        # Squared differences of ranks 1, 1, 4, 4, 4, 4: 1 − 6·18/(6·35).
        ([1, 2, 3, 4, 5, 6], [2, 1, 5, 6, 3, 4], 1 - 6 * 18 / (6 * 35)),
        # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, squares 4.5 and 5.
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),
        # Ranks 2, 2, 2, 4 against 1.5, 1.5, 3.5, 3.5: covariance 2, squares 3 and 4.
        ([0, 0, 0, 1], [0, 0, 1, 1], 2 / math.sqrt(3 * 4)),
    ],
)
def test_rank_correlation_equals_a_manual_computation(xs, ys, rho):
    assert spearman(xs, ys)[0] == pytest.approx(rho)


def test_p_values_count_the_orders_that_reach_the_correlation():
    # Of 120 orders of five, the two perfect ones reach ±1; those of 24 orders of four as well.
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])[1] == pytest.approx(2 / 120)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1])[1] == pytest.approx(2 / 24)
    # One pair of neighbors swapped: four orders of five have it, one none; on both sides, 10 of 120.
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])[1] == pytest.approx(10 / 120)
    # The two-sided 5% point is tabulated as 0.521 at n = 15. Here Σd² = 2 · 10² + 2 · 6².
    order = [1, 2, 3, 14, 5, 12, 7, 8, 9, 10, 11, 6, 13, 4, 15]
    rho, p_value = spearman(range(15), order)
    assert rho == pytest.approx(1 - 6 * 272 / (15 * 224)) and 0.03 < p_value < 0.08


@pytest.mark.parametrize("xs, ys", [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [4] * 4)])
def test_no_correlation_for_too_few_or_constant_values(xs, ys):
    assert spearman(xs, ys) == (None, None)


def test_only_diagnoses_at_the_step_of_a_probe_of_the_trained_model_count(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    lines = [diagnosis(cycle, {"a": {"overall": float(cycle), "per_layer": []}}) for cycle in (0, 1, 2, 4)]
    lines += [diagnosis(3, {"a": {"overall": 3.0, "per_layer": []}}) | {"step": 241}]
    lines += [diagnosis(5, {"a": {"overall": None, "per_layer": []}})]
    write_lines(folder / "diagnostics.jsonl", *lines)
    run = read_run(folder)
    steps, values, changes = paired(probe_series(run)[0], run.diagnostics, "a")
    assert (steps, values, changes) == ([80, 160, 320], [1.0, 2.0, 4.0], pytest.approx([0, -10, 5]))


def test_measures_are_ordered_by_their_correlation_with_plasticity(tmp_path):
    values = {
        # Ranks of ΔAUC over cycles 1 to 5: 3, 1, 2, 4, 5. Cycle 0 would change each of these.
        "weak": [9, 1, 2, 3, 4, 5],
        "follows": [9, 3, 1, 2, 4, 5],
        "constant": [9, 7, 7, 7, 7, 7],
        "opposes": [0, -3, -1, -2, -5, -4],
    }
    text = text_of(report(diagnosed(tmp_path / "run", values)))
    # Σd² is 0, 38 and 6: ρ = 1 − Σd²/20. Of 120 orders, 2, 10 and 28 have as large a ρ on one side or the other.
    rows = "follows +1.00 0.017 +0.70 5 opposes −0.90 0.083 −0.60 5 weak +0.70 0.23 +1.00 5 constant – – – 5"
    assert rows in text
    assert "by chance, about 0.15 of 3 would be below 0.05" in text


def test_diagnoses_without_a_probe_are_named(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    write_lines(folder / "diagnostics.jsonl", diagnosis(0, {"a": {"overall": 1.0, "per_layer": []}}))
    text = text_of(report(folder))
    assert "No diagnosis was taken at a probe of the trained model" in text and "What moves with ΔAUC" not in text


def test_diagnoses_of_different_configurations_are_never_one_correlation(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    lines = [
        diagnosis(cycle, {"a": {"overall": sign * cycle, "per_layer": []}}, config_hash=name)
        for cycle in AREAS
        for name, sign in (("d", 1.0), ("e", -1.0))
    ]
    write_lines(folder / "diagnostics.jsonl", *lines)
    text = text_of(report(folder))
    assert "What moves with ΔAUC (d)" in text and "What moves with ΔAUC (e)" in text
    # The cycle number against the ranks 3, 1, 2, 4, 5.
    assert "a +0.70" in text and "a −0.70" in text


def test_layers_that_were_not_measured_are_gaps_in_their_lines():
    records = [
        diagnosis(0, {"a": {"overall": 0.5, "per_layer": [0.0, None]}}),
        diagnosis(1, {}, {"a": "it was lost"}),
        diagnosis(2, {"a": {"overall": 0.75, "per_layer": [0.5, 1.0]}}),
    ]
    first, second, whole = (line.get_ydata() for line in measure_figure(records, "a").axes[0].lines)
    np.testing.assert_equal(first, [0.0, np.nan, 0.5])
    np.testing.assert_equal(second, [np.nan, np.nan, 1.0])
    np.testing.assert_equal(whole, [0.5, np.nan, 0.75])


def test_fractions_are_drawn_from_0_to_1_and_others_are_not():
    records = [
        diagnosis(c, {name: {"overall": 0.01 * c, "per_layer": []} for name in ("lazy_heads", "a")}) for c in (1, 2)
    ]
    assert measure_figure(records, "lazy_heads").axes[0].get_ylim() == (0.0, 1.0)
    assert measure_figure(records, "a").axes[0].get_ylim()[1] < 0.03


def test_head_maps_share_a_scale_and_mask_what_was_not_measured():
    def record(scale):
        return diagnosis(0, {"a": {"overall": 1.0, "per_layer": [], "per_head": [[scale, 0.0], None, [1.0, 2.0]]}})

    figure = heads_figure({"cycle 0": record(0.0), "cycle 20": record(20.0)}, "a")
    first, last = (axes.collections[0] for axes in figure.axes[:2])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["cycle 0", "cycle 20"]
    assert first.norm is last.norm and (first.norm.vmin, first.norm.vmax) == (0.0, 20.0)
    np.testing.assert_equal(last.get_array().filled(np.nan), [[20.0, 0.0], [np.nan, np.nan], [1.0, 2.0]])
    assert figure.axes[0].patch.get_hatch()


def test_page_draws_measures_and_heads_and_names_what_was_not_measured(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    measures = {
        "dormant_units": {"overall": 0.1, "per_layer": [0.1, None]},
        "attention_entropy": {"overall": 0.5, "per_layer": [0.4, 0.6], "per_head": [[0.4, 0.4], [0.5, 0.7]]},
    }
    lines = [diagnosis(cycle, measures, {"dormant_units": "layer 1: no MLP"}) for cycle in AREAS]
    write_lines(folder / "diagnostics.jsonl", *lines)
    html = report(folder)
    assert {"dormant units", "attention entropy", "attention entropy by head"} <= set(figures_of(html))
    assert "Not measured: dormant units (layer 1: no MLP)." in text_of(html)
