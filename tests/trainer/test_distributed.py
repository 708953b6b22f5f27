"""The same run on several processes: probes stay invisible, batches and losses stay the same, resuming stays exact."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from hf_plasticity.records import FORGETTING_FILE, PROBES_FILE, read_records
from hf_plasticity.trainer import last_complete_checkpoint
from support.launch import ACCELERATE, TINY, error_line, launch, launch_ranks
from support.ranks import COMPARABLE, PROBES, TRAININGS, accumulations_of, continual


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return launch_ranks("ranks.py", tmp_path_factory.mktemp("ddp"), "ddp", 2)


@pytest.fixture(scope="module")
def ddp_of_three(tmp_path_factory):
    return launch_ranks("ranks.py", tmp_path_factory.mktemp("ddp-of-three"), "ddp", 3)


@pytest.fixture(scope="module")
def ddp_of_four(tmp_path_factory):
    return launch_ranks("ranks.py", tmp_path_factory.mktemp("ddp-of-four"), "ddp", 4, "comparable")


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    return launch_ranks("ranks.py", tmp_path_factory.mktemp("fsdp2"), "fsdp2", 2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The comparable run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    trainer = continual(folder, 1, **COMPARABLE)
    trainer.train()
    return folder, trainer


SETUPS = ["ddp", "fsdp2", pytest.param("ddp_of_three", marks=pytest.mark.slow)]


def ends(folder, name):
    """The state of every process at the end of a training."""
    files = sorted((folder / name).glob("rank-*.pt"))
    assert len(files) > 1
    return [torch.load(file) for file in files]


def assert_same_ends(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.pop("log") == other.pop("log")
        assert one.pop("distributed_type") == other.pop("distributed_type")
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "training", [*(f"continual-{number}-{precision}" for number, precision in TRAININGS), "plain"]
)
@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe != "none"])
@pytest.mark.parametrize("setup", SETUPS)
def test_probes_are_invisible_on_several_processes(request, setup, training, probe):
    folder = request.getfixturevalue(setup)
    kind = {end["distributed_type"] for end in ends(folder, f"{training}-{probe}")}
    assert kind == {"DistributedType.FSDP" if setup == "fsdp2" else "DistributedType.MULTI_CPU"}
    assert_same_ends(ends(folder, f"{training}-{probe}"), ends(folder, f"{training}-none"))
    records = read_records(folder / f"{training}-{probe}" / "run" / PROBES_FILE)
    assert {record["adaptation"] for record in records} == {probe}
    assert len(records) == 3 and all(record["final_loss"] != record["start_loss"] for record in records), "it trained"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "probes"), [("ddp", ["full", "lora"]), ("fsdp2", ["full"])])
def test_probes_are_invisible_to_compiled_runs_on_several_processes(tmp_path, kind, probes):
    folder = launch_ranks("ranks.py", tmp_path, kind, 2, "compiled")
    for probe in probes:
        assert_same_ends(ends(folder, f"compiled-{probe}"), ends(folder, "compiled-none"))


@pytest.mark.parametrize("setup", SETUPS)
def test_every_process_of_data_parallel_training_holds_the_same_weights(request, setup):
    if setup == "fsdp2":
        pytest.skip("each holds a part")
    one, *others = ends(request.getfixturevalue(setup), "continual-2-fp32-full")
    for other in others:
        torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=0)


ELSEWHERE = [
    ("ddp", 1), ("ddp", 2), ("fsdp2", 1), ("fsdp2", 2),
    *(pytest.param(setup, number, marks=pytest.mark.slow)
      for setup, processes in (("ddp_of_three", 3), ("ddp_of_four", 4)) for number in accumulations_of(processes)),
]  # fmt: skip


@pytest.mark.parametrize(("setup", "accumulation"), ELSEWHERE)
def test_batches_and_losses_do_not_depend_on_processes_and_accumulation(request, alone, setup, accumulation):
    folder = request.getfixturevalue(setup) / f"comparable-{accumulation}"
    batches = json.loads((folder / "batches.json").read_text())
    assert batches == [sorted(step) for step in alone[1].batches] and len(set(map(str, batches))) == 12
    assert_close_runs(folder / "run", ends(folder.parent, folder.name)[0]["log"], *alone)


def assert_close_runs(folder, log, other, trainer):
    """Equal within 1e-6: the training losses, and every number of probes and forgetting."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in log] == pytest.approx(losses, rel=1e-6)
    for name, number in ((PROBES_FILE, 3), (FORGETTING_FILE, 2)):
        ones, others = read_records(folder / name), read_records(other / "run" / name)
        assert len(ones) == len(others) == number
        for one, other_one in zip(ones, others):
            one.pop("seconds", None)
            other_one.pop("seconds", None)
            # A difference of two areas in percent has little relative accuracy.
            assert one.pop("delta_auc", None) == pytest.approx(other_one.pop("delta_auc", None), abs=2e-4)
            assert numbers_of(one) == pytest.approx(numbers_of(other_one), rel=1e-6)


def numbers_of(record):
    values = []
    for value in record.values():
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [value for value in values if isinstance(value, int | float)]


@pytest.mark.parametrize(
    ("setup", "name"),
    [
        ("ddp", "continued-here"),
        ("fsdp2", "continued-here"),
        ("fsdp2", "continued-full"),
        pytest.param("ddp_of_three", "continued-here", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_several_processes_resumes_to_the_bit(request, setup, name):
    folder = request.getfixturevalue(setup)
    assert_same_ends(ends(folder, name), ends(folder, "continual-2-fp32-full"))


def test_a_run_resumes_on_another_number_of_processes(ddp, alone):
    folder = ddp / "continued-elsewhere"
    assert Path(last_complete_checkpoint(folder / "run")).name == "checkpoint-6"
    trainer = continual(folder, 3, **COMPARABLE)
    trainer.train(resume_from_checkpoint=True)
    assert [sorted(step) for step in trainer.batches] == [[]] * 6 + [sorted(step) for step in alone[1].batches[6:]]
    assert_close_runs(folder / "run", [e for e in trainer.state.log_history if "loss" in e], *alone)


@pytest.mark.parametrize("name", ["continual-1-fp32-full", "continual-2-bf16-full", "continued-full"])
def test_a_probed_checkpoint_of_sharded_weights_loads_on_one_process(fsdp2, name):
    loaded = GPT2LMHeadModel.from_pretrained(fsdp2 / name / "run" / "cycle-002").state_dict()
    torch.testing.assert_close(loaded, torch.load(fsdp2 / name / "gathered.pt"), rtol=0, atol=0)


def test_a_batch_that_does_not_divide_among_processes_is_refused(tmp_path):
    process = launch(*TINY, "--global_batch_tokens=96", f"--output_dir={tmp_path}", processes=2)
    assert process.returncode != 0
    assert error_line(process) == "global_batch_tokens: its 3 sequences do not divide among 2 processes"
    assert not list(tmp_path.glob("c*"))


def test_sharding_where_accelerate_cannot_shard_is_refused(tmp_path):
    config = ["--config_file", str(ACCELERATE / "fsdp2.yaml")]
    process = launch(*TINY, f"--output_dir={tmp_path}", processes=2, options=config)
    assert process.returncode != 0
    assert error_line(process).startswith("fsdp: Accelerate does not support it on cpu devices")
