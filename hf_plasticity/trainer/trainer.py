"""The continual run: one `train()` call for all task instances, with probes in between."""

import dataclasses
import functools
import json
import math
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate.optimizer
import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import SaveStrategy, TrainOutput

from ..checksums import mark_complete
from ..data.schedule import Schedule
from ..data.stream import TrainingStream, collate_batch
from ..diagnostics import DiagnosticsCallback, DiagnosticsConfig
from ..distributed import from_main_process
from ..errors import PlasticityError, TrainingInterrupted
from ..learning_rate import learning_rate_shape
from ..mitigations import MitigationCallback, make_mitigations
from ..network import local, preserve_model
from ..network.head_loss import use_head_loss
from ..periodic import PeriodicCallback, Timeline
from ..probing import PlasticityProbeCallback
from ..probing.callback import ProbeCheckpointCallback
from ..records import TRAINER_STATE_FILE, checkpoints, is_complete, write_atomically
from .checkpoint import (
    clear_start,
    delete_checkpoint,
    has_started,
    is_full_disk,
    last_complete_checkpoint,
    rotate,
)
from .config import DEFERRED, ContinualConfig
from .forgetting import ForgettingCallback
from .progress import LogLinesCallback, TaskProgressCallback
from .signals import StopOnSignal


if TYPE_CHECKING:
    from ..data.blocks import Blocks

LOSS_STATE_FILE = "loss_state_{rank}.json"

DDP = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
UNSHARDED = (DistributedType.NO, *DDP)

# Every step of the optimizer checks twice whether the package lomo_optim is installed, and searches the import path on
# disk each time (seen in accelerate 1.15.0, since https://github.com/huggingface/accelerate/pull/2695). This takes 0.1
# of the 8 milliseconds of a step of the smallest model.
accelerate.optimizer.is_lomo_available = functools.cache(accelerate.optimizer.is_lomo_available)


class TrainingDivergedError(FloatingPointError):
    """The training loss or a weight is NaN or infinite."""


class ContinualTrainer(Trainer):
    """
    A [`~transformers.Trainer`] that trains a model on one task instance after the other and probes it periodically.

    Args:
        model (`PreTrainedModel`): A causal language model of any family.
        args ([`ContinualConfig`]): The settings of the run.
        train_dataset ([`TrainingStream`]): The sequences of the whole run, as many as `args` requires.
        probe_blocks (`tuple[Blocks, Blocks]`, *optional*): Training and validation blocks of the probe language.
            Required with `args.diagnose`, and unless `args.no_probe`; not with `args.probe="deferred"`.
        eval_blocks (`dict[str, Blocks]`, *optional*): Validation blocks of each training language. Required with
            `args.evaluate_forgetting`.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer, saved with every checkpoint.
        callbacks (`list[TrainerCallback]`, *optional*): Further callbacks.

    Raises:
        [`PlasticityError`]: Arguments that do not fit together.
        [`TrainingDivergedError`]: From `train()`, when the loss or a weight is NaN or infinite.
    """

    args: ContinualConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: ContinualConfig,
        train_dataset: TrainingStream,
        probe_blocks: "tuple[Blocks, Blocks] | None" = None,
        eval_blocks: "dict[str, Blocks] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if args.learning_rate is None:
            raise PlasticityError(
                "learning_rate: missing; set it (peak_learning_rate(size) has those of the models of the study)"
            )
        self.schedule: Schedule = train_dataset.schedule
        self.batch_size = args.set_batch(train_dataset.context_length)
        args.max_steps = args.cycles * self.schedule.tasks_per_cycle * args.task_steps
        if len(train_dataset) != args.max_steps * self.batch_size:
            raise PlasticityError(
                f"train_dataset: has {len(train_dataset):,} sequences and the run requires "
                f"{args.max_steps:,} steps of {self.batch_size}"
            )
        self.head_loss = use_head_loss(model, args.head_loss, args.device)
        self.timeline = Timeline(args.task_steps, self.schedule.tasks_per_cycle, args.global_batch_tokens)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_batch,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        fsdp_requested = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if fsdp_requested and self.accelerator.distributed_type != DistributedType.FSDP:
            raise PlasticityError(
                f"fsdp: Accelerate does not support it on {self.accelerator.device.type} devices; launch with the "
                "Accelerate configuration ddp"
            )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TaskProgressCallback(self.position))
        elif self.pop_callback(PrinterCallback) is not None:
            self.add_callback(LogLinesCallback())
        self.mitigations = self._mitigations()
        if self.mitigations is not None:
            # Before the first training pass, which compiles the model with its current hooks.
            self.add_callback(self.mitigations)
        self.add_callback(_TaskCallback(self))
        self.signals = StopOnSignal()
        self.add_callback(self.signals)
        for callback in self._measurements(probe_blocks, eval_blocks):
            self.add_callback(callback)
        self._flops_per_sequence: float | None = None
        self._logged_at: tuple[float, int] | None = None
        self._resumed_from: str | None = None
        # Whether the run folder is known to have no records of another training.
        self.folder_is_checked = False
        self._batch_checked = False
        self._clipped: list[nn.Parameter] | None = None

    def _mitigations(self) -> MitigationCallback | None:
        """The callback of the mitigations."""
        if not self.args.mitigation:
            return None
        arguments: Any = self.args.mitigation_args  # a dictionary, once the configuration is resolved
        mitigations = make_mitigations(self.args.mitigation, arguments)
        return MitigationCallback(mitigations, **vars(self.timeline))

    def _measurements(
        self,
        probe_blocks: "tuple[Blocks, Blocks] | None",
        eval_blocks: "dict[str, Blocks] | None",
    ) -> list[PeriodicCallback]:
        """The callbacks that measure the model, in the order in which they run."""
        args, timeline = self.args, self.timeline
        every, unit = args.probe_period
        callbacks: list[PeriodicCallback] = []
        if args.evaluate_forgetting and eval_blocks is None:
            raise PlasticityError("eval_blocks: missing; evaluate_forgetting requires them for each language")
        if probe_blocks is None and args.probe != DEFERRED and (args.diagnose or not args.no_probe):
            setting = "diagnose" if args.diagnose else "no_probe false"
            raise PlasticityError(
                f"probe_blocks: missing; {setting} requires the training and validation blocks of the probe language"
            )
        if args.evaluate_forgetting:
            callbacks.append(ForgettingCallback(eval_blocks, args.probe_eval_sequences, timeline))
        if args.probe == DEFERRED:
            return [*callbacks, ProbeCheckpointCallback(timeline, every, unit)]
        if args.diagnose:
            blocks = probe_blocks[1].first(args.diagnostics_sequences, "diagnostics_sequences")
            config = DiagnosticsConfig(measures=args.diagnostics_measures)
            callbacks.append(
                DiagnosticsCallback(blocks, config, every, unit, **vars(timeline), diagnose_at_end=False, trainer=self)
            )
        if not args.no_probe:
            train, evaluation = probe_blocks
            callbacks.append(
                PlasticityProbeCallback(
                    train,
                    evaluation,
                    args.probe_config(self.batch_size),
                    train.language,
                    every,
                    unit,
                    **vars(timeline),
                    probe_at_end=False,
                    bytes_per_token=evaluation.bytes_per_token(args.probe_eval_sequences),
                    save_checkpoints=args.save_probe_checkpoints,
                    trainer=self,
                    before_probe_step=self.signals.raise_if_requested,
                )
            )
        return callbacks

    def position(self, step: int) -> dict[str, Any]:
        """The `task` and `cycle` (both from 1) and the `language` of optimizer step `step` (from 0)."""
        task = step // self.args.task_steps
        return {
            "task": task + 1,
            "cycle": task // self.schedule.tasks_per_cycle + 1,
            "language": self.schedule.task_language(task),
        }

    def create_optimizer(self, *arguments: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """
        As in the Trainer.

        Raises:
            [`PlasticityError`]: The optimizer does not accept the values in `optim_args`.
        """
        try:
            return super().create_optimizer(*arguments, **kwargs)
        except (TypeError, ValueError) as error:
            if self.args.optim_args is None:
                raise
            raise PlasticityError(
                f"optim_args: '{self.args.optim_args}' is invalid for {self.args.optim.value}: {error}"
            ) from None

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate of a task instance, repeated for each task instance or used once for the whole run."""
        if self.lr_scheduler is None:
            task_steps = self.args.task_steps
            shape = learning_rate_shape(
                self.args.lr_scheduler_type,
                self.args.learning_rate,
                task_steps,
                self.args.warmup_steps,
                self.args.lr_scheduler_kwargs,
            )
            restarts = self.args.restart_warmup
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                # Without restarts the rate is constant after the warmup, so the last step of a task instance has it.
                lambda step: shape(step % task_steps if restarts else min(step, task_steps - 1)),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> int:
        # The Trainer counts and gathers the predicted tokens of every step; here the number is always the same.
        return self.batch_size * (self.train_dataset.context_length - 1)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, int | None]:
        """As in the Trainer. The first step checks that its batch is the global batch of the configuration."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self._batch_checked:
            self._batch_checked = True
            sequences = sum(len(batch["input_ids"]) for batch in batches) * self.args.world_size
            if sequences != self.batch_size:
                raise PlasticityError(
                    f"global_batch_tokens: a step consumes {sequences} sequences instead of {self.batch_size}; a "
                    "setting of Accelerate changes the batch"
                )
        return batches, num_items

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        # The Trainer lists the parameters of the model at every step. They do not change during a run: the optimizer
        # also lists them only once.
        if self.accelerator.distributed_type not in UNSHARDED:
            return super()._clip_grad_norm(model)
        if self._clipped is None:
            self._clipped = list(model.parameters())
        return nn.utils.clip_grad_norm_(self._clipped, self.args.max_grad_norm)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> float:
        """As in the Trainer, counted once: every batch of a run has the same shape."""
        if self._flops_per_sequence is None:
            self._flops_per_sequence = super().floating_point_ops(inputs) / len(inputs["input_ids"])
        return self._flops_per_sequence * len(inputs["input_ids"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the Trainer; entries with a training loss get task, cycle, language, tokens and tokens per second."""
        if "loss" in logs:
            step = self.state.global_step
            self._check_finite(logs["loss"])
            logs |= self.position(step - 1)
            logs["tokens"] = step * self.args.global_batch_tokens
            epochs = self.train_dataset.epochs(step * self.batch_size)
            logs |= {f"epochs/{language}": count for language, count in epochs.items()}
            now = time.perf_counter()
            if self._logged_at is not None and step > self._logged_at[1]:
                seconds, steps = now - self._logged_at[0], step - self._logged_at[1]
                logs["tokens_per_second"] = round(steps * self.args.global_batch_tokens / seconds, 1)
            self._logged_at = (now, step)
        super().log(logs, start_time)

    def _where(self) -> str:
        step = self.state.global_step
        position = self.position(max(step - 1, 0))
        return f"at step {step}, in task {position['task']} ({position['language']}) of cycle {position['cycle']}"

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"training loss is {loss} {self._where()}; lower learning_rate or max_grad_norm, and choose "
                "another output_dir; the last checkpoint is kept"
            )

    def _check_weights(self) -> None:
        """Check the weights, because the loss is still finite at the step whose update makes a weight NaN."""
        finite = [torch.isfinite(local(parameter)).all() for parameter in self.model.parameters()]
        if not torch.stack(finite).all():
            raise TrainingDivergedError(
                f"weights are not finite {self._where()}; lower learning_rate or max_grad_norm, and choose "
                "another output_dir; the last checkpoint is kept"
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in the Trainer, except that a tied output head is not missing: a checkpoint has it as the embedding."""
        # The warning is wrong for tied weights (seen in transformers 5.23.0; reported in
        # https://github.com/huggingface/transformers/issues/27972).
        tied = set(self.model.all_tied_weights_keys)
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def build_ddp_buckets(self) -> None:
        """
        Make DDP build its gradient buckets before the first step. It builds them after the first backward pass, and on
        three processes or more they decide the order in which gradients are summed.
        """
        if self.accelerator.distributed_type not in DDP:
            return
        # Not text of the run, which may have been deleted with `streaming`.
        tokens = torch.zeros(
            self.args.per_device_train_batch_size, self.train_dataset.context_length, dtype=torch.long
        )
        batch = {"input_ids": tokens, "labels": tokens}
        self.accelerator.gradient_state._set_sync_gradients(True)
        with preserve_model(self.model, parameters=False):
            super().training_step(self.model_wrapped, batch, self._get_num_items_in_batch([], self.args.device))

    def reset_throughput(self) -> None:
        """Exclude the time since the last log, which was not training, from the tokens per second."""
        self._logged_at = (time.perf_counter(), self.state.global_step)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """
        Run the study, or resume it.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint; `True` for the last complete one of
                the run folder, or the beginning if there is none. Measurements of the untrained model are then
                repeated, because they may be those of another model.

        Raises:
            [`TrainingInterrupted`]: Ctrl-C or SIGTERM stopped the run, after a checkpoint was saved.
            [`TrainingDivergedError`]: The loss or a weight is NaN or infinite.
            [`PlasticityError`]: The disk is full, the run folder has records of another training, or the checkpoint
                has pickled objects that are not executed.
        """
        resumes = bool(resume_from_checkpoint)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = from_main_process(lambda: last_complete_checkpoint(self.args.output_dir))
            if resume_from_checkpoint is None and not self.folder_is_checked:
                resumes = False
                from_main_process(self._clear_start)
        self._resumed_from = resume_from_checkpoint or None
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, PeriodicCallback | MitigationCallback):
                callback.requires_new_folder = not resumes
        self._clipped = None
        with self.signals:
            try:
                output = super().train(resume_from_checkpoint=self._resumed_from, **kwargs)
            except TrainingInterrupted as interrupted:
                raise self._interrupted(interrupted.signum) from None
            except pickle.UnpicklingError:
                raise PlasticityError(
                    f"output_dir: '{self._resumed_from}' cannot be loaded: a file in it has pickled objects other "
                    "than tensors and numbers, which are not executed; delete it to resume from the one before"
                ) from None
            except Exception as error:
                if not is_full_disk(error, self.args.output_dir):
                    raise
                raise PlasticityError(
                    f"output_dir: the disk of '{self.args.output_dir}' is full {self._where()}; free some space and "
                    "run the same command again; the last complete checkpoint is kept"
                ) from None
        if self.signals.agreed:
            raise self._interrupted(self.signals.agreed)
        return output

    def _clear_start(self) -> None:
        """Delete the measurements of the untrained model of an earlier start, if it trained no further."""
        if not has_started(self.args.output_dir):
            clear_start(self.args.output_dir)

    def _interrupted(self, signum: int) -> TrainingInterrupted:
        step, name = self.state.global_step, signal.Signals(signum).name
        # By its marker: a launcher kills the processes soon after a signal, too soon to read a large checkpoint again.
        folder = self.args.output_dir
        complete = from_main_process(lambda: [one.name for one in checkpoints(folder) if is_complete(one)])
        start = complete[0] if complete else "the beginning"
        steps = f"step {step:,} of {self.state.max_steps:,}"
        return TrainingInterrupted(f"stopped by {name} after {steps}; the same command resumes from {start}", signum)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """As in the Trainer, with the sums of the loss, and a marker when the checkpoint is complete."""
        self._check_finite(self._tr_loss.item())
        self._check_weights()
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and checkpoint.exists():
            # An incomplete checkpoint of a killed start, possibly from another number of processes.
            delete_checkpoint(checkpoint)
        self.accelerator.wait_for_everyone()
        # The Trainer deletes the last complete checkpoint before this one is marked complete (seen in transformers
        # 5.23.0), so old checkpoints are deleted below.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        state = {
            "loss": self._tr_loss.item(),
            "since_step": self._globalstep_last_logged,
            "total": self._total_loss_scalar,
        }
        path = checkpoint / LOSS_STATE_FILE.format(rank=self.args.process_index)
        path.write_text(json.dumps(state), encoding="utf-8")
        if self.mitigations is not None:
            self.mitigations.save(checkpoint, self.state.global_step)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(checkpoint)
            rotate(checkpoint, limit)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As in the Trainer, which pickles its arguments (seen in transformers 5.23.0), but without the token."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def save_state(self) -> None:
        """As in the Trainer, but atomically, because the file marks a run as complete."""
        if self.is_world_process_zero():
            state = json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True) + "\n"
            write_atomically(Path(self.args.output_dir) / TRAINER_STATE_FILE, state.encode())

    def restore_loss(self) -> None:
        """
        Restore the sum of losses since the last log (with another number of processes, the mean over the saved ones)
        and the sum of all logged losses. The Trainer's `train_loss` is only the mean since the resume (transformers
        5.23.0).
        """
        if self._resumed_from is None:
            return
        files = sorted(Path(self._resumed_from).glob(LOSS_STATE_FILE.format(rank="*")))
        if len(files) == self.args.world_size:
            files = [Path(self._resumed_from) / LOSS_STATE_FILE.format(rank=self.args.process_index)]
        states = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        self._tr_loss.fill_(sum(state["loss"] for state in states) / len(states))
        self._globalstep_last_logged = states[0]["since_step"]
        self._total_loss_scalar, self._initial_global_step = states[0]["total"], 0


class _TaskCallback(TrainerCallback):
    """Resets the optimizer, logs and saves at the boundaries of task instances."""

    def __init__(self, trainer: ContinualTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: ContinualConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.build_ddp_buckets()
        self.trainer.restore_loss()
        if state.global_step > 0:
            # The checkpoint has the logging and saving intervals of the command that wrote it, and they override those
            # of this one (seen in transformers 5.23.0, https://github.com/huggingface/transformers/issues/28867).
            state.compute_steps(args, state.max_steps)
        self.trainer.reset_throughput()

    def on_log(
        self, args: ContinualConfig, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "loss" not in logs:  # of a measurement, which took time
            self.trainer.reset_throughput()

    def on_step_begin(
        self, args: ContinualConfig, state: TrainerState, control: TrainerControl, optimizer: Any, **kwargs: Any
    ) -> None:
        # Not in on_step_end: the checkpoint of that step is written after it, and to save an empty optimizer state
        # FSDP2 first fills it with a step of the optimizer (seen in torch 2.13.0).
        if args.reset_optimizer and state.global_step % args.task_steps == 0:
            optimizer.state.clear()

    def on_step_end(self, args: ContinualConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % args.task_steps == 0:
            # Log here, so that a logged loss is that of one task instance, and save, so that a probe starts from a
            # checkpoint.
            control.should_log = True
            timeline = self.trainer.timeline
            periods = (timeline.cycle_steps, timeline.steps_between(*args.probe_period))
            measures = any(state.global_step % steps == 0 for steps in periods)
            control.should_save |= measures and args.save_strategy != SaveStrategy.NO
