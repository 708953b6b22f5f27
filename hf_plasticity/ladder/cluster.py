"""The runs of a ladder as jobs of a cluster, through `submitit`."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from ..errors import PlasticityError, one_line
from .jobs import Job


# The number of times that a job is queued again at its time limit. submitit's default of 3 is too small for long runs.
MAX_REQUEUES = 1_000


class ClusterRun:
    """
    One run as a job of a cluster. At the time limit it saves a checkpoint (SIGTERM) and is queued again.

    Args:
        command (`list[str]`): The command of the run.
    """

    def __init__(self, command: list[str]):
        self.command = command
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        # Slurm sends this signal to every process of a job before the time limit, and it would end the run
        # immediately.
        self.process = subprocess.Popen(self.command, preexec_fn=_ignore_announcement)
        status = self.process.wait()
        if status != 0:
            raise RuntimeError(f"exit status {status}")
        return status

    def checkpoint(self) -> Any:
        """Called by submitit when the time limit is near."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            # This signal handler interrupts `Popen.wait`. A second call would wait forever for its lock.
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(ClusterRun(self.command))


def _ignore_announcement() -> None:
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


def submit_jobs(jobs: Sequence[Job], cluster: str, folder: str, parameters: dict[str, Any]) -> list[Any]:
    """
    Submit one job for each run.

    Args:
        jobs (`Sequence[Job]`): The runs.
        cluster (`str`): `"slurm"`, or `"local"` for subprocesses of this machine.
        folder (`str`): The folder of submitit's logs.
        parameters (`dict[str, Any]`): Arguments of `submitit.AutoExecutor.update_parameters`: `timeout_min`,
        `gpus_per_node`, ….

    Returns:
        `list[submitit.Job]`: The submitted jobs.

    Raises:
        [`PlasticityError`]: submitit is not installed, or the cluster is not available.
    """
    try:
        import submitit
    except ImportError:
        raise PlasticityError(
            f"executor: '{cluster}' requires submitit; run `pip install hf-plasticity[slurm]`"
        ) from None
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=cluster, **{f"{cluster}_max_num_timeout": MAX_REQUEUES}
        )
        executor.update_parameters(**parameters)
        return [executor.submit(ClusterRun(job.command)) for job in jobs]
    except (RuntimeError, FileNotFoundError, NameError, TypeError) as error:
        raise PlasticityError(f"executor: '{cluster}' failed: {one_line(error)}") from None
