"""Runs with inline probes, runs with deferred probes, and probe processes."""

import json
import time

from torch.testing import assert_close

from hf_plasticity import load_run
from hf_plasticity.deferred import parse_deferred, probe_deferred
from hf_plasticity.experiment import parse_experiment, run_experiment
from support.launch import TINY
from support.runs import UNREPEATABLE, recorded, weights


# fmt: off
FLAGS = [*TINY, "--use_cpu", "--disable_tqdm=true", "--diagnose", "--diagnostics_sequences=4", "--evaluate_forgetting"]
FOLLOW = ["--follow", "--disable_tqdm=true", "--cpu_threads=1", "--use_cpu", "--poll_seconds=0.05"]
# fmt: on


def train(folder, *flags):
    run_experiment(parse_experiment([*FLAGS, f"--output_dir={folder}", *flags]))
    return folder


def follow(run, *flags):
    probe_deferred(parse_deferred(["--model", str(run), *FOLLOW, *flags]))


def diagnosed(folder):
    return [
        {name: value for name, value in record.items() if name not in UNREPEATABLE}
        for record in load_run(folder).diagnostics
    ]


def assert_same(folder, inline):
    """Every record, and every checkpoint with its probe's record."""
    of_probes, forgetting, _, _, mitigations = recorded(folder)
    assert [of_probes, forgetting, mitigations] == [recorded(inline)[kind] for kind in (0, 1, 4)]
    assert diagnosed(folder) == diagnosed(inline) != []
    assert_close(weights(folder), weights(inline), rtol=0, atol=0)
    for record in load_run(folder).probes:
        assert json.loads((folder / f"cycle-{record['cycle']:03d}" / "probe.json").read_text()) == record


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
