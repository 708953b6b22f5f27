"""Checks whether probes and diagnoses can use a model that is being trained."""

from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from ..errors import PlasticityError
from .sharding import is_fsdp


def check_sharding(model: nn.Module) -> None:
    """
    Check that weights and gradients can be read.

    Raises:
        [`PlasticityError`]: The model is sharded by something other than FSDP2.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise PlasticityError("model: FSDP1 is not supported; use FSDP2 (fsdp_version: 2 in Accelerate) or DDP")
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise PlasticityError("model: ZeRO-3 of DeepSpeed is not supported; use FSDP2 or DDP")
    if not is_fsdp(model) and any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise PlasticityError("model: tensor parallelism is not supported; use FSDP2 or DDP")


def check_gradients(model: nn.Module) -> None:
    """
    Check that gradients can be computed besides those of the training.

    Raises:
        [`PlasticityError`]: A backward pass would change the training, or requires its loss scale.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision == "fp16":
        raise PlasticityError(
            "mixed_precision: fp16 is not supported, because small gradients are 0 without the loss scale of the "
            "training; use bf16 or no"
        )
    if any(parameter._post_accumulate_grad_hooks for parameter in model.parameters()):
        raise PlasticityError(
            "optimizer: it updates a parameter in the backward pass, so the backward passes of a measurement would "
            "change the training; use an optimizer with a separate step"
        )
