"""The runs of a ladder as jobs of a cluster, through `submitit`."""

import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from ..errors import PlasticityError
from .jobs import Job


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
        self.process = subprocess.Popen(self.command)
        status = self.process.wait()
        if status != 0:
            raise RuntimeError(f"exit status {status}")
        return status

    def checkpoint(self) -> Any:
        """Called by submitit when the time limit is near."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        return DelayedSubmission(ClusterRun(self.command))


def submit_jobs(jobs: Sequence[Job], cluster: str, folder: str, parameters: dict[str, Any]) -> list[Any]:
    """
    Submit one job for each run.

    Args:
        jobs (`Sequence[Job]`): The runs.
        cluster (`str`): `"slurm"`, or `"local"` for subprocesses of this machine.
        folder (`str`): Where submitit keeps its logs.
        parameters (`dict[str, Any]`): Of `submitit.AutoExecutor.update_parameters`: `timeout_min`, `gpus_per_node`, ….

    Returns:
        `list[submitit.Job]`: The submitted jobs.

    Raises:
        [`PlasticityError`]: submitit is not installed, or the cluster is not there.
    """
    try:
        import submitit
    except ImportError:
        raise PlasticityError(
            f"executor: '{cluster}' requires submitit; run `pip install hf-plasticity[slurm]`"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**parameters)
        return [executor.submit(ClusterRun(job.command)) for job in jobs]
    except (RuntimeError, FileNotFoundError, NameError, TypeError) as error:
        raise PlasticityError(f"executor: '{cluster}' failed: {' '.join(str(error).split())}") from None
