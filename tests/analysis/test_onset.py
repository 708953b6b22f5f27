"""Onsets from probe records: each rule on curves with a known result, and invalid records."""

import doctest
import math
import subprocess
import sys

import numpy as np
import pytest

from hf_plasticity.analysis import onset as onset_module
from hf_plasticity.analysis.onset import Onset, find_onset, probe_scatter
from hf_plasticity.analysis.simulation import (
    change_coverage,
    detection_rate,
    falling_curve,
    law_of_flat_ladders,
    level_curve,
    location_errors,
)
from hf_plasticity.errors import PlasticityError
from support.launch import ROOT


def probes(areas, **fields):
    """Records of cycles of eight tasks of 5B tokens each, from cycle 1 on."""
    return [
        {
            "cycle": cycle,
            "task": 8 * cycle,
            "tokens": 8 * cycle * 5e9,
            "auc": auc,
            "language": "vi",
            "adaptation": "full",
            "probe_config_hash": "abc",
            "seed": 0,
        }
        | fields
        for cycle, auc in enumerate(areas, start=1)
    ]


def test_the_examples_are_true():
    text = onset_module.find_onset.__doc__.replace("```", "")
    test = doctest.DocTestParser().get_doctest(text, {}, "find_onset", None, 0)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0


def test_turning_point_is_the_minimum_after_which_the_area_rises():
    onset = find_onset(probes([100, 90, 80, 85, 110]), rule="turning_point")
    assert onset == Onset(24.0, 1.2e11, False, "turning_point", between=(16.0, 32.0))
    # The wobble at cycle 2 is not the turn; of two equal minima the last one is.
    assert find_onset(probes([100, 90, 95, 80, 80, 99]), rule="turning_point").task == 40.0


def test_zero_crossing_is_interpolated_between_the_probes_around_it():
    # ΔAUC −20, −5, +15 at tasks 24, 32, 40: zero a quarter of the way from 32 to 40.
    crossing = find_onset(probes([100, 90, 80, 95, 115]), rule="zero_crossing")
    assert crossing == Onset(34.0, 34 * 5e9, False, "zero_crossing", between=(32.0, 40.0))


def test_zero_crossing_is_the_one_after_the_dip():
    # Up to +1, down to −20, and up again through zero halfway between tasks 32 and 40.
    assert find_onset(probes([100, 101, 80, 95, 105]), rule="zero_crossing").task == 36.0
    assert find_onset(probes([100, 90, 95]), rule="zero_crossing").censored


def test_zero_crossing_refers_to_the_first_probe_as_delta_auc_does():
    # Of the curve 100, 90, 110 without its first probe, ΔAUC is 0 and positive: it rises from there on.
    late = find_onset(probes([100, 90, 110])[1:], rule="zero_crossing")
    assert late.task == 16.0 and late.at_first_probe
    within = [probe | {"task": 1 + k} for k, probe in enumerate(probes([100, 90, 80, 95, 115]))]
    assert find_onset(within, rule="zero_crossing").task == 4.25


def test_statistical_onset_is_where_the_area_stays_above_its_running_minimum(monkeypatch):
    # The standard error of a difference is √2; twice that is 2.83. Task 32 (+4) is above it, task 40 (+2) falls back,
    # task 48 (+3) stays above it.
    curve = probes([100, 90, 80, 84, 82, 83, 90], auc_stderr=1.0)
    monkeypatch.setattr(onset_module, "probe_scatter", lambda tasks, areas: None)
    onset = find_onset(curve, rule="statistical", z=2.0)
    assert onset == Onset(48.0, 48 * 5e9, False, "statistical", between=(40.0, 56.0))
    assert find_onset(curve, rule="statistical", z=1.0).task == 32.0
    onset = find_onset(curve, rule="statistical", z=10.0)
    assert onset == Onset(56.0, 56 * 5e9, True, "statistical", between=(56.0, math.inf))


def test_statistical_noise_comes_from_repeats():
    # Flat curves over ten steps: areas 10 · (level ± 0.1), standard error 10 · 0.1 · √2 / √2 = 1.
    def records(levels):
        repeats = [[[level - 0.1] * 2, [level + 0.1] * 2] for level in levels]
        return [
            probe | {"repeats": curves, "probe_steps": [0, 10], "auc": 10 * level}
            for probe, curves, level in zip(probes(levels), repeats, levels)
        ]

    assert find_onset(records([10, 9, 9.2, 9.4]), rule="statistical", z=2.0).task == 32.0
    assert find_onset(records([10, 9, 9.3, 9.4]), rule="statistical", z=2.0).task == 24.0


def test_statistical_noise_comes_from_seeds_which_are_averaged():
    # Means 100, 90, 93 with standard error 1 each: 3 > 2 · √2, but 2.8 is not.
    low, high = [99, 89, 92], [101, 91, 94]
    assert find_onset([probes(low), probes(high)], rule="statistical", z=2.0).task == 24.0
    low, high = [99, 89, 91.8], [101, 91, 93.8]
    assert find_onset([probes(low), probes(high)], rule="statistical", z=2.0).censored
    assert find_onset([probes([100, 90, 80, 95]), probes([100, 70, 90, 95])], rule="turning_point").task == 16.0


def test_statistical_rule_without_noise_is_an_error():
    with pytest.raises(PlasticityError, match="noise at task 8 is not known"):
        find_onset(probes([100, 90, 110]), rule="statistical")


def test_scatter_is_the_distance_from_the_line_between_neighbors():
    assert probe_scatter([8, 16, 24, 32, 40], [5, 4, 3, 2, 1]) == 0
    assert probe_scatter([8, 16, 40, 48, 72], [10, 11, 14, 15, 18]) == 0, "at uneven distances too"
    assert probe_scatter([8, 16, 24, 32], [1, 2, 1, 2]) is None
    # Every area lies 2 from the line between its neighbors, and 2² / (¼ + ¼ + 1) is the variance.
    assert probe_scatter([8, 16, 24, 32, 40], [0, 2, 0, 2, 0]) == pytest.approx(1.4826 * 2 / math.sqrt(1.5))
    noise = np.random.default_rng(0).normal(size=4000)
    assert probe_scatter(range(4000), 100 - np.arange(4000) / 10 + 3 * noise) == pytest.approx(3, rel=0.05)


def test_statistical_noise_is_the_scatter_if_it_is_larger_than_that_of_repeats():
    generator = np.random.default_rng(1)
    found = {2.0: 0, 3.0: 0}
    for _ in range(400):
        areas = 1000 + 10 * generator.normal(size=24)
        for z in found:
            found[z] += not find_onset(probes(areas, auc_stderr=1.0), rule="statistical", z=z).censored
    assert found[3.0] < 0.08 * 400 < found[2.0], "flat curves that are said to have turned"
    turned = [1000 + 10 * generator.normal() + max(0, k - 12) * 12 for k in range(24)]
    onset = find_onset(probes(turned), rule="statistical")
    assert not onset.censored and 8 * 13 < onset.task < 8 * 22


@pytest.mark.parametrize("curve", [level_curve, falling_curve])
@pytest.mark.parametrize("probes, seeds", [(8, 1), (24, 1), (3, 3), (24, 3)])
def test_curves_without_a_rise_have_few_false_alarms(curve, probes, seeds):
    # Three standard errors above 5% of 200.
    assert detection_rate(curve(probes), seeds, 0.02, 0.0, "rise", replicates=200) <= 0.096


def test_correlated_noise_has_few_false_alarms():
    assert detection_rate(level_curve(24), 1, 0.02, 0.5, "rise", replicates=200) <= 0.15
    assert detection_rate(level_curve(24), 3, 0.02, 0.5, "rise", replicates=200) <= 0.12


def test_the_old_rules_find_onsets_in_noise():
    assert detection_rate(level_curve(24), 1, 0.02, 0.0, "turning_point", replicates=100) > 0.8


@pytest.mark.parametrize("curve", [level_curve, falling_curve])
def test_the_error_of_a_change_covers_it(curve):
    assert 0.88 <= change_coverage(curve(16), 0.02, 0.0, replicates=200) <= 0.99
    # Two errors of a difference that ignored the correlation would cover less than 80%.
    assert 0.82 <= change_coverage(curve(24), 0.02, 0.5, replicates=200) <= 0.97


def test_a_true_rise_is_located():
    found = location_errors(24, turn=0.5, rise=0.06, seeds=3, noise=0.02, correlation=0.0, replicates=60)
    assert found["found"] > 0.9 and abs(found["bias"]) < 0.1 and found["rmse"] < 0.15


def test_flat_ladders_have_no_law():
    assert law_of_flat_ladders(sizes=5, seeds=3, probes=24, noise=0.02, replicates=60) <= 0.05


@pytest.mark.parametrize(("count", "seeds"), [(12, 1), (24, 1), (24, 3)])
def test_a_rise_as_large_as_the_detectable_one_is_found_in_most_cases(count, seeds):
    rng, ramp = np.random.default_rng(0), np.clip((np.arange(count) - count // 2 + 1) / (count - count // 2), 0, None)

    def run(rise):
        return find_onset([probes(100 + rise * ramp + rng.normal(size=count)) for _ in range(seeds)])

    detectable = np.mean([run(0).detectable_rise for _ in range(50)])
    assert 0.65 <= np.mean([not run(detectable).censored for _ in range(100)]) <= 0.95


@pytest.mark.parametrize(("count", "seeds"), [(12, 1), (24, 1), (12, 3)])
def test_a_jump_is_found_however_large_it_is(count, seeds):
    rng = np.random.default_rng(0)
    for height in (20, 1000):
        jump = np.where(np.arange(count) < count // 2, 0, height)
        assert not find_onset([probes(100 + jump + rng.normal(size=count)) for _ in range(seeds)]).censored


@pytest.mark.parametrize(("count", "seeds", "shared"), [(24, 3, 0.02), (16, 5, 0.04), (8, 3, 0.04)])
def test_noise_that_all_seeds_share_has_few_false_alarms(count, seeds, shared):
    # A test that compares the rise with the differences between seeds finds one in half of these curves.
    assert detection_rate(level_curve(count), seeds, 0.02, 0.0, "rise", replicates=200, shared=shared) <= 0.12


def test_the_language_that_was_trained_last_is_not_a_rise():
    rng, found = np.random.default_rng(0), 0
    for _ in range(100):
        languages = np.tile(rng.uniform(-1, 1, size=8), 3)
        found += not find_onset([probes(100 + languages + 0.5 * rng.normal(size=24)) for _ in range(3)]).censored
    assert found <= 10


def test_a_copy_is_not_another_seed():
    with pytest.raises(PlasticityError, match="two seeds have the same areas"):
        find_onset([probes([100, 90, 95, 99])] * 2)


def test_the_rise_test_requires_enough_probes_to_estimate_the_noise():
    with pytest.raises(PlasticityError, match="7 probes of 1 seed; a test for a rise requires 8"):
        find_onset(probes([100, 90, 80, 85, 90, 95, 99]))
    with pytest.raises(PlasticityError, match="2 probes of 2 seeds"):
        find_onset([probes([100, 90]), probes([100, 90])])


def test_seeds_share_the_tasks_that_all_of_them_have():
    three = [probes([100 + s, 90 - s, 95, 99 + s]) for s in (0, 0.5)]
    assert find_onset([three[0], three[1][:3]]).between == find_onset([three[0][:3], three[1][:3]]).between


@pytest.mark.parametrize("rule", ["turning_point", "zero_crossing", "statistical"])
def test_a_curve_that_has_not_turned_is_censored_at_its_last_task(rule):
    onset = find_onset(probes([100, 90, 85, 85], auc_stderr=1.0), rule=rule)
    assert onset == Onset(task=32.0, tokens=1.6e11, censored=True, rule=rule, between=(32.0, math.inf))
    assert str(onset) == "after task 32 (1.6e+11 tokens)"


@pytest.mark.parametrize("rule", ["turning_point", "zero_crossing"])
def test_a_curve_that_rises_from_its_first_probe_gives_an_upper_bound(rule):
    onset = find_onset(probes([100, 110, 120]), rule=rule)
    assert onset.task == 8.0 and onset.at_first_probe and not onset.censored and onset.bounds == (0.0, 16.0)
    assert str(onset).startswith("task 8 or earlier ")


def test_the_area_of_a_probe_is_its_auc():
    """Not that of its repeats, which would be found also where another number was put in its place."""
    curve = [probe | {"repeats": [[5.0, 5.0]] * 2, "probe_steps": [0, 10]} for probe in probes([100, 90, 110])]
    assert find_onset(curve, rule="turning_point").task == 16.0


def test_the_untrained_model_is_not_part_of_the_search():
    curve = probes([100, 90, 95])
    untrained = curve[0] | {"cycle": 0, "task": 0, "tokens": 0, "auc": 1.0}
    assert find_onset([untrained, *curve], rule="turning_point") == find_onset(curve, rule="turning_point")
    assert find_onset([untrained, *curve], rule="zero_crossing") == find_onset(curve, rule="zero_crossing")


def test_the_order_of_records_does_not_matter():
    curve = probes([100, 90, 95])
    assert find_onset(curve[::-1], rule="turning_point") == find_onset(curve, rule="turning_point")


@pytest.mark.parametrize("field, value", [("language", "en"), ("adaptation", "lora"), ("probe_config_hash", "def")])
def test_records_of_different_probes_are_never_mixed(field, value):
    curve = probes([100, 90, 95])
    with pytest.raises(PlasticityError, match=f"cannot be compared: {field} is .*{value}"):
        find_onset([*curve[:2], curve[2] | {field: value}])


def test_invalid_records_are_named():
    curve = probes([100, 90, 95])
    with pytest.raises(PlasticityError, match="task 8 occurs twice; give each run its own list"):
        find_onset([*curve, curve[0]])
    with pytest.raises(PlasticityError, match="task 16 has no auc"):
        find_onset([curve[0], curve[1] | {"auc": None}])
    with pytest.raises(PlasticityError, match="too short"):
        find_onset(curve[:1])
    with pytest.raises(PlasticityError, match="too short"):
        find_onset([])
    with pytest.raises(PlasticityError, match="aucs: nan"):
        find_onset([curve[0], curve[1] | {"auc": math.nan}], rule="turning_point")
    with pytest.raises(PlasticityError, match="rule: 'minimum'"):
        find_onset(curve, rule="minimum")


def test_analysis_works_without_torch():
    script = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "evaluate"):
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
from hf_plasticity.analysis.law import fit_onset_law
from hf_plasticity.analysis.onset import find_onset
probe = dict(cycle=1, language="vi", adaptation="full", probe_config_hash="0", seed=0, tokens=1)
find_onset([probe | dict(task=k, auc=auc) for k, auc in ((1, 3), (2, 1), (3, 2))], rule="turning_point")
assert fit_onset_law(["5M", "12M", "27M"], [4, 8, 20]).exponent > 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
