"""The live table of a ladder, and the devices of its runs."""

import pytest
from rich.console import Console

from hf_plasticity import threads
from hf_plasticity.errors import PlasticityError
from hf_plasticity.ladder.command import _share_of_machine
from hf_plasticity.ladder.jobs import COMPLETE, FAILED, RUNNING, WAITING, Job, _least_used, _table


LINE = "step 1,200/2,400  cycle 1, task 3 (fr)  loss 3.1444  left 1 day, 0:01:22"
PROBE = "step 1,800/2,400  probe: AUC 916.12, ΔAUC +1.00%"


def shown(folder, state, *lines):
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("\n".join(lines), encoding="utf-8")
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(_table([Job(folder, [], state=state)]))
    return console.export_text().splitlines()[1].split("  ")


@pytest.mark.parametrize(
    ("state", "lines", "expected"),
    [
        (WAITING, [], ["waiting"]),
        (RUNNING, ["'runs/a' starts"], ["running"]),
        (RUNNING, ["x", LINE], ["running", "50%", "1 day, 0:01:22"]),
        (RUNNING, [LINE, PROBE], ["running", "75%", "1 day, 0:01:22"]),
        (COMPLETE, [LINE, "report  [report.html]"], ["complete", "100%"]),
        (FAILED, [LINE, "error: output_dir: '[full]' is full"], ["failed", "error: output_dir: '[full]' is full"]),
    ],
)
def test_the_table_has_state_progress_and_time_left_and_the_error_of_a_failed_run(tmp_path, state, lines, expected):
    cells = [cell.strip() for cell in shown(tmp_path / "25K-rotation-seed1", state, *lines)]
    assert [cell for cell in cells if cell] == ["25K-rotation-seed1", *expected]


@pytest.mark.parametrize(
    ("selected", "jobs", "processes", "at_once", "devices"),
    [
        (None, None, 1, 4, ["0", "1", "2", "3"]),
        (None, None, 2, 2, ["0,1", "2,3"]),
        (None, None, 4, 1, None),
        (None, 8, 1, 8, ["0", "1", "2", "3"]),
        ("2,5,6,7", None, 2, 2, ["2,5", "6,7"]),
        ("GPU-a,GPU-b,GPU-c,GPU-d", None, 1, 4, ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]),
    ],
)
def test_each_run_has_gpus_for_its_processes_of_those_selected(
    monkeypatch, selected, jobs, processes, at_once, devices
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if selected:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selected)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    expected = [{"CUDA_VISIBLE_DEVICES": names} for names in devices or []]
    assert _share_of_machine(jobs, 12, processes) == (at_once, [], expected)


def test_a_run_gets_the_devices_with_the_fewest_running_jobs(tmp_path):
    first, second = {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}
    jobs = [Job(tmp_path, [], one, state) for one, state in ((first, COMPLETE), (second, RUNNING))]
    assert _least_used([first, second], jobs) == first


def test_cpu_cores_are_divided_among_runs_and_their_processes(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    assert _share_of_machine(None, 12, 2) == (4, ["--cpu_threads=1"], [])
    assert _share_of_machine(2, 12, 2) == (2, ["--cpu_threads=2"], [])
    assert _share_of_machine(None, 12, 1, cpu_threads=4) == (2, [], []), "a configuration has the threads"
    with pytest.raises(PlasticityError, match=r"^jobs: 5 need 10 CPU cores, and 8 are available; use fewer$"):
        _share_of_machine(5, 12, 2)
    with pytest.raises(PlasticityError, match=r"^jobs: 3 need 12 CPU cores, and 8 are available; use fewer$"):
        _share_of_machine(3, 12, 1, cpu_threads=4)
