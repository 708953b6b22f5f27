"""`recipes/benchmark.py`: its computations, failures, and a dry run of both suites."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hf_plasticity.benchmark.case import Case
from hf_plasticity.benchmark.command import main
from hf_plasticity.benchmark.processes import (
    Worker,
    WorkerFailed,
    median_and_range,
    median_interval,
    take_turns,
)
from hf_plasticity.benchmark.report import Report
from hf_plasticity.benchmark.sections import records_failure
from support.launch import ROOT


TINY = Case("bare loop", "25K", context_length=16, batch_size=2, window=2, windows=2, warmup=1, threads=1)


def test_the_flops_of_a_token_are_those_of_the_formula():
    case = TINY.but(size="83M", vocab_size=151_680, context_length=2_048)
    width, layers = 832, 10
    assert case.flops_per_token == 72 * layers * width**2 + 12 * layers * width * 2_048 + 6 * width * 151_680


def test_readings_are_shown_as_median_and_range():
    assert median_and_range([0.9, 1.1, 0.95]) == "0.950 (0.900–1.100)"


def test_the_interval_of_a_median_leaves_out_at_most_five_percent():
    assert median_interval([1.0] * 5) == "-"  # even the range of five values covers only 94%
    assert median_interval([3, 1, 2, 6, 5, 4], digits=0) == "1–6"
    assert median_interval(list(range(1, 16)), digits=0) == "4–12"
    draws = np.random.default_rng(0).normal(size=(2000, 40))
    low, high = zip(*(map(float, median_interval(list(row), digits=6).rsplit("–", 1)) for row in draws))
    assert np.mean((np.array(low) <= 0) & (np.array(high) >= 0)) == pytest.approx(0.96, abs=0.015)


def test_a_report_is_on_disk_after_every_row(tmp_path):
    report = Report("cpu", tmp_path / "folder" / "report.md", time_limit=100)
    report.section("Speed", ("model", "tokens/s"), "Measured.")
    report.add("25K", "1,000")
    report.add("100K")
    text = (tmp_path / "folder" / "report.md").read_text()
    assert text == report.markdown()
    table = "| model | tokens/s |\n| --- | --- |\n| 25K | 1,000 |\n| 100K |  |\n"
    assert "# Benchmark, suite cpu\n" in text and f"## Speed\n\nMeasured.\n\n{table}" in text


def test_a_failed_section_is_recorded_as_a_row(tmp_path):
    @records_failure
    def section(report):
        report.section("Speed", ("model", "tokens/s"), "Measured.")
        raise OSError("no\nroom")

    report = Report("cpu", None, time_limit=100)
    section(report)
    assert report.sections[0].rows == [("failed", "OSError: no room")]


def test_a_failed_case_does_not_stop_the_next_one():
    with Worker(TINY.but(size="0K"), TINY) as worker:
        worker.started()
        with pytest.raises(WorkerFailed, match="PlasticityError: size: '0K' is not a model size"):
            worker.result()
        result = worker.result()
    assert len(result["seconds"]) == 2 and min(result["seconds"]) > 0
    assert result["batch_size"] == 2 and result["memory"] > 1e8


def test_contenders_take_turns_and_one_that_fails_does_not_stop_the_others():
    good, bad = take_turns([TINY, TINY.but(contender="nobody")], rounds=3)
    assert len(good["seconds"]) == 3
    assert isinstance(bad, WorkerFailed) and "nobody" in str(bad)


def test_contenders_that_start_several_times_give_one_reading_per_start():
    [result] = take_turns([TINY], rounds=3, starts=2)
    assert len(result["seconds"]) == 2 and result["memory"] > 1e8


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--suite", "cpu", "--parts", "mfu"])
    assert stopped.value.code == 2
    assert "parts: 'mfu' is not a part of the suite cpu; choose from training, probe" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_a_suite_runs_to_its_end(tmp_path, suite):
    command = [sys.executable, ROOT / "recipes" / "benchmark.py", "--suite", suite, "--dry"]
    process = subprocess.run(
        [*command, "--output", tmp_path / "table.md"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    table = (tmp_path / "table.md").read_text()
    assert process.stdout.strip() == table.strip()
    assert "failed" not in table and "not measured" not in table
    titles = {line[3:] for line in table.splitlines() if line.startswith("## ")}
    assert {"Training", "Probe", "Diagnosis", "Resuming", "Cycle 3 against cycle 1"} <= titles
    if suite == "cpu":
        assert "Two processes" in titles
    else:
        assert {"Model FLOPs utilization", "The loss over the vocabulary", "Runs side by side"} <= titles


def test_the_gpu_suite_requires_a_gpu():
    command = [sys.executable, ROOT / "recipes" / "benchmark.py", "--suite", "gpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 2
    assert process.stderr.strip().endswith("suite: gpu requires a CUDA device, and there is none; choose cpu")
