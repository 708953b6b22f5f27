"""The live table of a ladder."""

import pytest
from rich.console import Console

from hf_plasticity.ladder.jobs import COMPLETE, FAILED, RUNNING, WAITING, Job, _table


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
