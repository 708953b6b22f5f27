"""The onset law: exact without noise, correct intervals with noise, and censored onsets."""

import doctest
import math

import numpy as np
import pytest
from scipy import optimize, stats

from hf_plasticity.analysis import law as law_module
from hf_plasticity.analysis.law import PAPER_LAW, TOKENS_PER_TASK, fit_onset_law
from hf_plasticity.analysis.onset import Onset
from hf_plasticity.analysis.simulation import SIZES as PAPER_PARAMETERS
from hf_plasticity.analysis.simulation import law_errors
from hf_plasticity.errors import PlasticityError
from hf_plasticity.metrics.onset_law.definition import MODELS, onset_law, power_law_line
from hf_plasticity.metrics.onset_law.line import fit_line
from hf_plasticity.models import MODEL_SIZES, PAPER_SIZES


SIZES = np.array([MODEL_SIZES[name].num_non_embedding_parameters for name in PAPER_SIZES], dtype=float)
ONSETS = 1.3e-5 * SIZES**0.8269


def test_the_examples_are_true():
    for function in (fit_onset_law, law_module.OnsetLaw.predict):
        test = doctest.DocTestParser().get_doctest(function.__doc__.replace("```", ""), {}, "law", None, 0)
        assert test.examples and doctest.DocTestRunner().run(test).failed == 0


def test_the_law_is_recovered_exactly_from_onsets_without_noise():
    law = fit_onset_law(PAPER_SIZES, ONSETS)
    assert law.coefficient == pytest.approx(1.3e-5, rel=1e-10)
    assert law.exponent == pytest.approx(0.8269, rel=1e-12)
    assert law.loo_errors["power"] < 1e-10
    assert min(law.loo_errors, key=law.loo_errors.get) == "power"
    assert law.sublinear_p_value < 1e-6
    assert law.predict(1e9).low == pytest.approx(law.predict(1e9).high, rel=1e-6)


def test_the_studys_extrapolations_follow_from_its_law():
    one, seven = PAPER_LAW.predict(1e9), PAPER_LAW.predict(7e9)
    assert one.task == pytest.approx(360, abs=1) and one.tokens == pytest.approx(1.8e12, rel=0.01)
    assert seven.tokens == pytest.approx(9e12, rel=0.01)
    assert one.low is None and one.high is None
    assert pytest.approx(9_537 * 524_288, rel=1e-3) == TOKENS_PER_TASK
    assert PAPER_LAW.predict("5M").task == pytest.approx(ONSETS[0])
    assert fit_onset_law(SIZES, ONSETS, tokens_per_task=100).predict(1e9).tokens == pytest.approx(100 * one.task)


def test_the_fit_and_its_exponents_interval_are_those_of_a_regression():
    onsets = ONSETS * np.exp([0.2, -0.3, 0.1, 0.0, -0.2, 0.3, 0.1, -0.1])
    law = fit_onset_law(SIZES, onsets, level=0.9)
    expected = stats.linregress(np.log(SIZES), np.log(onsets))
    assert (law.exponent, math.log(law.coefficient)) == pytest.approx((expected.slope, expected.intercept))
    reach = stats.t.ppf(0.95, df=6) * expected.stderr
    assert law.exponent_interval == pytest.approx((expected.slope - reach, expected.slope + reach))
    reach = stats.t.ppf(0.95, df=6) * expected.intercept_stderr
    assert np.log(law.coefficient_interval) == pytest.approx((expected.intercept - reach, expected.intercept + reach))
    assert law.sublinear_p_value == pytest.approx(stats.t.cdf((expected.slope - 1) / expected.stderr, df=6))
    # The textbook prediction interval, from the covariance of the coefficients.
    design = np.column_stack([np.ones(8), np.log(SIZES)])
    residuals = np.log(onsets) - design @ [expected.intercept, expected.slope]
    at = np.array([1, math.log(1e9)])
    variance = residuals @ residuals / 6 * (1 + at @ np.linalg.inv(design.T @ design) @ at)
    reach = stats.t.ppf(0.95, df=6) * math.sqrt(variance)
    prediction = law.predict(1e9)
    assert np.log([prediction.low, prediction.high]) == pytest.approx(
        [math.log(prediction.task) - reach, math.log(prediction.task) + reach]
    )


def test_censored_onsets_enter_the_likelihood_as_lower_bounds():
    x, noise = np.log(SIZES), np.array([0.2, -0.3, 0.1, 0.0, -0.2, 0.3, 0.1, -0.1])
    censored = ONSETS > 40
    y = np.where(censored, math.log(40), np.log(ONSETS) + noise)
    line = fit_line(x, y, np.where(censored, np.inf, y))

    def negative_log_likelihood(parameters):
        center, slope, log_noise = parameters
        fitted = center + slope * (x - x.mean())
        densities = stats.norm.logpdf(y, fitted, math.exp(log_noise))
        return -np.where(censored, stats.norm.logsf(y, fitted, math.exp(log_noise)), densities).sum()

    found = optimize.minimize(
        negative_log_likelihood, [3.0, 1.0, -1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    ).x
    assert (line.at(x.mean()), line.slope) == pytest.approx(found[:2], abs=1e-4)
    measured = np.count_nonzero(~censored)
    assert line.scatter == pytest.approx(math.exp(found[2]) * math.sqrt(measured / (measured - 2)), rel=1e-3)


def test_a_bound_above_the_line_raises_it_and_one_far_below_has_no_effect():
    sizes, onsets = SIZES[:5], ONSETS[:5] * np.exp([0.2, -0.3, 0.1, 0.0, -0.1])
    alone = fit_onset_law(sizes, onsets)
    lifted = fit_onset_law([*sizes, SIZES[-1]], [*onsets, 10 * ONSETS[-1]], [False] * 5 + [True])
    silent = fit_onset_law([*sizes, SIZES[-1]], [*onsets, 0.01], [False] * 5 + [True])
    assert lifted.exponent > alone.exponent + 0.1
    assert silent.exponent == pytest.approx(alone.exponent, abs=1e-4)
    assert silent.exponent_interval == pytest.approx(alone.exponent_interval, abs=1e-2)


def test_censoring_does_not_affect_onsets_without_noise():
    law = fit_onset_law(SIZES, np.minimum(ONSETS, 50), ONSETS > 50)
    assert (law.coefficient, law.exponent) == pytest.approx((1.3e-5, 0.8269), rel=1e-9)
    taken_for_measured = fit_onset_law(SIZES, np.minimum(ONSETS, 50))
    assert taken_for_measured.exponent < 0.75


def test_onsets_include_their_censoring():
    onsets = [Onset(min(onset, 50), 0.0, onset > 50, "turning_point") for onset in ONSETS]
    assert fit_onset_law(SIZES, onsets) == fit_onset_law(SIZES, np.minimum(ONSETS, 50), ONSETS > 50)


def test_the_intervals_of_exact_onsets_have_the_stated_coverage():
    rng = np.random.default_rng(0)
    size, level = math.log(1e9), 0.95
    hits = {"exponent": [], "coefficient": [], "prediction": []}
    for _ in range(2_000):
        y = np.log(ONSETS) + 0.3 * rng.standard_normal(8)
        new = math.log(1.3e-5) + 0.8269 * size + 0.3 * rng.standard_normal()
        line = fit_line(np.log(SIZES), y, y)
        low, high = line.slope_interval(level)
        hits["exponent"].append(low <= 0.8269 <= high)
        low, high = line.interval(0.0, level, new_point=False)
        hits["coefficient"].append(low <= math.log(1.3e-5) <= high)
        low, high = line.interval(size, level)
        hits["prediction"].append(low <= new <= high)
    # Three standard errors of a share of 2,000 are 1.5%.
    for name, held in hits.items():
        assert np.mean(held) == pytest.approx(level, abs=0.015), name


@pytest.mark.parametrize(
    "count, seeds, of_sizes, probe_every, length",
    [(8, 1, 0.2, 8, math.inf), (8, 3, 0.2, 4, 80.0), (3, 3, 0.2, 1, math.inf)],
    ids=["between-probes", "censored", "three-sizes-of-three-seeds"],
)
def test_the_interval_of_the_exponent_covers_the_truth_in_simulated_ladders(
    count, seeds, of_sizes, probe_every, length
):
    sizes = PAPER_PARAMETERS[:: 8 // count][:count]
    found = law_errors(sizes, seeds, of_sizes, 0.1, probe_every, length, replicates=60)
    # Measured with more: 88% to 100% (docs/experiments.md), minus three standard errors of 60.
    assert found["coverage"] >= 0.75
    assert found["exponent"] == pytest.approx(0.8269, abs=0.08)


def test_intervals_between_probes_do_not_bias_the_law():
    # Probes once a cycle of eight tasks; the law puts 5M at task 4.5, which the first probe bounds from above.
    onsets = np.maximum(8, 8 * np.round(ONSETS / 8))
    between = [(0 if onset == 8 else onset - 8, onset + 8) for onset in onsets]
    found = [Onset(t, 0.0, False, "rise", t == 8, bounds) for t, bounds in zip(onsets, between)]
    assert fit_onset_law(SIZES, onsets).exponent < 0.75
    assert fit_onset_law(SIZES, found).exponent == pytest.approx(0.8269, abs=0.05)


def test_the_sublinear_test_has_the_stated_error_rate_on_a_linear_law():
    rng = np.random.default_rng(0)
    truth = np.log(SIZES) - 13
    lines = []
    for _ in range(2_000):
        y = truth + 0.3 * rng.standard_normal(8)
        lines.append(fit_line(np.log(SIZES), y, y))
    assert np.mean([line.p_value_below(1.0) < 0.05 for line in lines]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    "name, onsets",
    [
        ("power", ONSETS),
        ("linear", 2 + 5e-7 * SIZES),
        ("log-linear", 20 * np.log(SIZES) - 300),
        ("exponential", 3 * np.exp(1e-8 * SIZES)),
    ],
)
def test_leave_one_out_finds_the_true_model(name, onsets):
    errors = fit_onset_law(SIZES, onsets).loo_errors
    assert set(errors) == set(MODELS)
    assert errors[name] < 1e-9 and all(errors[other] > 0.01 for other in errors if other != name)


def test_leave_one_out_error_is_relative_to_the_onset():
    # Three points of a linear law, T = P: 1, 2 and 4 instead of 3. Without the first, the line through (2, 2), (3, 4)
    # gives 0: error 1. Without the second, that through (1, 1), (3, 4) gives 2.5: 1/4. Without the third, 3: 1/4.
    assert fit_onset_law([1, 2, 3], [1, 2, 4]).loo_errors["linear"] == pytest.approx((1 + 0.25 + 0.25) / 3)
    # The line through the others gives 3 at size 3. That is no error against a bound of 2.5, but against one of 4 a
    # quarter, to which the fits that were lifted by the bound add theirs.
    censored = [False, False, True, False]
    assert fit_onset_law([1, 2, 3, 4], [1, 2, 2.5, 4], censored).loo_errors["linear"] == pytest.approx(0, abs=1e-9)
    assert fit_onset_law([1, 2, 3, 4], [1, 2, 4, 4], censored).loo_errors["linear"] > 0.25 / 4


def test_leave_one_out_errors_of_bounded_onsets_are_those_of_the_bounds():
    def errors(onsets, *between):
        return onset_law([1e6, 4e6, 16e6, 64e6], onsets, between=between)["loo_errors"]

    # All onsets are on 6 · 2^k, so the power law has no error, whichever point of its interval an onset is named by.
    for onset in (1, 6):
        found = errors([onset, 12, 24, 48], (0, 9), (12, 12), (24, 24), (48, 48))
        assert found["power"] < 1e-9
        # The line in log P through 12, 24 and 48 is at −8 for the first: wrong also without a lower bound.
        assert found["log-linear"] > (1 + 8 / 9) / 4
    # 64 is predicted, which is above a lower bound of 40, and within no bounds at all.
    for low in (40, 0):
        assert errors([8, 16, 32, 100], (8, 8), (16, 16), (32, 32), (low, math.inf))["power"] < 1e-9
    # 64 is above an upper bound of 50 by 28%, and the bound bends the other fits.
    assert errors([8, 16, 32, 45], (8, 8), (16, 16), (32, 32), (0, 50))["power"] > 0.28 / 4


def test_a_law_from_two_points_has_no_interval():
    law = fit_onset_law(["5M", "314M"], [4.0, 138.0])
    assert law.coefficient_interval is None and law.exponent_interval is None and law.sublinear_p_value is None
    assert law.loo_errors is None
    prediction = law.predict("5M")
    assert prediction.task == pytest.approx(4.0) and prediction.low is None and prediction.high is None


def test_too_few_or_invalid_points_are_errors():
    for sizes, onsets, censored, message in (
        ([], [], None, "two measured onsets"),
        ([1e6], [3.0], None, "two measured onsets"),
        ([1e6, 1e6], [3.0, 4.0], None, "two measured onsets"),
        ([1e6, 1e7, 1e8], [3.0, 4.0, 5.0], [False, True, True], "two measured onsets"),
        ([1e6, 1e7], [3.0], None, "onsets: 1 values, but sizes has 2"),
        ([1e6, 1e7], [3.0, 4.0], [True], "censored: 1 values"),
        ([1e6, 1e7], [3.0, 0.0], None, "onsets: 0.0 at position 1"),
        ([1e6, 1e7], [3.0, math.nan], None, "onsets: nan at position 1"),
        ([1e6, -1.0], [3.0, 4.0], None, "sizes: -1.0"),
        (["5M", "6M"], [3.0, 4.0], None, "'6M' is not a model size"),
    ):
        with pytest.raises(PlasticityError, match=message):
            fit_onset_law(sizes, onsets, censored)
    with pytest.raises(PlasticityError, match="level: 95"):
        fit_onset_law([1e6, 1e7], [3.0, 4.0], level=95)


def test_several_seeds_of_a_size_and_any_order_are_supported():
    order = np.array([3, 0, 7, 1, 0, 5])
    noisy = ONSETS[order] * np.exp([0.1, -0.1, 0.0, 0.2, 0.1, -0.2])
    law = fit_onset_law(SIZES[order], noisy)
    # The two seeds of the smallest size are one point, at the mean of their logarithms.
    sizes, means = SIZES[[0, 1, 3, 5, 7]], np.log(noisy[[1, 3, 0, 5, 2]])
    means[0] = np.log(noisy[[1, 4]]).mean()
    assert law.exponent == pytest.approx(np.polyfit(np.log(sizes), means, 1)[0])


def test_seeds_do_not_narrow_the_interval_as_sizes_do():
    onsets = ONSETS[:4] * np.exp([0.1, -0.1, 0.1, -0.05])
    one = fit_onset_law(SIZES[:4], onsets)
    copies = fit_onset_law(np.repeat(SIZES[:4], 9), np.repeat(onsets, 9))
    assert copies.exponent_interval == pytest.approx(one.exponent_interval)
    assert copies.loo_errors == pytest.approx(one.loo_errors), "whole sizes are left out"


def test_bounds_that_do_not_include_their_onset_are_errors():
    with pytest.raises(PlasticityError, match="between: 5 and 6 at position 0 do not include the onset 4"):
        fit_onset_law([1e6, 1e7], [Onset(4.0, 0.0, False, "rise", between=(5.0, 6.0)), 9.0])


def test_an_interval_wider_than_floats_is_infinite():
    law = fit_onset_law([1e6, 1.01e6, 1.02e6], [1.0, 2.0, 1.5])
    assert law.predict(1e12).high == math.inf and law.predict(1e12).low == 0.0
    assert power_law_line([1, 2], [1, 2]).scatter is None


def test_a_size_with_a_censored_seed_leaves_too_few_sizes_for_the_comparison_of_models():
    sizes, onsets = [1e6, 1e6, 1e7, 1e7, 1e8, 1e8], [8, 9, 80, 90, 640, 700]
    law = fit_onset_law(sizes, onsets, censored=[False] * 5 + [True])
    assert law.loo_errors is None and 0.9 < law.exponent < 1.1
