"""The loss on the batch of a step, measured before and after a mitigation changes the model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..distributed import rank_and_world_size
from ..network import evaluation_mode, is_fsdp, preserve_with, reshard
from .base import sum_over_processes


# Inputs of a forward pass that change the scale of its loss, or use memory that is not required.
LEFT_OUT = ("num_items_in_batch", "use_cache", "return_dict")


class BatchLoss:
    """
    Keep the inputs of the training passes since the last optimizer step, and measure the loss on them.

    Args:
        model (`PreTrainedModel`): The model that is trained.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._batches: list[dict[str, Any]] = []
        self._watching = True
        hook = model.register_forward_pre_hook(self._keep, with_kwargs=True)
        self._undo: list[Callable[[], None]] = [hook.remove, preserve_with(model, self._paused)]

    def remove(self) -> None:
        """Stop keeping inputs."""
        for undo in self._undo:
            undo()
        self._undo = []

    def clear(self) -> None:
        """Drop the inputs of a complete step."""
        self._batches = []

    def measure(self) -> float | None:
        """
        The mean loss per predicted token over the batch of this step, without dropout. Every process must call this.

        Returns:
            `float`: The same on every process; `None` if the training passes had no labels, or predicted nothing.
        """
        if not self._batches or any(batch.get("labels") is None for batch in self._batches):
            return None
        totals = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), evaluation_mode(self.model):
            for batch in self._batches:
                predicted = (batch["labels"][..., 1:] != -100).sum().item()
                if predicted == 0 and not is_fsdp(self.model):  # its mean loss is NaN
                    continue
                loss = self.model(**batch, use_cache=False).loss
                if predicted:
                    totals += torch.tensor([loss.item() * predicted, predicted], dtype=torch.float64)
        reshard(self.model)
        if rank_and_world_size()[1] > 1:
            totals = sum_over_processes(totals.to(next(self.model.parameters()).device))
        total, count = totals.tolist()
        return total / count if count else None

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        watching, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = watching

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._watching and module.training:
            kept = {name: value for name, value in kwargs.items() if name not in LEFT_OUT}
            if args:
                kept["input_ids"] = args[0]
            self._batches.append(kept)
