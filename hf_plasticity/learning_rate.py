"""The learning rate within one task instance or one probe: a warmup, then any shape that Transformers supports."""

from collections.abc import Callable
from typing import Any

from .errors import PlasticityError


# Arguments of Transformers' warmups, in whose place is the linear one.
OF_WARMUP = ("warmup_type", "warmup_lr_rate")


def learning_rate_shape(
    scheduler_type: str,
    learning_rate: float,
    steps: int,
    warmup_steps: int,
    scheduler_kwargs: dict[str, Any] | None = None,
) -> Callable[[int], float]:
    """
    The factor of the peak learning rate at each step, counted from 0.

    The warmup is linear, `(step + 1) / warmup_steps`. Unlike in `transformers.get_scheduler`, the rate of the first
    step is not 0, because a run that restarts the warmup at every task instance would lose a step each time.

    Args:
        scheduler_type (`str`): A name of `transformers.SchedulerType`, such as `"constant_with_warmup"`, `"cosine"`.
        learning_rate (`float`): The peak. Arguments such as `min_lr` and `lr_end` are learning rates, not factors.
        steps (`int`): Length of the task instance or probe.
        warmup_steps (`int`): Steps of warmup, 0 for none.
        scheduler_kwargs (`dict`, *optional*): Further arguments of that scheduler (`lr_scheduler_kwargs`).

    Raises:
        [`PlasticityError`]: A scheduler that depends on more than the step, an argument that is not supported, or a
            warmup longer than `steps`.
    """
    import torch
    from transformers import SchedulerType, get_scheduler

    name = getattr(scheduler_type, "value", scheduler_type)
    names = [kind.value for kind in SchedulerType]
    if name not in names:
        raise PlasticityError(f"lr_scheduler_type: '{name}' is unknown; choose one of {', '.join(names)}")
    if not 0 <= warmup_steps <= steps:
        raise PlasticityError(f"warmup_steps: {warmup_steps} is not between 0 and the {steps} steps it is part of")
    if name in ("constant", "constant_with_warmup") and scheduler_kwargs:
        raise PlasticityError(f"lr_scheduler_kwargs: '{name}' takes none, and {', '.join(scheduler_kwargs)} is given")
    for argument in OF_WARMUP:
        if argument in (scheduler_kwargs or {}):
            raise PlasticityError(f"lr_scheduler_kwargs: {argument} is not supported, because the warmup is linear")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    try:
        scheduler = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=warmup_steps,
            num_training_steps=steps,
            scheduler_specific_kwargs=scheduler_kwargs or None,
        )
    except (TypeError, ValueError) as error:
        raise PlasticityError(f"lr_scheduler_type: '{name}' cannot be set up: {error}") from None
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise PlasticityError(f"lr_scheduler_type: '{name}' is not a function of the step alone; choose another")
    [shape] = scheduler.lr_lambdas
    return lambda step: (step + 1) / warmup_steps if step < warmup_steps else shape(step)
