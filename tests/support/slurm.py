"""A Slurm of one node with two CPUs, from the distribution's packages, in a separate folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "sinfo", "scontrol", "scancel")
# fmt: off
CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
# fmt: on


class SlurmUnavailable(RuntimeError):
    """Slurm cannot be started here; the message says why."""


@contextlib.contextmanager
def single_node_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment variables with which Slurm's commands talk to a Slurm that runs meanwhile."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        raise SlurmUnavailable(f"{', '.join(missing)} not installed (slurm-wlm and munge of Debian)")
    if os.geteuid() != 0:
        raise SlurmUnavailable("its daemons are started by root")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = [_free_port(), _free_port()]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, ports=ports))
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    _call("mungekey", "--create", f"--keyfile={folder / 'munge.key'}")
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{name}={folder / f'munge.{ending}'}" for name, ending in files.items()]
    daemons = []
    try:
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            with open(folder / f"{command[0]}.out", "w") as log:
                program = [_program(command[0]), *command[1:]]
                daemons.append(subprocess.Popen(program, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in (states := _call("sinfo", "--noheader", "--format=%T", environment=environment)):
            if time.monotonic() > deadline:
                raise SlurmUnavailable(f"its node is {states.strip() or 'not there'} after a minute")
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")


def _call(name: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    command = [_program(name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
