"""Fields of `TrainingArguments`: each identifies a run, does not affect its results, or is refused."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from hf_plasticity import PlasticityError
from hf_plasticity.experiment import parse_experiment
from hf_plasticity.settings import NUMERICS
from hf_plasticity.trainer import ContinualConfig
from hf_plasticity.trainer.training_arguments import (
    BATCH_FIELDS,
    ENVIRONMENT,
    OPTIMIZERS,
    OTHER_ACCELERATOR_FIELDS,
    REFUSED,
    ROLES,
)
from support.launch import TINY
from support.trainers import TASK_STEPS, StopAt, assert_same, final_state, make_trainer, stop_at


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


def test_every_field_is_classified():
    """Fields that a new version of Transformers adds or removes must be changed in the table."""
    assert {one.name for one in dataclasses.fields(TrainingArguments)} == ROLES.keys()
    fields = {one.name for one in dataclasses.fields(AcceleratorConfig)}
    assert fields == {*BATCH_FIELDS, *OTHER_ACCELERATOR_FIELDS}


OTHER_VALUES = {
    "max_steps": 9, "num_train_epochs": 1.0, "resume_from_checkpoint": "x", "train_sampling_strategy": "random",
    "eval_strategy": "steps", "deepspeed": "zero.json", "parallelism_config": {"tp_size": 2},
    "liger_kernel_config": {"rope": True}, "optim_target_modules": "all-linear",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_has_one_value(name):
    supported, reason = REFUSED[name]
    assert getattr(ContinualConfig(output_dir="x", **{name: supported}), name) == supported
    value = OTHER_VALUES.get(name, not supported)
    with pytest.raises(PlasticityError) as caught:
        ContinualConfig(output_dir="x", **{name: value})
    assert str(caught.value) == f"{name}: {value} is not supported, leave it out; {reason}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # By name, since the table itself is what the test above goes through.
        ({"save_only_model": True}, "save_only_model: True is not supported, leave it out"),
        ({"ignore_data_skip": True}, "ignore_data_skip: True is not supported, leave it out"),
        ({"dataloader_in_order": False}, "dataloader_in_order: False is not supported, leave it out"),
        ({"save_strategy": "epoch"}, "save_strategy: 'epoch' is not supported; use steps or no"),
        ({"save_strategy": "best"}, "save_strategy: 'best' is not supported; use steps or no"),
        ({"optim": "schedule_free_adamw"}, "optim: 'schedule_free_adamw' is not supported; choose one of adamw_torch"),
        ({"optim": "adamw"}, "optim: 'adamw' is not supported; choose one of adamw_torch"),
        ({"dataloader_multiprocessing_context": "spawn"}, "context: 'spawn' is not supported; use fork"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers: -1 is invalid; use 0 or more"),
        ({"seed": -1}, "seed: -1 is invalid; use a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed: 4294967296 is invalid; use"),
        ({"data_seed": -1}, "data_seed: -1 is invalid; use"),
        ({"adam_beta1": 1.0}, "adam_beta1: 1.0 is invalid; use"),
        ({"label_smoothing_factor": 2.0}, "label_smoothing_factor: 2.0 is invalid; use"),
        ({"weight_decay": float("nan")}, "weight_decay: nan is invalid; use"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm: nan is invalid; use"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is not "),
        ({"lr_scheduler_kwargs": "{bad"}, "lr_scheduler_kwargs: '{bad' is not a JSON object"),
        ({"lr_scheduler_kwargs": "[1]"}, "lr_scheduler_kwargs: '[1]' is not a JSON object"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches True is not supported, leave it out"),
        ({"accelerator_config": '{"split_batches": true}'}, "split_batches True is not supported, leave it out"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches True is not supported, leave it out"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
            "gradient_accumulation_kwargs {'num_steps': 2} is not supported, leave it out; global_batch_tokens",
        ),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"preserve_rng_state": False}},
            "activation_checkpointing_kwargs: preserve_rng_state False is not supported",
        ),
    ],
)
def test_a_value_that_changes_results_unnoticed_is_refused(settings, message):
    with pytest.raises(PlasticityError) as caught:
        ContinualConfig(output_dir="x", **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_unrecorded_settings_of_accelerate_launch_are_refused(variable, monkeypatch):
    expected, name, _ = ENVIRONMENT[variable]
    for same in (expected, expected.upper()):
        monkeypatch.setenv(variable, same)
        ContinualConfig(output_dir="x")
    monkeypatch.setenv(variable, "INDUCTOR" if name == "dynamo_backend" else "True")
    with pytest.raises(PlasticityError, match=f"^{name}: .* in Accelerate's configuration is not supported; use "):
        ContinualConfig(output_dir="x")


def test_fsdp1_of_accelerates_configuration_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(PlasticityError, match="fsdp_version: 1 is not supported; use 2"):
        ContinualConfig(output_dir="x")


def test_each_field_that_decides_results_is_part_of_the_identity_of_a_run():
    def numerics(*flags):
        return parse_experiment([*TINY, "--use_cpu", "--output_dir=x", *flags]).numerics()

    plain = numerics()
    for name, value in {
        "neftune_noise_alpha": 5.0,
        "torch_compile": True,
        "torch_compile_backend": "eager",
        "full_determinism": True,
        "label_smoothing_factor": 0.1,
        "data_seed": 3,
        "use_cache": True,
    }.items():
        assert ROLES[name] == NUMERICS and plain.get(name) != value
        assert numerics(f"--{name}={value}")[name] == value
    for flag in ("--logging_steps=7", "--dataloader_num_workers=2", "--save_steps=2", "--hub_token=hf_x"):
        assert numerics(flag) == plain


def test_arguments_that_an_optimizer_does_not_take_are_refused(tmp_path, cache):
    for optim, pair in (("adamw_torch", "fused=1"), ("sgd", "warmth=1"), ("sgd", "momentum")):
        with pytest.raises(PlasticityError, match=f"optim_args: '{pair}' is invalid for {optim}, whose"):
            ContinualConfig(output_dir="x", optim=optim, optim_args=pair)
    trainer = make_trainer(tmp_path, cache, optim="sgd", optim_args="momentum=-1", no_probe=True)
    with pytest.raises(PlasticityError, match="optim_args: 'momentum=-1' is invalid for sgd: Invalid momentum"):
        trainer.train()


def test_the_first_step_checks_that_it_has_the_batch_of_the_records(tmp_path, cache):
    trainer = make_trainer(tmp_path, cache, per_device_train_batch_size=3, no_probe=True)
    trainer.args.gradient_accumulation_steps = 1
    with pytest.raises(PlasticityError, match="global_batch_tokens: a step consumes 3 sequences instead of 6; a "):
        trainer.train()


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_supported_optimizer_is_reset_at_a_task_and_resumes(tmp_path, cache, optim):
    settings = {"optim": optim, "no_probe": True, "cycles": 1, "save_steps": 3}
    whole = make_trainer(tmp_path / "whole", cache, **settings)
    whole.train()
    states = whole.optimizer.state.values()
    assert {float(state["step"]) for state in states if "step" in state} <= {float(TASK_STEPS)}
    dying = make_trainer(tmp_path / "cut", cache, **settings)
    stop_at(dying, 7)
    with pytest.raises(StopAt):
        dying.train()
    resumed = make_trainer(tmp_path / "cut", cache, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._resumed_from == str(tmp_path / "cut" / "checkpoint-6")
    assert_same(final_state(resumed), final_state(whole))


def test_workers_of_the_dataloader_are_forked(tmp_path, cache):
    alone = make_trainer(tmp_path / "alone", cache, no_probe=True, cycles=1)
    alone.train()
    helped = make_trainer(tmp_path / "helped", cache, no_probe=True, cycles=1, dataloader_num_workers=1)
    assert helped.args.dataloader_multiprocessing_context == "fork"
    helped.train()
    torch.testing.assert_close(helped.model.state_dict(), alone.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("limit", "steps"), [(2, {8, 12}), (1, {12}), (0, {4, 8, 12}), (-1, {4, 8, 12})])
def test_a_limit_that_is_not_positive_keeps_all_checkpoints(tmp_path, cache, limit, steps):
    make_trainer(tmp_path, cache, no_probe=True, cycles=1, save_total_limit=limit).train()
    assert {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")} == steps
