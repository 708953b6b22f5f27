"""The settings of a continual run: `TrainingArguments` and those of the study."""

import json
import math
import sys
from dataclasses import dataclass

import torch
from transformers import SchedulerType, TrainingArguments

from ..batch import divide_batch
from ..diagnostics import MEASURES
from ..errors import PlasticityError, one_line
from ..learning_rate import learning_rate_shape
from ..mitigations import make_mitigations
from ..probing.config import ProbeConfig, probe_settings
from ..settings import DERIVED, LENGTH, MACHINE, OUTPUT, setting
from .training_arguments import check_installed, check_parsed_arguments, check_training_arguments


INLINE, DEFERRED = "inline", "deferred"
DEFAULT_WARMUP_STEPS = 10
CONSTANT = ("constant", "constant_with_warmup")
# The other settings of the probe follow from those of training.
ProbeSettings = probe_settings(
    eval_sequences=64, dense_start=False, seed=0, repeats=1, adaptation="full", lora_rank=16, lora_alpha=32
)


@dataclass
class ContinualConfig(ProbeSettings, TrainingArguments):  # type: ignore[misc, valid-type]
    r"""
    Configuration of [`ContinualTrainer`]: `TrainingArguments` and the settings of the study.

    > Parameters that control the run

    Args:
        schedule (`str`, *optional*, defaults to `"rotation"`):
            `"rotation"` (the paper's continual run), `"stationary"` (all languages mixed evenly), `"gradual"` (a
            rotation with blended boundaries), or the languages of a cycle separated by commas.
        blend (`float`, *optional*, defaults to 0.5):
            For `"gradual"`: length of a boundary in task instances.
        cycles (`int`, *optional*, defaults to 3):
            Length of the run (the paper: up to 48). A complete run resumes if it has more cycles than before.
        task_steps (`int`, *optional*, defaults to 80):
            Optimizer steps of a task instance (the paper: 9,537).
        global_batch_tokens (`int`, *optional*, defaults to 2048):
            Tokens in an optimizer step over all processes and micro-batches (the paper: 524,288). Gradient
            accumulation follows from it, `per_device_train_batch_size` and the number of processes.
        allow_repeats (`bool`, *optional*, defaults to `False`):
            Whether text may be used again if a language has too little, including the probe language. The log then
            counts the epochs.
        reset_optimizer (`bool`, *optional*, defaults to `True`):
            Whether every task instance starts with an empty optimizer state, as in the paper, with every schedule.
        restart_warmup (`bool`, *optional*, defaults to `True`):
            Whether the learning rate restarts its warmup at every task instance, as in the paper. `False` requires a
            constant learning rate after warmup.
        mitigation (`list[str]`, *optional*):
            Mitigations of plasticity loss from `hf_plasticity.mitigations.MITIGATIONS`, in the order in which they
            act. Probes run without them.
        mitigation_args (`dict`, *optional*):
            Their arguments by name, such as `{"redo": {"threshold": 0.1}}`; those of a single mitigation may be given
            directly. `config.yaml` has all values, including defaults.
        head_loss (`str`, *optional*, defaults to `"auto"`):
            How training, probes and evaluations compute the loss: `"logits"`, `"fused"`, which never keeps the logits
            of a whole batch in memory, or `"auto"`, which is `"fused"` for vocabularies of at least 16,384 tokens if
            the model supports it.
        evaluate_forgetting (`bool`, *optional*, defaults to `False`):
            Whether to measure the validation loss on each training language at the end of each cycle, into
            `forgetting.jsonl`.
        diagnose (`bool`, *optional*, defaults to `False`):
            Whether to diagnose the network at every probe (magnitudes, dormant units, heads, ranks), into
            `diagnostics.jsonl`, on the probe language's validation sequences.
        diagnostics_measures (`list[str]`, *optional*):
            Names from `hf_plasticity.diagnostics.MEASURES`; by default the cheap ones, without gradients and
            curvature.
        diagnostics_sequences (`int`, *optional*, defaults to 64):
            Validation sequences of a diagnosis.

    > Parameters that control the probe

    Args:
        no_probe (`bool`, *optional*, defaults to `False`):
            Whether to train without probes.
        probe (`str`, *optional*, defaults to `"inline"`):
            `"inline"` probes and diagnoses between two steps of training. `"deferred"` saves every model to probe as
            `cycle-003/` and continues training. `hf-plasticity probe --follow` probes and diagnoses it in another
            process, with the same numbers.
        probe_every_cycles (`int`, *optional*, defaults to 1):
            Cycles between two probes. The untrained model is also probed.
        probe_every_tasks (`int`, *optional*):
            Task instances between two probes, instead of `probe_every_cycles`.
        probe_steps (`int`, *optional*, defaults to `task_steps`):
            Optimizer steps of a probe.
        probe_eval_every (`int`, *optional*, defaults to a hundredth of `probe_steps`):
            Probe steps between two evaluations (the paper: 95).
        probe_... (*optional*):
            Every other setting of [`ProbeConfig`] but `lr_scheduler_kwargs` and `lora_target_modules`. By default
            `probe_eval_sequences` is 64 (also used by `evaluate_forgetting`), `probe_seed` is 0 (independent of
            `seed`, so that runs share their probe), and the settings shared with training (batch, learning rate,
            warmup, scheduler, AdamW, clipping) are the same.
        save_probe_checkpoints (`bool`, *optional*, defaults to `True`):
            Whether to save every probed model as `cycle-003/`.

    > Parameters that control the machine

    Args:
        cpu_threads (`int`, *optional*):
            CPU threads of each process of a run on CPUs. By default all available cores, divided among the processes.
            A run resumes with the number it was started with, because the last bits of its results depend on it.

    > Parameters that control the Hub, besides `push_to_hub`, `hub_model_id`, `hub_private_repo` and `hub_token`

    Args:
        hub_patience (`float`, *optional*, defaults to 600.0):
            Seconds since the last successful upload after which a run no longer waits for the Hub at its end.

    These defaults differ from those of [`~transformers.TrainingArguments`]: `learning_rate` is that of the model's
    size; `adam_beta2` 0.95 and `weight_decay` 0.1 (the paper); `lr_scheduler_type` `"constant_with_warmup"` and
    `warmup_steps` 10 (fewer in task instances shorter than that), both per task instance (the paper does not state
    them); `per_device_train_batch_size` is the whole share of the process; `save_steps` is a task instance,
    `save_total_limit` 2; `logging_steps` 10; `logging_nan_inf_filter` `False`, since a NaN ends the run; `report_to`
    `"none"`; `train_sampling_strategy` `"sequential"`, `remove_unused_columns` `False` and
    `ddp_find_unused_parameters` `False`, which exact runs require. What each field of `TrainingArguments` does in a
    continual run is in `trainer/training_arguments.py`.
    """

    schedule: str = setting(
        "rotation", help="rotation, stationary, gradual, or the languages of a cycle separated by commas."
    )
    blend: float = setting(0.5, help="Length of a gradual boundary in task instances.")
    cycles: int = setting(3, help="Length of the run in cycles.", role=LENGTH)
    task_steps: int = setting(80, help="Optimizer steps of a task instance.")
    global_batch_tokens: int = setting(2048, help="Tokens in an optimizer step over all processes.")
    allow_repeats: bool = setting(False, help="Whether text may be used again if a language has too little.")
    reset_optimizer: bool = setting(True, help="Whether every task instance starts with an empty optimizer state.")
    restart_warmup: bool = setting(True, help="Whether the learning rate warms up again at every task instance.")
    mitigation: list[str] | None = setting(
        None, help="Mitigations of plasticity loss, in order; `hf-plasticity mitigations` lists them."
    )
    mitigation_args: dict | str | None = setting(
        None, help='Their arguments by name, as JSON: {"redo": {"threshold": 0.1}}.'
    )
    evaluate_forgetting: bool = setting(
        False, help="Measure the validation loss on each training language after each cycle.", role=OUTPUT
    )
    diagnose: bool = setting(
        False, help="Diagnose the model (dormant units, heads, ranks, ...) at every probe.", role=OUTPUT
    )
    diagnostics_measures: list[str] | None = setting(
        None, help="Measures of a diagnosis; by default the cheap ones. See docs/diagnostics.md.", role=OUTPUT
    )
    diagnostics_sequences: int = setting(64, help="Validation sequences of a diagnosis.", role=OUTPUT)

    no_probe: bool = setting(False, help="Train without probes.")
    probe: str = setting(
        INLINE,
        help="inline, or deferred: `hf-plasticity probe --follow` probes the saved checkpoints.",
        role=MACHINE,
    )
    probe_every_cycles: int | None = setting(None, help="Cycles between two probes; 1 by default.")
    probe_every_tasks: int | None = setting(None, help="Task instances between two probes, instead of cycles.")
    save_probe_checkpoints: bool = setting(True, help="Save every probed model as cycle-003/.", role=OUTPUT)

    head_loss: str = setting("auto", help="logits, fused (less memory), or auto: fused for large vocabularies.")
    cpu_threads: int | None = setting(
        None, help="CPU threads of each process; by default all cores, divided among the processes.", role=MACHINE
    )
    hub_patience: float = setting(
        600.0, help="Seconds without a successful upload after which a run stops waiting at its end.", role=OUTPUT
    )

    learning_rate: float | None = setting(None, help="Peak learning rate; that of the model's size by default.")
    per_device_train_batch_size: int | None = setting(
        None, help="Sequences in a micro-batch; the whole share of the process by default.", role=MACHINE
    )
    adam_beta2: float = setting(0.95, help="Beta2 for AdamW.")
    weight_decay: float = setting(0.1, help="Weight decay for AdamW.")
    lr_scheduler_type: str = setting("constant_with_warmup", help="Shape of a task instance's learning rate.")
    warmup_steps: int | None = setting(
        None, help="Warmup steps at the start of every task instance; 10, or fewer in short tasks, by default."
    )
    save_steps: int | None = setting(
        None, help="Optimizer steps between two checkpoints; a task instance by default.", role=OUTPUT
    )
    save_total_limit: int | None = setting(2, help="Number of checkpoints to keep.", role=OUTPUT)
    logging_steps: int = setting(10, help="Optimizer steps between two logs.", role=OUTPUT)
    logging_nan_inf_filter: bool = setting(False, help="Only false is supported.", role=DERIVED)
    report_to: None | str | list[str] = setting(
        "none", help="Trackers to log to: wandb, trackio, tensorboard, ...", role=OUTPUT
    )
    train_sampling_strategy: str = setting("sequential", help="Only sequential is supported.", role=DERIVED)
    remove_unused_columns: bool = setting(False, help="Only false is supported.", role=DERIVED)
    ddp_find_unused_parameters: bool | None = setting(False, help="As in DDP.", role=MACHINE)

    def __post_init__(self) -> None:
        self._check_values()
        check_training_arguments(self)
        if self.warmup_steps is None:
            self.warmup_steps = min(DEFAULT_WARMUP_STEPS, self.task_steps)
        self.warmup_steps = int(self.warmup_steps)
        if self.probe_every_cycles is None and self.probe_every_tasks is None:
            self.probe_every_cycles = 1
        self.save_steps = self.save_steps or self.task_steps
        optim = getattr(self.optim, "value", self.optim)
        if self.probe_learning_rate is None and not self.no_probe and "adamw" not in optim:
            raise PlasticityError(
                f"probe_learning_rate: missing; a probe always uses AdamW, and learning_rate is that of '{optim}'"
            )
        self.probe_steps = self.probe_steps or self.task_steps
        self.probe_eval_every = self.probe_eval_every or max(1, self.probe_steps // 100)
        if self.probe_warmup_steps is None:
            self.probe_warmup_steps = min(self.warmup_steps, self.probe_steps)
        # TrainingArguments requires a number; `set_batch` sets the final one when the context length is known.
        self.micro_batch_size = self.per_device_train_batch_size
        self.per_device_train_batch_size = self.per_device_train_batch_size or 1
        self._resolve_mitigations()
        if isinstance(self.lr_scheduler_kwargs, str):
            given = self.lr_scheduler_kwargs
            try:
                self.lr_scheduler_kwargs = json.loads(given)
            except ValueError:
                self.lr_scheduler_kwargs = None
            if not isinstance(self.lr_scheduler_kwargs, dict):
                raise PlasticityError(
                    f"lr_scheduler_kwargs: '{given}' is not a JSON object, such as {{\"num_decay_steps\": 100}}"
                )
        # A learning rate that depends on the size is not known yet. The trainer checks again.
        learning_rate_shape(
            self.lr_scheduler_type,
            1.0 if self.learning_rate is None else self.learning_rate,
            self.task_steps,
            self.warmup_steps,
            self.lr_scheduler_kwargs,
        )
        # Without this, several CPU processes of one launch do not join a group (seen in accelerate 1.15.0; reported in
        # https://github.com/huggingface/accelerate/issues/2741).
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.requested_accumulation_steps = self.gradient_accumulation_steps
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        self._fork_workers()
        try:
            super().__post_init__()
        except (TypeError, FileNotFoundError) as error:
            if isinstance(self.accelerator_config, str | dict):
                raise PlasticityError(f"accelerator_config: {one_line(error)}") from None
            raise
        # So that a copy (`dataclasses.replace`) before `set_batch` has no micro-batch that was not requested.
        self.per_device_train_batch_size = self.micro_batch_size
        check_parsed_arguments(self)
        check_installed(self)
        # `accelerate launch` may also set the precision; the configuration records the one that is used.
        if self.mixed_precision not in ("no", "bf16"):
            raise PlasticityError(f"mixed_precision: '{self.mixed_precision}' is not supported; use bf16 or no")
        self.bf16 = self.mixed_precision == "bf16"

    def _fork_workers(self) -> None:
        """Let the workers of the DataLoader inherit the training stream, which is not pickled."""
        if self.dataloader_multiprocessing_context not in (None, "fork"):
            raise PlasticityError(
                f"dataloader_multiprocessing_context: '{self.dataloader_multiprocessing_context}' is not supported; "
                "use fork"
            )
        self.dataloader_multiprocessing_context = "fork" if self.dataloader_num_workers > 0 else None

    def _check_values(self) -> None:
        counts = ("cycles", "task_steps", "global_batch_tokens", "probe_eval_sequences", "diagnostics_sequences")
        optional = (
            "probe_steps", "probe_eval_every", "probe_every_cycles", "probe_every_tasks", "probe_batch_size",
            "per_device_train_batch_size", "save_steps",
        )  # fmt: skip
        for name in counts + optional:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlasticityError(f"{name}: {value} is not a positive number")
        for name in ("learning_rate", "probe_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise PlasticityError(f"{name}: {value} is not a positive number")
        if self.probe_every_cycles is not None and self.probe_every_tasks is not None:
            raise PlasticityError(
                f"probe_every_tasks: {self.probe_every_tasks} and probe_every_cycles "
                f"{self.probe_every_cycles} are both given; use one"
            )
        for name in self.diagnostics_measures or []:
            if name not in MEASURES:
                raise PlasticityError(
                    f"diagnostics_measures: '{name}' is not a measure; choose from {', '.join(MEASURES)}"
                )
        if self.probe not in (INLINE, DEFERRED):
            raise PlasticityError(f"probe: '{self.probe}' is unknown; choose {INLINE} or {DEFERRED}")
        if self.probe == DEFERRED:
            for name, required in (("no_probe", False), ("save_probe_checkpoints", True)):
                if getattr(self, name) != required:
                    raise PlasticityError(
                        f"{name}: {getattr(self, name)} is not supported with --probe {DEFERRED}, which probes "
                        "saved checkpoints"
                    )
            if self.neftune_noise_alpha is not None:
                raise PlasticityError(
                    f"neftune_noise_alpha: {self.neftune_noise_alpha} is not supported with --probe {DEFERRED}; a "
                    "checkpoint does not have the noise"
                )
        if not self.restart_warmup and self.lr_scheduler_type not in CONSTANT:
            raise PlasticityError(
                f"restart_warmup: without restarts lr_scheduler_type must be one of {', '.join(CONSTANT)}, not "
                f"'{self.lr_scheduler_type}', which ends with a task instance"
            )
        if self.warmup_steps is not None and not (self.warmup_steps >= 0 and self.warmup_steps % 1 == 0):
            raise PlasticityError(f"warmup_steps: {self.warmup_steps} is not a number of steps")

    def _resolve_mitigations(self) -> None:
        """Check the mitigations, and write out their defaults."""
        self.mitigation = [self.mitigation] if isinstance(self.mitigation, str) else self.mitigation or None
        given = self.mitigation_args or {}
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                given = None
        if not isinstance(given, dict):
            raise PlasticityError(
                f"mitigation_args: '{self.mitigation_args}' is not a JSON object, such as "
                '{"redo": {"threshold": 0.1}}'
            )
        mitigations = make_mitigations(self.mitigation or [], given)
        self.mitigation_args = {one.name: one.arguments for one in mitigations if one.arguments} or None

    @property
    def probe_period(self) -> tuple[int, str]:
        """How often the model is probed: a number and its unit, `"tasks"` or `"cycles"`."""
        if self.probe_every_tasks is not None:
            return self.probe_every_tasks, "tasks"
        return self.probe_every_cycles, "cycles"

    def set_batch(self, context_length: int) -> int:
        """
        Set micro-batch and gradient accumulation so that every optimizer step has `global_batch_tokens` tokens.

        Args:
            context_length (`int`): Tokens in a sequence.

        Returns:
            `int`: Sequences in a global batch.

        Raises:
            [`PlasticityError`]: The global batch does not divide into sequences, processes and micro-batches.
        """
        if self.n_gpu > 1:
            raise PlasticityError(
                f"num_processes: {self.n_gpu} GPUs are visible to one process; use --num_processes {self.n_gpu}, or "
                "select one GPU with CUDA_VISIBLE_DEVICES=0"
            )
        batch, micro_batch_size, accumulation_steps = divide_batch(
            self.global_batch_tokens, context_length, self.world_size, self.micro_batch_size
        )
        if self.requested_accumulation_steps not in (1, accumulation_steps):
            raise PlasticityError(
                f"gradient_accumulation_steps: {self.requested_accumulation_steps} is not the {accumulation_steps} "
                "that follow from global_batch_tokens, per_device_train_batch_size and the processes; leave it out"
            )
        self.per_device_train_batch_size = micro_batch_size
        self.gradient_accumulation_steps = accumulation_steps
        return batch

    def probe_config(self, batch_size: int) -> ProbeConfig:
        """
        The probe of this configuration. Settings without a `probe_…` value are those of training.

        Args:
            batch_size (`int`): Sequences in a global batch of training.
        """
        return ProbeConfig.from_settings(
            self,
            batch_size=batch_size,
            learning_rate=self.learning_rate,
            lr_scheduler_type=SchedulerType(self.lr_scheduler_type).value,
            # They are arguments of the training's shape. A recorded configuration has the resolved type of the probe.
            lr_scheduler_kwargs=dict(self.lr_scheduler_kwargs or {})
            if self.probe_lr_scheduler_type in (None, self.lr_scheduler_type)
            else {},
            weight_decay=self.weight_decay,
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            adam_epsilon=self.adam_epsilon,
            max_grad_norm=self.max_grad_norm,
            allow_repeats=self.allow_repeats,
        )
