"""Validation loss on token blocks, over all processes."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..data.token_blocks import TokenBlocks
from ..distributed import rank_and_world_size
from ..network import reshard


def to_device(batch: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(batch, dtype=torch.long).to(device, non_blocking=True)


@contextlib.contextmanager
def without_router_loss(model: nn.Module) -> Iterator[None]:
    """A mixture of experts may add its router's auxiliary loss to `.loss`; in this context it does not."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    changed = {id(one): one for one in configs if getattr(one, "output_router_logits", False)}
    for config in changed.values():
        config.output_router_logits = False
    try:
        yield
    finally:
        for config in changed.values():
            config.output_router_logits = True


@torch.no_grad()
def validation_loss(model: nn.Module, blocks: TokenBlocks, num_sequences: int, micro_batch_size: int) -> float:
    """
    Mean loss over the first `num_sequences` blocks, in nats per token. Leaves the model in evaluation mode.

    Args:
        model (`nn.Module`): Takes `input_ids` and `labels`, returns their mean loss.
        blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`): Token ids.
        num_sequences (`int`): The number of blocks to use, at most `len(blocks)`.
        micro_batch_size (`int`): Sequences in one forward on one process.

    Returns:
        `float`: The same on every process.
    """
    model.eval()
    rank, world = rank_and_world_size()
    device = next(model.parameters()).device
    # Apple GPUs have no float64.
    total = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    starts = range(0, num_sequences, micro_batch_size)
    # All processes that share a sharded model must make the same number of forward passes. A process without a batch
    # left repeats its first one, which is not counted.
    for turn in range(math.ceil(len(starts) / world)):
        mine = turn * world + rank
        first = starts[mine] if mine < len(starts) else 0
        batch = blocks[np.arange(first, min(first + micro_batch_size, num_sequences))]
        input_ids = to_device(batch, device)
        with without_router_loss(model):
            loss = model(input_ids=input_ids, labels=input_ids).loss
        if mine < len(starts):
            total += loss.to(total.device).double() * len(input_ids)
    if world > 1:
        dist.all_reduce(total)
    reshard(model)
    return (total / num_sequences).item()
