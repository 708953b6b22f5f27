"""Ranks of the hidden features."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from transformers import PreTrainedModel

from ..network import Structure, double
from .config import DiagnosticsConfig
from .measure import Measure
from .observer import Observer
from .ranks import RANK_NAMES, singular_values_from_gram, spectrum_ranks


class FeatureObserver(Observer):
    """
    `feature_effective_rank`, `feature_stable_rank`, `feature_srank`, `feature_approximate_rank`: the four ranks of
    `ranks.py` of the feature matrix, one row for each token, not centered. Per layer, the features are the residual
    stream after it. Overall, they are the input of the output head (after the final norm), the penultimate features of
    Kumar et al. (huggingface.co/papers/2010.14498).

    From 1 to min(d_model, tokens): fewer tokens than d_model bound the rank, so the number of tokens is recorded. 0
    for features that are all zero. Cost: 2·d² operations per token and layer in float64, a twelfth of the forward
    pass, and memory for d² numbers per layer.
    """

    names = tuple(f"feature_{name}" for name in RANK_NAMES)

    def __init__(self, model: PreTrainedModel, structure: Structure, config: DiagnosticsConfig):
        super().__init__(model, structure, config)
        # One d × d Gram matrix per layer; the key after the last layer is that of the decoder's output.
        self.grams: dict[int, torch.Tensor] = {}
        self.count = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self.structure.layers:
                stack.callback(layer.module.register_forward_hook(self._hook(layer.index)).remove)
            final = self._hook(len(self.structure.layers))
            stack.callback(self.structure.decoder.register_forward_hook(final).remove)
            yield

    def measures(self) -> dict[str, Measure]:
        final = len(self.structure.layers)
        if final not in self.grams:
            return {name: Measure(None, gap="the input of the output head was not observed") for name in self.names}
        ranks = {
            index: spectrum_ranks(singular_values_from_gram(gram), self.config.delta)
            for index, gram in self.grams.items()
        }
        return {
            f"feature_{name}": Measure(
                overall=ranks[final][name],
                per_layer=[ranks[index][name] for index in range(final)],
                detail={"features": len(self.grams[final]), "tokens": self.count},
            )
            for name in RANK_NAMES
        }

    def _hook(self, index: int) -> Callable:
        def hook(module: torch.nn.Module, args: tuple, output) -> None:
            rows = double(self.rows(output if isinstance(output, torch.Tensor) else output[0]))
            gram = rows.T @ rows
            self.grams[index] = self.grams[index] + gram if index in self.grams else gram
            if index == len(self.structure.layers):
                self.count += len(rows)

        return hook
