"""The probe in any Transformers training script."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import PlasticityError
from ..records import cycle_name
from .checkpoint import save_probe_checkpoint, save_probe_record
from .config import ProbeConfig
from .evaluation import process_rank_and_count
from .recorder import ProbeRecorder
from .timeline import Timeline


if TYPE_CHECKING:
    from .evaluation import TokenBlocks

LOGGED = ("auc", "mean_loss", "start_loss", "final_loss", "bits_per_byte", "delta_auc")


class AtPoints(TrainerCallback):
    """
    Does something at points of a training: before the step that follows a point, and after the last step. The
    checkpoint of that step is then on disk, and a run that is killed meanwhile repeats this alone.

    Args:
        timeline ([`Timeline`]): Of the training.
        every (`int`): Units between two points.
        unit (`str`): `"steps"`, `"tasks"` or `"cycles"`.
        untrained (`bool`): Whether the untrained model is a point.
        output_dir (`str` or `Path`, *optional*): The run folder; `args.output_dir` by default.
    """

    def __init__(
        self, timeline: Timeline, every: int, unit: str, untrained: bool, output_dir: str | Path | None = None
    ):
        self.timeline, self.untrained, self.output_dir = timeline, untrained, output_dir
        self.period = timeline.steps_between(every, unit)

    def at(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """What is done after `step` optimizer steps."""
        raise NotImplementedError

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        processing_class: Any = None,
        **kwargs,
    ) -> None:
        if state.global_step % self.period == 0 and (state.global_step > 0 or self.untrained):
            self.at(state.global_step, model, processing_class, self._folder(args), args)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        processing_class: Any = None,
        **kwargs,
    ) -> None:
        # A run that was told to stop early ends between two points.
        if state.global_step % self.period == 0 and state.global_step > 0:
            self.at(state.global_step, model, processing_class, self._folder(args), args)

    def _folder(self, args: TrainingArguments) -> Path:
        return Path(self.output_dir or args.output_dir)


class PlasticityProbeCallback(AtPoints):
    """
    Probes the model as it trains and writes a line to `probes.jsonl` for each probe.

    A probe runs before the step that follows its point, and after the last step: the checkpoint of that step is then
    on disk, and a run that is killed in a probe repeats the probe alone. A probe that has its line already is not run
    again. Training goes on as if there had been none.

    Args:
        train_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Token ids of the probe language to adapt to.
        eval_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Token ids of the probe language to measure on.
        config ([`ProbeConfig`]): The probe.
        language (`str`): The probe language.
        every (`int`): Units of training between two probes.
        unit (`str`, *optional*, defaults to `"steps"`): `"steps"`, `"tasks"` or `"cycles"`.
        task_steps (`int`, *optional*): Optimizer steps of a task instance, where training has them.
        tasks_per_cycle (`int`, *optional*): Task instances of a cycle, where training has them.
        tokens_per_step (`int`, *optional*): Training tokens in an optimizer step over all processes; without it the
            records hold `tokens: null`.
        probe_untrained (`bool`, *optional*, defaults to `True`): Whether to probe before the first step (cycle 0).
        micro_batch_size (`int`, *optional*): Probe sequences in one forward on one process; the training's
            `per_device_train_batch_size` by default.
        bytes_per_token (`float`, *optional*): Of the validation text, for `bits_per_byte`.
        save_checkpoints (`bool`, *optional*, defaults to `False`): Whether to keep each probed model as `cycle-003/`
            (needs cycles).
        trainer (`Trainer`, *optional*): Its `log` then gets the scores as `probe/auc`, …, and a model that it has
            compiled is probed as compiled.
        output_dir (`str` or `Path`, *optional*): The run folder; `args.output_dir` by default.
        before_probe_step (`Callable[[], None]`, *optional*): Called before each step of a probe; raises to give the
            probe up.

    Example:

    ```python
    >>> trainer.add_callback(
    ...     PlasticityProbeCallback(
    ...         train_blocks, eval_blocks, ProbeConfig(steps=200, eval_every=20, batch_size=16), "vi", every=1_000
    ...     )
    ... )
    ```
    """

    def __init__(
        self,
        train_blocks: "TokenBlocks",
        eval_blocks: "TokenBlocks",
        config: ProbeConfig,
        language: str,
        every: int,
        unit: str = "steps",
        task_steps: int | None = None,
        tasks_per_cycle: int | None = None,
        tokens_per_step: int | None = None,
        probe_untrained: bool = True,
        micro_batch_size: int | None = None,
        bytes_per_token: float | None = None,
        save_checkpoints: bool = False,
        trainer: Trainer | None = None,
        output_dir: str | Path | None = None,
        before_probe_step: Callable[[], None] | None = None,
    ):
        timeline = Timeline(task_steps, tasks_per_cycle, tokens_per_step)
        super().__init__(timeline, every, unit, probe_untrained, output_dir)
        if save_checkpoints and self.period % timeline.steps_between(1, "cycles"):
            raise PlasticityError(
                f"save_checkpoints: they are named after cycles, and {every} {unit} are no whole number of cycles"
            )
        self.recorder = ProbeRecorder(train_blocks, eval_blocks, config, language, timeline, bytes_per_token)
        self.micro_batch_size, self.save_checkpoints = micro_batch_size, save_checkpoints
        self.trainer, self.before_probe_step = trainer, before_probe_step

    def at(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """Probe the model, unless the probe has its line already."""
        record = next((line for line in self.recorder.records(folder) if line["step"] == step), None)
        if self.save_checkpoints:
            checkpoint = folder / cycle_name(self.timeline.position(step)["cycle"])
            save_probe_checkpoint(model, checkpoint, tokenizer)
        if record is None:
            result = self.recorder.measure(
                model if self.trainer is None else self.trainer.model_wrapped,
                step,
                self.micro_batch_size or args.per_device_train_batch_size,
                show_progress=not args.disable_tqdm,
                before_step=self.before_probe_step,
            )
            record = self.recorder.write(folder, step, result)
        if self.save_checkpoints and process_rank_and_count()[0] == 0:
            save_probe_record(checkpoint, record)
        if self.trainer is not None:
            self.trainer.log({f"probe/{name}": record[name] for name in LOGGED if record[name] is not None})


class ProbeCheckpointCallback(AtPoints):
    """
    Keeps the model at each point as `cycle-003/` and leaves it to others to probe it.

    Args:
        timeline ([`Timeline`]): Of the training; it has cycles.
        every (`int`): Cycles between two points.
        saved (`Callable[[], None]`, *optional*): Called after each of them.
    """

    def __init__(self, timeline: Timeline, every: int, saved: Callable[[], None] | None = None):
        super().__init__(timeline, every, "cycles", untrained=True)
        self.saved = saved

    def at(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """Save the model."""
        save_probe_checkpoint(model, folder / cycle_name(self.timeline.position(step)["cycle"]), tokenizer)
        if self.saved is not None:
            self.saved()
