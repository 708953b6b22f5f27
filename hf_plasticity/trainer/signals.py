"""Ctrl-C and SIGTERM: the run stops after the next step with a complete checkpoint, the same on every process."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingInterrupted


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """
    In its context, the first signal requests a stop, and a second Ctrl-C ends the process immediately.

    Processes agree on the largest signal that any of them received. At every step each one starts an asynchronous
    reduction over gloo and reads the result of the step before. No process waits for a GPU, and all stop after the
    same step, one after the first signal.
    """

    def __init__(self):
        self.received = 0
        self.agreed = 0
        self._group: dist.ProcessGroup | None = None
        self._reduction: tuple[dist.Work, torch.Tensor] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        self.received = self.agreed = 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
        if self._group is not None and kind in (None, TrainingInterrupted):
            if self._reduction is not None:
                self._reduction[0].wait()
            dist.destroy_process_group(self._group)
        self._reduction = self._group = None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signum
        name, times = signal.Signals(signum).name, "again" if signum == signal.SIGINT else "twice"
        print(
            f"\n{name}: the run stops after the next step; press Ctrl-C {times} to end it immediately",
            file=sys.stderr,
            flush=True,
        )

    def stop_requested(self) -> bool:
        """Whether to stop. All processes call this together at every step and get the same answer."""
        if self.agreed or self._group is None:
            self.agreed = self.agreed or self.received
            return bool(self.agreed)
        if self._reduction is not None:
            work, signum = self._reduction
            work.wait()
            self.agreed, self._reduction = int(signum), None
        if not self.agreed:
            signum = torch.tensor(self.received)
            self._reduction = dist.all_reduce(signum, dist.ReduceOp.MAX, self._group, async_op=True), signum
        return bool(self.agreed)

    def raise_if_requested(self) -> None:
        """Abort a probe when a stop is requested. Its checkpoint is on disk, so the resumed run repeats it."""
        if self.stop_requested():
            raise TrainingInterrupted("in a probe", self.agreed)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stop_requested():
            control.should_save = control.should_training_stop = True
