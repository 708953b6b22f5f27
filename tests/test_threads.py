"""How many CPU threads a process computes with, and that the launcher does not change results."""

import os
import subprocess
import sys

import pytest
import yaml

from hf_plasticity import threads
from hf_plasticity.errors import PlasticityError
from hf_plasticity.threads import available_cores, choose_threads
from support.launch import CONTINUAL, ROOT, TINY
from support.runs import assert_same_run


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with eight cores of two hardware threads each, no limit of a control group, and one process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(threads, "_siblings", lambda cpu: str(cpu % 8))
    monkeypatch.setattr(threads, "CGROUP_LIMIT", tmp_path / "cpu.max")
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_hardware_threads_of_one_core_count_once(machine, monkeypatch):
    assert available_cores() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 8, 9})
    assert available_cores() == 2


@pytest.mark.parametrize("limit, cores", [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1)])
def test_the_limit_of_the_control_group_is_respected(machine, limit, cores):
    (machine / "cpu.max").write_text(limit)
    assert available_cores() == cores


@pytest.mark.parametrize("processes, number", [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_the_processes_of_a_machine_divide_its_cores(machine, monkeypatch, processes, number):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert choose_threads(None, None) == number


def test_one_thread_of_accelerate_is_a_default_and_other_numbers_are_the_user_s(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_threads(None, None) == 1
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert choose_threads(None, None) == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(None, None) == 3
    assert choose_threads(2, None) == 2, "the setting comes first"
    assert choose_threads(None, 5) == 5, "then the number that the run was started with"


def test_more_threads_than_cores_are_refused_for_a_new_run_and_announced_for_a_resumed_one(
    machine, monkeypatch, caplog
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_threads(4, None) == 4
    with pytest.raises(PlasticityError, match="5 in each of 2 processes exceeds the number of available cores, 8"):
        choose_threads(5, None)
    with pytest.raises(PlasticityError, match="cpu_threads: 0 is not a positive number"):
        choose_threads(0, None)
    with caplog.at_level("WARNING"):
        assert choose_threads(None, 6) == 6
    assert "resumes with its original 6 CPU threads on 8 cores" in caplog.text


def test_python_and_accelerate_launch_give_the_same_bits(tmp_path):
    settings = [one for one in TINY if not one.startswith("--cpu_threads")]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(ROOT)
    launchers = {"python": [], "launch": ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]}
    for name, launcher in launchers.items():
        process = subprocess.run(
            [sys.executable, *launcher, CONTINUAL, *settings, "--use_cpu", f"--output_dir={tmp_path / name}"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr[-2000:]
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert config["cpu_threads"] == available_cores()
    assert_same_run(tmp_path / "python", tmp_path / "launch")
