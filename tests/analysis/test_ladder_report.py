"""What the report of several runs shows of forgetting and of the inside of the networks."""

import pytest

from hf_plasticity.analysis.ladder import Bundle, run_groups
from hf_plasticity.analysis.ladder_inside import forgetting_curve
from hf_plasticity.analysis.ladder_plots import small_bundles
from hf_plasticity.records import read_run
from support.reports import diagnosis, make_run, report, text_of, write_lines


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


def test_forgetting_is_averaged_over_the_languages_that_are_named(tmp_path):
    folder = make(tmp_path / "a")
    assert forgetting_curve(read_run(folder), ("en", "fr"), "tokens") == {1e6: 2.5, 2e6: 3.0}
    other = make(tmp_path / "b", seed=1)
    text = text_of(report(folder, other))
    assert "Validation loss, averaged over English and French in equal parts: mean over seeds, with a band" in text
    assert "Mean validation loss (nats/token), rotation" in text


def test_a_record_without_one_of_the_languages_is_no_mean(tmp_path):
    folder = make(tmp_path / "a")
    write_lines(folder / "forgetting.jsonl", losses(1, en=2.0, fr=3.0), losses(2, en=2.5))
    assert forgetting_curve(read_run(folder), ("en", "fr"), "tokens") == {1e6: 2.5}
    assert "a: some of its losses on en, fr are missing; so is their mean." in text_of(
        report(folder, make(tmp_path / "b"))
    )


def test_means_over_different_languages_are_never_in_one_figure(tmp_path):
    two, one = make(tmp_path / "two"), make(tmp_path / "one", size="400K", languages=["en"])
    write_lines(one / "forgetting.jsonl", losses(1, en=2.0), losses(2, en=2.1))
    text = text_of(report(two, one))
    assert "averaged over English and French" in text and "averaged over English in equal parts" in text


def test_schedules_are_drawn_apart_for_forgetting_and_by_line_style_inside(tmp_path):
    text = text_of(report(make(tmp_path / "r"), make(tmp_path / "s", schedule="stationary")))
    assert "(nats/token), rotation" in text and "(nats/token), stationary" in text
    bundles = [Bundle("100K", schedule, [{0.0: 1.0, 1e6: 2.0}]) for schedule in ("rotation", "stationary")]
    lines = small_bundles(bundles, "a", "tokens", 316).axes[0].lines
    assert len({line.get_linestyle() for line in lines}) == 2 and len({line.get_color() for line in lines}) == 1


def test_seeds_make_one_line_with_a_band_and_other_settings_another(tmp_path):
    folders = [make(tmp_path / "a"), make(tmp_path / "b", seed=1), make(tmp_path / "c", weight_decay=0.5)]
    groups = run_groups([read_run(folder) for folder in folders])
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("100K · weight_decay 0.1", 2),
        ("100K · weight_decay 0.5", 1),
    ]
    bundle = Bundle("100K", "rotation", [{0.0: 1.0, 1.0: 2.0, 2.0: 9.0}, {0.0: 3.0, 1.0: 6.0}])
    assert bundle.mean() == ([0.0, 1.0], [2.0, 4.0], [1.0, 2.0], [3.0, 6.0])
    axes = small_bundles([bundle], "a", "tokens", 316).axes[0]
    assert list(axes.lines[0].get_ydata()) == [2.0, 4.0] and len(axes.collections) == 1


def test_diagnoses_of_different_configurations_are_never_one_figure(tmp_path):
    folders = [make(tmp_path / "a"), make(tmp_path / "b", seed=1), make(tmp_path / "c", size="400K", config_hash="e")]
    text = text_of(report(*folders))
    assert "Diagnostics configuration d." in text and text.count("dormant units") == 1
    shown = text[text.index("Inside the network") : text.index("Every run")]
    assert "100K" in shown and "400K" not in shown
    assert "Diagnoses of configuration e are not shown: they cannot be compared with those of d, which 2 of 3" in text


def test_what_is_missing_of_several_runs_is_named(tmp_path):
    bare = [make_run(tmp_path / name, size=size) for name, size in (("x", "100K"), ("y", "400K"))]
    text = text_of(report(*bare))
    assert "No forgetting.jsonl in any run" in text and "No diagnostics.jsonl in any run" in text
    text = text_of(report(bare[0], make(tmp_path / "z")))
    assert "No forgetting.jsonl in x:" in text and "No diagnostics.jsonl in x:" in text


@pytest.mark.parametrize(
    "dormant, words",
    [((0.0, 0.1), "mean and band are where all were"), ((None, None, None, 0.4), "no place is common to all")],
)
def test_seeds_measured_at_different_places_are_named(tmp_path, dormant, words):
    text = text_of(report(make(tmp_path / "a"), make(tmp_path / "b", seed=1, dormant=dormant)))
    assert "100K, rotation, dormant units: the seeds were not measured at the same places" in text and words in text


def test_one_diagnosis_before_training_is_enough_for_a_page(tmp_path):
    text = text_of(report(make(tmp_path / "a", dormant=(0.1,)), make(tmp_path / "b", size="400K", dormant=(0.2,))))
    assert "dormant units" in text


def test_a_page_says_how_many_curves_rise_by_more_than_they_scatter(tmp_path):
    noisy = [120.0, 100.0, 101.0, 100.0, 101.0, 100.0]
    flat = make_run(tmp_path / "flat", dict(enumerate([*noisy, 101.0])))
    rising = make_run(tmp_path / "rising", dict(enumerate([*noisy, 130.0])), seed=1)
    text = text_of(report(flat, rising))
    assert "2 of 2 by the turning point rule; 1 of 2 end above their lowest AUC by more than AUCs scatter" in text
