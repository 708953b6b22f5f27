"""On CUDA, through the command line: killed and resumed, probed afterwards, and sharded by FSDP2 on one process."""

import os
import signal

import pytest
import torch

from support.launch import ACCELERATE, CONTINUAL, FSDP2_ON_CPU, KILLED, PROBE, ROOT, TINY, launch
from support.runs import assert_same_run, recorded, weights


PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def flags(device, *more):
    return [*TINY, "--full_determinism=true", "--disable_tqdm=true", f"--use_cpu={device == 'cpu'}", *more]


def start(*arguments, **how):
    return launch(*arguments, **{"direct": True, "PYTHONPATH": PYTHONPATH} | how)


def finish(*arguments, **how):
    process = start(*arguments, **how)
    assert process.returncode == 0, process.stderr[-4000:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Uninterrupted runs, by precision."""
    folders = {}

    def of(device, precision):
        if precision not in folders:
            folders[precision] = tmp_path_factory.mktemp(precision) / "run"
            finish(*flags(device, f"--bf16={precision == 'bf16'}", f"--output_dir={folders[precision]}"))
        return folders[precision]

    return of


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_that_is_restarted_has_the_same_results(tmp_path, finished, device, precision):
    command = flags(device, f"--bf16={precision == 'bf16'}", f"--output_dir={tmp_path / 'run'}")
    for event in ["task:7", "probe:3"] if precision == "fp32" else ["task:7"]:
        process = start(event, CONTINUAL, *command, script=KILLED)
        assert process.returncode == -signal.SIGKILL, process.stderr[-4000:]
    finish(*command)
    assert_same_run(finished(device, precision), tmp_path / "run")


def test_deferred_probes_have_the_results_of_inline_probes(tmp_path, finished, device):
    finish(*flags(device, f"--output_dir={tmp_path / 'run'}", "--probe=deferred"))
    cpu = ["--use_cpu"] if device == "cpu" else []
    finish("--model", tmp_path / "run", "--follow", "--disable_tqdm=true", *cpu, script=PROBE)
    inline = finished(device, "fp32")
    assert recorded(tmp_path / "run")[0] == recorded(inline)[0] != []
    torch.testing.assert_close(weights(tmp_path / "run"), weights(inline), rtol=0, atol=0)


def sharded(folder, device, *more):
    """A run under FSDP2 on one process."""
    command = flags(device, f"--output_dir={folder}", *more)
    if device == "cpu":
        return finish(CONTINUAL, *command, script=FSDP2_ON_CPU, direct=False, processes=2)
    options = ["--config_file", str(ACCELERATE / "fsdp2.yaml"), "--num_processes", "1"]
    finish(*command, direct=False, options=options)


def test_probes_are_invisible_under_fsdp2(tmp_path, finished, device):
    inline, deferred = tmp_path / "inline", tmp_path / "deferred"
    sharded(inline, device)
    # Saves the same checkpoints without probes.
    sharded(deferred, device, "--probe=deferred")
    trained = [[entry for entry in recorded(folder)[2] if "loss" in entry] for folder in (inline, deferred)]
    assert trained[0] == trained[1] != []
    assert len(recorded(inline)[0]) == 3 and recorded(deferred)[0] == []
    torch.testing.assert_close(weights(inline), weights(deferred), rtol=0, atol=0)
    # The run is the same up to rounding.
    plain = [entry["loss"] for entry in recorded(finished(device, "fp32"))[2] if "loss" in entry]
    assert [entry["loss"] for entry in trained[0]] == pytest.approx(plain, rel=1e-3)
