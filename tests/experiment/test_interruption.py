"""A run that is killed, stopped or started twice has the results of an uninterrupted run."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hf_plasticity.records import PROBES_FILE, checkpoints, is_complete, read_records
from hf_plasticity.trainer import last_complete_checkpoint
from support.launch import CONTINUAL, KILLED, ROOT, TINY, error_line, launch, launch_killed, start, wait_until_stopped
from support.runs import assert_same_run, recorded


# The number of each event in a run of TINY.
EVENTS = {
    "task": 16, "probe": 12, "checkpoint": 4, "marker": 4, "cycle": 3, "record": 3, "recorded": 3, "rotate": 2,
    "final": 1, "report": 1,
}  # fmt: skip


def finish(folder, flags=(), **how):
    process = launch(*TINY, *flags, f"--output_dir={folder}", **how)
    assert process.returncode == 0, process.stderr[-3000:]


def kill_again_and_again(folder, events, flags=(), **how):
    """Start the same command until it is finished; each start is killed at its event, if the event still occurs."""
    deaths = 0
    for event in events:
        process = launch(event, CONTINUAL, *TINY, *flags, f"--output_dir={folder}", script=KILLED, **how)
        if "was not killed" in process.stderr:
            return deaths
        assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
        deaths += 1
    finish(folder, flags, **how)
    return deaths


def random_events(seed):
    """An infinite sequence of events from a fixed generator."""
    generator = random.Random(seed)
    while True:
        event = generator.choice(list(EVENTS))
        yield f"{event}:{generator.randint(1, max(1, EVENTS[event] // 2))}"


def test_a_run_killed_at_critical_points_ends_with_the_same_results(finished, tmp_path):
    events = ["probe:2", "checkpoint:1", "task:6", "record:1", "final:1"]
    assert kill_again_and_again(tmp_path, events, direct=True) == len(events)
    assert_same_run(finished[0], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_at_random_points_ends_with_the_same_results(finished, tmp_path):
    deaths = 0
    for seed in range(1000):
        folder = tmp_path / str(seed)
        deaths += kill_again_and_again(folder, random_events(seed), direct=True)
        assert_same_run(finished[0], folder)
        if deaths >= 20:
            break
    assert deaths >= 20


MITIGATED = {
    "redo": '{"threshold": 0.6, "every": 3, "window": 2}',
    "cbp": '{"replacement_rate": 0.5, "maturity": 2}',
    "l2_init": "{}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MITIGATED)
def test_a_mitigated_run_killed_repeatedly_ends_with_the_same_results(tmp_path, name):
    flags = [f"--mitigation={name}", f"--mitigation_args={MITIGATED[name]}", "--diagnose=true"]
    flags.append("--diagnostics_sequences=4")
    finish(tmp_path / "whole", flags, direct=True)
    assert recorded(tmp_path / "whole")[4], "it acts"
    events = ["mitigation:2", "marker:1", "task:6", "rotate:1", "probe:3", "report:1"]
    assert kill_again_and_again(tmp_path / "cut", events, flags, direct=True) == len(events)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_signals_end_a_run_with_a_checkpoint_and_the_same_command_resumes(finished, tmp_path):
    folder, command = tmp_path / "run", [CONTINUAL, *TINY, f"--output_dir={tmp_path / 'run'}"]
    stopped = launch("task:7", *command, script=KILLED, direct=True, SIGNALS="SIGTERM")
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    assert "continual.py: stopped by SIGTERM after step 7 of 16; the same command resumes from checkpoint-7" in (
        stopped.stderr
    )
    assert "Traceback" not in stopped.stderr
    assert Path(last_complete_checkpoint(folder)).name == "checkpoint-7"
    # The second probe of this start is the one after the first cycle was probed and the second trained.
    stopped = launch("probe:6", *command, script=KILLED, direct=True, SIGNALS="SIGINT")
    assert stopped.returncode == 130, stopped.stderr[-3000:]
    assert "stopped by SIGINT after step 16 of 16; the same command resumes from checkpoint-16" in stopped.stderr
    assert [record["cycle"] for record in read_records(folder / PROBES_FILE)] == [0, 1], "the probe was aborted"
    assert not (folder / "trainer_state.json").exists()
    finish(folder, direct=True)
    assert_same_run(finished[0], folder)


def test_signals_reach_the_processes_that_a_command_launches(tmp_path):
    command = [sys.executable, "-m", "hf_plasticity", "train", "--num_processes=2", *TINY, f"--output_dir={tmp_path}"]
    long = [setting.replace("--cycles=2", "--cycles=4000") for setting in command]
    process = subprocess.Popen(
        long, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cycle-001").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert len(workers) >= 2 and not any(worker.is_running() for worker in workers)
    [checkpoint] = set(re.findall(r"stopped by SIGTERM after step .*; the same command resumes from (\S+)", stderr))
    assert Path(last_complete_checkpoint(tmp_path)).name == checkpoint


def test_a_second_ctrl_c_ends_the_run_immediately(tmp_path):
    command = [CONTINUAL, *TINY, f"--output_dir={tmp_path}"]
    process = launch("task:7", *command, script=KILLED, direct=True, SIGNALS="SIGINT,SIGINT")
    assert process.returncode == -signal.SIGINT
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]


def test_a_second_process_in_the_same_folder_is_refused(finished, tmp_path):
    command = [*TINY, f"--output_dir={tmp_path}"]
    first = start("task:3", CONTINUAL, *command, script=KILLED, direct=True, SIGNALS="SIGSTOP")
    try:
        wait_until_stopped(first)
        second = launch(*command, direct=True)
        assert second.returncode == 2
        assert error_line(second) == (
            f"output_dir: '{tmp_path}' is in use by another process; wait for it, stop it, or choose another folder"
        )
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=120)
    finally:
        first.kill()
    assert_same_run(finished[0], tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk with space for only one checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_run_that_filled_the_disk_resumes_when_there_is_space(finished, small_disk):
    folder = small_disk / "run"
    process = launch(*TINY, f"--output_dir={folder}", direct=True)
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr[-3000:]
    assert error_line(process) == (
        f"output_dir: the disk of '{folder}' is full at step 8, in task 2 (syn2) of cycle 1; free some space and "
        "run the same command again; the last complete checkpoint is kept"
    )
    assert Path(last_complete_checkpoint(folder)).name == "checkpoint-4"
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    finish(folder, direct=True)
    assert_same_run(finished[0], folder)


@pytest.fixture(scope="module")
def finished_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "finished"
    finish(folder, processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("event", "rank"), [("task:7", 1), ("probe:6", 0), ("checkpoint:2", 1)])
def test_two_processes_of_which_one_is_killed_end_with_the_same_results(finished_pair, tmp_path, event, rank):
    launch_killed(event, *TINY, f"--output_dir={tmp_path}", processes=2, KILLED_RANK=str(rank))
    finish(tmp_path, processes=2)
    assert_same_run(finished_pair, tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(finished_pair, tmp_path):
    command = [CONTINUAL, *TINY, f"--output_dir={tmp_path}"]
    how = {"script": KILLED, "processes": 2, "KILLED_RANK": "1"}
    stopped = launch("task:6", *command, SIGNALS="SIGTERM", **how)
    steps = set(re.findall(r"stopped by SIGTERM after step (\d+) of 16", stopped.stderr))
    assert steps == {"7"}, stopped.stderr[-3000:]
    assert Path(last_complete_checkpoint(tmp_path)).name == "checkpoint-7"
    stopped = launch("probe:2", *command, SIGNALS="SIGTERM", **how)
    assert set(re.findall(r"stopped by SIGTERM after step (\d+) of 16", stopped.stderr)) == {"8"}
    assert [record["cycle"] for record in read_records(tmp_path / PROBES_FILE)] == [0]
    assert all(is_complete(path) for path in checkpoints(tmp_path))
    finish(tmp_path, processes=2)
    assert_same_run(finished_pair, tmp_path)
