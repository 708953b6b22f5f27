"""
A process that measures cases: `python -m hf_plasticity.benchmark.worker CASES`, with the cases as JSON.

It writes one JSON object per line to its standard output, and after each waits for a line on its standard input. The
workers of several contenders can therefore take turns, so that other load on the machine slows all of them alike.
"""

import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from transformers.utils import logging

from ..errors import one_line
from .case import Case
from .contenders import CONTENDERS, synchronize, timed


class Watch:
    """
    Measures the time of a contender.

    Args:
        case ([`Case`]): The case, with the length of the windows.
        say (`Callable[[dict], None]`): Sends a message and waits.
    """

    def __init__(self, case: Case, say: Callable[[dict[str, Any]], None]):
        self.case, self._say = case, say
        self._count, self._start = 0, 0.0
        self._began: float | None = time.perf_counter()
        self.results: dict[str, Any] = {}

    def step(self) -> None:
        """Called after each optimizer step."""
        self._count += 1
        beyond = self._count - self.case.warmup
        if beyond < 0 or beyond % self.case.window:
            return
        synchronize(self.case.device)
        if beyond == 0:
            self.ready()
        else:
            self._say({"seconds": (time.perf_counter() - self._start) / self.case.window})
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Measure one call; the first is a warmup."""
        with timed(self.case.device) as seconds:
            yield
        if self._began is not None:
            self.ready()
        else:
            self._say({"seconds": seconds[0]})

    def ready(self) -> None:
        """Start the measurement."""
        if self.case.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._say({"ready": time.perf_counter() - self._began})
        self._began = None


def measure(case: Case, say: Callable[[dict[str, Any]], None]) -> None:
    """Run a case; if it does not fit in memory and may shrink, halve the batch until it fits."""
    if case.threads:
        torch.set_num_threads(case.threads)
    limit_memory(case.memory_gb)
    while True:
        problem = None
        watch = Watch(case, say)
        try:
            CONTENDERS[case.contender](case, watch)
        except torch.OutOfMemoryError:
            problem = f"out of memory with {case.batch_size} sequences"
        except Exception as error:
            problem = f"{type(error).__name__}: {one_line(error)[:200]}"
            shrinkable = "out of memory" in str(error)
            if not shrinkable:
                case = case.but(shrinks=False)
        result = {"done": True, "memory": peak_memory(case.device), "batch_size": case.batch_size, **watch.results}
        reset_state()
        if problem is None:
            return say(result)
        if not case.shrinks or case.batch_size == 1:
            return say({"failed": problem})
        case = case.but(batch_size=case.batch_size // 2)


def compile_only(case: Case) -> None:
    """
    Let `torch.compile` fill its cache on disk. The memory is limited so that many processes can do this at the same
    time. The compiled code does not depend on this limit.
    """
    limit_memory(case.memory_gb)
    with contextlib.suppress(Exception):
        CONTENDERS[case.contender](case.but(warmup=1, windows=0), Watch(case, lambda message: None))
    reset_state()


def limit_memory(gigabytes: float) -> None:
    """Let torch use no more than this of the GPU; 0 for all of it."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total) if gigabytes else 1.0)


def peak_memory(device: str) -> int:
    """Peak memory in bytes: of torch since the warmup on a GPU, of the process since its start on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_state() -> None:
    """Clear the state that one case leaves in the process."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    # Output of libraries goes to stderr; stdout is only for messages.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    environment = dict(os.environ)
    main_process = int(os.environ.get("RANK", "0")) == 0

    def say(message: dict[str, Any]) -> None:
        if main_process:
            print(json.dumps(message), file=channel, flush=True)
            if not sys.stdin.readline():
                os._exit(0)

    say({"started": True})
    for description in json.loads(sys.argv[1]):
        case = Case(**description | {"options": tuple(map(tuple, description["options"]))})
        if case.compile_only:
            compile_only(case)
            say({"done": True})
        else:
            measure(case, say)
        # TrainingArguments leaves settings for Accelerate in the environment.
        os.environ.clear()
        os.environ.update(environment)
    os._exit(0)


if __name__ == "__main__":
    main()
