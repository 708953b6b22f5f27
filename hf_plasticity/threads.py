"""The CPU threads of a run: all physical cores, divided among the processes of this machine."""

import os
from pathlib import Path

import torch
from transformers.utils import logging

from .allocation import keep_freed_memory
from .errors import PlasticityError


logger = logging.get_logger(__name__)

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """The physical cores that this process may use, by its affinity and the limit of its control group."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_siblings(cpu) for cpu in cpus})
    if CGROUP_LIMIT.exists():
        quota, period = CGROUP_LIMIT.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _siblings(cpu: int) -> str:
    """
    An identifier that the hardware threads of one core share; the number of the CPU if the system does not provide it.
    """
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(cpu)


def local_processes() -> int:
    """The processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def choose_threads(requested: int | None, recorded: int | None) -> int:
    """
    The number of CPU threads of this process.

    Args:
        requested (`int`, *optional*): The setting `cpu_threads`.
        recorded (`int`, *optional*): The number that the run was started with. The last bits of its results depend on
            it, so a run resumes with the same number.

    Returns:
        `int`: The first of: `requested`; `recorded`; an explicit `OMP_NUM_THREADS`; the available cores divided among
        the local processes. `accelerate launch` sets `OMP_NUM_THREADS` to 1 by default, which is not explicit.

    Raises:
        [`PlasticityError`]: More threads than cores are requested, or fewer than one.
    """
    cores, processes = available_cores(), local_processes()
    if requested is not None:
        if requested < 1:
            raise PlasticityError(f"cpu_threads: {requested} is not a positive number")
        if requested * processes > cores:
            each = f" in each of {processes} processes" if processes > 1 else ""
            raise PlasticityError(
                f"cpu_threads: {requested}{each} exceeds the number of available cores, {cores}; use fewer"
            )
        if recorded not in (None, requested):
            logger.warning(f"the run was started with {recorded} CPU threads; its last bits change with {requested}")
        return requested
    if recorded is not None:
        if recorded * processes > cores:
            logger.warning(
                f"the run resumes with its original {recorded} CPU threads on {cores} cores: it is slow, "
                "but the results stay the same"
            )
        return recorded
    explicit = os.environ.get("OMP_NUM_THREADS", "")
    launched_by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if explicit.isdigit() and not (launched_by_accelerate and explicit == "1"):
        return int(explicit)
    return max(1, cores // processes)


def set_threads(threads: int) -> None:
    """Set the number of CPU threads, and let the process keep the memory of freed tensors."""
    torch.set_num_threads(threads)
    keep_freed_memory()
