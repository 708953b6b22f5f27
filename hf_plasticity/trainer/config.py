import json
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..errors import PlasticityError
from ..learning_rate import learning_rate_shape
from ..probing import ProbeConfig


INLINE, DEFERRED = "inline", "deferred"


@dataclass
class ContinualConfig(TrainingArguments):
    r"""
    Configuration of [`ContinualTrainer`]: `TrainingArguments` and what the study adds to them.

    > Parameters that control the run

    Args:
        schedule (`str`, *optional*, defaults to `"rotation"`):
            `"rotation"` (the paper's continual run), `"stationary"` (all languages mixed evenly), `"gradual"` (a
            rotation with blended boundaries), or the languages of a cycle separated by commas.
        blend (`float`, *optional*, defaults to 0.5):
            For `"gradual"`: length of a boundary in task instances.
        cycles (`int`, *optional*, defaults to 3):
            Length of the run (the paper: up to 48). A finished run goes on when it is given more.
        task_steps (`int`, *optional*, defaults to 80):
            Optimizer steps of a task instance (the paper: 9,537).
        global_batch_tokens (`int`, *optional*, defaults to 2048):
            Tokens in an optimizer step over all processes and micro-batches (the paper: 524,288). Gradient
            accumulation follows from it, `per_device_train_batch_size` and the number of processes.
        allow_repeats (`bool`, *optional*, defaults to `False`):
            Whether a language that has run out of fresh tokens starts again, the probe's included.
        reset_optimizer (`bool`, *optional*, defaults to `True`):
            Whether every task instance starts with an empty optimizer state, as in the paper, under every schedule.
        evaluate_forgetting (`bool`, *optional*, defaults to `False`):
            Whether validation loss on each training language is measured at the end of each cycle, into
            `forgetting.jsonl`.
        diagnose (`bool`, *optional*, defaults to `False`):
            Whether to look inside the network wherever it is probed (magnitudes, dormant units, heads, ranks), into
            `diagnostics.jsonl`; on the probe language's validation sequences.
        diagnostics_sequences (`int`, *optional*, defaults to 64):
            How many of them.

    > Parameters that control the probe; those without a default of their own take it from training

    Args:
        no_probe (`bool`, *optional*, defaults to `False`):
            Trains without probes.
        probe (`str`, *optional*, defaults to `"inline"`):
            `"inline"` probes, and diagnoses, between two steps of training. `"deferred"` keeps every model that is to
            be probed as `cycle-003/` and trains on: `recipes/probe.py --follow` probes and diagnoses them meanwhile,
            elsewhere, with the same numbers.
        probe_every_cycles (`int`, *optional*, defaults to 1):
            Cycles between two probes; the untrained model (cycle 0) is probed too.
        probe_steps (`int`, *optional*, defaults to `task_steps`):
            Optimizer steps of a probe.
        probe_eval_every (`int`, *optional*, defaults to a hundredth of `probe_steps`):
            Steps between two evaluations (the paper: 95).
        probe_eval_sequences (`int`, *optional*, defaults to 64):
            Validation sequences of an evaluation, also for `evaluate_forgetting` (the paper: 1,280).
        probe_dense_start (`bool`, *optional*, defaults to `False`):
            Evaluates also after 1, 2, 4, … steps within the first interval. Not in the paper.
        probe_learning_rate (`float`, *optional*, defaults to `learning_rate`):
            Peak learning rate of the probe.
        probe_warmup_steps (`int`, *optional*, defaults to `warmup_steps`):
            Warmup of the probe.
        probe_adaptation (`str`, *optional*, defaults to `"full"`):
            `"full"`, as in the paper, or `"lora"`.
        probe_lora_rank (`int`, *optional*, defaults to 16):
            Rank of the adapters of `"lora"`.
        probe_seed (`int`, *optional*, defaults to 0):
            Order of the probe's data. Not tied to `seed`, so that the runs of a ladder share their probe.
        probe_repeats (`int`, *optional*, defaults to 1):
            Probes at each point, with different orders of the data, for error bars.
        save_probe_checkpoints (`bool`, *optional*, defaults to `True`):
            Whether to keep every probed model as `cycle-003/`.

    > Parameters that control the Hub, besides `push_to_hub`, `hub_model_id`, `hub_private_repo` and `hub_token`, which
    `recipes/continual.py` acts on; in a script of one's own, a [`~hub.push.RunPusher`] can `follow` the trainer

    Args:
        hub_patience (`float`, *optional*, defaults to 600.0):
            Seconds that the end of a run waits for a Hub that takes nothing more.

    These defaults differ from those of [`~transformers.TrainingArguments`]: `learning_rate` is that of the model's
    size; `adam_beta2` 0.95, `weight_decay` 0.1 (the paper); `lr_scheduler_type` `"constant_with_warmup"` and
    `warmup_steps` 10, both per task instance (the paper leaves them open); `per_device_train_batch_size` is the whole
    share of the process; `save_steps` is a task instance, `save_total_limit` 2; `logging_steps` 10;
    `logging_nan_inf_filter` `False`, since a NaN ends the run; `report_to` `"none"`; `train_sampling_strategy`
    `"sequential"`, `remove_unused_columns` `False`, `ddp_find_unused_parameters` `False`, which the exactness of runs
    rests on.
    """

    schedule: str = field(
        default="rotation", metadata={"help": "rotation, stationary, gradual, or a cycle's languages with commas."}
    )
    blend: float = field(default=0.5, metadata={"help": "Length of a gradual boundary in task instances."})
    cycles: int = field(default=3, metadata={"help": "Length of the run."})
    task_steps: int = field(default=80, metadata={"help": "Optimizer steps of a task instance."})
    global_batch_tokens: int = field(default=2048, metadata={"help": "Tokens in an optimizer step, over everything."})
    allow_repeats: bool = field(
        default=False, metadata={"help": "Let a language that has run out of fresh tokens start again."}
    )
    reset_optimizer: bool = field(
        default=True, metadata={"help": "Start every task instance with an empty optimizer state."}
    )
    evaluate_forgetting: bool = field(
        default=False, metadata={"help": "Measure validation loss on each training language after each cycle."}
    )
    diagnose: bool = field(default=False, metadata={"help": "Look inside the network wherever it is probed."})
    diagnostics_sequences: int = field(default=64, metadata={"help": "Validation sequences of a diagnosis."})

    no_probe: bool = field(default=False, metadata={"help": "Train without probes."})
    probe: str = field(
        default=INLINE, metadata={"help": "inline, or deferred: recipes/probe.py --follow probes what the run saves."}
    )
    probe_every_cycles: int = field(default=1, metadata={"help": "Cycles between two probes."})
    probe_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps of a probe; those of a task instance by default."}
    )
    probe_eval_every: int | None = field(
        default=None, metadata={"help": "Probe steps between two evaluations; a hundredth of the probe by default."}
    )
    probe_eval_sequences: int = field(default=64, metadata={"help": "Validation sequences of an evaluation."})
    probe_dense_start: bool = field(
        default=False, metadata={"help": "Evaluate also after 1, 2, 4, ... probe steps within the first interval."}
    )
    probe_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the probe; that of training by default."}
    )
    probe_warmup_steps: int | None = field(
        default=None, metadata={"help": "Warmup of the probe; that of a task instance by default."}
    )
    probe_adaptation: str = field(default="full", metadata={"help": "full or lora."})
    probe_lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters of a lora probe."})
    probe_seed: int = field(default=0, metadata={"help": "Order of the probe's data, whatever the run's seed."})
    probe_repeats: int = field(default=1, metadata={"help": "Probes at each point, for error bars."})
    save_probe_checkpoints: bool = field(default=True, metadata={"help": "Keep every probed model as cycle-003/."})

    hub_patience: float = field(default=600.0, metadata={"help": "Seconds to wait for the Hub at the end of a run."})

    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate; that of the model's size by default."}
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Sequences in a micro-batch; the whole share of the process by default."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 for AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay for AdamW."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "Shape of a task instance's learning rate."}
    )
    warmup_steps: int = field(default=10, metadata={"help": "Warmup steps at the start of every task instance."})
    save_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps between two checkpoints; a task instance by default."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep for resuming."})
    logging_steps: int = field(default=10, metadata={"help": "Optimizer steps between two logs."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Whether NaN losses are hidden in logs."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Trackers to log to: wandb, trackio, tensorboard, ..."}
    )
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "Must stay sequential."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in DDP."})

    def __post_init__(self):
        counts = (
            "cycles",
            "task_steps",
            "global_batch_tokens",
            "probe_every_cycles",
            "probe_eval_sequences",
            "diagnostics_sequences",
        )
        optional = ("probe_steps", "probe_eval_every", "per_device_train_batch_size", "save_steps")
        for name in counts + optional:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlasticityError(f"{name}: {value} is not a positive number")
        for name in ("learning_rate", "probe_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise PlasticityError(f"{name}: {value} is not a positive number")
        if self.probe not in (INLINE, DEFERRED):
            raise PlasticityError(f"probe: '{self.probe}' is unknown; choose {INLINE} or {DEFERRED}")
        if self.probe == DEFERRED:
            for name, needed in (("no_probe", False), ("save_probe_checkpoints", True)):
                if getattr(self, name) != needed:
                    raise PlasticityError(
                        f"{name}: {getattr(self, name)} leaves nothing to probe later, and probe is {DEFERRED}"
                    )
        for name, value in (("train_sampling_strategy", "sequential"), ("remove_unused_columns", False)):
            if getattr(self, name) != value:
                raise PlasticityError(
                    f"{name}: '{getattr(self, name)}' would change the order of the data; it must be {value}"
                )
        for name, unset, instead in (
            ("max_steps", -1, "the run is as long as cycles and task_steps make it"),
            ("num_train_epochs", 3.0, "the run is as long as cycles and task_steps make it"),
            (
                "resume_from_checkpoint",
                None,
                "a run goes on from the last complete checkpoint of its folder by itself",
            ),
        ):
            if getattr(self, name) != unset:
                raise PlasticityError(f"{name}: {getattr(self, name)} would not be heeded; {instead}")
        if self.fp16:
            raise PlasticityError("fp16: the probe cannot scale its loss as training does; use bf16")
        if self.warmup_steps != int(self.warmup_steps) or self.warmup_steps < 0:
            raise PlasticityError(f"warmup_steps: {self.warmup_steps} is not a number of steps")
        self.warmup_steps = int(self.warmup_steps)
        self.save_steps = self.save_steps or self.task_steps
        self.probe_steps = self.probe_steps or self.task_steps
        self.probe_eval_every = self.probe_eval_every or max(1, self.probe_steps // 100)
        if self.probe_warmup_steps is None:
            self.probe_warmup_steps = min(self.warmup_steps, self.probe_steps)
        # TrainingArguments computes with it; `set_batch` puts the real number in once the context length is known.
        self.micro_batch_size = self.per_device_train_batch_size
        self.per_device_train_batch_size = self.per_device_train_batch_size or 1
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = json.loads(self.lr_scheduler_kwargs)
        learning_rate_shape(self.lr_scheduler_type, self.task_steps, self.warmup_steps, self.lr_scheduler_kwargs)
        # Left to themselves, processes of one launch on a machine without an accelerator train apart from each other
        # (seen in accelerate 1.15.0).
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.asked_accumulation_steps = self.gradient_accumulation_steps
        super().__post_init__()
        # `accelerate launch` may set the precision too; what the run computes in has to stand in its configuration.
        if self.mixed_precision not in ("no", "bf16"):
            raise PlasticityError(f"mixed_precision: '{self.mixed_precision}' is not supported; use bf16 or no")
        self.bf16 = self.mixed_precision == "bf16"

    def set_batch(self, context_length: int) -> int:
        """
        Fix micro-batch and gradient accumulation so that every optimizer step has `global_batch_tokens` tokens.

        Args:
            context_length (`int`): Tokens in a sequence.

        Returns:
            `int`: Sequences in a global batch.

        Raises:
            [`PlasticityError`]: The global batch does not divide into sequences, processes and micro-batches.
        """
        if self.n_gpu > 1:
            raise PlasticityError(
                f"{self.n_gpu} GPUs are visible to one process; start with `accelerate launch`, or hide all but one"
            )
        batch, rest = divmod(self.global_batch_tokens, context_length)
        if rest or not batch:
            raise PlasticityError(
                f"global_batch_tokens: {self.global_batch_tokens} is not a multiple of context_length {context_length}"
            )
        share, rest = divmod(batch, self.world_size)
        if rest or not share:
            raise PlasticityError(
                f"global_batch_tokens: its {batch} sequences do not divide among {self.world_size} processes"
            )
        micro_batch_size = self.micro_batch_size or share
        if share % micro_batch_size:
            raise PlasticityError(
                f"per_device_train_batch_size: {micro_batch_size} does not divide the {share} sequences that each of "
                f"{self.world_size} processes has of a global batch"
            )
        accumulation_steps = share // micro_batch_size
        if self.asked_accumulation_steps not in (1, accumulation_steps):
            raise PlasticityError(
                f"gradient_accumulation_steps: {self.asked_accumulation_steps} is not the {accumulation_steps} that "
                "follow from global_batch_tokens, per_device_train_batch_size and the processes; leave it out"
            )
        self.per_device_train_batch_size = micro_batch_size
        self.gradient_accumulation_steps = accumulation_steps
        return batch

    def probe_config(self, batch_size: int) -> ProbeConfig:
        """
        The probe that follows from this configuration: like training in everything that it does not set itself.

        Args:
            batch_size (`int`): Sequences in a global batch of training.
        """
        return ProbeConfig(
            steps=self.probe_steps,
            eval_every=self.probe_eval_every,
            eval_sequences=self.probe_eval_sequences,
            dense_start=self.probe_dense_start,
            batch_size=batch_size,
            learning_rate=self.probe_learning_rate or self.learning_rate,
            warmup_steps=self.probe_warmup_steps,
            lr_scheduler_type=self.lr_scheduler_type,
            lr_scheduler_kwargs=dict(self.lr_scheduler_kwargs or {}),
            weight_decay=self.weight_decay,
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            adam_epsilon=self.adam_epsilon,
            max_grad_norm=self.max_grad_norm,
            seed=self.probe_seed,
            repeats=self.probe_repeats,
            adaptation=self.probe_adaptation,
            lora_rank=self.probe_lora_rank,
            allow_repeats=self.allow_repeats,
        )
