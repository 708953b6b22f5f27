"""The processes of one launch: their ranks, and communication between them."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState


T = TypeVar("T")

# A probe, or the wait for a checkpoint, may take hours. The default timeout of NCCL is ten minutes.
LONG_TIMEOUT = timedelta(days=365)

_independent: ContextVar[bool] = ContextVar("independent", default=False)
# The group for messages between processes; `None` is the default group.
_group: dist.ProcessGroup | None = None


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes that share the model."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() and not _independent.get() else (0, 1)


def is_main_process() -> bool:
    """Whether this is the process that writes to the run folder."""
    return rank_and_world_size()[0] == 0


@contextlib.contextmanager
def independent_processes() -> Iterator[None]:
    """A context in which each process of the launch has its own model."""
    token = _independent.set(True)
    try:
        yield
    finally:
        _independent.reset(token)


def from_main_process(compute: Callable[[], T]) -> T:
    """
    Run `compute` on the main process and return its result on every process. An exception that it raises is raised on
    every process. Use it to read the run folder, because other processes may see an older state of it.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return compute()
    box: list = [None]
    if rank == 0:
        try:
            box = [(compute(), None)]
        except Exception as error:
            box = [(None, error)]
    dist.broadcast_object_list(box, src=0, group=_group)
    value, failure = box[0]
    if failure is not None:
        raise failure
    return value


def gather(item: T) -> list[T]:
    """The `item` of every process, in the order of their ranks, on every process."""
    _, world_size = rank_and_world_size()
    items = [item] * world_size
    if world_size > 1:
        dist.all_gather_object(items, item, group=_group)
    return items


def start_processes(use_cpu: bool) -> bool:
    """
    Initialize the processes of a launch that may have to wait for each other for hours, with messages over gloo.

    Args:
        use_cpu (`bool`): Whether to use only the CPU.

    Returns:
        `bool`: Whether the processes compute on the CPU.
    """
    global _group
    # Without this, several CPU processes of one launch do not join a group (seen in accelerate 1.15.0; reported in
    # https://github.com/huggingface/accelerate/issues/2741).
    use_cpu = use_cpu or not torch.accelerator.is_available()
    PartialState(cpu=use_cpu, timeout=LONG_TIMEOUT)
    _group = None
    if dist.is_initialized() and dist.get_world_size() > 1:
        _group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    return use_cpu
