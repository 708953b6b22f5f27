"""Mitigations on several processes: the run of one process, equal decisions, exact probes and resumes."""

import pytest
import torch

from hf_plasticity.records import MITIGATIONS_FILE, read_records
from support.launch import launch_ranks
from support.mitigated_ranks import RESUMED
from support.mitigations import CASES, assert_close_events, settings_of
from support.ranks import COMPARABLE, continual


pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return launch_ranks("mitigated_ranks.py", tmp_path_factory.mktemp("ddp"), "ddp", 2)


@pytest.fixture(scope="module")
def ddp_of_three(tmp_path_factory):
    return launch_ranks("mitigated_ranks.py", tmp_path_factory.mktemp("ddp-of-three"), "ddp", 3)


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    return launch_ranks("mitigated_ranks.py", tmp_path_factory.mktemp("fsdp2"), "fsdp2", 2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same runs in one process: their losses by name, and their events."""
    folder, found = tmp_path_factory.mktemp("alone"), {}
    for name in CASES:
        trainer = continual(folder / name, 1, no_probe=True, **COMPARABLE, **settings_of(name))
        trainer.train()
        found[name] = losses_of(trainer.state.log_history), events_of(folder / name)
    return found


def losses_of(log):
    return [entry["loss"] for entry in log if "loss" in entry]


def events_of(folder):
    return read_records(folder / "run" / MITIGATIONS_FILE)


def ends(folder):
    """The state of every process at the end of a training."""
    files = sorted(folder.glob("rank-*.pt"))
    assert len(files) > 1
    return [torch.load(file) for file in files]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("setup", ["ddp", "ddp_of_three", "fsdp2"])
def test_a_run_on_several_processes_agrees_with_one(request, alone, setup, name):
    folder = request.getfixturevalue(setup)
    losses, events = alone[name]
    assert losses_of(ends(folder / name)[0]["log"]) == pytest.approx(losses, rel=1e-5)
    assert_close_events(events_of(folder / name), events)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("setup", ["ddp", "ddp_of_three"])
def test_every_process_of_data_parallel_training_makes_the_same_decision(request, setup, name):
    one, *others = ends(request.getfixturevalue(setup) / name)
    for other in others:
        torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=0)
        torch.testing.assert_close(one["optimizer"], other["optimizer"], rtol=0, atol=0)


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("setup", ["ddp", "ddp_of_three", "fsdp2"])
@pytest.mark.parametrize("variant", ["probed", "resumed"])
def test_probes_are_invisible_and_a_resumed_run_is_bit_identical(request, setup, name, variant):
    folder = request.getfixturevalue(setup)
    for one, other in zip(ends(folder / f"{name}-{variant}"), ends(folder / name), strict=True):
        assert one.pop("log") == other.pop("log")
        assert one.pop("distributed_type") == other.pop("distributed_type")
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert events_of(folder / f"{name}-{variant}") == events_of(folder / name)
