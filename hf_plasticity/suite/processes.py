"""Several processes that wait for each other, also for hours."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from ..errors import PlasticityError


FOREVER = timedelta(days=365)


def make_accelerator(bf16: bool, use_cpu: bool) -> Accelerator:
    """
    Accelerate as it was launched, in the precision of the probes.

    Args:
        bf16 (`bool`): Whether it is mixed.
        use_cpu (`bool`): Whether accelerators are left alone.

    Raises:
        [`PlasticityError`]: `accelerate launch` asks for something that the probes cannot be computed with.
    """
    precision, launched = "bf16" if bf16 else "no", os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in (precision, "no"):
        raise PlasticityError(
            f"mixed_precision: {launched} is what it was launched with, and '{precision}' what the probes are to be "
            "computed in; launch it without"
        )
    accelerator = Accelerator(mixed_precision=precision, cpu=use_cpu)
    kind = accelerator.distributed_type
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharding and kind == DistributedType.NO:
        raise PlasticityError("fsdp: a single process has nobody to shard a model with; launch more, or without FSDP")
    if sharding and not accelerator.is_fsdp2:
        why = "only version 2 is supported" if kind == DistributedType.FSDP else f"Accelerate cannot on {kind.value}"
        raise PlasticityError(f"fsdp: asked for, and {why}; launch with recipes/accelerate/fsdp2.yaml or ddp.yaml")
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise PlasticityError(f"distributed_type: {kind.value} is not supported; launch with FSDP2 or DDP")
    return accelerator


class Processes:
    """
    The processes of a launch. They wait for each other over gloo: it leaves the GPU alone, and does not take a process
    for dead that is not heard of for ten minutes. A probe, or the wait for a cycle, may take longer.

    Args:
        use_cpu (`bool`): Whether accelerators are left alone.
    """

    def __init__(self, use_cpu: bool):
        # Left to themselves, processes of one launch on a machine without an accelerator know nothing of each other
        # (seen in accelerate 1.15.0).
        self.use_cpu = use_cpu or not torch.accelerator.is_available()
        PartialState(cpu=self.use_cpu, timeout=FOREVER)
        self.rank, self.count, self._group = 0, 1, None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=FOREVER)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """`item` of every process, on all of them."""
        items = [item] * self.count
        if self._group is not None:
            dist.all_gather_object(items, item, group=self._group)
        return items

    def from_main(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns on the main process, on all of them; what it raises, too."""
        box = [None]
        if self.is_main:
            try:
                box = [(compute(), None)]
            except Exception as error:
                box = [(None, error)]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        value, error = box[0]
        if error is not None:
            raise error
        return value
