"""
What each field of `TrainingArguments` does in a continual run: it has a role, or it is not supported, with the reason.
A field in neither table counts as numerics, so that a setting that Transformers adds is never ignored.
"""

from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..errors import PlasticityError
from ..settings import DERIVED, MACHINE, OUTPUT, PRIVATE


_MACHINE = (
    "per_device_train_batch_size", "per_device_eval_batch_size",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_empty_cache_steps", "accelerator_config", "dataloader_drop_last",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config",
    "save_on_each_node",
)  # fmt: skip
# Logging, saving and the Hub, and settings that only Trainer.evaluate, predict or the scripts of Transformers read.
_OUTPUT = (
    "output_dir", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics", "debug",
    "save_strategy", "save_steps", "save_total_limit", "push_to_hub", "hub_private_repo", "hub_model_id",
    "hub_strategy", "hub_always_push", "hub_revision", "eval_steps", "eval_delay", "prediction_loss_only",
    "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
    "batch_eval_metrics", "metric_for_best_model", "greater_is_better", "bf16_full_eval", "fp16_full_eval",
    "label_names", "length_column_name", "do_train", "do_eval", "do_predict",
)  # fmt: skip

_LENGTH = "cycles and task_steps decide the length of a run"
_RESUME = "a resumed run would differ from one that was never stopped"
_EVALUATION = "the probe and evaluate_forgetting are the evaluations of a run"
# Each has one supported value.
REFUSED: dict[str, tuple[Any, str]] = {
    "max_steps": (-1, _LENGTH),
    "num_train_epochs": (3.0, _LENGTH),
    "resume_from_checkpoint": (None, "a run resumes from the last complete checkpoint of its folder by itself"),
    "train_sampling_strategy": ("sequential", "the training stream decides the order of the text"),
    "remove_unused_columns": (False, "the training stream has no columns"),
    "fp16": (False, "the probe cannot scale its loss as training does; use bf16"),
    "logging_nan_inf_filter": (False, "a NaN loss ends the run"),
    "average_tokens_across_devices": (True, "the loss of a step is its mean over all processes"),
    "auto_find_batch_size": (False, "global_batch_tokens decides the batch"),
    "save_only_model": (False, f"a checkpoint requires the optimizer state; without it {_RESUME}"),
    "ignore_data_skip": (False, f"the data would start again; {_RESUME}"),
    "enable_jit_checkpoint": (False, _RESUME),
    "restore_callback_states_from_checkpoint": (False, "callbacks derive their state from the step"),
    "eval_strategy": ("no", _EVALUATION),
    "eval_on_start": (False, _EVALUATION),
    "load_best_model_at_end": (False, _EVALUATION),
    "deepspeed": (None, "FSDP2 shards a model here; see docs/running.md"),
    "parallelism_config": (None, "DDP and FSDP2 are supported"),
}
_DERIVED = (*REFUSED, "gradient_accumulation_steps", "local_rank", "use_cpu")

ROLES: dict[str, str] = {
    **dict.fromkeys(_MACHINE, MACHINE),
    **dict.fromkeys(_OUTPUT, OUTPUT),
    **dict.fromkeys(_DERIVED, DERIVED),
    "hub_token": PRIVATE,
}

# Fields of `accelerator_config` that change the batch of an optimizer step.
_BATCH_FIELDS = {"split_batches": False, "dispatch_batches": None, "gradient_accumulation_kwargs": None}


def check_training_arguments(args: TrainingArguments) -> None:
    """
    Raise an error for settings that a continual run does not support.

    Raises:
        [`PlasticityError`]: A field with another value than the supported one.
    """
    for name, (supported, reason) in REFUSED.items():
        value = getattr(args, name)
        value = getattr(value, "value", value)
        if value != supported:
            raise PlasticityError(f"{name}: {value} is not supported, leave it out; {reason}")
    if args.save_strategy not in (SaveStrategy.STEPS, SaveStrategy.NO, "steps", "no"):
        raise PlasticityError(f"save_strategy: '{args.save_strategy}' is not supported; use steps or no")
    if args.seed < 0:
        raise PlasticityError(f"seed: {args.seed} is negative; use 0 or more")
    if args.dataloader_num_workers < 0:
        raise PlasticityError(f"dataloader_num_workers: {args.dataloader_num_workers} is negative; use 0 or more")


def check_accelerator_config(args: TrainingArguments) -> None:
    """
    Raise an error for settings of Accelerate that change the batch of an optimizer step. `args` has parsed them.

    Raises:
        [`PlasticityError`]: Such a setting.
    """
    for name, supported in _BATCH_FIELDS.items():
        value = getattr(args.accelerator_config, name)
        if value != supported:
            raise PlasticityError(
                f"accelerator_config: {name} {value} is not supported, leave it out; global_batch_tokens decides the "
                "batch"
            )
