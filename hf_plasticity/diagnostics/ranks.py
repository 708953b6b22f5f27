"""Four ranks of a spectrum, each under its own name."""

import torch


RANK_NAMES = ("effective_rank", "stable_rank", "srank", "approximate_rank")


def effective_rank(singular_values: torch.Tensor) -> float:
    """
    exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σσ: the exponential of the entropy of the normalized singular values (Roy and
    Vetterli, "The effective rank", EUSIPCO 2007, definition 1). From 1 to the rank; 0 for a zero matrix.
    """
    total = singular_values.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(singular_values / total).sum().exp().item()


def stable_rank(singular_values: torch.Tensor) -> float:
    """‖A‖²_F / ‖A‖²₂ = Σσᵢ² / σ₁² (Rudelson and Vershynin, 2007). From 1 to the rank; 0 for a zero matrix."""
    largest = singular_values.max()
    if largest == 0:
        return 0.0
    return (singular_values / largest).square().sum().item()


def srank(singular_values: torch.Tensor, delta: float = 0.01) -> float:
    """
    The smallest k with Σ_{i≤k} σᵢ ≥ (1 − δ) Σσ (Kumar et al., huggingface.co/papers/2010.14498, section 3: there
    "effective rank"; often published as "stable rank"). From 1 to the rank; 0 for a zero matrix.
    """
    return _smallest_k(singular_values, delta)


def approximate_rank(singular_values: torch.Tensor, delta: float = 0.01) -> float:
    """
    The smallest k with Σ_{i≤k} σᵢ² ≥ (1 − δ) Σσ² (Yang et al., huggingface.co/papers/1909.12255): srank on the
    squares, the number of principal directions with 1 − δ of the energy. From 1 to the rank; 0 for a zero matrix.
    """
    return _smallest_k(singular_values.square(), delta)


def spectrum_ranks(singular_values: torch.Tensor, delta: float = 0.01) -> dict[str, float]:
    """The four ranks of a matrix with these singular values (float64, any order), by the names of `RANK_NAMES`."""
    return {
        "effective_rank": effective_rank(singular_values),
        "stable_rank": stable_rank(singular_values),
        "srank": srank(singular_values, delta),
        "approximate_rank": approximate_rank(singular_values, delta),
    }


def singular_values_from_gram(gram: torch.Tensor) -> torch.Tensor:
    """
    The singular values of A, largest first, from AᵀA or AAᵀ in float64.

    A d × d Gram matrix replaces the n × d features, which would not fit in memory. Squaring loses half of the digits:
    singular values below about 1e-7·σ₁ are rounding errors and are set to zero. All are NaN if the matrix is not
    finite.
    """
    if not gram.isfinite().all():
        return torch.full_like(gram[0], torch.nan)
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0)
    noise = eigenvalues.max().clamp(min=0) * len(eigenvalues) * torch.finfo(torch.float64).eps
    return torch.where(eigenvalues > noise, eigenvalues, 0).sqrt()


def _smallest_k(weights: torch.Tensor, delta: float) -> float:
    total = weights.sum()
    if total == 0 or total.isnan():
        return total.item()
    held = weights.sort(descending=True).values.cumsum(0) / total
    # An exact tie (99 of 100 equal values) must not depend on the last bit of a sum.
    return float((held < (1 - delta) - 1e-9).sum().item() + 1)
