"""The probe in any Transformers training script."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.utils import logging

from ..data.token_blocks import TokenBlocks
from ..distributed import is_main_process
from ..errors import PlasticityError
from ..periodic import PeriodicCallback, Timeline
from ..records import PROBES_FILE
from .checkpoint import save_probe_checkpoint, save_probe_record
from .config import ProbeConfig
from .probe import ProbeDivergedError, check_probe
from .recorder import ProbeRecorder, probe_conditions


logger = logging.get_logger(__name__)

LOGGED = ("auc", "auc_stderr", "mean_loss", "start_loss", "final_loss", "bits_per_byte", "delta_auc")
# Points of the curve of a probe that are logged, so that trackers can plot it.
LOGGED_LOSSES = 5
RAISE, WARN = "raise", "warn"


class PlasticityProbeCallback(PeriodicCallback):
    """
    Probe the model during training and write one line to `probes.jsonl` for each probe. The training is bit-identical
    to a training without the callback.

    A probe that is already recorded for this training is not repeated when the training resumes. The scores are
    also logged through `Trainer.log` as `probe/auc`, `probe/delta_auc`, ….

    Args:
        train_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Training token ids of the probe language. A list of lists or a `datasets.Dataset` with `input_ids` also
            works.
        eval_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Validation token ids of the probe language.
        config ([`ProbeConfig`], *optional*): The probe.
        language (`str`, *optional*, defaults to `"held-out"`): Name of the probe language in records and logs.
        every (`int` or `float`, *optional*, defaults to 0.1): Units of training between two probes. With the unit
            `"steps"`, a number below 1 is a share of the training.
        unit (`str`, *optional*, defaults to `"steps"`): `"steps"`, `"epochs"`, `"tasks"` or `"cycles"`.
        task_steps (`int`, *optional*): Optimizer steps of a task instance, if the training has task instances.
        tasks_per_cycle (`int`, *optional*): Task instances of a cycle, if the training has cycles.
        tokens_per_step (`int`, *optional*): Training tokens of an optimizer step over all processes. Without it the
            records have `tokens: null`.
        probe_untrained (`bool`, *optional*, defaults to `True`): Whether to probe before the first step.
        probe_at_end (`bool`, *optional*, defaults to `True`): Whether to probe at the end of training, even
            if no probe is due there.
        micro_batch_size (`int`, *optional*): Probe sequences in one forward pass on one process. It affects memory,
            not results. By default the largest that fits `per_device_train_batch_size` and divides the probe's batch.
        bytes_per_token (`float`, *optional*): Bytes per token of the validation text, for `bits_per_byte`.
        save_checkpoints (`bool`, *optional*, defaults to `False`): Whether to save each probed model as `cycle-003/`
            (or `task-012/` within a cycle); requires cycles. A model that is probed within a task instance, at the
            end of training, is not saved.
        metric_key_prefix (`str`, *optional*, defaults to `"probe"`): Prefix of the logged scores. Several probes of
            one training require different prefixes.
        on_error (`str`, *optional*, defaults to `"raise"`): What to do when a probe diverges: `"raise"` ends the
            training, `"warn"` logs a warning and continues without that probe.
        trainer (`Trainer`, *optional*): The trainer whose `log` receives the scores. By default the one that runs the
            callback.
        output_dir (`str` or `Path`, *optional*): The run folder; `args.output_dir` by default.
        before_probe_step (`Callable[[], None]`, *optional*): Called before each step of a probe; raises to abort it.

    Raises:
        [`PlasticityError`]: When training begins: too few blocks, a batch that does not divide, a model that cannot be
            probed, or a run folder with the probes of another training.

    Example:

    ```python
    >>> trainer.add_callback(PlasticityProbeCallback(train_blocks, eval_blocks, language="vi", every=500))
    ```
    """

    records_file = PROBES_FILE

    def __init__(
        self,
        train_blocks: TokenBlocks,
        eval_blocks: TokenBlocks,
        config: ProbeConfig | None = None,
        language: str = "held-out",
        every: float = 0.1,
        unit: str = "steps",
        task_steps: int | None = None,
        tasks_per_cycle: int | None = None,
        tokens_per_step: int | None = None,
        probe_untrained: bool = True,
        probe_at_end: bool = True,
        micro_batch_size: int | None = None,
        bytes_per_token: float | None = None,
        save_checkpoints: bool = False,
        metric_key_prefix: str = "probe",
        on_error: str = RAISE,
        trainer: Trainer | None = None,
        output_dir: str | Path | None = None,
        before_probe_step: Callable[[], None] | None = None,
    ):
        timeline = Timeline(task_steps, tasks_per_cycle, tokens_per_step)
        super().__init__(
            timeline,
            every,
            unit,
            at_start=probe_untrained,
            at_end=probe_at_end,
            output_dir=output_dir,
            trainer=trainer,
        )
        if save_checkpoints and (timeline.cycle_steps is None or unit not in ("tasks", "cycles")):
            raise PlasticityError(
                f"save_checkpoints: checkpoints are named after task instances and cycles, not after "
                f"{unit}; use the unit tasks or cycles"
            )
        if config is not None and not isinstance(config, ProbeConfig):
            raise PlasticityError(f"config: {config!r} is not a ProbeConfig")
        if on_error not in (RAISE, WARN):
            raise PlasticityError(f"on_error: '{on_error}' is unknown; choose {RAISE} or {WARN}")
        self.recorder = ProbeRecorder(
            train_blocks, eval_blocks, config or ProbeConfig(), language, timeline, bytes_per_token
        )
        self.micro_batch_size, self.save_checkpoints, self.on_error = micro_batch_size, save_checkpoints, on_error
        self.before_probe_step, self.metric_key_prefix = before_probe_step, metric_key_prefix

    def prepare(self, model: nn.Module, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        """Check the model, the text and the run folder before the first step."""
        check_probe(
            model, self.recorder.train_blocks, self.recorder.eval_blocks, self.recorder.config, self.micro_batch_size
        )
        self.recorder.begin(probe_conditions(model), folder)

    def act(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """Probe the model, unless the probe is already recorded."""
        record = next((line for line in self.recorder.records(folder) if line["step"] == step), None)
        # Checkpoints are named after task instances, so there is none for an end within a task instance.
        saves = self.save_checkpoints and step % self.timeline.task_steps == 0
        checkpoint = folder / self.timeline.checkpoint_name(step) if saves else None
        if checkpoint is not None:
            save_probe_checkpoint(model, checkpoint, tokenizer)
        if record is None:
            try:
                result = self.recorder.measure(
                    self._wrapped(model),
                    step,
                    self.micro_batch_size,
                    largest_micro_batch_size=args.per_device_train_batch_size,
                    show_progress=not args.disable_tqdm,
                    before_step=self.before_probe_step,
                )
            except ProbeDivergedError as error:
                if self.on_error == RAISE:
                    raise
                logger.warning(f"{error}; training continues without this probe")
                return
            record = self.recorder.write(folder, step, result)
        if checkpoint is not None and is_main_process():
            save_probe_record(checkpoint, record)
        self.log(_scores(record, self.metric_key_prefix))

    def _wrapped(self, model: nn.Module) -> nn.Module:
        """The model as training calls it: the compiled one if it compiles, but without copies on other GPUs."""
        wrapped = model if self.trainer is None else self.trainer.model_wrapped
        return wrapped.module if isinstance(wrapped, nn.DataParallel) else wrapped


def _scores(record: dict[str, Any], prefix: str) -> dict[str, float]:
    """The scores of a probe and a few points of its curve, for `Trainer.log`."""
    scores = {f"{prefix}/{name}": record[name] for name in LOGGED if record.get(name) is not None}
    points = np.unique(np.linspace(0, len(record["losses"]) - 1, LOGGED_LOSSES).round().astype(int))
    return scores | {f"{prefix}/loss_at_{record['probe_steps'][point]}": record["losses"][point] for point in points}


class ProbeCheckpointCallback(PeriodicCallback):
    """Save the model at each point as `cycle-003/`, for deferred probes. The training must have cycles."""

    save_checkpoints = True

    def act(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """Save the model."""
        save_probe_checkpoint(model, folder / self.timeline.checkpoint_name(step), tokenizer)
