"""What the measures share that watch a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from ..network import Structure
from .config import DiagnosticsConfig
from .measure import Measure


class Observer:
    """
    Watches the blocks pass through the model, and says afterwards what it saw.

    A new measure of a forward pass is a subclass with `names`, `watch` and `measures`, and its line in `diagnose.py`.

    Args:
        model (`PreTrainedModel`): The model, in evaluation mode.
        structure ([`Structure`]): Its parts.
        config ([`DiagnosticsConfig`]): The thresholds.
    """

    names: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel, structure: Structure, config: DiagnosticsConfig):
        self.model = model
        self.structure = structure
        self.config = config
        # Set for each batch: which of its tokens are no padding, (B, T) bool; None where all are.
        self.tokens: torch.Tensor | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch for the time of this context."""
        raise NotImplementedError

    def measures(self) -> dict[str, Measure]:
        """What was seen, by name."""
        raise NotImplementedError

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """The features (B, T, F) or (B·T, F) of the tokens that are no padding, as (n, F)."""
        features = features.detach().reshape(-1, features.shape[-1])
        return features if self.tokens is None else features[self.tokens.reshape(-1)]
