import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_plasticity.diagnostics import approximate_rank, effective_rank, spectrum_ranks, srank, stable_rank
from hf_plasticity.diagnostics.ranks import singular_values_from_gram


def matrix_with(spectrum: list[float], rows: int, columns: int) -> torch.Tensor:
    """A matrix with this spectrum and random singular vectors."""
    left, _ = torch.linalg.qr(torch.randn(rows, len(spectrum), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(spectrum), dtype=torch.float64))
    return left @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_equal_singular_values_have_full_rank(count):
    ranks = spectrum_ranks(torch.full((count,), 3.7, dtype=torch.float64))
    assert ranks["effective_rank"] == pytest.approx(count)
    assert ranks["stable_rank"] == pytest.approx(count)
    # 99% of 100 equal values are 99 of them; with fewer it takes all.
    assert ranks["srank"] == ranks["approximate_rank"] == (99 if count == 100 else count)


def test_the_four_ranks_of_a_known_spectrum():
    sigma = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.05], dtype=torch.float64)
    p = [s / 15.05 for s in (8, 4, 2, 1, 0.05)]
    assert effective_rank(sigma) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert stable_rank(sigma) == pytest.approx((64 + 16 + 4 + 1 + 0.0025) / 64)
    # 15 / 15.05 = 0.9967 with four; 14 / 15.05 = 0.930 with three.
    assert srank(sigma) == 4
    # 84 / 85.0025 = 0.98821 with three is under 0.99, 85 / 85.0025 with four is over.
    assert approximate_rank(sigma) == 4
    assert (srank(sigma, 0.1), approximate_rank(sigma, 0.1)) == (3, 2)


def test_srank_is_not_the_stable_rank():
    sigma = torch.tensor([10.0, *[1.0] * 20], dtype=torch.float64)
    assert stable_rank(sigma) == pytest.approx(1.2)
    assert srank(sigma) == 21
    assert approximate_rank(sigma) == 20  # (100 + 19) / 120 = 0.9917 with twenty


def test_a_zero_matrix_has_rank_zero():
    assert set(spectrum_ranks(torch.zeros(4, dtype=torch.float64)).values()) == {0.0}


def test_the_gram_matrix_gives_the_spectrum_and_the_exact_rank():
    matrix = matrix_with([5.0, 3.0, 1e-3], rows=200, columns=12)
    sigma = singular_values_from_gram(matrix.T @ matrix)
    torch.testing.assert_close(sigma[:3], torch.tensor([5.0, 3.0, 1e-3], dtype=torch.float64), rtol=1e-6, atol=0)
    assert (sigma[3:] == 0).all()


spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


@given(spectra, st.floats(1e-3, 1e3), st.randoms(use_true_random=False), st.integers(0, 5))
def test_ranks_stay_in_range_and_ignore_scale_order_and_zeros(values, scale, random, zeros):
    ranks = spectrum_ranks(torch.tensor(values, dtype=torch.float64))
    for rank in ranks.values():
        assert 1 - 1e-9 <= rank <= len(values) + 1e-9
    changed = [scale * value for value in values] + [0.0] * zeros
    random.shuffle(changed)
    changed = spectrum_ranks(torch.tensor(changed, dtype=torch.float64))
    assert changed["effective_rank"] == pytest.approx(ranks["effective_rank"])
    assert changed["stable_rank"] == pytest.approx(ranks["stable_rank"])
    assert (changed["srank"], changed["approximate_rank"]) == (ranks["srank"], ranks["approximate_rank"])
    assert ranks["approximate_rank"] <= ranks["srank"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_rotating_the_features_or_permuting_tokens_changes_no_rank(seed, rank):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(40, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, 8, generator=generator, dtype=torch.float64
    )
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    turned = features[torch.randperm(40, generator=generator)] @ rotation
    before = spectrum_ranks(singular_values_from_gram(features.T @ features))
    after = spectrum_ranks(singular_values_from_gram(turned.T @ turned))
    assert after == pytest.approx(before, rel=1e-6)
    assert before["effective_rank"] <= rank + 1e-6
