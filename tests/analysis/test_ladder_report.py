"""The report of several runs: pooled runs, compared runs, and runs that are never mixed."""

import csv
import json
import math
import re

import pytest
from matplotlib.figure import Figure

from hf_plasticity.analysis.bands import bands_caption, bands_figure
from hf_plasticity.analysis.comparison import comparisons
from hf_plasticity.analysis.groups import Group, group_by_seed, interval_factor, mean_curve
from hf_plasticity.analysis.onset import Onset
from hf_plasticity.analysis.onset_view import draw_onset_marks
from hf_plasticity.analysis.sections.forgetting import mean_losses
from hf_plasticity.analysis.text import Estimate
from hf_plasticity.records import read_run
from support.reports import (
    AREAS,
    HASH,
    attached,
    diagnosis,
    figures_of,
    first_screen,
    make_run,
    probe,
    report,
    text_of,
    write_lines,
)


NUMERICS = ["size", "schedule", "languages", "seed", "data_seed", "weight_decay", "bf16", "tf32"]


def recorded(folder, numerics=NUMERICS, areas=AREAS, **config):
    """A run whose record lists the settings that affect its numbers."""
    return make_run(folder, areas, provenance={"numerics": numerics}, **config)


def grouped(*folders):
    groups = group_by_seed([read_run(folder) for folder in folders], lambda run: run)
    return [(group.name, len(group.members)) for group in groups]


def losses(cycle, **values):
    return {"cycle": cycle, "task": 8 * cycle, "step": 80 * cycle, "tokens": 10**6 * cycle, "losses": values}


def make(folder, forgetting=((1, 2.0, 3.0), (2, 2.5, 3.5)), dormant=(0.0, 0.1, 0.2), config_hash="d", **config):
    make_run(folder, **config)
    write_lines(folder / "forgetting.jsonl", *(losses(cycle, en=en, fr=fr) for cycle, en, fr in forgetting))
    lines = [
        diagnosis(cycle, {"dormant_units": {"overall": value, "per_layer": []}}, config_hash=config_hash)
        for cycle, value in enumerate(dormant)
    ]
    write_lines(folder / "diagnostics.jsonl", *lines)
    return folder


def test_runs_that_differ_only_by_seed_and_machine_are_pooled(tmp_path):
    one = recorded(tmp_path / "a", seed=1, data_seed=1, output_dir="a", logging_steps=5)
    two = recorded(tmp_path / "b", seed=2, data_seed=None, output_dir="b", logging_steps=10)
    assert grouped(one, two) == [("100K", 2)]


def test_an_fp32_run_and_a_bf16_run_are_never_pooled(tmp_path):
    runs = [recorded(tmp_path / f"{bf16}{seed}", bf16=bf16, seed=seed) for bf16 in (False, True) for seed in (1, 2)]
    assert grouped(*runs) == [("100K · bf16 False", 2), ("100K · bf16 True", 2)]
    rows = list(csv.reader(attached(report(*runs), "text/csv")[0].splitlines()))
    assert [row[0] for row in rows[1:]] == ["100K · bf16 False", "100K · bf16 True"]


def test_only_removed_settings_may_be_missing_in_the_record_of_another_version(tmp_path):
    now = recorded(tmp_path / "now", seed=1)
    off = recorded(tmp_path / "off", [*NUMERICS, "use_liger_kernel"], seed=2, use_liger_kernel=False)
    on = recorded(tmp_path / "on", [*NUMERICS, "use_liger_kernel"], seed=3, use_liger_kernel=True)
    assert grouped(now, off, on) == [("100K · use_liger_kernel –", 2), ("100K · use_liger_kernel True", 1)]
    # A record from before this setting had restarts.
    without = recorded(tmp_path / "without", [*NUMERICS, "restart_warmup"], seed=4, restart_warmup=False)
    assert grouped(now, without) == [("100K · restart_warmup –", 1), ("100K · restart_warmup False", 1)]


def test_without_a_list_of_settings_all_except_the_seed_identify_a_run(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=1),
        make_run(tmp_path / "b", seed=2),
        make_run(tmp_path / "c", log_level="x"),
    ]
    assert grouped(*runs) == [("100K · log_level x", 1), ("100K · log_level –", 2)]


def test_runs_without_a_configuration_are_not_pooled(tmp_path):
    runs = [make_run(tmp_path / name, bare=True) for name in "ab"]
    assert grouped(*runs) == [("a", 1), ("b", 1)]


def test_another_probe_configuration_is_another_group(tmp_path):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", probes=[probe(c, 2 * a, "ffffffffffff") for c, a in AREAS.items()])
    [comparison] = comparisons([read_run(folder) for folder in (one, two)])
    assert [group.name for group in comparison.groups] == ["100K · probe 0123456789ab", "100K · probe ffffffffffff"]


def test_delta_aucs_with_different_references_are_in_different_tables_and_figures(tmp_path):
    one = make_run(tmp_path / "one", {1: 60.0, 2: 54.0, 4: 57.0})
    two = make_run(tmp_path / "two", {2: 54.0, 4: 57.0}, seed=1)
    html = report(one, two)
    assert {"AUC", "ΔAUC against cycle 1", "ΔAUC against cycle 2"} <= set(figures_of(html))
    for table in attached(html, "text/csv"):
        names = {name for name in table.splitlines()[0].split(",") if name.startswith("ΔAUC")}
        assert len({name.removesuffix(" error") for name in names}) <= 1
    # 57 against 60 and against 54.
    text = text_of(html)
    assert "cycle 4 −5.00%" in text and "cycle 4 +5.56%" in text


def test_probes_on_different_languages_or_of_different_lengths_are_compared_separately(tmp_path):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", probes=[probe(c, a, language="th") for c, a in AREAS.items()])
    steps = {"probe_steps": [0, 10, 40]}
    three = make_run(tmp_path / "three", probes=[probe(c, a, **steps) for c, a in AREAS.items()])
    names = [comparison.name for comparison in comparisons([read_run(folder) for folder in (one, two, three)])]
    assert names == ["Vietnamese, full, 20 steps", "th, full, 20 steps", "Vietnamese, full, 40 steps"]


def test_mean_over_seeds_equals_a_manual_computation():
    seeds = [{1: Estimate(60.0), 2: Estimate(54.0), 3: Estimate(9.0)}, {1: Estimate(60.0), 2: Estimate(48.0)}]
    # Standard deviation of 54 and 48: √18; over √2: 3.
    assert mean_curve(seeds) == {1: (60.0, 0.0), 2: (51.0, pytest.approx(3.0))}
    assert mean_curve([{1: Estimate(60.0, 0.5)}]) == {1: (60.0, 0.5)}
    # Two-sided 5% points of Student's t with 2 and 4 degrees of freedom, as tabulated.
    assert (interval_factor(3), interval_factor(5)) == (pytest.approx(4.303, abs=1e-3), pytest.approx(2.776, abs=1e-3))
    assert interval_factor(2) == 0


def test_seeds_are_thin_lines_and_three_of_them_have_a_band():
    seeds = [{0.0: Estimate(1.0 + seed), 1e6: Estimate(2.0 + seed)} for seed in range(3)]
    for members, bands in ((seeds[:1], 0), (seeds[:2], 0), (seeds, 1)):
        group = Group("100K", "rotation", None, members)
        axes = bands_figure([group], lambda seed: seed, "a", "tokens").axes[0]
        drawn = {line.get_linewidth(): line for line in axes.lines if len(line.get_xdata()) == 2}
        assert len([c for c in axes.collections if c.__class__.__name__ == "FillBetweenPolyCollection"]) == bands
        assert (0.7 in drawn) == (len(members) > 1)
    assert "bands are 95% intervals" in bands_caption([group])


def test_error_bars_of_one_seed_are_those_of_its_probes():
    group = Group("100K", "rotation", None, [{0.0: Estimate(1.0, 0.25), 1e6: Estimate(2.0, 0.5)}])
    bars = bands_figure([group], lambda seed: seed, "a", "tokens").axes[0].collections[0].get_segments()
    assert [[y for _, y in bar] for bar in bars] == [[0.75, 1.25], [1.5, 2.5]]


def test_the_result_of_two_schedules_is_on_the_first_screen(tmp_path):
    rotation = make_run(tmp_path / "r", {1: 245.0, 2: 249.0})
    stationary = make_run(tmp_path / "s", {1: 155.0, 2: 157.0}, schedule="stationary")
    html = report(rotation, stationary)
    assert "100K: AUC after cycle 2 was 249.0 (rotation) and 157.0 (stationary)." in first_screen(html)
    first = next(iter(figures_of(html).items()))
    assert first[0] == "AUC" and "rotation" in first[1] and "stationary" in first[1]


def test_schedules_with_other_probes_or_settings_are_not_compared(tmp_path):
    rotation = make_run(tmp_path / "r", {1: 245.0, 2: 249.0})
    other = [probe(cycle, area, "ffffffffffff") for cycle, area in ((1, 155.0), (2, 157.0))]
    stationary = make_run(tmp_path / "s", probes=other, schedule="stationary", weight_decay=0.5)
    first = first_screen(report(rotation, stationary))
    assert "AUC after cycle 2 was" not in first
    assert "100K · weight_decay 0.5 · probe ffffffffffff, stationary (1 seed)" in first


def test_schedules_are_compared_at_the_last_probe_of_all_seeds(tmp_path):
    runs = [make_run(tmp_path / "r1", {1: 240.0, 2: 250.0}), make_run(tmp_path / "r2", {1: 244.0}, seed=1)]
    runs.append(make_run(tmp_path / "s", {1: 155.0, 2: 157.0}, schedule="stationary"))
    # Standard error of 240 and 244: √8 / √2.
    assert "AUC after cycle 1 was 242.0 ± 2.0 (rotation) and 155.0 (stationary)" in first_screen(report(*runs))


def valley(folder, parameters, lowest, cycles=14, **config):
    areas = {cycle: 60.0 + abs(cycle - lowest) for cycle in range(1, cycles + 1)}
    return make_run(folder, areas, size=f"{parameters}", parameters=parameters, **config)


def test_several_runs_show_the_law_of_their_onsets(tmp_path):
    # The lowest area at task 16, 32 and 64 for 1M, 2M and 4M parameters: T = 1.6e-5 · P.
    sizes = {1_000_000: 2, 2_000_000: 4, 4_000_000: 8}
    html = report(*(valley(tmp_path / f"run-{size}", size, lowest) for size, lowest in sizes.items()))
    assert "3 runs: 3 sizes (1000000, 2000000, 4000000)" in text_of(html)
    assert "1000000 (1 seed): Onset of plasticity loss: task 16 (95% interval 8 to 24; rise: p" in first_screen(html)
    # Fitted to the interval of each onset, which leaves room for other exponents.
    [exponent] = re.findall(r"The fitted law is T = [^P]*P\^([0-9.]+)", text_of(html))
    assert 0.85 < float(exponent) < 1.15
    assert all(f"run-{size} {size} rotation 0 60.00 cycle {lowest}" in text_of(html) for size, lowest in sizes.items())
    [figure] = [svg for name, svg in figures_of(html).items() if name.startswith("onset and size")]
    # The paper's task instances have 5B tokens, these 125K: 1.3e-5 · 5e9 / 125,000.
    assert "paper: T = 0.52·P^0.827" in figure
    assert "The paper’s law for the rotation is T = 0.52·P^0.827 in task instances of 125K tokens." in text_of(html)


def test_task_instances_of_different_lengths_have_no_law(tmp_path):
    runs = []
    for parameters, lowest in ((1_000_000, 2), (2_000_000, 4), (4_000_000, 8)):
        folder = valley(tmp_path / f"run-{parameters}", parameters, lowest)
        if parameters == 4_000_000:
            lines = read_run(folder).probes
            write_lines(folder / "probes.jsonl", *(line | {"tokens": 3 * line["tokens"]} for line in lines))
        runs.append(folder)
    text = text_of(report(*runs))
    assert "No law was fitted: a task instance has 125K and 375K tokens, depending on the run" in text
    assert "The fitted law" not in text and "paper: T" not in text


def test_probes_of_different_texts_are_never_compared(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", size="25K")]
    for run, text in zip(runs, ("aaa", "aaa")):
        (run / "probe_protocols.json").write_text(json.dumps({HASH: {"evaluation": text}}))
    assert len(comparisons([read_run(run) for run in runs])) == 1
    (runs[1] / "probe_protocols.json").write_text(json.dumps({HASH: {"evaluation": "bbb"}}))
    names = [one.name for one in comparisons([read_run(run) for run in runs])]
    assert sorted(names) == [f"Vietnamese, full, 20 steps, validation text {text}" for text in ("aaa", "bbb")]


def test_probes_that_one_seed_lacks_are_left_out_with_a_sentence(tmp_path):
    runs = []
    for seed, cycles in enumerate((14, 14, 4)):
        areas = {cycle: 60.0 + abs(cycle - 8) + 0.1 * (seed + 1) * (-1) ** cycle for cycle in range(1, cycles + 1)}
        runs.append(make_run(tmp_path / f"s{seed}", areas, size="1M", parameters=1_000_000, seed=seed))
    assert "Only the 4 probes that all seeds have count; a seed has 14." in first_screen(report(*runs))
    assert "Only the" not in first_screen(report(*runs[:2], to=tmp_path / "two.html"))


def test_onsets_not_yet_seen_are_drawn_as_bounds(tmp_path):
    sizes = {1_000_000: 2, 2_000_000: 4, 4_000_000: 14}
    html = report(*(valley(tmp_path / f"run-{size}", size, lowest) for size, lowest in sizes.items()))
    [figure] = [svg for name, svg in figures_of(html).items() if name.startswith("onset and size")]
    assert "no onset detected: at least" in figure and "none up to task 112" in text_of(html)
    assert "4000000 (1 seed): No onset of plasticity loss was detected up to task 112" in first_screen(html)
    assert (
        "requires 3 sizes whose 95% interval is after the start and before the last probe, and there are 2"
        in text_of(html)
    )


def test_marks_of_onsets_are_at_what_is_known_of_them():
    def onset(task, interval, **how):
        return Onset(task, task * 1e6, rule="rise", interval=interval, between=(0.0, 9.0), **{"censored": False} | how)

    figure = Figure()
    axes = figure.subplots()
    onsets = [
        onset(1.0, (0.0, 9.0), at_first_probe=True),
        onset(4.0, (2.0, math.inf)),
        onset(16.0, None, censored=True),
        Onset(11.0, 1e6, False, "statistical", between=(10.0, math.inf)),
    ]
    draw_onset_marks(axes, [1.0, 2.0, 3.0, 4.0], onsets, seeds=1)
    marks = {container.get_label().split(",")[0]: container for container in axes.containers}
    places = {label: list(container.lines[0].get_ydata()) for label, container in marks.items()}
    # The first onset may lie anywhere up to task 9, the end of its interval.
    assert places["lowest at the first probe: at most"] == [9.0] and places["no onset detected: at least"] == [16.0]
    assert places["onset of one run"] == [4.0, 11.0]
    # A bar without an upper end goes to the next probe, or ends at the mark.
    bars = [segment[:, 1].tolist() for segment in marks["onset of one run"].lines[2][0].get_segments()]
    assert bars == [[2.0, 9.0], [10.0, 11.0]]


def test_a_probe_within_a_task_instance_does_not_change_its_length(tmp_path):
    runs = [valley(tmp_path / f"{p}", p, n) for p, n in ((1_000_000, 2), (2_000_000, 4), (4_000_000, 8))]
    lines = read_run(runs[0]).probes
    lines[-1] |= {"step": lines[-1]["step"] + 4, "tokens": lines[-1]["tokens"] + 50_000}
    write_lines(runs[0] / "probes.jsonl", *lines)
    assert "The fitted law" in text_of(report(*runs))


def test_an_onset_at_the_first_probe_is_a_bound_and_carries_no_law(tmp_path):
    sizes = {1_000_000: 1, 2_000_000: 4, 4_000_000: 8}
    text = text_of(report(*(valley(tmp_path / f"run-{size}", size, lowest) for size, lowest in sizes.items())))
    assert "requires 3 sizes whose 95% interval is after the start and before the last probe, and there are 2" in text
    assert "The fitted law" not in text


def test_a_size_in_several_configurations_has_no_law(tmp_path):
    runs = [valley(tmp_path / f"{p}", p, p // 500_000) for p in (1_000_000, 2_000_000, 3_000_000)]
    runs.append(valley(tmp_path / "other", 1_000_000, 2, weight_decay=0.5))
    text = text_of(report(*runs))
    assert "No law was fitted: a size occurs with several configurations." in text and "The fitted law" not in text


def test_no_onset_in_any_run_is_reported_without_a_figure(tmp_path):
    runs = [valley(tmp_path / f"{p}", p, 14) for p in (1_000_000, 2_000_000, 3_000_000)]
    html = report(*runs)
    assert first_screen(html).count("No onset of plasticity loss was detected up to task 112") == 3
    assert not any(name.startswith("onset and size") for name in figures_of(html))


def test_forgetting_is_averaged_over_the_languages_that_are_named(tmp_path):
    folder = make(tmp_path / "a")
    assert mean_losses(read_run(folder), ("en", "fr"), "tokens") == {1e6: (2.5, None), 2e6: (3.0, None)}
    text = text_of(report(folder, make(tmp_path / "b", seed=1)))
    assert "Mean over English and French. Strong lines are means where every seed has a value" in text


def test_a_record_without_one_of_the_languages_has_no_mean(tmp_path):
    folder = make(tmp_path / "a")
    write_lines(folder / "forgetting.jsonl", losses(1, en=2.0, fr=3.0), losses(2, en=2.5))
    assert mean_losses(read_run(folder), ("en", "fr"), "tokens") == {1e6: (2.5, None)}
    text = text_of(report(folder, make(tmp_path / "b", seed=1)))
    assert "a: records that lack one of en and fr have no mean loss." in text


def test_means_over_different_languages_are_never_in_one_figure(tmp_path):
    # Two seeds, one of them measured on a single language.
    two, one = make(tmp_path / "two"), make(tmp_path / "one", seed=1)
    write_lines(one / "forgetting.jsonl", losses(1, en=2.0), losses(2, en=2.1))
    html = report(two, one)
    assert {"forgetting en fr", "forgetting en"} <= set(figures_of(html))
    assert "Mean over English and French." in text_of(html) and "Mean over English." in text_of(html)


def test_diagnoses_of_different_configurations_are_never_one_figure(tmp_path):
    folders = [make(tmp_path / "a", size="22M", config_hash="e"), make(tmp_path / "b"), make(tmp_path / "c", seed=1)]
    html = report(*folders)
    assert "22M" not in figures_of(html)["dormant units"] and "22M" in figures_of(html)["AUC"]
    assert "Diagnoses of configuration e are not shown" in text_of(html)


def test_missing_records_of_several_runs_are_named(tmp_path):
    bare = [make_run(tmp_path / name, size=size) for name, size in (("x", "100K"), ("y", "400K"))]
    text = text_of(report(*bare))
    assert "No forgetting.jsonl in x and y." in text and "No diagnostics.jsonl in x and y." in text
    text = text_of(report(bare[0], make(tmp_path / "z", seed=1)))
    assert "No forgetting.jsonl in x." in text and "No diagnostics.jsonl in x." in text
    (bare[1] / "probes.jsonl").unlink()
    assert "y: no probe of the trained model." in text_of(report(*bare))


def test_one_diagnosis_before_training_is_enough_for_a_page(tmp_path):
    html = report(make(tmp_path / "a", dormant=(0.1,)), make(tmp_path / "b", size="400K", dormant=(0.2,)))
    assert "dormant units" in figures_of(html)
