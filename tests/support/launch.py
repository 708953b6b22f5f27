"""Starts the recipes as a user does, and kills them as a cluster does."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path


SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
CONTINUAL = ROOT / "recipes" / "continual.py"
PROBE = ROOT / "recipes" / "probe.py"
ACCELERATE = ROOT / "hf_plasticity" / "configs" / "accelerate"
KILLED = SUPPORT / "killed.py"
FSDP2_ON_CPU = SUPPORT / "fsdp2_on_cpu.py"
# The settings of the tiny run that the tests train: two cycles of two tasks of four steps, a fraction of a second.
# fmt: off
TINY = [
    "--size=25K", "--cycles=2", "--task_steps=4", "--warmup_steps=1", "--context_length=32",
    "--global_batch_tokens=128", "--languages", "syn1", "syn2", "--probe_steps=4", "--probe_eval_sequences=4",
    "--learning_rate=0.012", "--logging_steps=3", "--cpu_threads=1",
]
# fmt: on


def launch(*arguments, timeout=300, **how):
    """`accelerate launch` of a recipe; the finished process with its output."""
    process = start(*arguments, **how)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start(*arguments, processes=1, script=CONTINUAL, options=(), direct=False, prefix=(), **environment):
    """
    The same, as it begins to run; `direct` is `python recipe.py`, which is faster and gives its own exit status, and
    `prefix` are words before it.
    """
    config = ACCELERATE / ("single.yaml" if processes == 1 else "ddp.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", str(processes), *options]
    if direct:
        command = [sys.executable]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [*prefix, *command, str(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch_ranks(script, folder, kind, processes, part="all"):
    """
    A script of `support/` on several processes; the folder that it has written to.

    gloo may abort a process in one of its threads (seen once, in torch 2.13.0; compare
    https://github.com/pytorch/pytorch/pull/179291). The launch is then repeated, so that only a second abort fails.
    """
    for attempt in ("first", "second"):
        process = launch(
            kind,
            folder / attempt,
            part,
            script=SUPPORT / script,
            processes=processes,
            timeout=550,
            PYTHONPATH=f"{ROOT}:{SUPPORT.parent}",
        )
        if "Signal 6 (SIGABRT)" not in process.stderr:
            break
    assert process.returncode == 0, process.stderr[-5000:]
    return folder / attempt


def wait_until_stopped(process):
    """Wait until a process has stopped itself with SIGSTOP."""
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert process.poll() is None
        time.sleep(0.1)


def launch_killed(event, *arguments, **how):
    """The same, but the main process is killed with SIGKILL at an event, such as `probe:3` (see killed.py)."""
    process = launch(event, CONTINUAL, *arguments, script=KILLED, **how)
    assert process.returncode != 0 and "was not killed" not in process.stderr, process.stderr[-2000:]
    return process


def error_line(process):
    """The one-line error, the same from every process."""
    [line] = set(re.findall(r"^continual\.py: error: (.*)$", process.stderr, flags=re.MULTILINE))
    return line
