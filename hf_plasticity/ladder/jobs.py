"""Parallel runs on one machine, shown in one table and stopped together."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..records import LOG_FILE


# The lines that `LogLinesCallback` prints.
STEP = re.compile(r"^step ([\d,]+)/([\d,]+) ")
LEFT = re.compile(r"  left (.+)$")
POLL_SECONDS = 0.5
WAITING, RUNNING, COMPLETE, FAILED, STOPPED = "waiting", "running", "complete", "failed", "stopped"


@dataclass
class Job:
    """
    One run of a ladder.

    Args:
        folder (`Path`): The run folder. The output of the run is written to `log.txt` in it.
        command (`list[str]`): The command.
        environment (`dict[str, str]`): Environment variables of the run, in addition to those of this process. Set by
            [`run_jobs`] when the run starts.
    """

    folder: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    state: str = WAITING
    process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the run in a separate process group, so that Ctrl-C reaches it only through `stop`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOG_FILE, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                start_new_session=True,
            )
        self.state = RUNNING

    def poll(self) -> None:
        """Update the state of a running job."""
        if self.state == RUNNING and (status := self.process.poll()) is not None:
            self.state = COMPLETE if status == 0 else FAILED

    def stop(self) -> None:
        """Ask a running job to save a checkpoint and end."""
        if self.state == RUNNING:
            self.process.send_signal(signal.SIGTERM)
            self.state = STOPPED

    def last_line(self) -> str:
        """The last line of the log: the error of a failed job."""
        lines = self._last_lines()
        return lines[-1] if lines else ""

    def progress(self) -> tuple[float | None, str]:
        """The completed share of a job's steps, and the remaining time from its log; `None` and "" at first."""
        share, left = None, ""
        for line in self._last_lines():
            if step := STEP.match(line):
                done, total = (int(number.replace(",", "")) for number in step.groups())
                share = done / total
            if time_left := LEFT.search(line):
                left = time_left[1]
        return share, left

    def _last_lines(self) -> list[str]:
        path = self.folder / LOG_FILE
        if not path.exists():
            return []
        with open(path, "rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            return [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]


def run_jobs(jobs: Sequence[Job], at_once: int, devices: Sequence[dict[str, str]] = ()) -> None:
    """
    Run all jobs in order, some at the same time. A failed job does not affect the others.

    Args:
        jobs (`Sequence[Job]`): The jobs; their `state` has the result afterwards.
        at_once (`int`): The number of jobs at the same time.
        devices (`Sequence[dict]`, *optional*): Environments that select devices. A job gets the one with the fewest
            running jobs.

    Raises:
        `KeyboardInterrupt`: By Ctrl-C or SIGTERM, after every running job has saved a checkpoint and ended.
    """
    console = Console()
    with _sigterm_as_interrupt(), _display(console, jobs) as update:
        try:
            while any(job.state in (WAITING, RUNNING) for job in jobs):
                for job in jobs:
                    job.poll()
                running = sum(job.state == RUNNING for job in jobs)
                for job in [job for job in jobs if job.state == WAITING][: at_once - running]:
                    if devices:
                        job.environment = _least_used(devices, jobs)
                    job.start()
                update()
                time.sleep(POLL_SECONDS)
        finally:
            for job in jobs:
                job.stop()
            for job in jobs:
                if job.process is not None:
                    job.process.wait()
            update()


def _least_used(devices: Sequence[dict[str, str]], jobs: Sequence[Job]) -> dict[str, str]:
    return min(devices, key=lambda one: sum(job.state == RUNNING and job.environment == one for job in jobs))


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _display(console: Console, jobs: Sequence[Job]) -> Iterator:
    """One live table on a terminal; in a file, one line for each change of a job's state."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda: live.update(_table(jobs))
        return
    shown: dict[Path, str] = {}

    def print_changes() -> None:
        for job in jobs:
            if shown.get(job.folder, WAITING) != job.state:
                shown[job.folder] = job.state
                detail = f": {job.last_line()}" if job.state == FAILED else ""
                print(f"{job.state:<8} {job.folder}{detail}", flush=True)

    yield print_changes


def _table(jobs: Sequence[Job]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "progress", "left", ""):
        table.add_column(title, no_wrap=True)
    styles = {COMPLETE: "green", FAILED: "red", RUNNING: "cyan", STOPPED: "yellow"}
    for job in jobs:
        share, left = job.progress() if job.state == RUNNING else (1.0 if job.state == COMPLETE else None, "")
        table.add_row(
            job.folder.name,
            f"[{styles.get(job.state, 'dim')}]{job.state}",
            "" if share is None else f"{share:.0%}",
            left,
            # Not as markup, because an error may have brackets.
            Text(job.last_line() if job.state == FAILED else ""),
        )
    return table
