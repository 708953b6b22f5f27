"""The progress of a run: bars on a terminal, lines in a file."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TaskProgressCallback(ProgressCallback):
    """
    A bar for the run, and below it a bar for the current task instance with the loss.

    Args:
        position (`Callable[[int], dict]`): The `task`, `cycle` and `language` of an optimizer step.
    """

    def __init__(self, position: Callable[[int], dict[str, Any]]):
        super().__init__()
        self.position = position
        self.task_bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("run")
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None and (self.task_bar is None or state.global_step % args.task_steps == 0):
            self._close_task()
            position = self.position(state.global_step)
            self.task_bar = tqdm(
                total=args.task_steps,
                initial=state.global_step % args.task_steps,
                desc=f"cycle {position['cycle']}, task {position['task']}: {position['language']}",
                leave=False,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if self.task_bar is not None:
            self.task_bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.task_bar is not None and logs and "loss" in logs:
            self.task_bar.set_postfix(loss=f"{logs['loss']:.4f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close_task()
        super().on_train_end(args, state, control, **kwargs)

    def _close_task(self) -> None:
        if self.task_bar is not None:
            self.task_bar.close()
            self.task_bar = None


class LogLinesCallback(TrainerCallback):
    """One line for each log entry of the training loss, with the remaining time, including probes."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started_at, self.first_step = time.perf_counter(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        done = state.global_step - self.first_step
        if "loss" in logs and done:
            seconds = (time.perf_counter() - self.started_at) / done * (state.max_steps - state.global_step)
            print(
                f"step {state.global_step:,}/{state.max_steps:,}  cycle {logs['cycle']}, task {logs['task']} "
                f"({logs['language']})  loss {logs['loss']:.4f}  left {timedelta(seconds=round(seconds))}",
                flush=True,
            )
        elif "probe/auc" in logs:
            delta = f", ΔAUC {logs['probe/delta_auc']:+.2f}%" if "probe/delta_auc" in logs else ""
            print(
                f"step {state.global_step:,}/{state.max_steps:,}  probe: AUC {logs['probe/auc']:.2f}{delta}",
                flush=True,
            )
