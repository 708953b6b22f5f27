"""The base class of measures of a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from ..network import Structure
from .config import DiagnosticsConfig
from .measure import Measure


class Observer:
    """
    Observes forward passes of the model on the blocks.

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
        # Set for each batch: which of its tokens are not padding, (B, T) bool; None if there is no padding.
        self.tokens: torch.Tensor | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """A context in which forward passes are observed."""
        raise NotImplementedError

    def measures(self) -> dict[str, Measure]:
        """The measures by name."""
        raise NotImplementedError

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """The features (B, T, F) or (B·T, F) of the tokens that are not padding, as (n, F)."""
        features = features.detach().reshape(-1, features.shape[-1])
        return features if self.tokens is None else features[self.tokens.reshape(-1)]
