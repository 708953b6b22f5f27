"""
The role of each field of `TrainingArguments` in a continual run: it affects the results, it does not affect them, or
it has one supported value. A field that a later version of Transformers adds is treated as one that affects the
results.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch._dynamo
import torch._inductor
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.trainer_utils import SaveStrategy

from ..errors import PlasticityError, one_line
from ..settings import DERIVED, MACHINE, NUMERICS, OUTPUT, PRIVATE


_NUMERICS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha",
    "bf16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cache", "full_determinism",
    "seed", "data_seed",
)  # fmt: skip
_MACHINE = (
    "per_device_train_batch_size", "per_device_eval_batch_size",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_empty_cache_steps", "accelerator_config", "dataloader_drop_last",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config",
)  # fmt: skip
# Logging, saving and the Hub, and settings that only Trainer.evaluate, predict or the scripts of Transformers read.
_OUTPUT = (
    "output_dir", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics", "debug",
    "save_strategy", "save_steps", "save_total_limit", "push_to_hub", "hub_private_repo", "hub_model_id",
    "eval_steps", "eval_delay", "prediction_loss_only",
    "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
    "batch_eval_metrics", "metric_for_best_model", "greater_is_better", "bf16_full_eval", "fp16_full_eval",
    "label_names", "length_column_name", "do_train", "do_eval", "do_predict",
)  # fmt: skip

_LENGTH = "cycles and task_steps decide the length of a run"
_RESUME = "a resumed run would differ from an uninterrupted one"
_EVALUATION = "the probe and evaluate_forgetting are the evaluations of a run"
# Each has one supported value.
REFUSED: dict[str, tuple[Any, str]] = {
    "max_steps": (-1, _LENGTH),
    "num_train_epochs": (3.0, _LENGTH),
    "resume_from_checkpoint": (None, "a run resumes automatically from the last complete checkpoint of its folder"),
    "train_sampling_strategy": ("sequential", "the training stream decides the order of the text"),
    "remove_unused_columns": (False, "the training stream has no columns"),
    "fp16": (False, "the probe cannot scale its loss as training does; use bf16"),
    "logging_nan_inf_filter": (False, "a NaN loss ends the run"),
    "average_tokens_across_devices": (True, "the loss of a step is its mean over all processes"),
    "auto_find_batch_size": (False, "global_batch_tokens decides the batch"),
    "save_only_model": (False, f"a checkpoint requires the optimizer state; otherwise {_RESUME}"),
    "ignore_data_skip": (False, f"the data would start again; {_RESUME}"),
    "enable_jit_checkpoint": (False, _RESUME),
    "restore_callback_states_from_checkpoint": (False, "callbacks derive their state from the step"),
    "eval_strategy": ("no", _EVALUATION),
    "eval_on_start": (False, _EVALUATION),
    "load_best_model_at_end": (False, _EVALUATION),
    "hub_strategy": ("every_save", "a run uploads its records and probed models, not its checkpoints"),
    "hub_always_push": (False, "a run always retries failed uploads"),
    "hub_revision": (None, "a run uploads to main, and each probed model to its own branch"),
    "deepspeed": (None, "FSDP2 shards a model here; see docs/running.md"),
    "parallelism_config": (None, "DDP and FSDP2 are supported"),
    "save_on_each_node": (False, "all nodes write to one run folder"),
    "dataloader_in_order": (True, "the order of the batches would vary"),
    "use_liger_kernel": (False, "head_loss decides how the loss is computed"),
    "liger_kernel_config": (None, "head_loss decides how the loss is computed"),
    "optim_target_modules": (None, "the optimizers that use it are not supported"),
}
_DERIVED = (*REFUSED, "gradient_accumulation_steps", "local_rank", "use_cpu")
# Optimizers whose whole state is in `optimizer.state`, which task instances reset and checkpoints save, with the names
# that Transformers takes from `optim_args`. It silently ignores other names (transformers 5.23.0). Adagrad is not
# supported: before torch 2.12 it creates its state only once, so that it cannot be reset.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw_torch": (),
    "adamw_torch_fused": (),
    "adafactor": (),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
}

ROLES: dict[str, str] = {
    **dict.fromkeys(_NUMERICS, NUMERICS),
    **dict.fromkeys(_MACHINE, MACHINE),
    **dict.fromkeys(_OUTPUT, OUTPUT),
    **dict.fromkeys(_DERIVED, DERIVED),
    "hub_token": PRIVATE,
}

# Fields of `accelerator_config` that change the batch of an optimizer step, and those that do not: the order of the
# text is sequential, and its length a multiple of the batch.
BATCH_FIELDS = {"split_batches": False, "dispatch_batches": None, "gradient_accumulation_kwargs": None}
OTHER_ACCELERATOR_FIELDS = ("even_batches", "use_seedable_sampler", "non_blocking", "use_configured_state")

# Environment variables of `accelerate launch` and its configuration: the supported value, the name of the setting, and
# what to use instead. Other values would not be recorded.
_COMPILE = "torch_compile, torch_compile_backend and torch_compile_mode"
_SHARD = "the Accelerate configuration ddp or fsdp2"
ENVIRONMENT: dict[str, tuple[str, str, str]] = {
    "ACCELERATE_DYNAMO_BACKEND": ("no", "dynamo_backend", _COMPILE),
    "ACCELERATE_DYNAMO_MODE": ("default", "dynamo_mode", _COMPILE),
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": ("false", "dynamo_use_fullgraph", _COMPILE),
    "ACCELERATE_DYNAMO_USE_DYNAMIC": ("false", "dynamo_use_dynamic", _COMPILE),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": ("false", "dynamo_use_regional_compilation", _COMPILE),
    "ACCELERATE_USE_DEEPSPEED": ("false", "use_deepspeed", _SHARD),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "use_megatron_lm", _SHARD),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "use_parallelism_config", _SHARD),
}
# The valid range of each field. With other values, Transformers and PyTorch would fail only later.
_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295"),
    ("data_seed", lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295"),
    ("dataloader_num_workers", lambda value: value >= 0, "0 or more"),
    ("logging_steps", lambda value: value >= 1, "1 or more"),
    ("torch_empty_cache_steps", lambda value: value >= 1, "1 or more"),
    ("learning_rate", lambda value: 0 < value < math.inf, "a positive number"),
    ("weight_decay", lambda value: 0 <= value < math.inf, "0 or more"),
    ("adam_beta1", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    ("adam_beta2", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    ("adam_epsilon", lambda value: 0 <= value < math.inf, "0 or more"),
    ("max_grad_norm", lambda value: value >= 0, "0 (no clipping) or more"),
    ("label_smoothing_factor", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    ("neftune_noise_alpha", lambda value: 0 <= value < math.inf, "0 or more"),
)


def check_training_arguments(args: TrainingArguments) -> None:
    """
    Raise an error for settings that a continual run does not support.

    Raises:
        [`PlasticityError`]: A field with another value than the supported one.
    """
    for variable, (expected, name, instead) in ENVIRONMENT.items():
        given = os.environ.get(variable) or expected
        if given.lower() != expected:
            raise PlasticityError(f"{name}: {given} in Accelerate's configuration is not supported; use {instead}")
    for name, (supported, reason) in REFUSED.items():
        value = getattr(args, name)
        value = getattr(value, "value", value)
        if value != supported:
            raise PlasticityError(f"{name}: {value} is not supported, leave it out; {reason}")
    if args.save_strategy not in (SaveStrategy.STEPS, SaveStrategy.NO, "steps", "no"):
        raise PlasticityError(f"save_strategy: '{args.save_strategy}' is not supported; use steps or no")
    optim = getattr(args.optim, "value", args.optim)
    if optim not in OPTIMIZERS:
        raise PlasticityError(
            f"optim: '{optim}' is not supported; choose one of {', '.join(OPTIMIZERS)}, whose state a task instance "
            "can reset and a checkpoint can hold"
        )
    for pair in (args.optim_args or "").replace(" ", "").split(","):
        key, separator, _ = pair.partition("=")
        if pair and (key not in OPTIMIZERS[optim] or not separator):
            known = ", ".join(OPTIMIZERS[optim]) or "none"
            raise PlasticityError(f"optim_args: '{pair}' is invalid for {optim}, whose arguments are: {known}")
    for name, possible, right in _RANGES:
        value = getattr(args, name)
        if value is not None and not possible(value):
            raise PlasticityError(f"{name}: {value} is invalid; use {right}")
    if args.dataloader_persistent_workers and not args.dataloader_num_workers:
        raise PlasticityError("dataloader_persistent_workers: there are no workers; set dataloader_num_workers")
    _check_compilation(args)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        for name in ("ddp_backend", "fsdp"):
            if getattr(args, name):
                raise PlasticityError(f"{name}: {getattr(args, name)} requires several processes; leave it out")


def _check_compilation(args: TrainingArguments) -> None:
    if not (args.torch_compile or args.torch_compile_backend or args.torch_compile_mode):
        return
    # Accelerate supports fewer backends than PyTorch.
    known = {backend.value.lower() for backend in DynamoBackend}
    backends = sorted(known.intersection(torch._dynamo.list_backends(exclude_tags=())))
    modes = list(torch._inductor.list_mode_options())
    if args.torch_compile_backend not in (None, *backends):
        raise PlasticityError(
            f"torch_compile_backend: '{args.torch_compile_backend}' is unknown; choose one of {', '.join(backends)}"
        )
    if args.torch_compile_mode not in (None, *modes):
        raise PlasticityError(
            f"torch_compile_mode: '{args.torch_compile_mode}' is unknown; choose one of {', '.join(modes)}"
        )


def check_installed(args: TrainingArguments) -> None:
    """
    Raise an error for trackers and optimizers that are unknown or not installed, after `args` has resolved them.

    Raises:
        [`PlasticityError`]: Such a tracker or optimizer.
    """
    for tracker in args.report_to:
        if tracker not in INTEGRATION_TO_CALLBACK:
            raise PlasticityError(
                f"report_to: '{tracker}' is unknown; choose none, all, or some of {', '.join(INTEGRATION_TO_CALLBACK)}"
            )
        if tracker not in get_available_reporting_integrations():
            raise PlasticityError(f"report_to: '{tracker}' is not installed; install it, or leave it out")
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, RuntimeError) as error:
        raise PlasticityError(f"optim: '{args.optim.value}' cannot be used: {one_line(error)}") from None


def check_parsed_arguments(args: TrainingArguments) -> None:
    """
    Raise an error for settings that a continual run does not support and that `args` has parsed from JSON: settings of
    Accelerate that change the batch of an optimizer step, recomputation with other random numbers, and FSDP1.

    Raises:
        [`PlasticityError`]: Such a setting.
    """
    for name, supported in BATCH_FIELDS.items():
        value = getattr(args.accelerator_config, name)
        if value != supported:
            raise PlasticityError(
                f"accelerator_config: {name} {value} is not supported, leave it out; global_batch_tokens decides the "
                "batch"
            )
    # Versions of Transformers before 5.23 have only this name, and later ones have both.
    if (args.gradient_checkpointing_kwargs or {}).get("preserve_rng_state", True) is not True:
        raise PlasticityError(
            "activation_checkpointing_kwargs: preserve_rng_state False is not supported, leave it out; dropout would "
            "be recomputed with other random numbers"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        version = os.environ.get("FSDP_VERSION", "1")
    else:
        version = str((args.fsdp_plugin_args or {"fsdp_version": 2})["fsdp_version"])
    if version != "2":
        raise PlasticityError(f"fsdp_version: {version} is not supported; use 2")
