"""`python recipes/ladder.py`, as it is typed."""

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

from hf_plasticity.records import read_run
from support.documented import documented_commands
from support.launch import ROOT, TINY


LADDER = ROOT / "recipes" / "ladder.py"
ACCELERATE = "--num_processes=1 --num_machines=1 --mixed_precision=no --dynamo_backend=no"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# Of the settings of every run here, the size is the ladder's.
SETTINGS = [setting for setting in TINY if not setting.startswith("--size")]


def ladder(*arguments, cwd=None):
    command = [sys.executable, str(LADDER), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_printed_commands_are_one_line_a_run_for_a_shell(tmp_path):
    process = ladder(
        "--sizes", "5M", "12M", "--seeds", 1, 2, "--schedules", "rotation", "en,zh", "--print_commands",
        f"--output_dir={tmp_path / 'with space'}", "--accelerate_args=--num_processes 8", "--cycles=3",
        "--languages", "en", "zh", "--dataset_configs", "2023.{language}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = [shlex.split(line) for line in process.stdout.splitlines()]
    assert len(lines) == 8 and not (tmp_path / "with space").exists()
    continual = str(LADDER.with_name("continual.py"))
    assert lines[2] == [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "8", continual,
        "--cycles=3", "--languages", "en", "zh", "--dataset_configs", "2023.{language}",
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
        ("--sizes 5M --seed 3", "seed: it differs from run to run here; give --seeds"),
        ("--sizes 5M --size=12M", "size: it differs from run to run here; give --sizes"),
        ("--sizes 5M --seeds 1 1", "seeds: '1 1' names one twice"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, arguments, message):
    process = ladder(*arguments.split(), f"--output_dir={tmp_path / 'ladder'}")
    assert process.returncode == 2 and process.stderr.startswith(f"ladder.py: error: {message}")
    assert not (tmp_path / "ladder").exists()


@pytest.mark.slow
def test_the_documented_ladder_runs_and_its_runs_are_not_run_again(tmp_path):
    small, cluster = documented_commands("python recipes/ladder.py")
    process = ladder(*cluster[2:], cwd=tmp_path)
    assert process.returncode == 0 and len(process.stdout.splitlines()) == 18 and not list(tmp_path.iterdir())

    command = [*small[2:], *SETTINGS, "--accelerate_args", ACCELERATE]
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

    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}
    process = ladder(*command, cwd=tmp_path)
    assert process.returncode == 0 and process.stdout.count("is finished; there is nothing to do") == 2
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_run_that_is_killed_is_named_while_the_others_go_on_and_the_same_command_makes_it_whole(tmp_path):
    folders = [tmp_path / f"25K-{schedule}-seed1" for schedule in ("rotation", "stationary")]
    command = [
        sys.executable, str(LADDER), "--sizes=25K", "--seeds=1", "--schedules", "rotation", "stationary",
        f"--output_dir={tmp_path}", "--accelerate_args", ACCELERATE, *SETTINGS,
    ]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folders[0] / "probes.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    [launcher] = [child for child in psutil.Process(process.pid).children() if "launch" in " ".join(child.cmdline())]
    [run] = [child for child in launcher.children() if "continual.py" in " ".join(child.cmdline())]
    os.kill(run.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.search(rf"^ladder\.py: failed: {re.escape(str(folders[0]))} \(exit code 1\)$", errors, re.MULTILINE)
    assert str(folders[1]) not in "".join(line for line in errors.splitlines() if line.startswith("ladder.py"))
    assert len(read_run(folders[1]).probes) == 3 and len(read_run(folders[0]).probes) < 3
    assert (tmp_path / "report.html").exists()

    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert [probe["cycle"] for probe in read_run(folders[0]).probes] == [0, 1, 2]
    assert again.stdout.count("is finished; there is nothing to do") == 1


@pytest.mark.slow
def test_a_run_that_cannot_start_is_named_with_its_exit_code_and_leaves_no_report(tmp_path):
    process = ladder("--sizes=25K", f"--output_dir={tmp_path}", "--accelerate_args", ACCELERATE, "--cycles=0")
    assert process.returncode == 1 and "continual.py: error: cycles: 0 is not a positive number" in process.stderr
    assert f"ladder.py: failed: {tmp_path / '25K-rotation-seed42'} (exit code 1)" in process.stderr
    assert not (tmp_path / "report.html").exists()
