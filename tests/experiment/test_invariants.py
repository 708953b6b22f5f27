"""
Configurations that must give one trajectory, run through the real command line.

A row says how a run differs from the canonical one in what must not matter: processes, micro-batches, launcher,
sharding, precision's companions, adaptation of the probe, interruption. Rows of the same precision share a canonical
run; what is computed on one process in the same micro-batches is compared to the bit, everything else within rounding.
"""

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from hf_plasticity.records import read_run
from support.launch import ACCELERATE, CONTINUAL, FSDP2_ON_CPU, KILLED, SUPPORT, TINY, launch, start
from support.runs import recorded, weights


# No dropout, a modest learning rate, and a large epsilon: Adam amplifies rounding where a gradient is zero by design
# (the bias of the keys).
CANONICAL = [*TINY, "--learning_rate=3e-3", "--adam_epsilon=1e-3", "--evaluate_forgetting=true", "--logging_steps=1"]


@dataclass
class Row:
    name: str
    flags: list[str] = field(default_factory=list)
    processes: int = 1
    precision: str = "fp32"
    # Events at which it is killed, and the number of processes that it resumes with after each.
    killed: list[tuple[str, int]] = field(default_factory=list)
    sharded: bool = False
    nodes: int = 1
    exact: bool = False
    # Whether its probes are those of the canonical run.
    same_probes: bool = True
    slow: bool = True

    @property
    def marks(self):
        """Its pytest markers."""
        several = max(self.processes, *(processes for _, processes in self.killed), 1) > 1
        return [pytest.mark.slow] * self.slow + [pytest.mark.distributed] * several


ROWS = [
    Row("two processes, two micro-batches", ["--per_device_train_batch_size=1"], processes=2, slow=False),
    Row("two processes", processes=2),
    Row("four processes", processes=4),
    Row("two nodes", processes=2, nodes=2),
    Row("two micro-batches", ["--per_device_train_batch_size=2"]),
    Row("four micro-batches", ["--per_device_train_batch_size=1"]),
    Row("FSDP2", processes=2, sharded=True),
    Row("FSDP2, two micro-batches", ["--per_device_train_batch_size=1"], processes=2, sharded=True),
    Row("killed in a task", killed=[("task:7", 1)], exact=True),
    Row("killed in a probe, then in a checkpoint", killed=[("probe:6", 1), ("checkpoint:1", 1)], exact=True),
    Row("killed, resumed on two processes", killed=[("task:7", 2)]),
    Row("two processes, killed, resumed on one", processes=2, killed=[("task:7", 1)]),
    Row("FSDP2, killed in a task", processes=2, sharded=True, killed=[("task:7", 2)]),
    Row("loaded by workers", ["--dataloader_num_workers=2"], exact=True),
    Row("saved at every third step", ["--save_steps=3"], killed=[("task:11", 1)], exact=True),
    Row("no probes", ["--no_probe=true"], exact=True, same_probes=False),
    Row("LoRA probes", ["--probe_adaptation=lora", "--probe_lora_rank=2"], exact=True, same_probes=False),
    Row("LoRA probes on two processes", ["--probe_adaptation=lora"], processes=2, same_probes=False),
    Row("repeated probes", ["--probe_repeats=2"], exact=True, same_probes=False),
    Row("bf16, no probes", ["--no_probe=true"], precision="bf16", exact=True, same_probes=False),
    Row("bf16, killed in a task", precision="bf16", killed=[("task:7", 1)], exact=True),
    Row("bf16, two processes", processes=2, precision="bf16"),
]  # fmt: skip


def finish(process):
    assert process.returncode == 0, process.stderr[-4000:]


def run(row: Row, folder: Path) -> None:
    """The row's run, from its first start to its end."""
    command = [*CANONICAL, *row.flags, f"--bf16={str(row.precision == 'bf16').lower()}", f"--output_dir={folder}"]
    processes = row.processes
    for event, then in row.killed:
        scripts = [FSDP2_ON_CPU, KILLED] if row.sharded else [KILLED]
        how = {"script": scripts[0], "processes": processes, "direct": processes == 1}
        process = launch(*scripts[1:], event, CONTINUAL, *command, **how)
        assert process.returncode == (-signal.SIGKILL if processes == 1 else 1), process.stderr[-4000:]
        processes = then
    if row.nodes > 1:
        options = ["--config_file", ACCELERATE / "multi_node.yaml", "--main_process_port=29533", "--num_machines=2"]
        nodes = [
            start(*command, processes=processes, options=[*map(str, options), f"--machine_rank={rank}"])
            for rank in range(row.nodes)
        ]
        for node in nodes:
            _, stderr = node.communicate(timeout=300)
            assert node.returncode == 0, stderr[-4000:]
    elif row.sharded:
        finish(launch(CONTINUAL, *command, script=FSDP2_ON_CPU, processes=processes))
    else:
        finish(launch(*command, processes=processes, direct=processes == 1))


@pytest.fixture(scope="module")
def canonical(tmp_path_factory):
    """The canonical run of a precision."""
    folders = {}

    def of(precision):
        if precision not in folders:
            folders[precision] = tmp_path_factory.mktemp(precision) / "run"
            run(Row("canonical", precision=precision), folders[precision])
        return folders[precision]

    return of


def losses(folder):
    return [entry["loss"] for entry in read_run(folder).training_log if "loss" in entry]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=row.marks) for row in ROWS])
def test_one_trajectory(canonical, tmp_path, row):
    reference, folder = canonical(row.precision), tmp_path / "run"
    run(row, folder)
    assert len(losses(folder)) == 16
    if row.exact:
        probes, forgetting, log, *_ = recorded(folder)
        expected_probes, expected_forgetting, expected_log, *_ = recorded(reference)
        training = [entry for entry in log if "probe/auc" not in entry]
        assert training == [entry for entry in expected_log if "probe/auc" not in entry]
        assert forgetting == expected_forgetting
        if row.same_probes:
            assert probes == expected_probes
        for name, tensors in weights(folder).items():
            torch.testing.assert_close(tensors, weights(reference)[name], rtol=0, atol=0)
        return
    rounding = 1e-6 if row.precision == "fp32" else 2e-2
    assert losses(folder) == pytest.approx(losses(reference), rel=rounding)
    ones, others = read_run(folder), read_run(reference)
    for one, other in zip(ones.forgetting, others.forgetting, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=rounding)
    assert len(ones.probes) == len(others.probes) == 3
    for one, other in zip(ones.probes, others.probes):
        assert (one["cycle"], one["step"]) == (other["cycle"], other["step"])
        assert one["start_loss"] == pytest.approx(other["start_loss"], rel=rounding)
        if row.same_probes:
            assert one["losses"] == pytest.approx(other["losses"], rel=rounding)
            assert one["probe_config_hash"] == other["probe_config_hash"]


@pytest.mark.slow
def test_different_runs_have_different_trajectories(canonical, tmp_path):
    """Another seed gives another trajectory."""
    run(Row("another seed", ["--seed=7"]), tmp_path / "run")
    assert losses(tmp_path / "run") != pytest.approx(losses(canonical("fp32")), rel=1e-2)


def test_the_trajectory_is_the_recorded_one(canonical):
    """
    Detects changes of the numbers by this package or a library. If a change is intended, write the new
    numbers to `reference_trajectory.json` and say why in the commit message.
    """
    folder = canonical("fp32")
    probes = read_run(folder).probes
    trajectory = {
        "losses": losses(folder),
        "aucs": [probe["auc"] for probe in probes],
        "final_probe_losses": [probe["final_loss"] for probe in probes],
    }
    recorded = json.loads((SUPPORT / "reference_trajectory.json").read_text(encoding="utf-8"))
    assert trajectory.keys() == recorded.keys()
    for name, numbers in trajectory.items():
        assert numbers == pytest.approx(recorded[name], rel=1e-5), f"new trajectory: {json.dumps(trajectory)}"
