"""New weights from the initial distribution of a model."""

import copy
import hashlib

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..errors import PlasticityError


class InitialDistribution:
    """
    The distribution from which a model initializes its weights, for new draws. It uses the model's `_init_weights`,
    including details such as the smaller output projections of GPT-2.

    A draw depends only on (seed, step, parameter name). Whole parameters are drawn on the CPU, so that the draw is the
    same for any number of processes and for sharded models.

    Args:
        model (`PreTrainedModel`): Plain or sharded by FSDP2. Its weights are not read.

    Example:

    ```python
    >>> initial = InitialDistribution(model)
    >>> for slices in structure.layers[0].units.incoming[0].slices([3, 7]):
    ...     slices.write_(slices.of(initial.draw(slices.name, seed=0, step=100)))
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
            [`PlasticityError`]: A model built from the configuration has no such parameter, or does not initialize it.
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
        """Initialize as Transformers does: inner modules first, each by the innermost model that contains it."""
        for depth in reversed(range(len(modules))):
            model = next(module for module in reversed(modules[: depth + 1]) if isinstance(module, PreTrainedModel))
            model._init_weights(modules[depth])


def _key(seed: int, step: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
