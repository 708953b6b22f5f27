"""The runs of a ladder as jobs: through submitit's local executor, and on a Slurm of one node."""

import os
import re
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import psutil
import pytest

from hf_plasticity.cli import main
from hf_plasticity.ladder.cluster import ClusterRun, submit_jobs
from hf_plasticity.ladder.jobs import Job
from hf_plasticity.planning.study import parse_planned_study
from hf_plasticity.records import read_config, read_run, run_lock, write_config
from support.launch import ROOT, TINY
from support.slurm import SlurmUnavailable, single_node_slurm


pytest.importorskip("submitit")

TRAIN = [sys.executable, "-m", "hf_plasticity", "train"]
LONG = ["--cycles=4000" if setting.startswith("--cycles") else setting for setting in TINY]
SETTINGS = [setting for setting in LONG if not setting.startswith("--size")]


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)


def test_a_job_at_its_time_limit_waits_until_its_run_has_saved_a_checkpoint(tmp_path):
    """The handler interrupts the wait for the process, which the announcement of the limit reaches too."""
    saved = tmp_path / "saved"
    run = f"""
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path({str(saved)!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(tmp_path / "started")!r}).touch()
time.sleep(60)
"""
    job = f"""
import pathlib, signal, sys
from hf_plasticity.ladder.cluster import ClusterRun
run = ClusterRun([sys.executable, "-c", {run!r}])
def limit(*_):
    again = run.checkpoint()
    sys.exit(0 if pathlib.Path({str(saved)!r}).exists() and again.function.command == run.command else 1)
signal.signal(signal.SIGUSR2, limit)
run()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", job], env=os.environ | {"PYTHONPATH": str(ROOT)}, process_group=0
    )
    wait_for((tmp_path / "started").exists, 60)
    os.killpg(process.pid, signal.SIGUSR2)
    try:
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


def test_a_run_that_fails_is_a_failed_job():
    with pytest.raises(RuntimeError, match="exit status 3"):
        ClusterRun([sys.executable, "-c", "raise SystemExit(3)"])()


def test_the_resources_of_a_job_are_what_the_command_line_says(tmp_path, monkeypatch, capsys):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (("srun", "exit 0"), ("sbatch", "echo Submitted batch job 17")):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    command = ["ladder", "--executor=slurm", "--sizes=25K", "--seeds", "1", f"--output_dir={tmp_path / 'ladder'}"]
    resources = ["--slurm_partition=gpu", "--gpus_per_node=1", "--cpus_per_task=3", "--timeout_min=30"]
    assert main([*command, *resources, *SETTINGS]) == 0
    assert capsys.readouterr().out.startswith(f"17  {tmp_path / 'ladder' / '25K-rotation-seed1'}\n")
    file = tmp_path / "ladder" / "jobs" / "17_submission.sh"
    lines = file.read_text().splitlines()
    for line in ("--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=3", "--time=30"):
        assert f"#SBATCH {line}" in lines


def test_only_missing_runs_are_submitted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_plasticity.ladder.cluster.submit_jobs", lambda jobs, *_: [Mock(job_id="17") for _ in jobs])
    folders = [tmp_path / f"25K-rotation-seed{seed}" for seed in (1, 2, 3, 4)]
    command = ["ladder", "--executor=slurm", "--sizes=25K", f"--output_dir={tmp_path}", *SETTINGS]
    for seed, folder in zip((1, 2), folders):
        run = parse_planned_study([*SETTINGS, "--size=25K", f"--seed={seed}", f"--output_dir={folder}"], on_cpu=True)
        numerics = {"numerics": sorted(run.numerics()), "tasks_per_cycle": 2}
        folder.mkdir()
        write_config(folder, run.settings() | {"provenance": numerics})
        (folder / "trainer_state.json").write_text('{"global_step": 32000}')
    # The second has another learning rate. Its job reports that.
    write_config(folders[1], read_config(folders[1]) | {"learning_rate": 1.0})
    with run_lock(folders[2]):
        assert main([*command, "--seeds", "1", "2", "3", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()[:4]
    assert sorted(lines) == [
        f"17  {folders[1]}", f"17  {folders[3]}", f"complete  {folders[0]}", f"running  {folders[2]}"
    ]  # fmt: skip


@pytest.mark.slow
def test_runs_are_jobs_of_submitit(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = [tmp_path / f"seed{seed}" for seed in (1, 2)]
    jobs = [Job(folder, [*TRAIN, *TINY, f"--output_dir={folder}"]) for folder in folders]
    submitted = submit_jobs(jobs, "local", str(tmp_path / "jobs"), {"timeout_min": 10})
    assert [job.result() for job in submitted] == [0, 0]
    assert all([probe["cycle"] for probe in read_run(folder).probes] == [0, 1, 2] for folder in folders)


@pytest.mark.slow
def test_a_run_that_reaches_the_time_limit_resumes_from_the_checkpoint_of_its_last_step(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "run"
    job = Job(folder, [*TRAIN, *LONG, f"--output_dir={folder}"])
    [submitted] = submit_jobs([job], "local", str(tmp_path / "jobs"), {"timeout_min": 10})
    controller = psutil.Process(int(submitted.job_id))
    try:
        wait_for((folder / "cycle-001").exists)
        [task] = controller.children()
        task.send_signal(signal.SIGUSR2)
        stopped = "the same command resumes from checkpoint-"
        wait_for(lambda: stopped in (submitted.stderr() or ""))
        step = int(re.search(rf"{stopped}(\d+)", submitted.stderr())[1])
        wait_for(lambda: f"resumes from checkpoint-{step} " in submitted.stdout())
    finally:
        for process in [*controller.children(recursive=True), controller]:
            process.kill()


@pytest.mark.slow
def test_a_ladder_on_slurm_resumes_at_the_time_limit_from_the_checkpoint_of_its_last_step(tmp_path):
    try:
        with single_node_slurm(tmp_path / "slurm") as slurm:
            slurm |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            output = tmp_path / "ladder"
            command = [
                sys.executable, str(ROOT / "recipes" / "ladder.py"), "--executor=slurm", "--sizes=25K", "--seeds", "1",
                f"--output_dir={output}", *SETTINGS,
            ]  # fmt: skip
            process = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=120)
            assert process.returncode == 0, process.stderr[-3000:]
            number, folder = process.stdout.splitlines()[0].split()
            run = output / "25K-rotation-seed1"
            assert folder == str(run)
            try:
                wait_for((run / "cycle-001").exists)
                # Slurm's signal before the time limit.
                subprocess.run(["scancel", number, "--signal=USR2"], env=slurm, check=True)
                errors, printed = (output / "jobs" / f"{number}_0_log.{ending}" for ending in ("err", "out"))
                stopped = "the same command resumes from checkpoint-"
                wait_for(lambda: stopped in errors.read_text())
                step = int(re.search(rf"{stopped}(\d+)", errors.read_text())[1])
                # Slurm starts a job that is queued again two minutes later.
                wait_for(lambda: f"resumes from checkpoint-{step} " in printed.read_text(), seconds=400)
            finally:
                subprocess.run(["scancel", number], env=slurm, check=False)
    except SlurmUnavailable as reason:
        pytest.skip(f"Slurm cannot be started: {reason}")
