"""What the report shows of the inside of the network: layers, heads, and what moves with plasticity."""

import math

import pytest
from matplotlib.colors import to_hex

from hf_plasticity.analysis.association import associations, chance, spearman
from hf_plasticity.analysis.heatmaps import heads_figure, layers_figure
from hf_plasticity.analysis.series import probe_series
from hf_plasticity.analysis.theme import shade
from hf_plasticity.records import read_run
from support.reports import diagnosis, make_run, report, text_of, write_lines


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


def found(folder):
    run = read_run(folder)
    return associations(probe_series(run, "turning_point")[0], run.diagnostics)


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
def test_rank_correlation_is_that_worked_out_by_hand(xs, ys, rho):
    assert spearman(xs, ys) == pytest.approx(rho)


@pytest.mark.parametrize("xs, ys", [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4])])
def test_no_correlation_where_there_is_none(xs, ys):
    assert spearman(xs, ys) is None


def test_chance_agrees_with_the_published_critical_values():
    # Two-sided 5% points of Spearman's ρ as tabulated: 1.000 at n = 5, 0.886 at 6, 0.786 at 7, 0.738 at 8.
    for n, critical in ((5, 1.000), (6, 0.886), (7, 0.786), (8, 0.738)):
        assert chance(n)[0] == pytest.approx(critical, abs=5e-4)
    assert chance(5)[1] == pytest.approx(2 / 120)
    # Both perfect orders of three in six: no |ρ| is rare.
    assert chance(3) == (1.0, pytest.approx(2 / 6))
    # Sampled: 0.521 at 15 and 0.361 at 30 in the tables.
    assert chance(15)[0] == pytest.approx(0.521, abs=0.01) and chance(30)[0] == pytest.approx(0.361, abs=0.01)


def test_measures_are_ordered_by_how_they_move_with_plasticity(tmp_path):
    folder = diagnosed(
        tmp_path / "run",
        {
            # Ranks of ΔAUC over cycles 1 to 5: 3, 1, 2, 4, 5. Cycle 0 would spoil each of these.
            "weak": [9, 1, 2, 3, 4, 5],
            "follows": [9, 3, 1, 2, 4, 5],
            "constant": [9, 7, 7, 7, 7, 7],
            "opposes": [0, -3, -1, -2, -5, -4],
        },
    )
    ordered = {one.measure: one.rho for one in found(folder)}
    # Σd² is 0, 38 and 6: ρ = 1 − Σd²/20.
    assert list(ordered) == ["follows", "opposes", "weak", "constant"]
    assert ordered == {"follows": 1.0, "opposes": -0.9, "weak": 0.7, "constant": None}


def test_only_diagnoses_at_the_step_of_a_probe_count(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    lines = [diagnosis(cycle, {"a": {"overall": float(cycle), "per_layer": []}}) for cycle in (0, 1, 2, 4)]
    lines += [diagnosis(3, {"a": {"overall": 3.0, "per_layer": []}}) | {"step": 241}]
    lines += [diagnosis(5, {"a": {"overall": None, "per_layer": []}})]
    write_lines(folder / "diagnostics.jsonl", *lines)
    [one] = found(folder)
    assert one.values == [1.0, 2.0, 4.0] and one.changes == pytest.approx([0, -10, 5])


def test_page_says_how_many_measures_were_looked_at_and_what_chance_would_do(tmp_path):
    values = {"follows": [9, 3, 1, 2, 4, 5], "weak": [9, 1, 2, 3, 4, 5], "constant": [9, 7, 7, 7, 7, 7]}
    text = text_of(report(diagnosed(tmp_path / "run", values)))
    assert "3 measures were looked at, all are shown, in the order of |ρ|" in text
    assert "Without a ρ: constant (it is the same every time)" in text
    # 2 of the 120 orders of five; of the two measures that have a ρ, 2 · 1.67%.
    assert "n = 5: chance alone reaches |ρ| = 1 about 1.7% of the time; of 2 measures, about 0.033 would." in text
    # The cycle number, as `weak` is, against ΔAUC.
    assert "the steps trained alone have ρ = +0.70 with ΔAUC" in text
    assert text.index("ρ = +1.00, n = 5") < text.index("ρ = +0.70, n = 5") < text.index("no ρ, n = 5")
    assert "follows +1.00 +0.70 5 weak +0.70 +1.00 5 constant – – 5" in text


def test_page_of_three_cycles_does_not_speak_of_rare_chances(tmp_path):
    folder = make_run(tmp_path / "run", {cycle: AREAS[cycle] for cycle in range(4)})
    lines = [diagnosis(cycle, {"a": {"overall": float(cycle), "per_layer": []}}) for cycle in range(4)]
    write_lines(folder / "diagnostics.jsonl", *lines)
    text = text_of(report(folder))
    assert "n = 3: chance alone reaches |ρ| = 1 about 33% of the time, so no ρ says much." in text


def test_diagnoses_apart_from_the_probes_are_named_as_a_gap(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    write_lines(folder / "diagnostics.jsonl", diagnosis(0, {"a": {"overall": 1.0, "per_layer": []}}))
    text = text_of(report(folder))
    assert "its measures are not set against ΔAUC" in text and "What moves with plasticity" not in text


def test_diagnoses_of_different_configurations_are_never_one_correlation(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    lines = [
        diagnosis(cycle, {"a": {"overall": sign * cycle, "per_layer": []}}, config_hash=name)
        for cycle in AREAS
        for name, sign in (("d", 1.0), ("e", -1.0))
    ]
    write_lines(folder / "diagnostics.jsonl", *lines)
    text = text_of(report(folder))
    assert "What moves with plasticity (d)" in text and "What moves with plasticity (e)" in text
    # The cycle number against the ranks 3, 1, 2, 4, 5.
    assert "ρ = +0.70, n = 5" in text and "ρ = −0.70, n = 5" in text


def filled(axes):
    """The colour of each filled cell of a map by column and row, and the cells that are hatched."""
    cells, hatched = {}, set()
    for patch in axes.patches:
        vertices, fill = patch.get_path().vertices, patch.get_facecolor()[3] > 0
        corners = 5 if fill else 6
        for start in range(0, len(vertices), corners):
            part = vertices[start : start + (4 if fill else 6)]
            place = tuple(round(value) for value in (part.min(0) + part.max(0)) / 2)
            if fill:
                cells[place] = to_hex(patch.get_facecolor())
            else:
                hatched.add(place)
    return cells, hatched


def test_heatmap_shades_what_was_measured_and_hatches_the_rest():
    records = [
        diagnosis(0, {"a": {"overall": 0.5, "per_layer": [0.0, 1.0, None]}}),
        diagnosis(1, {}, {"a": "it was lost"}),
        diagnosis(2, {"a": {"overall": 0.5, "per_layer": [0.5, 0.0, 1.0]}}),
    ]
    cells, hatched = filled(layers_figure(records, "a", "a", 316).axes[0])
    assert hatched == {(0, 2), (1, 0), (1, 1), (1, 2)}
    assert set(cells) == {(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)}
    assert cells[0, 0] == cells[2, 1] == shade(0) and cells[0, 1] == cells[2, 2] == shade(1)
    assert cells[2, 0] not in (shade(0), shade(1))


def test_head_maps_share_a_scale_and_show_the_first_and_last_cycle():
    def heads(cycle):
        return [[float(cycle), 0.0], None, [1.0, 2.0]]

    records = [diagnosis(c, {"a": {"overall": 1.0, "per_layer": [], "per_head": heads(c)}}) for c in range(21)]
    figure = heads_figure(records, "a", "a", 984)
    assert len(figure.axes) == 8
    written = [text.get_text() for text in figure.texts]
    assert {"cycle 0", "cycle 20", "0", "20"} <= set(written)
    first, hatched = filled(figure.axes[0])
    last, _ = filled(figure.axes[-1])
    assert first[0, 0] == shade(0) and last[0, 0] == shade(1) and first[0, 2] == last[0, 2]
    assert hatched == {(0, 1), (1, 1)}


def test_scale_tells_its_ends_apart():
    records = [diagnosis(0, {"a": {"overall": 1.0, "per_layer": [0.9999702, 0.9999722]}})]
    written = [text.get_text() for text in layers_figure(records, "a", "a", 316).texts]
    assert "0.99997" in written and "0.999972" in written
    same = [diagnosis(0, {"a": {"overall": 0.0, "per_layer": [0.0, 0.0]}})]
    assert "0 everywhere" in [text.get_text() for text in layers_figure(same, "a", "a", 316).texts]


def test_page_names_why_cells_are_hatched(tmp_path):
    folder = make_run(tmp_path / "run", AREAS)
    measures = {
        "dormant_units": {"overall": 0.1, "per_layer": [0.1, None]},
        "attention_entropy": {"overall": 0.5, "per_layer": [0.4, 0.6], "per_head": [[0.4, 0.4], [0.5, 0.7]]},
    }
    lines = [diagnosis(cycle, measures, {"dormant_units": "layer 1: no MLP"}) for cycle in AREAS]
    write_lines(folder / "diagnostics.jsonl", *lines)
    text = text_of(report(folder))
    assert text.count("Hatched: not measured (layer 1: no MLP).") == 1
    assert "Layer by layer" in text and "Head by head" in text
