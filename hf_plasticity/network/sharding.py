"""Tensors that FSDP2 may have sharded: this process's shard, the whole tensor, and back to the sharded state."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_fsdp(model: nn.Module) -> bool:
    """Whether any part of the model is sharded by FSDP2."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def reshard(model: nn.Module) -> None:
    """
    Free the parameters that FSDP2 has gathered. Call this before reading or writing parameters: after a forward
    without gradients the last group stays gathered, and writes to the sharded parameters are then silently lost.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a sharded tensor, or the tensor itself. It shares the storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, detached. A sharded one is gathered, so every process must call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def double(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor in float64: on its device, or on the CPU where the device has no float64."""
    tensor = whole(tensor)
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
