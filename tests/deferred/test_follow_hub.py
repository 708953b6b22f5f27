"""A run with `probe: deferred` and a probe process on the Hub: all uploads exactly once, with any failure."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.utils._http as client_http
import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import enable_progress_bars
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_plasticity import PlasticityError
from hf_plasticity.cli import main
from hf_plasticity.deferred import prober as prober_module
from hf_plasticity.deferred import repository as repository_module
from hf_plasticity.hub import push, repository
from support.following import FLAGS, FOLLOW, assert_same, diagnosed, follow, train, wait_until
from support.hub_server import READER_TOKEN
from support.launch import KILLED, PROBE, launch, launch_killed, start
from support.runs import UNREPEATABLE, recorded


pytestmark = pytest.mark.filterwarnings("ignore:It seems that you are about to commit a data file")
BRANCHES = ["cycle-000", "cycle-001", "cycle-002"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(push, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(push, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(repository_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield
    enable_progress_bars()


def flags_of(repo_id):
    return ["--probe=deferred", "--push_to_hub", f"--hub_model_id={repo_id}"]


def assert_all_there_once(hub, repo_id, inline):
    """Every branch with weights and record, and on `main` the records, once each."""
    assert set(hub.repositories[repo_id].branches) == {"main", *BRANCHES}
    probes = recorded(inline)[0]
    for name, probe in zip(BRANCHES, probes):
        files = hub.files(repo_id, name)
        record = json.loads(files["probe.json"])
        assert {key: value for key, value in record.items() if key not in UNREPEATABLE} == probe
        titles = hub.titles(repo_id, name)
        assert titles in (
            ["initial commit", f"Probed checkpoint {name}"],
            ["initial commit", f"Checkpoint {name}", f"Probe of {name}"],
            ["initial commit", f"Checkpoint {name}", f"Probed checkpoint {name}"],
        )
    files = hub.files(repo_id)
    assert files["model.safetensors"] == (inline / "cycle-002" / "model.safetensors").read_bytes()
    for name in ("probes.jsonl", "diagnostics.jsonl", "forgetting.jsonl"):
        lines = [json.loads(line) for line in files[name].splitlines()]
        assert len(lines) == len((inline / name).read_text().splitlines()), name
    assert files["revisions.txt"].decode().split() == BRANCHES
    assert {"delta_auc.png", "records/probes.parquet", "records/diagnostics.parquet"} <= set(files)
    assert "The run is in progress" not in files["README.md"].decode()


@pytest.mark.parametrize("order", ["after", "beside"])
def test_a_run_is_probed_on_the_hub_and_the_records_are_uploaded(hub, repo_id, inline, tmp_path, monkeypatch, order):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    if order == "after":
        train(run, *flags_of(repo_id))
        assert "probes.jsonl" not in hub.files(repo_id)
        follow(repo_id)
    else:
        trainer = start(*FLAGS, f"--output_dir={run}", *flags_of(repo_id), direct=True)
        try:
            wait_until(lambda: repo_id in hub.repositories)
            follow(repo_id)
            assert trainer.wait(timeout=100) == 0
        finally:
            trainer.kill()
    assert_all_there_once(hub, repo_id, inline)
    mirror = tmp_path / "runs" / f"follow-{repo_id.replace('/', '-')}"
    assert recorded(mirror)[:2] == recorded(inline)[:2] and diagnosed(mirror) == diagnosed(inline)
    assert not list(mirror.glob("cycle-*"))
    assert AutoModelForCausalLM.from_pretrained(repo_id, revision="cycle-001").config.n_embd == 32
    before = {branch: hub.titles(repo_id, branch) for branch in ("main", *BRANCHES)}
    assert main(["push", str(run)]) == 0
    assert_same(run, inline), "the records of the probe process are downloaded"
    follow(repo_id)
    assert {branch: hub.titles(repo_id, branch) for branch in ("main", *BRANCHES)} == before


@pytest.mark.parametrize("fault", [{"status": 503}, {"reset": "before"}, {"reset": "after"}, {"truncate": True}])
def test_the_probe_process_waits_for_a_failing_hub_and_nothing_is_lost(
    hub, repo_id, deferred, inline, tmp_path, fault
):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    first = hub.fail("GET .*/refs", times=0, **fault)
    for request in (
        "GET .*/tree/", "GET .*/resolve/.*/model.safetensors", "POST .*/preupload/.*cycle-001",
        "POST .*/commit/cycle-001", "POST .*/commit/main",
    ):  # fmt: skip
        hub.fail(request, **fault)
    first.times = 0
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    assert_all_there_once(hub, repo_id, inline)
    assert recorded(tmp_path / "mirror")[:2] == recorded(inline)[:2]


def test_a_probe_process_killed_while_uploading_resumes_even_on_another_machine(
    hub, repo_id, deferred, inline, tmp_path
):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    for folder, event in (("one", "push:2"), ("one", "pushed:1"), ("two", "pushed:1")):
        flags = ["--model", repo_id, *FOLLOW, f"--output_dir={tmp_path / folder}"]
        process = launch(event, PROBE, *flags, script=KILLED, direct=True)
        assert process.returncode < 0, process.stderr[-3000:]
    follow(repo_id, f"--output_dir={tmp_path / 'three'}")
    assert_all_there_once(hub, repo_id, inline)


@pytest.mark.slow
def test_run_and_probe_process_killed_while_uploading_end_without_duplicates(hub, repo_id, inline, tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    command = [*FLAGS, f"--output_dir={run}", *flags_of(repo_id)]
    launch_killed("push:3", *command)
    killed = launch("push:1", PROBE, "--model", repo_id, *FOLLOW, f"--output_dir={mirror}", script=KILLED, direct=True)
    assert killed.returncode < 0, killed.stderr[-3000:]
    trainer = start(*command, direct=True)
    try:
        follow(repo_id, f"--output_dir={mirror}")
        assert trainer.wait(timeout=100) == 0
    finally:
        trainer.kill()
    assert main(["push", str(run)]) == 0
    assert_all_there_once(hub, repo_id, inline)
    assert_same(run, inline)


def test_records_are_not_uploaded_without_permission_or_if_turned_off(
    hub, repo_id, deferred, inline, tmp_path, monkeypatch
):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    before = {branch: hub.titles(repo_id, branch) for branch in ("main", *BRANCHES)}
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    with pytest.raises(
        PlasticityError, match=r"has no write access to .* or keep the records here with --push_to_hub false"
    ):
        follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    assert not (tmp_path / "mirror" / "probes.jsonl").exists()
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}", "--push_to_hub=false")
    assert recorded(tmp_path / "mirror")[:2] == recorded(inline)[:2]
    assert {branch: hub.titles(repo_id, branch) for branch in ("main", *BRANCHES)} == before
    with pytest.raises(PlasticityError, match=r"output_dir: '.*' belongs to another run; choose another folder, or"):
        follow(repo_id, f"--output_dir={deferred}")
    with pytest.raises(PlasticityError, match="model: there is no folder of that name here, and there is no 'org/"):
        follow("org/none-such", f"--output_dir={tmp_path / 'none'}")


def test_two_runs_of_one_configuration_cannot_share_a_folder(hub, repo_id, deferred, tmp_path):
    other = Path(shutil.copytree(deferred, tmp_path / "other"))
    for folder, name in ((deferred, repo_id), (other, f"{repo_id}-2")):
        assert main(["push", str(folder), "--hub_model_id", name]) == 0
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    before = {branch: hub.files(f"{repo_id}-2", branch) for branch in BRANCHES}
    with pytest.raises(PlasticityError, match=r"output_dir: '.*' has the probes of another run \(run_id "):
        follow(f"{repo_id}-2", f"--output_dir={tmp_path / 'mirror'}")
    assert {branch: hub.files(f"{repo_id}-2", branch) for branch in BRANCHES} == before


def test_the_probe_process_does_not_wait_for_other_repositories(hub, repo_id, tmp_path):
    hub.create(repo_id, {"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(PlasticityError, match=r"model: '.*' has other files \(config.json\) and no run"):
        follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    with pytest.raises(PlasticityError, match="there is no folder of that name here, and there is no 'runs/none'"):
        follow("runs/none", f"--output_dir={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def test_a_probe_process_that_loses_write_access_ends(hub, repo_id, deferred, inline, tmp_path, monkeypatch):
    monkeypatch.setattr(prober_module, "PATIENCE", 0.3)
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    denied = hub.fail("POST .*/commit/", status=403, times=10**6)
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    assert recorded(tmp_path / "mirror")[:2] == recorded(inline)[:2]
    denied.times = 0
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    assert_all_there_once(hub, repo_id, inline)


def test_uploads_are_retried_from_the_end_of_the_run_on(monkeypatch):
    """However long they had failed before."""
    clock = [0.0]
    monkeypatch.setattr(prober_module.time, "monotonic", lambda: clock[0])
    prober = prober_module.DeferredProber.__new__(prober_module.DeferredProber)
    prober._retrying_since, prober.run = None, SimpleNamespace(name="run", deliver=lambda records: False)
    prober.recorder = SimpleNamespace(read=lambda folder: [])
    prober.run.folder = None
    for now, late in ((0.0, None), (5_000.0, False), (5_599.0, False), (5_601.0, True)):
        clock[0] = now
        assert not prober._deliver()
        assert late is None or prober._gives_up() is late


def test_a_hub_that_is_not_reached_at_the_start_is_an_error_on_one_line(hub, repo_id, deferred, tmp_path, monkeypatch):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0

    def not_reached(self):
        raise LocalEntryNotFoundError("the Hub was not reached")

    monkeypatch.setattr(repository.RunRepository, "open", not_reached)
    with pytest.raises(PlasticityError, match=r"not reached; the same command tries again$"):
        follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")


def test_records_are_not_lost_with_an_incomplete_snapshot(hub, repo_id, deferred, inline, tmp_path):
    """Of a commit of which one file is in the cache, the client may call that all when the Hub does not answer."""
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    commit = hub.repositories[repo_id].commit("main").oid
    hf_hub_download(repo_id, "config.yaml", revision=commit)
    hub.fail("GET .*/tree/", status=429, times=50)
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) != 0, "incomplete records are not uploaded"
    hub.heal()
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    assert_same(deferred, inline)
    assert_all_there_once(hub, repo_id, inline)


def test_a_hub_that_does_not_respond_is_retried(hub, repo_id, deferred, inline, tmp_path, monkeypatch):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    monkeypatch.setattr(repository, "TIMEOUT", 0.3)
    monkeypatch.setattr(repository_module.DeferredRepository, "check", lambda self: hub.fail("GET .*/refs", hang=True))
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}", "--push_to_hub=false")
    assert recorded(tmp_path / "mirror")[:2] == recorded(inline)[:2]


def test_final_weights_are_uploaded_before_the_last_probe(hub, repo_id, deferred):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    content = hub.files(repo_id)["model.safetensors"]
    assert content == (deferred / "cycle-002" / "model.safetensors").read_bytes()
    assert load_file(deferred / "cycle-002" / "model.safetensors")
    assert hub.titles(repo_id, "cycle-002") == ["initial commit", "Checkpoint cycle-002"]
