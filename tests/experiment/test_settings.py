"""Every setting has one role, from which all lists of settings are derived."""

import dataclasses

import pytest
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from hf_plasticity import PlasticityError
from hf_plasticity.experiment import parse_experiment
from hf_plasticity.probing.config import NO_FLAG, ProbeConfig
from hf_plasticity.published.config import SuiteConfig
from hf_plasticity.settings import NUMERICS, PRIVATE, ROLES, roles_of
from hf_plasticity.trainer import ContinualConfig
from hf_plasticity.trainer import training_arguments as classified


PROBE_SETTINGS = [one.name for one in dataclasses.fields(ProbeConfig) if one.name not in NO_FLAG]


@pytest.fixture(scope="module")
def experiment():
    return parse_experiment(["--use_cpu", "--hub_token=hf_secret"])


@pytest.mark.parametrize("kind", [ContinualConfig, SuiteConfig, ProbeConfig])
def test_every_setting_of_this_package_has_a_role(kind):
    inherited = TrainingArguments.__dataclass_fields__ if kind is ContinualConfig else {}
    for one in dataclasses.fields(kind):
        if one.name not in inherited:
            assert one.metadata.get("role") in ROLES, one.name


@pytest.mark.parametrize(("task_steps", "warmup_steps"), [(4, 4), (10, 10), (80, 10)])
def test_the_default_warmup_fits_short_tasks_and_probes(task_steps, warmup_steps):
    config = ContinualConfig(output_dir="x", task_steps=task_steps, probe_steps=7)
    assert (config.warmup_steps, config.probe_warmup_steps) == (warmup_steps, min(warmup_steps, 7))


def test_fields_of_transformers_that_decide_the_results_are_numerics(experiment):
    for name in ("neftune_noise_alpha", "tf32", "bf16", "label_smoothing_factor", "optim", "full_determinism"):
        assert experiment.roles[name] == NUMERICS, name
    assert set(classified.ROLES) <= set(TrainingArguments.__dataclass_fields__), (
        "a field that Transformers does not have"
    )


def test_a_field_that_transformers_adds_counts_as_numerics():
    @dataclasses.dataclass
    class Later(ContinualConfig):
        new_kernel: str = "fast"

    assert roles_of(Later, classified.ROLES)["new_kernel"] == NUMERICS


def test_precision_and_noise_identify_a_run(experiment):
    numerics = experiment.numerics()
    assert {"bf16", "seed", "learning_rate", "size", "languages", "probe_steps"} <= numerics.keys()
    for flag in ("--bf16", "--neftune_noise_alpha=5", "--probe_seed=1", "--optim=adamw_torch"):
        assert parse_experiment(["--use_cpu", flag]).numerics() != numerics, flag
    for flag in ("--output_dir=elsewhere", "--logging_steps=7", "--cycles=9", "--per_device_train_batch_size=2"):
        assert parse_experiment(["--use_cpu", flag]).numerics() == numerics, flag


def test_a_probe_does_not_take_the_learning_rate_of_another_optimizer():
    with pytest.raises(PlasticityError, match=r"^probe_learning_rate: missing; .*learning_rate is that of 'sgd'"):
        parse_experiment(["--use_cpu", "--optim=sgd", "--learning_rate=0.5"])
    config = parse_experiment(["--use_cpu", "--optim=sgd", "--learning_rate=0.5", "--probe_learning_rate=1e-3"])
    assert config.training.probe_config(batch_size=16).learning_rate == 1e-3


def test_private_settings_are_in_no_file(experiment):
    assert experiment.roles["hub_token"] == PRIVATE
    assert "hf_secret" not in str(experiment.settings())


@pytest.mark.parametrize("name", PROBE_SETTINGS)
def test_a_setting_of_the_probe_is_a_flag_everywhere_and_part_of_the_hash(name):
    """One edit in `ProbeConfig` is enough."""
    for kind in (ContinualConfig, SuiteConfig):
        assert f"probe_{name}" in {one.name for one in dataclasses.fields(kind)}
    assert name in ProbeConfig(adaptation="lora").protocol()
    assert roles_of(ContinualConfig)[f"probe_{name}"] == NUMERICS


def test_the_probe_takes_the_arguments_of_a_schedule_only_with_the_schedule():
    shape = ["--lr_scheduler_type=warmup_stable_decay", '--lr_scheduler_kwargs={"num_decay_steps": 20}']
    batch = {"batch_size": 16}
    inherited = parse_experiment(["--use_cpu", *shape]).training.probe_config(**batch)
    assert (inherited.lr_scheduler_type, inherited.lr_scheduler_kwargs) == (
        "warmup_stable_decay",
        {"num_decay_steps": 20},
    )
    recorded = parse_experiment(["--use_cpu"], settings=parse_experiment(["--use_cpu", *shape]).settings())
    assert recorded.training.probe_config(**batch) == inherited
    own = ["--probe_lr_scheduler_type=constant_with_warmup"]
    assert parse_experiment(["--use_cpu", *shape, *own]).training.probe_config(**batch).lr_scheduler_kwargs == {}


def test_an_optimizer_may_be_given_as_in_transformers():
    config = ContinualConfig(output_dir="x", optim=OptimizerNames.ADAMW_TORCH)
    assert config.optim == ContinualConfig(output_dir="x", optim="adamw_torch").optim
