"""The base class of periodic callbacks: probes, diagnoses, evaluations, checkpoints."""

import copy
import math
import numbers
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .distributed import from_main_process
from .errors import PlasticityError
from .records import checkpoint_name, probed_checkpoints, read_records


UNITS = ("steps", "epochs", "tasks", "cycles")


@dataclass
class Timeline:
    """
    Converts optimizer steps to task instances, cycles and tokens.

    Args:
        task_steps (`int`, *optional*): Optimizer steps of a task instance, if the training has task instances.
        tasks_per_cycle (`int`, *optional*): Task instances of a cycle, if the training has cycles.
        tokens_per_step (`int`, *optional*): Training tokens of an optimizer step over all processes.

    Raises:
        [`PlasticityError`]: A count that is not positive, or cycles without task instances.
    """

    task_steps: int | None = None
    tasks_per_cycle: int | None = None
    tokens_per_step: int | None = None

    def __post_init__(self) -> None:
        for name in ("task_steps", "tasks_per_cycle", "tokens_per_step"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise PlasticityError(f"{name}: {count} is not a positive number")
        if self.tasks_per_cycle is not None and self.task_steps is None:
            raise PlasticityError(f"tasks_per_cycle: {self.tasks_per_cycle} without task_steps; give both")

    @property
    def cycle_steps(self) -> int | None:
        """Optimizer steps of a cycle, or `None` if the training has no cycles."""
        return None if self.tasks_per_cycle is None else self.tasks_per_cycle * self.task_steps

    def position(self, step: int) -> dict[str, int | None]:
        """
        The position after `step` optimizer steps: completed `cycle`s and `task` instances, `step`, and `tokens`;
        `None` for units that the training does not have.
        """
        task = None if self.task_steps is None else step // self.task_steps
        return {
            "cycle": None if self.tasks_per_cycle is None else task // self.tasks_per_cycle,
            "task": task,
            "step": step,
            "tokens": None if self.tokens_per_step is None else step * self.tokens_per_step,
        }

    def checkpoint_name(self, step: int) -> str:
        """The name of the checkpoint probed after `step` steps: `cycle-003`, or `task-012` within a cycle."""
        return checkpoint_name(self.position(step), self.tasks_per_cycle)

    def describe(self, step: int) -> str:
        """`"cycle 3"`, `"task 12"` within a cycle, or `"step 1000"` in a training without task instances."""
        if self.task_steps is None or step % self.task_steps:
            return f"step {step}"
        if self.cycle_steps is None or step % self.cycle_steps:
            return f"task {step // self.task_steps}"
        return f"cycle {step // self.cycle_steps}"

    def steps_between(
        self, every: float, unit: str, max_steps: int | None = None, epoch_steps: int | None = None
    ) -> int:
        """
        Optimizer steps between two points.

        Args:
            every (`int` or `float`): Units between two points. With the unit `"steps"`, a number below 1 is a share of
                the whole training, as in `TrainingArguments.eval_steps`.
            unit (`str`): One of `UNITS`.
            max_steps (`int`, *optional*): Optimizer steps of the training, required for a share.
            epoch_steps (`int`, *optional*): Optimizer steps of an epoch, required for epochs.

        Raises:
            [`PlasticityError`]: An unknown unit, a number that is not a whole number, or a training without the unit.
        """
        if unit not in UNITS:
            raise PlasticityError(f"unit: '{unit}' is unknown; choose one of {', '.join(UNITS)}")
        number = isinstance(every, numbers.Real) and not isinstance(every, bool)
        if number and unit == "steps" and 0 < every < 1 and max_steps is not None:
            return math.ceil(every * max_steps)
        if not number or every < 1 or every % 1 != 0:
            share = ", or a share of the training between 0 and 1" if unit == "steps" else ""
            raise PlasticityError(f"every: {every!r} is not a whole number of {unit}{share}")
        every = int(every)
        if unit == "steps":
            return every
        if unit == "epochs":
            if epoch_steps is None:
                raise PlasticityError(f"unit: '{unit}' requires a dataset with a length; use steps")
            return every * epoch_steps
        if self.task_steps is None:
            raise PlasticityError(f"task_steps: missing; the unit '{unit}' requires the steps of a task instance")
        if unit == "tasks":
            return every * self.task_steps
        if self.cycle_steps is None:
            raise PlasticityError("tasks_per_cycle: missing; the unit 'cycles' requires the task instances of a cycle")
        return every * self.cycle_steps


class PeriodicCallback(TrainerCallback):
    """
    Call `act`, which subclasses implement, at regular points of a training.

    The callback acts before the next step, so that the checkpoint of the point is on disk and a killed run repeats
    only this point. At the end of the training, it acts at the end of the last epoch, before the Trainer loads the
    best model (`load_best_model_at_end`) and before trackers close.

    Args:
        timeline ([`Timeline`]): The timeline of the training.
        every (`int` or `float`): Units between two points, see [`Timeline.steps_between`].
        unit (`str`, *optional*, defaults to `"steps"`): `"steps"`, `"epochs"`, `"tasks"` or `"cycles"`.
        at_start (`bool`, *optional*, defaults to `True`): Whether the untrained model is a point.
        at_end (`bool`, *optional*, defaults to `False`): Whether the end of the training is always a point.
        output_dir (`str` or `Path`, *optional*): The run folder; `args.output_dir` by default.
        trainer (`Trainer`, *optional*): The trainer whose `log` receives the scores. By default the one that runs the
            callback.
    """

    # The file of the callback's records in the run folder.
    records_file: str | None = None
    # Whether the callback saves probed models in the run folder.
    save_checkpoints = False
    # Whether a training from step 0 requires a folder without such records and models.
    requires_new_folder = True

    def __init__(
        self,
        timeline: Timeline,
        every: float,
        unit: str = "steps",
        *,
        at_start: bool = True,
        at_end: bool = False,
        output_dir: str | Path | None = None,
        trainer: Trainer | None = None,
    ):
        # The length of the training, and whether it counts epochs, are known only when it begins.
        timeline.steps_between(every, unit, max_steps=sys.maxsize, epoch_steps=1)
        self.timeline, self.every, self.unit = timeline, every, unit
        self.at_start, self.at_end = at_start, at_end
        self.output_dir = output_dir
        self._given_trainer = self.trainer = trainer
        self._acted_at: int | None = None

    def act(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """
        Act on the model after `step` optimizer steps.

        Args:
            step (`int`): Completed optimizer steps.
            model (`nn.Module`): The model that is trained, as the Trainer passes it to callbacks.
            tokenizer (`Any`): The Trainer's `processing_class`.
            folder (`Path`): The run folder.
            args (`TrainingArguments`): The arguments of the training.
        """
        raise NotImplementedError

    def prepare(self, model: nn.Module, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        """Called once when training begins, for checks before the first step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        # The callback may be used in several trainings, one after another.
        self.trainer, self._acted_at = self._given_trainer or running_training()[0], None
        if state.global_step == 0 and self.requires_new_folder:
            self._check_folder(self._folder(args))
        self.prepare(model, self._folder(args), args, state)
        # A run that was killed after its last step has no remaining epoch.
        if state.global_step >= state.max_steps > 0:
            self._act_if_due(args, state, control, model, ended=True, **kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._act_if_due(args, state, control, model, ended=False, **kwargs)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        # With `eval_strategy="epoch"`, early stopping is decided after `on_epoch_end`.
        self._act_if_stopped(args, state, control, model, **kwargs)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._act_if_stopped(args, state, control, model, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if not args.load_best_model_at_end:  # otherwise this is the best model
            self._act_if_stopped(args, state, control, model, **kwargs)

    def _act_if_stopped(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Act at the end of a training that a callback has stopped, unless this is done."""
        stopped_early = control.should_training_stop and state.global_step < state.max_steps
        if stopped_early and self._acted_at != state.global_step:
            self._act_if_due(args, state, control, model, ended=True, **kwargs)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps or control.should_training_stop:
            self._act_if_due(args, state, control, model, ended=True, **kwargs)

    def _act_if_due(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        ended: bool,
        processing_class: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step
        epoch_steps = _steps_of_an_epoch(train_dataloader, args) if self.unit == "epochs" else None
        period = self.timeline.steps_between(self.every, self.unit, state.max_steps, epoch_steps)
        due = self.at_start if step == 0 else step % period == 0 or (ended and self.at_end)
        if due:
            self._acted_at = step
            with _flags_preserved(control):
                self.act(step, model, processing_class, self._folder(args), args)

    def _check_folder(self, folder: Path) -> None:
        """Raise an error if the folder has records or probed models of another training."""
        if self.save_checkpoints and (names := from_main_process(lambda: [one.name for one in _probed(folder)])):
            raise PlasticityError(
                f"output_dir: '{folder}' has probed models of another training ({', '.join(names)}); resume that "
                "training (resume_from_checkpoint), choose another folder, or delete them"
            )
        if self.records_file and from_main_process(lambda: len(read_records(folder / self.records_file))):
            raise PlasticityError(
                f"output_dir: '{folder}' has {self.records_file} of another training; resume that training "
                "(resume_from_checkpoint), choose another folder, or delete the file"
            )

    def _folder(self, args: TrainingArguments) -> Path:
        return Path(self.output_dir or args.output_dir)

    def log(self, scores: dict[str, float]) -> None:
        """Send scores through `Trainer.log`, so that every tracker and the console show them."""
        if self.trainer is not None:
            # Not the `log` of a subclass: that of TRL's trainers adds the averages of their own metrics to every entry
            # and starts them again, so that a probe would change what is logged of the training.
            Trainer.log(self.trainer, scores)


def _probed(folder: Path) -> list[Path]:
    return probed_checkpoints(folder) if folder.is_dir() else []


def _steps_of_an_epoch(dataloader: Any, args: TrainingArguments) -> int | None:
    """Optimizer steps of an epoch, as the Trainer counts them; `None` for a dataset without a length."""
    try:
        batches = len(dataloader)
    except TypeError:
        return None
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))


@contextmanager
def _flags_preserved(control: TrainerControl) -> Iterator[None]:
    # `Trainer.log` clears `should_log` (seen in transformers 5.23.0), and the log would have no training loss for this
    # step.
    flags = copy.copy(vars(control))
    try:
        yield
    finally:
        vars(control).update(flags)


def running_training() -> tuple[Trainer | None, str | None]:
    """
    The Trainer that is calling a callback, and the checkpoint that it resumes from. Transformers passes neither to
    callbacks (seen in transformers 5.23.0), and only `Trainer.log` reaches every tracker.
    """
    frame = sys._getframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and "resume_from_checkpoint" in frame.f_locals:
            return candidate, frame.f_locals["resume_from_checkpoint"]
        frame = frame.f_back
    return None, None
