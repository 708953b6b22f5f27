"""A comparison whose runs execute in this process, one after the other."""

import contextlib
from pathlib import Path

import pytest

from hf_plasticity import cli
from hf_plasticity.comparing import stages
from hf_plasticity.ladder.jobs import COMPLETE, FAILED, Job
from hf_plasticity.records import LOG_FILE
from support.launch import TINY


WORDS = ["--mitigations", "none", "redo", "random_reset", "--seeds", "1", "2", "--trials", "2"]
WORDS += ["--tune_probe_language", "syn8", "--evaluate_forgetting", *TINY]


class RunsHere:
    """Stands in for `run_in_parallel`. `stop_after` interrupts the comparison after so many runs."""

    def __init__(self):
        self.started: list[str] = []
        self.stop_after: int | None = None

    def __call__(self, commands, at_once, runs_in_total=None, cpu_threads=None):
        jobs = [Job(folder, words) for folder, words in commands.items()]
        for job in jobs:
            if self.stop_after is not None and len(self.started) >= self.stop_after:
                raise KeyboardInterrupt
            self.started.append(f"{job.folder.parent.name}/{job.folder.name}")
            job.folder.mkdir(parents=True, exist_ok=True)
            with (
                open(job.folder / LOG_FILE, "a", encoding="utf-8") as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                status = cli.main(job.command[3:])
            job.state = FAILED if status else COMPLETE
        return jobs


@pytest.fixture(scope="module")
def compare():
    """`compare(folder, *arguments)` gives the exit status; `compare.runs` has the runs that were started."""
    with pytest.MonkeyPatch.context() as patch:
        runs = RunsHere()
        patch.setattr(stages, "run_in_parallel", runs)

        def run(folder: Path, *arguments: str) -> int:
            runs.started.clear()
            return cli.main(["compare", *WORDS, f"--output_dir={folder}", *arguments])

        run.runs = runs
        yield run
