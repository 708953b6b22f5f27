"""Mitigations in any Trainer."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..distributed import from_main_process, is_main_process
from ..errors import PlasticityError
from ..periodic import Timeline, running_training
from ..records import MITIGATION_KEY, MITIGATIONS_FILE, append_record, read_records, write_atomically
from .base import Mitigation, describe
from .batch_loss import BatchLoss
from .methods import check_together, make_mitigation


logger = logging.get_logger(__name__)

STATE_FILE = "mitigations.pt"
# The last event of a mitigation.
END, NOTHING = "end", "nothing"


class MitigationCallback(TrainerCallback):
    """
    Applies mitigations while a Trainer trains, and writes what they did to `mitigations.jsonl` in the run folder.

    Decays and clips act right after the optimizer's update. Resets act at the end of the step, before a checkpoint is
    saved and before the model is probed. Probes and diagnoses of this package run without the mitigations. Every
    checkpoint has a file `mitigations.pt` with their state, which a resumed training requires.

    Args:
        mitigation (`str`, [`Mitigation`] or `Sequence[Mitigation]`):
            A name of `MITIGATIONS`, or mitigations in the order in which they act. A Trainer supports one callback.
        task_steps (`int`, *optional*): Optimizer steps of a task instance, if the training has task instances.
        tasks_per_cycle (`int`, *optional*): Task instances of a cycle, if the training has cycles.
        tokens_per_step (`int`, *optional*): Training tokens of an optimizer step over all processes.
        seed (`int`, *optional*): The seed of new weights; `args.seed` by default.
        output_dir (`str` or `Path`, *optional*): The run folder; `args.output_dir` by default.
        **arguments: Arguments of the mitigation, if its name is given.

    Raises:
        [`PlasticityError`]: An unknown name or argument. When training begins: a mitigation that does not apply to the
            model, a run folder with the records of another training, or a checkpoint without the state or with the
            state of other mitigations.

    Example:

    ```python
    >>> trainer.add_callback(MitigationCallback("redo", threshold=0.025, every=500))
    ```
    """

    # Whether a training that begins at step 0 requires a folder without records of mitigations.
    requires_new_folder = True

    def __init__(
        self,
        mitigation: str | Mitigation | Sequence[Mitigation],
        *,
        task_steps: int | None = None,
        tasks_per_cycle: int | None = None,
        tokens_per_step: int | None = None,
        seed: int | None = None,
        output_dir: str | Path | None = None,
        **arguments: Any,
    ):
        if isinstance(mitigation, str):
            mitigation = make_mitigation(mitigation, arguments)
        elif arguments:
            raise PlasticityError(
                f"mitigation: {', '.join(arguments)} must be given to the mitigation, not to its callback"
            )
        self.mitigations = [mitigation] if isinstance(mitigation, Mitigation) else list(mitigation)
        check_together(self.mitigations)
        self.timeline = Timeline(task_steps, tasks_per_cycle, tokens_per_step)
        self.seed, self.output_dir = seed, output_dir
        self._saved: Path | None = None
        self._batch_loss: BatchLoss | None = None

    # The Trainer's events

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Any,
        **kwargs: Any,
    ) -> None:
        trainer, checkpoint = running_training()
        if trainer is not None:
            others = [one for one in trainer.callback_handler.callbacks if isinstance(one, MitigationCallback)]
            if len(others) > 1:
                raise PlasticityError(
                    f"mitigation: the Trainer has {len(others)} callbacks; give the mitigations to one, as a list"
                )
        folder, step = self._folder(args), state.global_step
        if step == 0 and self.requires_new_folder:
            self._check_folder(folder)
        self._detach()  # from a training that ended with an error
        self._saved = None
        self._batch_loss = BatchLoss(model)
        try:
            for mitigation in self.mitigations:
                mitigation.measure_loss = self._batch_loss.measure
                mitigation.attach(
                    model,
                    optimizer,
                    seed=args.seed if self.seed is None else self.seed,
                    task_steps=self.timeline.task_steps,
                )
            if step > 0:
                self._load(Path(checkpoint or folder / f"checkpoint-{step}"), step)
        except BaseException:
            self._detach()
            raise

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for mitigation in self.mitigations:
            mitigation.before_step(state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for mitigation in self.mitigations:
            mitigation.after_step(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step, task_steps = state.global_step, self.timeline.task_steps
        ends_task = task_steps is not None and step % task_steps == 0
        for mitigation in self.mitigations:
            mitigation.step_end(step)
            if ends_task:
                mitigation.task_end(step)
        self._batch_loss.clear()
        self._write(args, step, summarize=ends_task)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._saved != checkpoint:
            self.save(checkpoint, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # An interrupted training can be resumed.
        if state.global_step >= state.max_steps:
            self._write(args, state.global_step, summarize=True)
            for mitigation in self.mitigations:
                self._sum_up(args, state.global_step, mitigation)
        self._detach()

    def _detach(self) -> None:
        if self._batch_loss is not None:
            self._batch_loss.remove()
        for mitigation in self.mitigations:
            mitigation.detach()

    # State

    def save(self, checkpoint: str | Path, step: int) -> None:
        """
        Write the state of the mitigations to a checkpoint. Every process must call this.

        Args:
            checkpoint (`str` or `Path`): The folder of the checkpoint.
            step (`int`): Completed optimizer steps.
        """
        states = [mitigation.state_dict() for mitigation in self.mitigations]
        if is_main_process():
            buffer = io.BytesIO()
            torch.save({"step": step, "mitigations": states}, buffer)
            write_atomically(Path(checkpoint) / STATE_FILE, buffer.getvalue())
        self._saved = Path(checkpoint)

    def _load(self, checkpoint: Path, step: int) -> None:
        path = checkpoint / STATE_FILE
        if not path.exists():
            raise PlasticityError(
                f"mitigation: '{path}' does not exist, and a training cannot resume without the state of its "
                "mitigations; resume from a checkpoint that was saved with them"
            )
        saved = torch.load(path, map_location="cpu", weights_only=True)
        names, own = [one["name"] for one in saved["mitigations"]], [one.name for one in self.mitigations]
        if names != own:
            raise PlasticityError(
                f"mitigation: '{path}' is of {', '.join(names)} and the training has {', '.join(own)}; resume with "
                "the same mitigations in the same order"
            )
        if saved["step"] != step:
            raise PlasticityError(f"mitigation: '{path}' is of step {saved['step']} instead of {step}")
        for mitigation, state in zip(self.mitigations, saved["mitigations"]):
            mitigation.load_state_dict(state)

    # Records

    def _folder(self, args: TrainingArguments) -> Path:
        return Path(self.output_dir or args.output_dir)

    def _check_folder(self, folder: Path) -> None:
        if from_main_process(lambda: len(read_records(folder / MITIGATIONS_FILE))):
            raise PlasticityError(
                f"output_dir: '{folder}' has {MITIGATIONS_FILE} of another training; resume that training "
                "(resume_from_checkpoint), choose another folder, or delete the file"
            )

    def _write(self, args: TrainingArguments, step: int, summarize: bool) -> None:
        for mitigation in self.mitigations:
            for event in mitigation.take_events(step, summarize):
                self._append(args, event)

    def _append(self, args: TrainingArguments, event: dict[str, Any]) -> None:
        if is_main_process():
            append_record(
                self._folder(args) / MITIGATIONS_FILE, self.timeline.position(event["step"]) | event, MITIGATION_KEY
            )

    def _sum_up(self, args: TrainingArguments, step: int, mitigation: Mitigation) -> None:
        """The last record of a mitigation: its total number of changes, or that it changed nothing."""
        if mitigation.total == 0:
            shown = describe(mitigation.name, mitigation.arguments)
            logger.warning(f"{shown} has changed nothing in {step:,} steps; the training is the same as without it")
        event = {
            "step": step,
            "mitigation": mitigation.name,
            "event": END if mitigation.total else NOTHING,
            "touched": {},
            "total": mitigation.total,
            "state_bytes": mitigation.state_bytes(),
        }
        self._append(args, event)
