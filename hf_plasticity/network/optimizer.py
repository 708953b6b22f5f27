"""The state of an optimizer for a parameter."""

import torch
from torch import nn

from ..errors import PlasticityError


def optimizer_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """
    The state that an optimizer keeps for each entry of a parameter, such as `exp_avg` and `exp_avg_sq`. The tensors
    are not copies. They have the parameter's shape and shards, and do not include the step count.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer, plain or wrapped by Accelerate.
        parameter (`nn.Parameter`): A parameter that it updates.

    Returns:
        `dict[str, torch.Tensor]`: By name; empty before the parameter's first update.

    Raises:
        [`PlasticityError`]: The optimizer does not update this parameter, or keeps state of another shape.
    """
    if not any(parameter is other for group in optimizer.param_groups for other in group["params"]):
        raise PlasticityError(
            f"optimizer: it does not update a parameter of shape {tuple(parameter.shape)} (frozen, or replaced when "
            "the model was wrapped); its state cannot be found"
        )
    moments = {}
    # Not `optimizer.state[parameter]`, which would create an entry.
    for name, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            continue
        if value.shape != parameter.shape:
            raise PlasticityError(
                f"optim: its state '{name}' has shape {tuple(value.shape)} for a parameter of "
                f"{tuple(parameter.shape)}; use an optimizer with one number for each weight, such as adamw_torch"
            )
        moments[name] = value
    return moments
