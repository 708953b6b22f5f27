"""Diagnostics of a causal language model: units, heads, weights, ranks, gradients and curvature."""

from .attention import maximum_entropy
from .callback import DiagnosticsCallback
from .config import DiagnosticsConfig
from .diagnose import (
    CURVATURE_MEASURES,
    DEFAULT_MEASURES,
    FORWARD_MEASURES,
    GRADIENT_MEASURES,
    MEASURES,
    REFERENCE_MEASURES,
    WEIGHT_MEASURES,
    Diagnosis,
    diagnose,
)
from .drift import save_weights
from .measure import Measure
from .ranks import approximate_rank, effective_rank, spectrum_ranks, srank, stable_rank


__all__ = [
    "CURVATURE_MEASURES",
    "DEFAULT_MEASURES",
    "FORWARD_MEASURES",
    "GRADIENT_MEASURES",
    "MEASURES",
    "REFERENCE_MEASURES",
    "WEIGHT_MEASURES",
    "Diagnosis",
    "DiagnosticsCallback",
    "DiagnosticsConfig",
    "Measure",
    "approximate_rank",
    "diagnose",
    "effective_rank",
    "maximum_entropy",
    "save_weights",
    "spectrum_ranks",
    "srank",
    "stable_rank",
]
