"""The continual run: one `train()` call through every task instance, the same whatever it is run on."""

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import SaveStrategy, TrainOutput

from ..data.schedule import Schedule
from ..data.stream import TrainingStream, collate_batch
from ..diagnostics import DiagnosticsCallback
from ..errors import PlasticityError
from ..learning_rate import learning_rate_shape
from ..network import local, preserve_model
from ..probing import PlasticityProbeCallback
from ..probing.callback import ProbeCheckpointCallback
from ..probing.evaluation import from_main_process
from ..probing.timeline import Timeline
from ..records import COMPLETE_FILE, TRAINER_STATE_FILE
from .checkpoint import is_full_disk, last_complete_checkpoint, mark_complete, rotate
from .config import DEFERRED, ContinualConfig
from .forgetting import ForgettingCallback
from .progress import TaskProgressCallback
from .signals import StopOnSignal, TrainingInterrupted


if TYPE_CHECKING:
    from ..data.blocks import Blocks

LOSS_STATE_FILE = "loss_state_{rank}.json"


class TrainingDivergedError(FloatingPointError):
    """The training loss is no finite number any more."""


class ContinualTrainer(Trainer):
    """
    A [`~transformers.Trainer`] that leads a model through task instances and probes it after every cycle.

    Args:
        model (`PreTrainedModel`): A causal language model.
        args ([`ContinualConfig`]): Everything about the run.
        train_dataset ([`TrainingStream`]): The sequences of the whole run; it has as many as `args` asks for.
        probe_blocks (`tuple[Blocks, Blocks]`, *optional*): Training and validation blocks of the probe language;
            needed with `args.diagnose`, and unless `args.no_probe`; not with `args.probe` `"deferred"`.
        eval_blocks (`dict[str, Blocks]`, *optional*): Validation blocks of each training language; needed with
            `args.evaluate_forgetting`.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer, saved with every checkpoint.
        callbacks (`list[TrainerCallback]`, *optional*): Further callbacks.

    Raises:
        [`PlasticityError`]: Arguments that do not fit together.
        [`TrainingDivergedError`]: From `train()`, when the loss is NaN or infinite.
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
            raise PlasticityError("learning_rate: none given; peak_learning_rate(size) has that of the study's models")
        self.schedule: Schedule = train_dataset.schedule
        self.batch_size = args.set_batch(train_dataset.context_length)
        args.max_steps = args.cycles * self.schedule.tasks_per_cycle * args.task_steps
        if len(train_dataset) != args.max_steps * self.batch_size:
            raise PlasticityError(
                f"train_dataset: has {len(train_dataset):,} sequences and the run takes "
                f"{args.max_steps:,} steps of {self.batch_size}"
            )
        # Without it Transformers takes GPT-2's loss for one whose labels are not shifted, counts a token too many in
        # each sequence, and scales loss and gradients by (T - 1) / T (seen in transformers 5.23.0).
        model.loss_type = "ForCausalLM"
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_batch,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        asked_for_fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if asked_for_fsdp and self.accelerator.distributed_type != DistributedType.FSDP:
            raise PlasticityError(
                f"fsdp: asked for, and Accelerate cannot shard on {self.accelerator.device.type} devices; launch with "
                "recipes/accelerate/ddp.yaml"
            )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TaskProgressCallback(self))
        self.add_callback(_TaskCallback(self))
        self.signals = StopOnSignal()
        self.add_callback(self.signals)
        if args.evaluate_forgetting:
            self.add_callback(ForgettingCallback(self, eval_blocks))
        if args.probe == DEFERRED:
            timeline = Timeline(args.task_steps, self.schedule.tasks_per_cycle, args.global_batch_tokens)
            self.add_callback(ProbeCheckpointCallback(timeline, args.probe_every_cycles, self._wake_pusher))
        else:
            if args.diagnose:
                self.add_callback(self._diagnostics_callback(probe_blocks[1]))
            if not args.no_probe:
                self.add_callback(self._probe_callback(*probe_blocks))
        self._flops_per_sequence: float | None = None
        self._logged_at: tuple[float, int] | None = None
        self._resumed_from: str | None = None
        # What puts this run on the Hub; `RunPusher.follow` sets it.
        self.pusher: Any = None

    def _wake_pusher(self) -> None:
        if self.pusher is not None:
            self.pusher.wake()

    def _probe_callback(self, train_blocks: "Blocks", eval_blocks: "Blocks") -> PlasticityProbeCallback:
        return PlasticityProbeCallback(
            train_blocks,
            eval_blocks,
            self.args.probe_config(self.batch_size),
            language=train_blocks.language,
            every=self.args.probe_every_cycles,
            unit="cycles",
            task_steps=self.args.task_steps,
            tasks_per_cycle=self.schedule.tasks_per_cycle,
            tokens_per_step=self.args.global_batch_tokens,
            bytes_per_token=eval_blocks.bytes_per_token(self.args.probe_eval_sequences),
            save_checkpoints=self.args.save_probe_checkpoints,
            trainer=self,
            before_probe_step=self.signals.give_up_if_asked,
        )

    def _diagnostics_callback(self, blocks: "Blocks") -> DiagnosticsCallback:
        return DiagnosticsCallback(
            blocks.first(self.args.diagnostics_sequences, "diagnostics_sequences"),
            self,
            every_steps=self.args.probe_every_cycles * self.schedule.tasks_per_cycle * self.args.task_steps,
            task_steps=self.args.task_steps,
            tasks_per_cycle=self.schedule.tasks_per_cycle,
            tokens_per_step=self.args.global_batch_tokens,
        )

    def place(self, step: int) -> dict[str, Any]:
        """`task` and `cycle` (both from 1) that optimizer step `step` (from 0) is part of, and its `language`."""
        task = step // self.args.task_steps
        return {
            "task": task + 1,
            "cycle": task // self.schedule.tasks_per_cycle + 1,
            "language": self.schedule.task_language(task),
        }

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The shape of one task instance's learning rate, over and over."""
        if self.lr_scheduler is None:
            task_steps = self.args.task_steps
            shape = learning_rate_shape(
                self.args.lr_scheduler_type, task_steps, self.args.warmup_steps, self.args.lr_scheduler_kwargs
            )
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: shape(step % task_steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> int:
        # The Trainer counts and gathers the predicted tokens of every step; here they are always as many.
        return self.batch_size * (self.train_dataset.context_length - 1)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> float:
        """As in the Trainer, counted once: every batch of a run has the same shape."""
        if self._flops_per_sequence is None:
            self._flops_per_sequence = super().floating_point_ops(inputs) / len(inputs["input_ids"])
        return self._flops_per_sequence * len(inputs["input_ids"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to a training loss the task, cycle and language that it belongs to, tokens, and tokens a second."""
        if "loss" in logs:
            step = self.state.global_step
            self._check_finite(logs["loss"])
            logs |= self.place(step - 1)
            logs["tokens"] = step * self.args.global_batch_tokens
            epochs = self.train_dataset.epochs(step * self.batch_size)
            logs |= {f"epochs/{language}": count for language, count in epochs.items()}
            now = time.perf_counter()
            if self._logged_at is not None and step > self._logged_at[1]:
                seconds, steps = now - self._logged_at[0], step - self._logged_at[1]
                logs["tokens_per_second"] = round(steps * self.args.global_batch_tokens / seconds, 1)
            self._logged_at = (now, step)
        else:
            self.restart_clock()
        super().log(logs, start_time)

    def _where(self) -> str:
        step = self.state.global_step
        place = self.place(max(step - 1, 0))
        return f"at step {step}, in task {place['task']} ({place['language']}) of cycle {place['cycle']}"

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"training loss is {loss} {self._where()}; lower learning_rate or max_grad_norm, the last checkpoint "
                "is kept"
            )

    def _check_weights(self) -> None:
        """A loss is still finite at the step whose update has ruined the weights."""
        finite = [torch.isfinite(local(parameter)).all() for parameter in self.model.parameters()]
        if not torch.stack(finite).all():
            raise TrainingDivergedError(
                f"weights are not finite {self._where()}; lower learning_rate or max_grad_norm, the last checkpoint "
                "is kept"
            )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing where `args.push_to_hub` asks for the run on the Hub: [`~hub.push.RunPusher`] puts it there."""
        if not self.args.push_to_hub:
            super().init_hf_repo(token, private)

    def push_to_hub(self, *arguments: Any, **options: Any) -> Any:
        """As `init_hf_repo`; without `args.push_to_hub` it pushes the model at hand, as in the Trainer."""
        return None if self.args.push_to_hub else super().push_to_hub(*arguments, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As `init_hf_repo`."""

    def settle_buckets(self) -> None:
        """
        Let DDP lay out its gradient buckets before the first step of a run, or of its resumption: it does so after the
        first backward, and on three processes or more the layout decides in which order gradients are summed.
        """
        if self.accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            return
        batch = self.train_dataset.__getitems__(range(self.args.per_device_train_batch_size))
        self.accelerator.gradient_state._set_sync_gradients(True)
        with preserve_model(self.model, parameters=False):
            super().training_step(self.model_wrapped, batch, self._get_num_items_in_batch([], self.args.device))

    def restart_clock(self) -> None:
        """What took place since the last log was not training, and does not count in tokens a second."""
        self._logged_at = (time.perf_counter(), self.state.global_step)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """
        Run, or go on with a run.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint; `True` for the last complete one of
                the run folder, if there is one.

        Raises:
            [`TrainingInterrupted`]: By Ctrl-C or SIGTERM, once there is a checkpoint to go on from.
            [`TrainingDivergedError`]: The loss is NaN or infinite.
        """
        if self.args.push_to_hub and self.args.process_index == 0 and self.pusher is None:
            raise PlasticityError(
                "push_to_hub: nothing pushes this run; start it with `run_study`, as recipes/continual.py does, or "
                "hand the trainer to `hf_plasticity.hub.push.RunPusher.follow`"
            )
        if resume_from_checkpoint is True:
            resume_from_checkpoint = from_main_process(lambda: last_complete_checkpoint(self.args.output_dir))
        self._resumed_from = resume_from_checkpoint or None
        with self.signals:
            try:
                output = super().train(resume_from_checkpoint=self._resumed_from, **kwargs)
            except TrainingInterrupted as interrupted:
                raise self._interrupted(interrupted.signum) from None
            except Exception as error:
                if not is_full_disk(error, self.args.output_dir):
                    raise
                raise PlasticityError(
                    f"output_dir: the disk of '{self.args.output_dir}' is full {self._where()}; free some of it and "
                    "give the same command again, the last complete checkpoint is kept"
                ) from None
        if self.signals.agreed:
            raise self._interrupted(self.signals.agreed)
        return output

    def _interrupted(self, signum: int) -> TrainingInterrupted:
        step, name = self.state.global_step, signal.Signals(signum).name
        place = f"checkpoint-{step}" if step else "the beginning"
        steps = f"step {step:,} of {self.state.max_steps:,}"
        return TrainingInterrupted(f"stopped by {name} after {steps}; the same command goes on from {place}", signum)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """As in the Trainer, with the loss summed since the last log, and the marker when all is there."""
        self._check_finite(self._tr_loss.item())
        self._check_weights()
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (checkpoint / COMPLETE_FILE).unlink(missing_ok=True)
        # The Trainer would delete the last complete checkpoint before this one is.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        state = {"loss": self._tr_loss.item(), "since_step": self._globalstep_last_logged}
        path = checkpoint / LOSS_STATE_FILE.format(rank=self.args.process_index)
        path.write_text(json.dumps(state), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(checkpoint)
            rotate(checkpoint.parent, limit)

    def save_state(self) -> None:
        """As in the Trainer, but the file, which says that the run is finished, is there as a whole or not at all."""
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / TRAINER_STATE_FILE
            unfinished = path.with_name(f".{path.name}")
            self.state.save_to_json(str(unfinished))
            unfinished.rename(path)

    def restore_loss(self) -> None:
        """Go on with the loss summed since the last log; on another number of processes, with their mean."""
        if self._resumed_from is None:
            return
        files = sorted(Path(self._resumed_from).glob(LOSS_STATE_FILE.format(rank="*")))
        if len(files) == self.args.world_size:
            files = [Path(self._resumed_from) / LOSS_STATE_FILE.format(rank=self.args.process_index)]
        states = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        self._tr_loss.fill_(sum(state["loss"] for state in states) / len(states))
        self._globalstep_last_logged = states[0]["since_step"]


class _TaskCallback(TrainerCallback):
    """What happens at the boundaries of task instances."""

    def __init__(self, trainer: ContinualTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: ContinualConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.settle_buckets()
        self.trainer.restore_loss()
        if state.global_step > 0:
            # A checkpoint brings the intervals of the command that wrote it; those of this command hold.
            state.compute_steps(args, state.max_steps)
        self.trainer.restart_clock()

    def on_step_begin(
        self, args: ContinualConfig, state: TrainerState, control: TrainerControl, optimizer: Any, **kwargs: Any
    ) -> None:
        # Not in on_step_end: the checkpoint of that step is written after it, and FSDP2 fills an empty optimizer
        # state in order to save it.
        if args.reset_optimizer and state.global_step % args.task_steps == 0:
            optimizer.state.clear()

    def on_step_end(self, args: ContinualConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % args.task_steps == 0:
            # A logged loss is that of one task instance, and a probe starts from a checkpoint.
            control.should_log = True
            ends_cycle = state.global_step % (args.task_steps * self.trainer.schedule.tasks_per_cycle) == 0
            control.should_save |= ends_cycle and args.save_strategy != SaveStrategy.NO
