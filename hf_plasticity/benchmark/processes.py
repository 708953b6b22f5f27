"""The parent's side of the workers: start them, let them take turns, and handle their failures."""

import dataclasses
import json
import math
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from .case import Case


ANSWER_SECONDS = 300.0


class WorkerFailed(RuntimeError):
    """A worker failed, or did not answer in time."""


class Worker:
    """
    A process that measures cases, or several that train together, of which only the first reports.

    Args:
        cases (`Case`): The cases that it measures in turn.
        environment (`dict[str, str]`, *optional*): Environment variables in addition to those of this process.
    """

    def __init__(self, *cases: Case, environment: dict[str, str] | None = None):
        self.cases = cases
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._heard = False
        count = max(case.processes for case in cases)
        shared = dict(os.environ) | (environment or {})
        if count > 1:
            shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        described = [dataclasses.asdict(case) for case in cases]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "hf_plasticity.benchmark.worker", json.dumps(described)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}),
            )
            for rank in range(count)
        ]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def started(self, timeout: float = ANSWER_SECONDS) -> "Worker":
        """Wait until it has imported its libraries; it then waits for `go`."""
        self.hear(timeout)
        return self

    def go(self) -> None:
        """Let the worker run until its next message."""
        if self._heard:
            try:
                self._processes[0].stdin.write("\n")
                self._processes[0].stdin.flush()
            except OSError:
                raise self._failure("ended") from None
        self._heard = False

    def hear(self, timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """
        Its next message.

        Raises:
            [`WorkerFailed`]: It has failed, or sends no message for `timeout` seconds.
        """
        pipe = self._processes[0].stdout
        if not select.select([pipe], [], [], max(timeout, 0.0))[0]:
            self.close()
            raise self._failure(f"gave no answer in {timeout:.0f} s")
        line = pipe.readline()
        if not line:
            raise self._failure("ended")
        self._heard = True
        message = json.loads(line)
        if "failed" in message:
            raise WorkerFailed(message["failed"])
        return message

    def ask(self, timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Let it run, and wait for its next message."""
        self.go()
        return self.hear(timeout)

    def result(self, timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Run one case to its end. Returns its result, with the `seconds` of all its windows."""
        until, seconds, ready = time.monotonic() + timeout, [], 0.0
        while True:
            message = self.ask(until - time.monotonic())
            if "seconds" in message:
                seconds.append(message["seconds"])
            ready = message.get("ready", ready)
            if "done" in message:
                return message | {"seconds": seconds, "ready": ready}

    def close(self) -> None:
        """End it."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _failure(self, what: str) -> WorkerFailed:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read()[-4000:].splitlines() if line.strip()]
        return WorkerFailed(f"{what}: {lines[-1][:200]}" if lines else what)


def take_turns(
    cases: list[Case], rounds: int, starts: int = 1, timeout: float = ANSWER_SECONDS
) -> list[dict[str, Any] | WorkerFailed]:
    """
    Let a worker for each case measure one window in each round.

    Args:
        cases (`list[Case]`): The contenders.
        rounds (`int`): The number of rounds after each start.
        starts (`int`, *optional*, defaults to 1):
            How often each contender starts anew, with a new model and new memory. The times of two starts of the same
            contender can differ by more than 10% (docs/benchmark.md). Several starts average over this difference.
        timeout (`float`, *optional*): Seconds for all of it.

    Returns:
        `list[dict | WorkerFailed]`: For each case its last result, with the `seconds` of every start (the median over
        its rounds if there are several starts, otherwise those of every round), or its failure.
    """
    until = time.monotonic() + timeout
    workers = [Worker(*[case.but(windows=rounds)] * starts) for case in cases]
    results: list[dict[str, Any] | WorkerFailed] = [{} for _ in cases]
    readings: list[list[list[float]]] = [[] for _ in cases]

    def hear_all(hear: Callable[[Worker, float], Any]) -> Iterator[tuple[int, Any]]:
        """The next message of each worker in turn, by its number; a worker that fails leaves the others alone."""
        for number, worker in enumerate(workers):
            if isinstance(results[number], dict):
                try:
                    yield number, hear(worker, until - time.monotonic())
                except WorkerFailed as failure:
                    results[number] = failure

    try:
        list(hear_all(Worker.started))
        for _ in range(starts):
            for number, _ready in hear_all(Worker.ask):
                readings[number].append([])
            for _ in range(rounds):
                for number, message in hear_all(Worker.ask):
                    readings[number][-1].append(message["seconds"])
            for number, message in hear_all(Worker.ask):
                results[number] = message
    finally:
        for worker in workers:
            worker.close()
    for result, mine in zip(results, readings):
        if isinstance(result, dict):
            result["seconds"] = [statistics.median(one) for one in mine] if starts > 1 else mine[0]
    return results


def median_and_range(values: list[float], digits: int = 3) -> str:
    """`"0.953 (0.941–0.960)"`."""
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({low}–{high})"


def median_interval(values: list[float], digits: int = 3) -> str:
    """A 95% interval of the median, between two of the sorted values (sign test); `"-"` for fewer than six values."""
    ordered, count = sorted(values), len(values)
    outside, below = 0.0, 0
    while below < count / 2 and outside + math.comb(count, below) / 2**count <= 0.025:
        outside += math.comb(count, below) / 2**count
        below += 1
    if below == 0:
        return "-"
    return f"{ordered[below - 1]:,.{digits}f}–{ordered[-below]:,.{digits}f}"


def free_port() -> int:
    """A free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
