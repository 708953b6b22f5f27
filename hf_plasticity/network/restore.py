"""
Exact save and restore, so that a measurement changes neither the model nor its training.

- [`preserve_random_state`] restores the random states of Python, NumPy and torch.
- [`preserve_model`] also restores everything in the model.
- [`evaluation_mode`] also restores the attention implementation; in its context, the model is in evaluation mode.
"""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from .sharding import local, reshard


_COMPANIONS = "_hf_plasticity_companions"


@contextlib.contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch on exit."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextlib.contextmanager
def preserve_model(model: nn.Module, parameters: bool = True) -> Iterator[None]:
    """
    Restore a model exactly on exit, also after an error: parameters, buffers, gradients, `requires_grad`, the training
    mode of every module, and the random states. In the context, the model starts without gradients.

    Everything is restored in place, so that optimizers, DDP, FSDP2 and compiled graphs which refer to the parameters
    stay valid. Under FSDP2 every process must enter and leave.

    Args:
        model (`nn.Module`): Plain, or wrapped by DDP, FSDP2 or `torch.compile`.
        parameters (`bool`, *optional*, defaults to `True`): Whether to keep a copy of the parameters. `False` saves
            memory if nothing writes to them.
    """
    reshard(model)
    saved = [
        (parameter, parameter.requires_grad, parameter.grad, local(parameter).detach().clone() if parameters else None)
        for parameter in model.parameters()
    ]
    buffers = [(buffer, local(buffer).detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_random_state())
        for module in model.modules():
            for companion in vars(module).get(_COMPANIONS, ()):
                stack.enter_context(companion())
        for parameter, *_ in saved:
            parameter.grad = None
        try:
            yield
        finally:
            reshard(model)
            frozen_or_freed = any(parameter.requires_grad != requires_grad for parameter, requires_grad, *_ in saved)
            with torch.no_grad():
                for parameter, requires_grad, gradient, value in saved:
                    if value is not None:
                        local(parameter).copy_(value)
                    parameter.requires_grad_(requires_grad)
                    parameter.grad = gradient
                for buffer, value in buffers:
                    local(buffer).copy_(value)
            for module, training in modes:
                module.training = training
            if frozen_or_freed:
                _reread_types(model)


def preserve_with(module: nn.Module, context: Callable[[], contextlib.AbstractContextManager]) -> Callable[[], None]:
    """
    Make [`preserve_model`] enter a further context. Use it for state that belongs to a model but is not part of it,
    such as the accumulators of a mitigation, which forward passes of a probe must neither read nor change.

    Args:
        module (`nn.Module`): The model, or any module in it. The model can be wrapped later.
        context (`Callable[[], AbstractContextManager]`): Called each time a model that contains the module is
            preserved.

    Returns:
        `Callable[[], None]`: Call it to undo this.
    """
    companions = vars(module).setdefault(_COMPANIONS, [])
    companions.append(context)
    return lambda: companions.remove(context)


@contextlib.contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """
    Put a model in evaluation mode. Everything except the parameters is preserved as in [`preserve_model`], and also
    the attention implementation. In the context, a compiled model runs without its compiled code, which ignores hooks
    that are added after compilation.
    """
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    implementations = [config._attn_implementation_internal for config in configs]
    with preserve_model(model, parameters=False), _eager_if_compiled(model):
        try:
            model.eval()
            yield
        finally:
            for config, implementation in zip(configs, implementations):
                config._attn_implementation_internal = implementation


def _eager_if_compiled(model: nn.Module) -> contextlib.AbstractContextManager:
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def _reread_types(model: nn.Module) -> None:
    """
    FSDP2 takes the types of gradients from the trainable parameters at the first forward. If that is the forward of a
    probe with all parameters frozen under adapters, the next backward in mixed precision fails. Gathering the
    parameters makes FSDP2 read the types again (seen in torch 2.13.0; reported in
    https://github.com/pytorch/pytorch/issues/186998).
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
