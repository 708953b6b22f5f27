"""Fresh weights from a model's own initialization."""

import copy
import hashlib

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..errors import PlasticityError


class InitialLaw:
    """
    The distribution from which the weights of a model were initialized, for new draws: what `_init_weights` of the
    model does to each parameter, such as the smaller output projections of GPT-2.

    A draw depends on (seed, step, parameter name) alone. It is made on the CPU and whole, so that any number of
    processes, sharded or not, obtains the same one.

    Args:
        model (`PreTrainedModel`): Plain or sharded by FSDP2. Its weights are not read.

    Example:

    ```python
    >>> law = InitialLaw(model)
    >>> for slices in structure.layers[0].units.incoming[0].slices([3, 7]):
    ...     slices.write_(slices.of(law.draw(slices.name, seed=0, step=100)))
    ```
    """

    def __init__(self, model: PreTrainedModel):
        original = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
        with torch.device("meta"):
            self._model = original(copy.deepcopy(model.config))
        self._names = {name for name, _ in self._model.named_parameters()}

    @torch.no_grad()
    def draw(self, name: str, seed: int, step: int = 0) -> torch.Tensor:
        """
        Draw a whole parameter.

        Args:
            name (`str`): Its name in `model.named_parameters()`.
            seed (`int`): Of the run.
            step (`int`, *optional*, defaults to `0`): The training step, so that each reset has its own draw.

        Returns:
            `torch.Tensor`: On the CPU, in float32, of the parameter's whole shape.

        Raises:
            [`PlasticityError`]: The model as its configuration builds it has no such parameter, or does not initialize
                it.
        """
        if name not in self._names:
            raise PlasticityError(
                f"model: a '{type(self._model).__name__}' built from its configuration has no parameter '{name}', so "
                "its initial distribution is not known"
            )
        *path, leaf = name.split(".")
        modules: list[nn.Module] = [self._model]
        for child in path:
            modules.append(modules[-1].get_submodule(child))
        without_storage = modules[-1]._parameters[leaf]
        fresh = nn.Parameter(torch.full(without_storage.shape, torch.nan, dtype=torch.float32))
        modules[-1]._parameters[leaf] = fresh
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(_key(seed, step, name))
                self._initialize(modules)
        finally:
            modules[-1]._parameters[leaf] = without_storage
        if fresh.isnan().any():
            raise PlasticityError(f"model: '{type(self._model).__name__}' does not initialize its parameter '{name}'")
        return fresh.detach()

    def _initialize(self, modules: list[nn.Module]) -> None:
        """As Transformers does: a module after those in it, each by the innermost model that it is part of."""
        for depth in reversed(range(len(modules))):
            model = next(module for module in reversed(modules[: depth + 1]) if isinstance(module, PreTrainedModel))
            model._init_weights(modules[depth])


def _key(seed: int, step: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
