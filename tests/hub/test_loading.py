"""Runs and probed checkpoints read from a folder or the Hub, after the study."""

import json

import datasets
import pytest
import torch
import yaml
from huggingface_hub import constants

from hf_plasticity import PlasticityError, load_probe_checkpoint, load_run
from hf_plasticity.cli import main
from hf_plasticity.data.tokenizers import byte_tokenizer
from hf_plasticity.hub.contents import main_files
from support.study_config import CONFIG
from support.tiny import tiny_model


def probe(cycle, auc):
    return {
        "cycle": cycle, "task": 2 * cycle, "step": 8 * cycle, "tokens": 64 * cycle, "language": "vi",
        "adaptation": "full", "probe_steps": [0, 2, 4], "losses": [3.0, 2.0, auc - 7.0], "auc": auc,
        "mean_loss": auc / 4, "start_loss": 3.0, "final_loss": auc - 7.0, "bits_per_byte": None,
        "delta_auc": None if cycle == 0 else 0.0, "seed": 0, "probe_config_hash": "abc", "seconds": 0.1,
    }  # fmt: skip


FORGETTING = [{"cycle": 1, "task": 2, "step": 8, "tokens": 64, "losses": {"en": 2.5, "zh": 3.5}}]


@pytest.fixture
def run_folder(tmp_path):
    """A run folder as the formats of `records` describe it, made by hand."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("size: 25K\nsource: local\n")
    for name, records in {"probes": [probe(0, 9.0), probe(1, 8.0)], "forgetting": FORGETTING}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    log = [{"step": 1, "loss": 4.0, "language": "en"}]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 8, "log_history": log}))
    for cycle in range(2):
        tiny_model(seed=cycle).save_pretrained(folder / f"cycle-00{cycle}")
        byte_tokenizer().save_pretrained(folder / f"cycle-00{cycle}")
    return folder


@pytest.fixture
def on_the_hub(hub, repo_id, run_folder):
    """The same as a repository, uploaded without this package."""
    files = {path.name: path.read_bytes() for path in run_folder.iterdir() if path.is_file()}
    repository = hub.create(repo_id, files | {"model.safetensors": b"never read"})
    for cycle in ("cycle-000", "cycle-001"):
        repository.branches[cycle] = repository.branches["main"][:1]
        hub.add(repository, cycle, cycle, {path.name: path.read_bytes() for path in (run_folder / cycle).iterdir()})
    return repo_id


def test_a_run_loads_equally_from_folder_and_hub_without_its_weights(hub, run_folder, on_the_hub):
    hub.requests.clear()
    here, there = load_run(run_folder), load_run(on_the_hub)
    assert (here.name, there.name) == ("run", on_the_hub)
    for name in ("config", "probes", "forgetting", "training_log"):
        assert getattr(here, name) == getattr(there, name)
    assert here.probes == [probe(0, 9.0), probe(1, 8.0)]
    assert not [request for request in hub.requests if "safetensors" in request]


def test_records_are_data_frames(run_folder):
    run = load_run(run_folder)
    frame = run.probes_frame()
    assert frame[["cycle", "auc"]].to_numpy().tolist() == [[0, 9.0], [1, 8.0]]
    assert frame["losses"].tolist() == [[3.0, 2.0, 2.0], [3.0, 2.0, 1.0]] and frame["delta_auc"].isna().tolist() == [
        True,
        False,
    ]
    assert run.forgetting_frame()[["losses.en", "losses.zh"]].to_numpy().tolist() == [[2.5, 3.5]]
    assert run.training_frame()["language"].tolist() == ["en"]
    assert len(run.diagnostics_frame()) == 0


@pytest.mark.parametrize("cycle", [0, 1])
def test_a_probed_checkpoint_is_the_model_of_its_cycle(run_folder, on_the_hub, cycle):
    expected = tiny_model(seed=cycle).state_dict()
    for run in (run_folder, str(run_folder), on_the_hub, load_run(run_folder), load_run(on_the_hub)):
        model, tokenizer = load_probe_checkpoint(run, cycle)
        torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
        assert tokenizer("chào")["input_ids"] == list("chào".encode())


def test_what_does_not_exist_is_an_error_on_one_line(hub, run_folder, on_the_hub, tmp_path):
    hub.create(f"{on_the_hub}-empty")
    for mistake, message in {
        lambda: load_run("org/no-such-run"): r"^run: there is no folder .*, and there is no 'org/no-such-run'",
        lambda: load_run(f"{on_the_hub}-empty"): "has neither a configuration nor a probe",
        lambda: load_run(on_the_hub, revision="v2"): "has no such revision",
        lambda: load_run(run_folder, revision="v2"): "revision: 'v2' cannot be chosen in the folder",
        lambda: load_run(tmp_path / "nowhere"): "does not exist",
        lambda: load_probe_checkpoint(run_folder, 7): "has no checkpoint 'cycle-007', only cycle-000, cycle-001",
        lambda: load_probe_checkpoint(on_the_hub, 7): "'cycle-007' cannot be loaded: '.*' has no such revision",
    }.items():
        with pytest.raises(PlasticityError, match=message) as caught:
            mistake()
        assert "\n" not in str(caught.value)


def test_an_earlier_download_is_used_only_offline(hub, on_the_hub, monkeypatch):
    before = load_run(on_the_hub).probes
    hub.stop()
    try:
        with pytest.raises(PlasticityError, match=f"the Hub cannot be reached for '{on_the_hub}'"):
            load_run(on_the_hub)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert load_run(on_the_hub).probes == before
    finally:
        hub.start()


def test_an_unreachable_hub_is_an_error_on_one_line(hub, repo_id):
    hub.stop()
    try:
        with pytest.raises(PlasticityError, match=f"the Hub cannot be reached for '{repo_id}'"):
            load_run(repo_id)
    finally:
        hub.start()


def test_a_report_is_made_of_a_run_on_the_hub(on_the_hub, tmp_path, capsys):
    assert main(["report", on_the_hub, "-o", str(tmp_path / "report.html")]) == 0
    assert on_the_hub in (tmp_path / "report.html").read_text()
    assert main(["report", on_the_hub]) == 2
    assert f"output: missing; '{on_the_hub}' is on the Hub, name the page with -o FILE" in capsys.readouterr().err


def test_the_records_of_a_pushed_run_load_as_a_dataset(hub, repo_id, run_folder):
    (run_folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["push", str(run_folder), "--hub_model_id", repo_id]) == 0
    for name, columns in {"probes": list(probe(0, 9.0)), "training_log": ["step", "loss", "language"]}.items():
        data_files = f"hf://{repo_id}/records/{name}.parquet"
        [table] = datasets.load_dataset("parquet", data_files=data_files, cache_dir=run_folder / "cache").values()
        assert table.column_names == columns
    assert datasets.load_dataset("parquet", data_files=f"hf://{repo_id}/records/probes.parquet", split="train")[
        "losses"
    ][:] == [[3.0, 2.0, 2.0], [3.0, 2.0, 1.0]]


def test_every_record_of_a_run_is_uploaded(run_folder, monkeypatch):
    # The card requires more configuration than this run has.
    monkeypatch.setattr("hf_plasticity.hub.contents.render_card", lambda *args, **kwargs: "card")
    records = {
        "mitigations.jsonl": b'{"step": 4, "mitigation": "redo", "event": "reset"}\n',
        "probe_protocols.json": b"{}",
    }
    for name, content in records.items():
        (run_folder / name).write_bytes(content)
    files = main_files(run_folder, "org/run", "id", ["cycle-000", "cycle-001"], finished_at=None)
    for name in ("probes.jsonl", "forgetting.jsonl", *records):
        assert files[name], name
    assert json.loads(files["mitigations.jsonl"]) == json.loads(records["mitigations.jsonl"])
