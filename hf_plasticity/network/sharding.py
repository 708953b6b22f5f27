"""Access to tensors that FSDP2 may have sharded: the local shard, the whole tensor, and resharding."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # torch 2.13.0 has no public one

from ..errors import PlasticityError


def is_fsdp(model: nn.Module) -> bool:
    """Whether any part of the model is sharded by FSDP2."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def reshard(model: nn.Module) -> None:
    """
    Free the parameters that FSDP2 has gathered. Call this before reading or writing parameters: after a forward
    without gradients the last group stays gathered, and writes to the sharded parameters are silently lost (seen in
    torch 2.13.0; reported in https://github.com/pytorch/pytorch/issues/149029).
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
    """The whole tensor in float64: on its device, or on the CPU if the device has no float64."""
    tensor = whole(tensor)
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def shard_offset(tensor: torch.Tensor) -> tuple[int, ...]:
    """
    The offset of this process's shard in the whole tensor in each dimension; all 0 for a tensor that is not sharded.

    Raises:
        [`PlasticityError`]: The shard is not one block of the whole tensor (FSDP2 together with tensor parallelism).
    """
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.ndim
    if any(type(placement) not in (Shard, Replicate) for placement in tensor.placements):
        raise PlasticityError(
            f"model: a parameter is sharded as {tensor.placements}; only plain sharding and replication are supported"
        )
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset)


def shard_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """
    The part of a whole tensor that corresponds to this process's shard of another one, as a view.

    Args:
        value (`torch.Tensor`): A whole tensor, the same on every process: new weights, or a mask of entries.
        like (`torch.Tensor`): A parameter, or its state in the optimizer; of the same shape.
    """
    if value.shape != like.shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} cannot be sharded like one of {tuple(like.shape)}")
    for dim, (start, length) in enumerate(zip(shard_offset(like), local(like).shape)):
        value = value.narrow(dim, start, length)
    return value
