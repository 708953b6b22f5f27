"""Records: each is appended once, completely or not at all, and damaged lines are reported."""

import json
import os
import subprocess
import sys
import warnings

import pandas as pd
import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.records import (
    PROBE_KEY,
    PROVENANCE,
    DamagedRecordWarning,
    RunRecord,
    append_record,
    config_hash,
    finished_steps_of_run,
    move_damaged_lines,
    read_config,
    read_records,
    read_run,
    run_lock,
    write_config,
)


def probe(step, **changes):
    return {"task": step // 10, "step": step, "probe_config_hash": "a", "auc": 1.5} | changes


def test_a_record_is_written_once_and_never_replaced(tmp_path):
    path = tmp_path / "probes.jsonl"
    assert append_record(path, probe(10), PROBE_KEY) and append_record(path, probe(20), PROBE_KEY)
    assert not append_record(path, probe(10, auc=9.0), PROBE_KEY)
    assert append_record(path, probe(10, probe_config_hash="b"), PROBE_KEY)
    assert [(r["step"], r["auc"]) for r in read_records(path)] == [(10, 1.5), (20, 1.5), (10, 1.5)]


def test_a_damaged_line_is_named_and_the_others_are_read_and_kept(tmp_path):
    path = tmp_path / "probes.jsonl"
    append_record(path, probe(10), PROBE_KEY)
    with path.open("ab") as file:
        file.write(b'{"task": 2, "st\n\xff\xfe\n[1]\n')
    with pytest.warns(DamagedRecordWarning) as seen:
        assert append_record(path, probe(30), PROBE_KEY)
    assert {str(w.message) for w in seen} == {f"{path}:{n}: damaged record, skipped" for n in (2, 3, 4)}
    with pytest.warns(DamagedRecordWarning):
        assert [r["step"] for r in read_records(path)] == [10, 30]
    assert b'{"task": 2, "st\n' in path.read_bytes(), "a line that may still be repaired is kept"


def test_damaged_lines_are_moved_aside_so_that_pandas_reads_the_file(tmp_path):
    path = tmp_path / "probes.jsonl"
    for step in (10, 20):
        append_record(path, probe(step), PROBE_KEY)
    lines = path.read_bytes()
    path.write_bytes(lines.replace(b"}\n", b"}\n{half\n[1]\n", 1))
    move_damaged_lines(path)
    assert path.read_bytes() == lines
    assert pd.read_json(path, lines=True)["step"].tolist() == [10, 20]
    assert (tmp_path / "probes.jsonl.damaged").read_bytes() == b"{half\n[1]\n"


def test_an_incomplete_last_line_does_not_damage_the_next_record(tmp_path):
    path = tmp_path / "probes.jsonl"
    path.write_bytes(b'{"task": 1, "step": 10')
    with pytest.warns(DamagedRecordWarning, match=r"probes\.jsonl:1"):
        append_record(path, probe(20), PROBE_KEY)
    with pytest.warns(DamagedRecordWarning):
        assert [r["step"] for r in read_records(path)] == [20]


def test_nan_is_not_recorded(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_record(tmp_path / "probes.jsonl", probe(10, auc=float("nan")), PROBE_KEY)
    assert not (tmp_path / "probes.jsonl").exists()


def test_a_write_that_fails_leaves_the_old_lines(tmp_path, monkeypatch):
    path = tmp_path / "probes.jsonl"
    append_record(path, probe(10), PROBE_KEY)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_record(path, probe(20), PROBE_KEY)
    assert [r["step"] for r in read_records(path)] == [10]
    assert [entry.name for entry in tmp_path.iterdir()] == ["probes.jsonl"]


def test_a_run_folder_is_locked_by_one_process_until_it_ends(tmp_path):
    hold = f"with run_lock({str(tmp_path)!r}): print('held', flush=True); input()"
    code = f"from hf_plasticity.records import run_lock\n{hold}"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(PlasticityError, match="is in use by another process"), run_lock(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with run_lock(tmp_path):
        pass


def test_the_hash_of_a_configuration_does_not_depend_on_the_order_of_its_keys():
    assert config_hash({"a": 1, "b": [2]}) == config_hash({"b": [2], "a": 1}) != config_hash({"a": 1, "b": [3]})


def test_a_saved_configuration_is_read_unchanged(tmp_path):
    config = {"size": "100K", "languages": ["en", "no"], "learning_rate": 1e-3, "note": "tiếng Việt"}
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(PlasticityError, match="is not valid YAML"):
        read_config(tmp_path)


def test_a_run_is_read_with_the_log_of_its_newest_complete_checkpoint(tmp_path):
    write_config(tmp_path, {"size": "25K"})
    append_record(tmp_path / "probes.jsonl", probe(20), PROBE_KEY)
    append_record(tmp_path / "probes.jsonl", probe(10), PROBE_KEY)
    for step, complete in ((10, True), (20, True), (30, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "loss": 1.0}]}))
        if complete:
            (folder / "complete.json").write_text("{}")
    run = read_run(tmp_path)
    assert [record["step"] for record in run.probes] == [10, 20]
    assert run.training_log == [{"step": 20, "loss": 1.0}]


def test_the_log_of_an_extended_run_is_not_that_of_the_run_before(tmp_path):
    write_config(tmp_path, {"size": "25K"})
    for folder, step in ((tmp_path, 10), (tmp_path / "checkpoint-20", 20)):
        folder.mkdir(exist_ok=True)
        state = {"global_step": step, "log_history": [{"step": step, "loss": 1.0}]}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        (folder / "complete.json").write_text("{}")
    assert read_run(tmp_path).training_log == [{"step": 20, "loss": 1.0}]


def test_a_run_shows_how_many_records_it_has(tmp_path):
    run = RunRecord("mine", tmp_path, probes=[probe(10), probe(20)], training_log=[{"loss": 1.0}])
    assert repr(run) == "RunRecord('mine': 2 probes, 1 training_log)"
    assert repr(RunRecord("mine", tmp_path)) == "RunRecord('mine': no records)"


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_run_is_an_error(tmp_path, make):
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(PlasticityError, match="is not a run folder" if make else "does not exist"):
        read_run(folder)


def test_records_are_read_without_torch_or_transformers():
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'datasets'): sys.modules[name] = None\n"
        "import hf_plasticity\nfrom hf_plasticity.records import read_run"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_records("no such file.jsonl") == []


def test_a_run_that_is_being_extended_is_not_finished(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 40}')
    for cycles, expected in ((2, 40), (3, None)):
        write_config(tmp_path, {"cycles": cycles, "task_steps": 10, PROVENANCE: {"tasks_per_cycle": 2}})
        assert finished_steps_of_run(tmp_path) == expected
