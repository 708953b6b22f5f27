"""The statistics of comparisons, compared with manual computations and simulations."""

import itertools
import math

import numpy as np
import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.analysis.paired import (
    holm,
    log_ratios,
    mean_interval,
    percent_change,
    ranks,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)


def test_the_interval_is_students():
    # Mean 3, standard deviation 2, standard error 2/√3; t(0.975, 2) = 4.302653.
    low, high = mean_interval([1.0, 3.0, 5.0])
    half = 4.302653 * 2 / math.sqrt(3)
    assert (low, high) == (pytest.approx(3 - half, abs=1e-5), pytest.approx(3 + half, abs=1e-5))
    assert mean_interval([1.0]) is None


def test_a_change_in_percent_is_the_mean_ratio():
    # Ratios of 1/2 and 2 cancel; 0.9 and 0.9 are −10% with an interval of no width.
    assert percent_change(log_ratios([50, 200], [100, 100])).percent == pytest.approx(0)
    assert percent_change(log_ratios([90, 180], [100, 200])) == pytest.approx((-10, -10, -10))
    assert percent_change(log_ratios([110], [100]))[1:] == (None, None)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3], 2 / 8),  # 6 and −6 of 8
        ([1, 2, -3], 1),  # the sum is 0
        ([3, 2, -1], 4 / 8),  # |sum| 4 or 6: ±(3+2−1), ±(3+2+1)
        ([1] * 6, 2 / 64),
        ([0, 0, 0], 1),
        ([0.1, 0.2, 0.3, 0.1 + 0.2], 2 / 16),
    ],
)
def test_the_sign_flip_test_counts_assignments_of_signs(differences, p):
    assert sign_flip_p(differences) == p


def test_the_sign_flip_test_agrees_with_a_count_in_integers():
    values = [7, -2, 5, 11, -3, 4, 1]
    sums = [sum(s * v for s, v in zip(signs, values)) for signs in itertools.product((1, -1), repeat=7)]
    assert sign_flip_p(values) == sum(abs(one) >= abs(sum(values)) for one in sums) / 128
    assert sign_flip_p([value / 10 for value in values]) == sign_flip_p(values)


def test_too_many_seeds_are_refused():
    with pytest.raises(PlasticityError, match="seeds: 21 are more than the supported 20"):
        sign_flip_p([1.0] * 21)


def test_holm_multiplies_in_order_and_never_falls():
    # 4·0.01, 3·0.02, 2·0.03 = 0.06, 1·0.04 is below 0.06 and becomes it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_how_many_seeds_a_comparison_requires():
    assert smallest_p(6, 1) == 2 / 64 and smallest_p(6, 3) == 6 / 64
    # 2·2^-n·tests ≤ 0.05
    assert [seeds_needed(tests) for tests in (1, 2, 3, 4, 6, 12)] == [6, 7, 7, 8, 8, 9]


def test_a_method_is_above_another_only_if_the_test_is_significant():
    seeds = np.arange(8) / 100
    clear, near = np.full(8, 1.0), np.array([1, -1, 1, -1, 1, -1, 1, 1]) / 1000
    # The first is below both others in every seed; the others differ by noise. Three pairs, 3·2/256 = 0.023.
    assert ranks([seeds, seeds + clear, seeds + clear + near]) == [(1, 1), (2, 3), (2, 3)]
    assert ranks([seeds + clear, seeds, seeds + 2 * clear]) == [(2, 2), (1, 1), (3, 3)]
    # The same with six seeds: 3·2/64 = 0.094, so no rank is significant.
    assert ranks([seeds[:6], seeds[:6] + 1, seeds[:6] + 2]) == [(1, 3)] * 3
    assert ranks([seeds]) == [(1, 1)]


SHAPES = {
    "normal": lambda generator, size: generator.normal(size=size),
    "heavy tails": lambda generator, size: generator.standard_t(3, size=size),
    "skewed": lambda generator, size: generator.lognormal(size=size) - math.exp(0.5),
}


@pytest.mark.parametrize(("shape", "coverage"), [("normal", 0.95), ("heavy tails", 0.96), ("skewed", 0.82)])
def test_the_coverage_of_the_interval_is_that_of_its_docstring(shape, coverage):
    rows = SHAPES[shape](np.random.default_rng(0), (20_000, 6))
    hits = [low <= 0 <= high for low, high in map(mean_interval, rows)]
    assert np.mean(hits) == pytest.approx(coverage, abs=0.015)


@pytest.mark.parametrize(("shape", "methods", "seeds"), [("normal", 4, 8), ("heavy tails", 4, 8), ("normal", 1, 6)])
def test_methods_without_an_effect_are_rarely_significant(shape, methods, seeds):
    # Differences against one baseline share its noise.
    generator, calls = np.random.default_rng(1), []
    for _ in range(600):
        table = SHAPES[shape](generator, (methods + 1, seeds))
        calls.append(min(holm([sign_flip_p(row - table[0]) for row in table[1:]])) <= 0.05)
    assert np.mean(calls) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_equal_methods_rarely_have_different_ranks():
    generator, calls = np.random.default_rng(2), []
    for _ in range(400):
        found = ranks(generator.normal(size=(4, 9)))
        calls.append(found != [(1, 4)] * 4)
    assert np.mean(calls) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
