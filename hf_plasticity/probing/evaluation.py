"""Validation loss on token blocks, over all processes."""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..network import reshard


if TYPE_CHECKING:
    from ..data.blocks import Blocks

    TokenBlocks = Blocks | np.ndarray | torch.Tensor


_APART: ContextVar[bool] = ContextVar("apart", default=False)


def process_rank_and_count() -> tuple[int, int]:
    """This process's number and how many share the model."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() and not _APART.get() else (0, 1)


@contextlib.contextmanager
def each_process_apart() -> Iterator[None]:
    """Within, each process of a launch probes a model of its own, as if there were no others."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def from_main_process(compute: Callable[[], Any]) -> Any:
    """What `compute` returns on the main process, on all of them: only that one is sure to see the run folder."""
    rank, world = process_rank_and_count()
    box = [compute() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def to_device(batch: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(batch, dtype=torch.long).to(device, non_blocking=True)


@torch.no_grad()
def validation_loss(model: nn.Module, blocks: "TokenBlocks", num_sequences: int, micro_batch_size: int) -> float:
    """
    Mean loss over the first `num_sequences` blocks, in nats per token. Leaves the model in evaluation mode.

    Args:
        model (`nn.Module`): Takes `input_ids` and `labels`, returns their mean loss.
        blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`): Token ids.
        num_sequences (`int`): How many of them, at most `len(blocks)`.
        micro_batch_size (`int`): Sequences in one forward on one process.

    Returns:
        `float`: The same on every process.
    """
    model.eval()
    rank, world = process_rank_and_count()
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    starts = range(0, num_sequences, micro_batch_size)
    # Sharded models run in step, so every process makes as many forwards: one without a batch left makes its own
    # first again, and it does not count.
    for turn in range(math.ceil(len(starts) / world)):
        mine = turn * world + rank
        first = starts[mine] if mine < len(starts) else 0
        batch = blocks[np.arange(first, min(first + micro_batch_size, num_sequences))]
        input_ids = to_device(batch, device)
        loss = model(input_ids=input_ids, labels=input_ids).loss
        if mine < len(starts):
            total += loss.double() * len(input_ids)
    if world > 1:
        dist.all_reduce(total)
    reshard(model)
    return (total / num_sequences).item()
