"""Read and edit some entries of a parameter in place, sharded or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .sharding import local, shard_offset, whole


@dataclass(frozen=True)
class Slices:
    """
    The slices of a parameter at some positions of one dimension: rows or columns of a matrix, entries of a bias.

    Pass a tensor with the layout of the parameter, such as its moments in the optimizer, to edit the same slices of
    that tensor. Under FSDP2, every process edits its own shard, so every process must make the same call after
    [`reshard`].

    Args:
        name (`str`): The parameter's name in `model.named_parameters()`.
        parameter (`nn.Parameter`): The parameter, whole or sharded by FSDP2.
        dim (`int`): The dimension.
        index (`torch.LongTensor` of shape `(slices,)`): The positions in the whole parameter, on the CPU.
    """

    name: str
    parameter: nn.Parameter
    dim: int
    index: torch.Tensor

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of these slices of a whole tensor that has the parameter's shape."""
        self._check(tensor)
        return tensor.index_select(self.dim, self.index.to(tensor.device))

    def read(self, tensor: torch.Tensor | None = None) -> torch.Tensor:
        """A copy of the slices. A sharded parameter is gathered, so every process must call this."""
        return self.of(whole(self.parameter if tensor is None else tensor))

    @torch.no_grad()
    def zero_(self, tensor: torch.Tensor | None = None) -> None:
        """Set the slices to zero."""
        shard, _, position = self._shard(self.parameter if tensor is None else tensor)
        shard.index_fill_(self.dim, position, 0)

    @torch.no_grad()
    def write_(self, values: torch.Tensor, tensor: torch.Tensor | None = None) -> None:
        """
        Overwrite the slices.

        Args:
            values (`torch.Tensor`): Of the shape that `read` returns, the same on every process.
            tensor (`torch.Tensor`, *optional*): The tensor to write to instead of the parameter.
        """
        tensor = self.parameter if tensor is None else tensor
        expected = (*tensor.shape[: self.dim], len(self.index), *tensor.shape[self.dim + 1 :])
        if tuple(values.shape) != expected:
            raise ValueError(f"{self.name}: values of shape {tuple(values.shape)} for slices of shape {expected}")
        shard, here, position = self._shard(tensor)
        values = values.index_select(self.dim, here.nonzero().flatten().to(values.device))
        for dim, (start, length) in enumerate(zip(shard_offset(tensor), shard.shape)):
            if dim != self.dim:
                values = values.narrow(dim, start, length)
        shard.index_copy_(self.dim, position, values.to(shard))

    def _shard(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The shard of this process, the slices that are in it, and their positions there."""
        self._check(tensor)
        shard, start = local(tensor.detach()), shard_offset(tensor)[self.dim]
        here = (self.index >= start) & (self.index < start + shard.shape[self.dim])
        return shard, here, (self.index[here] - start).to(shard.device)

    def _check(self, tensor: torch.Tensor) -> None:
        if tensor.shape != self.parameter.shape:
            raise ValueError(
                f"{self.name}: shape {tuple(tensor.shape)} instead of the parameter's {tuple(self.parameter.shape)}"
            )


@dataclass(frozen=True)
class Partition:
    """
    The outputs or inputs of a linear module that belong to each hidden unit or attention head.

    Args:
        name (`str`): The module's name in `model.named_modules()`.
        module (`nn.Linear` or `Conv1D`): The module. Its parameters are looked up at each use, because FSDP2 replaces
            them.
        side (`str`): `"outputs"` or `"inputs"`.
        index (`torch.LongTensor` of shape `(members, width)`): For each unit or head its positions among the outputs
            or inputs.
    """

    name: str
    module: nn.Linear | Conv1D
    side: Literal["outputs", "inputs"]
    index: torch.Tensor

    @property
    def dim(self) -> int:
        """The partitioned dimension of the weight: (outputs, inputs) for `Linear`, the reverse for `Conv1D`."""
        return int((self.side == "outputs") == isinstance(self.module, Conv1D))

    def slices(self, members: Sequence[int] | torch.Tensor) -> list[Slices]:
        """
        The slices of some units or heads: of the weight and, for outputs, of the bias.

        Args:
            members (`Sequence[int]` or `torch.Tensor`): Their indices, or a boolean mask over all of them.
        """
        members = torch.as_tensor(members).cpu()
        index = self.index[members if members.dtype == torch.bool else members.long()].flatten()
        slices = [Slices(f"{self.name}.weight", self.module.weight, self.dim, index)]
        if self.side == "outputs" and self.module.bias is not None:
            slices.append(Slices(f"{self.name}.bias", self.module.bias, 0, index))
        return slices


class UnsupportedModuleError(Exception):
    """A module has a structure that is not supported; the message says why."""


def features(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Inputs and outputs of a linear module."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def linear_children(module: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The linear modules directly in a module, by name."""
    return {name: child for name, child in module.named_children() if isinstance(child, nn.Linear | Conv1D)}


def check_plain(name: str, module: nn.Linear | Conv1D) -> None:
    """
    Raises:
        [`UnsupportedModuleError`]: The weight is not a plain matrix, because it is quantized.
    """
    inputs, outputs = features(module)
    shape = (inputs, outputs) if isinstance(module, Conv1D) else (outputs, inputs)
    if tuple(module.weight.shape) != shape or not module.weight.is_floating_point():
        raise UnsupportedModuleError(f"'{name}' has no plain {outputs} by {inputs} matrix (its weights are quantized)")
