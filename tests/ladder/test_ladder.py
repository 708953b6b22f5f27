"""`python recipes/ladder.py`."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import psutil
import pytest

from hf_plasticity import cli
from hf_plasticity.ladder.command import _processes_of_a_run, add_arguments, run_in_parallel
from hf_plasticity.records import read_run, write_config
from hf_plasticity.threads import available_cores
from hf_plasticity.trainer import last_complete_checkpoint
from support.documented import documented_commands
from support.launch import ROOT, TINY


LADDER = ROOT / "recipes" / "ladder.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# The ladder decides the size and the threads of a run.
SETTINGS = [setting for setting in TINY if not setting.startswith(("--size", "--cpu_threads"))]


def ladder(*arguments, cwd=None):
    command = [sys.executable, str(LADDER), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("flags", "processes"), [([], 1), (["--accelerate_config=fsdp2"], 2), (["--num_processes=4"], 4)]
)
def test_a_run_has_the_processes_of_its_accelerate_configuration(flags, processes):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert _processes_of_a_run(parser.parse_args(["--sizes", "25K", *flags])) == processes


def test_a_run_resumes_with_its_own_number_of_cpu_threads(tmp_path, monkeypatch):
    commands = {tmp_path / name: ["python", "-m", "hf_plasticity", "train", name] for name in ("new", "started")}
    (tmp_path / "started" / "checkpoint-4").mkdir(parents=True)
    write_config(tmp_path / "started", {"cpu_threads": 3})
    jobs = []
    monkeypatch.setattr("hf_plasticity.ladder.jobs.run_jobs", lambda given, *_: jobs.extend(given))
    run_in_parallel(commands, at_once=1)
    given = {job.folder.name: [word for word in job.command if word.startswith("--cpu_threads")] for job in jobs}
    assert given == {"new": [f"--cpu_threads={available_cores()}"], "started": []}


def test_seeds_and_schedules_are_those_of_the_configuration_unless_given(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("schedule: stationary\nseed: 7\nsize: 100K\n")

    def printed(*arguments):
        process = ladder("--config", file, "--sizes", "25K", "--print_commands", *arguments)
        assert process.returncode == 0, process.stderr
        return [shlex.split(line)[-3:-1] for line in process.stdout.splitlines()]

    assert printed() == [["--schedule=stationary", "--seed=7"]]
    assert printed("--seeds", 1, 2) == [["--schedule=stationary", f"--seed={seed}"] for seed in (1, 2)]
    assert printed("--schedules", "rotation") == [["--schedule=rotation", "--seed=7"]]


def test_runs_keep_the_cpu_threads_of_their_configuration(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("cpu_threads: 1\n")
    jobs = []
    monkeypatch.setattr("hf_plasticity.ladder.jobs.run_jobs", lambda given, *_: jobs.extend(given))
    cli.main(["ladder", f"--config={file}", "--sizes", "25K", f"--output_dir={tmp_path / 'ladder'}"])
    assert not any(word.startswith("--cpu_threads") for word in jobs[0].command)


def test_the_printed_commands_are_one_line_a_run_for_a_shell(tmp_path):
    process = ladder(
        "--sizes", "5M", "12M", "--seeds", 1, 2, "--schedules", "rotation", "en,zh", "--print_commands",
        f"--output_dir={tmp_path / 'with space'}", "--num_processes=8", "--cycles=3", "--ddp_backend", "gloo",
        "--languages", "en", "zh", "--dataset_configs", "2023.{language}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = [shlex.split(line) for line in process.stdout.splitlines()]
    assert len(lines) == 8 and not (tmp_path / "with space").exists()
    hyphens = ladder("--sizes", "5M", "--print-commands", f"--output-dir={tmp_path / 'x'}", "--task-steps=7")
    assert shlex.split(hyphens.stdout)[4:] == [
        "--task_steps=7", "--size=5M", "--schedule=rotation", "--seed=42",
        f"--output_dir={tmp_path / 'x' / '5M-rotation-seed42'}",
    ]  # fmt: skip
    assert lines[2] == [
        sys.executable, "-m", "hf_plasticity", "train", "--num_processes=8",
        "--cycles=3", "--ddp_backend", "gloo", "--languages", "en", "zh", "--dataset_configs", "2023.{language}",
        "--size=5M", "--schedule=en,zh", "--seed=1", f"--output_dir={tmp_path / 'with space' / '5M-en-zh-seed1'}",
    ]  # fmt: skip
    expected = product(("5M", "12M"), ("rotation", "en-zh"), (1, 2))
    assert [Path(line[-1].split("=")[1]).name for line in lines] == [
        f"{size}-{schedule}-seed{seed}" for size, schedule, seed in expected
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sizes 6M", "size: '6M' is not a model size"),
        ("--sizes 5M --seed 3", "seed: the ladder decides it for each run; use --seeds"),
        ("--sizes 5M --hub_token hf_x", "hub_token: it would be part of the command of each run; use `hf auth login`"),
        ("--sizes 5M --hub-token=hf_x", "hub_token: it would be part of the command of each run; use `hf auth login`"),
        ("--sizes 5M --size=12M", "size: the ladder decides it for each run; use --sizes"),
        ("--sizes 5M --jobs 0", "jobs: 0 is not between 1 and the number of runs, 1"),
        ("--sizes 5M --jobs 2", "jobs: 2 is not between 1 and the number of runs, 1"),
        ("--sizes 5M --executor pbs", "executor: 'pbs' is unknown; choose local or slurm"),
        ("--sizes 5M --seeds 1 1", "seeds: '1 1' has a duplicate"),
        ("--sizes 5M --schedules rotation statonary", "schedule: 'statonary'"),
        ("--sizes 5M --task_steps 0", "task_steps: 0"),
        ("--sizes 5M --hub_model_id org/x", "hub_model_id: all runs would be uploaded to 'org/x'; leave it out"),
        ("--sizes 5M --timeout_min 10", "timeout_min: 10 requires --executor slurm"),
        ("--sizes 5M --executor slurm --jobs 1", "jobs: 1 has no meaning with --executor slurm"),
    ],
)
def test_mistakes_are_reported_before_any_run_starts(tmp_path, arguments, message):
    process = ladder(*arguments.split(), f"--output_dir={tmp_path / 'ladder'}")
    assert process.returncode == 2 and process.stderr.strip().startswith(f"ladder.py: error: {message}")
    assert not (tmp_path / "ladder").exists()


@pytest.mark.slow
def test_the_documented_ladder_runs_and_its_runs_are_not_run_again(tmp_path):
    small, cluster = documented_commands("hf-plasticity ladder")
    process = ladder(*cluster[2:], cwd=tmp_path)
    assert process.returncode == 0 and len(process.stdout.splitlines()) == 18 and not list(tmp_path.iterdir())

    command = [*small[2:], *SETTINGS]
    process = ladder(*command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.rstrip().endswith("report of 2 runs  runs/ladder/report.html")
    folders = [tmp_path / "runs" / "ladder" / f"{size}-rotation-seed1" for size in ("25K", "100K")]
    for folder, size in zip(folders, ("25K", "100K")):
        run = read_run(folder)
        assert (run.config["size"], run.config["seed"], run.config["schedule"]) == (size, 1, "rotation")
        assert [probe["cycle"] for probe in run.probes] == [0, 1, 2]
    page = (tmp_path / "runs" / "ladder" / "report.html").read_text()
    assert "25K" in page and "100K" in page

    def written():
        files = (path for folder in folders for path in folder.rglob("*") if path.name not in (".lock", "log.txt"))
        return {path: path.stat().st_mtime_ns for path in files if path.is_file()}

    before = written()
    process = ladder(*command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert all("is complete" in (folder / "log.txt").read_text() for folder in folders) and written() == before


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_is_killed_is_named_the_others_are_not_affected_and_the_same_command_resumes_it(tmp_path, jobs):
    folders = [tmp_path / f"25K-{schedule}-seed1" for schedule in ("rotation", "stationary")]
    command = [
        sys.executable, str(LADDER), "--sizes=25K", "--seeds=1", "--schedules", "rotation", "stationary",
        f"--output_dir={tmp_path}", f"--jobs={jobs}", *SETTINGS,
    ]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folders[0] / "probes.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    [run] = [child for child in psutil.Process(process.pid).children() if "--schedule=rotation" in child.cmdline()]
    os.kill(run.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.findall(r"^failed: (.*?):", errors, re.MULTILINE) == [str(folders[0])]
    assert len(read_run(folders[1]).probes) == 3 and len(read_run(folders[0]).probes) < 3
    assert (tmp_path / "report.html").exists()

    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert [probe["cycle"] for probe in read_run(folders[0]).probes] == [0, 1, 2]
    assert "is complete" in (folders[1] / "log.txt").read_text()


@pytest.mark.slow
def test_an_interrupted_ladder_stops_every_run_with_a_checkpoint(tmp_path):
    folders = [tmp_path / f"25K-{schedule}-seed1" for schedule in ("rotation", "stationary")]
    long = ["--cycles=4000" if setting.startswith("--cycles") else setting for setting in SETTINGS]
    command = [
        sys.executable, str(LADDER), "--sizes=25K", "--seeds=1", "--schedules", "rotation", "stationary",
        f"--output_dir={tmp_path}", "--jobs=2", *long,
    ]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not all((folder / "cycle-001").exists() for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130 and not any(child.is_running() for child in children)
    for folder in folders:
        assert last_complete_checkpoint(folder) is not None
        assert "the same command resumes from checkpoint-" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_that_cannot_start_is_named_with_its_error_and_leaves_no_report(tmp_path):
    for language in "abc":  # too little text, which is known only when the run opens it
        (tmp_path / f"{language}.txt").write_text("".join(f"{language} words {line}\n" for line in range(20)))
    text = ["--source=local", f"--data_dir={tmp_path}", "--languages", "a", "b", "--probe_language=c"]
    process = ladder("--sizes=25K", f"--output_dir={tmp_path / 'runs'}", *text)
    assert process.returncode == 1
    failed = f"failed: {tmp_path / 'runs' / '25K-rotation-seed42'}: hf-plasticity: error: "
    assert re.search(rf"^{re.escape(failed)}.*(tokens|sequences)", process.stderr, flags=re.MULTILINE), process.stderr
    assert not (tmp_path / "runs" / "report.html").exists()


def test_an_invalid_setting_is_an_error_before_any_run_starts(tmp_path):
    process = ladder("--sizes=25K", f"--output_dir={tmp_path}", "--cycles=0")
    assert process.returncode == 2 and "error: cycles: 0 is not a positive number" in process.stderr
    assert not list(tmp_path.iterdir())
