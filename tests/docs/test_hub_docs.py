"""The commands of docs/hub.md and docs/checkpoints.md, exactly as documented."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from hf_plasticity import load_run
from hf_plasticity.cli import main
from hf_plasticity.trainer import ContinualConfig
from support.launch import ROOT, TINY
from support.suites import PROBE_FLAGS, publish, save_suite


@pytest.mark.slow
def test_the_commands_about_the_hub_do_what_the_page_says(hub, repo_id, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8").replace("org/name", repo_id)
    train, push, report = re.findall(r"```bash\n(.*?)\n```", page, flags=re.DOTALL)
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    run_command(train, TINY)
    assert set(hub.repositories[repo_id].branches) == {"main", "cycle-000", "cycle-001", "cycle-002"}
    found = {}
    for snippet in snippets:
        exec(snippet, found)
    assert found["probes"]["cycle"][:] == [0, 1, 2]
    assert found["model"].config.n_embd == 32
    for command in (push, report):
        program, *words = shlex.split(command)
        assert program == "hf-plasticity" and main(words) == 0
    assert os.path.exists("report.html")
    patience = ContinualConfig.__dataclass_fields__["hub_patience"].default
    assert f"--hub_patience` seconds ({patience:.0f})" in page


@pytest.mark.slow
@pytest.mark.distributed
def test_the_commands_about_checkpoints_do_what_the_page_says(hub, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    suite, processes, here, on_the_hub = re.findall(r"```bash\n(.*?)\n```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    publish(hub, "org/suite", save_suite(tmp_path / "suite", "llama"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "vi.txt").write_text("".join(f"dòng chữ thứ {number}\n" for number in range(4000)))
    run_command(suite, PROBE_FLAGS)
    assert load_run("runs/suite").probes_frame()["step"].tolist() == [0, 16]
    two = [*(flag for flag in PROBE_FLAGS if "language" not in flag), "--output_dir=runs/two"]
    run_command(processes.replace("--num_processes 8", "--num_processes 2"), two)
    assert load_run("runs/two").probes_frame()["step"].tolist() == [0, 4, 16]
    for commands, run in ((here, "runs/mine"), (on_the_hub, "runs/follow-org-name")):
        train, follow = commands.splitlines()
        run_command(train, TINY)
        run_command(follow.replace("--data_dir text", ""), ["--poll_seconds=0.1"])
        assert load_run(run).probes_frame()["cycle"].tolist() == [0, 1, 2]
        shutil.rmtree("runs/mine")
    assert "probe.json" in hub.files("org/name", "cycle-002")


def run_command(command, flags):
    """Run a documented command, with flags that make it small; those of the command come last and win."""
    program, name, *words = shlex.split(command)
    assert program == "hf-plasticity"
    process = subprocess.run(
        [sys.executable, "-m", "hf_plasticity", name, *flags, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
