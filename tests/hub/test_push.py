"""Uploads of runs: complete, without duplicates, and without effect on the training."""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import hf_xet
import huggingface_hub.utils._http as client_http
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import enable_progress_bars
from safetensors.torch import load_file

from hf_plasticity import PlasticityError, load_run
from hf_plasticity.cli import main
from hf_plasticity.experiment import parse_experiment, run_experiment
from hf_plasticity.hub import push, repository
from hf_plasticity.hub.push import RunPusher, push_run, repository_of
from hf_plasticity.hub.repository import HubAccessError
from hf_plasticity.records import COMPLETE_FILE, read_config, write_config
from support.hub_server import OWNER_TOKEN, READER_TOKEN
from support.launch import ROOT, TINY, error_line, launch, launch_killed


pytestmark = pytest.mark.filterwarnings("ignore:It seems that you are about to commit a data file")
BRANCHES = ["cycle-000", "cycle-001", "cycle-002"]
MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
RECORDS = {"README.md", "config.yaml", "delta_auc.png", "probes.jsonl", "revisions.txt", "trainer_state.json"}
RECORDS |= {"probe_protocols.json", "records/probes.parquet", "records/training_log.parquet"}
# fmt: off
FLAGS = [*TINY, "--use_cpu", "--disable_tqdm=true", "--evaluate_forgetting"]
# fmt: on


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete tiny run, not uploaded."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run_experiment(parse_experiment([*FLAGS, f"--output_dir={folder}"]))
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No waiting time between two attempts of the pusher or the client."""
    monkeypatch.setattr(push, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(push, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(client_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield
    enable_progress_bars()


def open_repository(folder, repo_id):
    repository = repository_of(folder, repo_id)
    repository.open()
    return repository


def assert_all_there_once(hub, repo_id, folder):
    assert set(hub.repositories[repo_id].branches) == {"main", *BRANCHES}
    for name in BRANCHES:
        assert hub.titles(repo_id, name) == ["initial commit", f"Probed checkpoint {name}"]
        pushed = hub.files(repo_id, name)
        assert pushed.pop(".gitattributes")
        own = {path.name: path.read_bytes() for path in (folder / name).iterdir() if path.name != COMPLETE_FILE}
        assert pushed == own
        assert set(pushed) == MODEL | {"probe.json"}
    files = hub.files(repo_id)
    assert set(files) == MODEL | RECORDS | {".gitattributes", "forgetting.jsonl", "records/forgetting.parquet"}
    assert files["model.safetensors"] == (folder / "cycle-002" / "model.safetensors").read_bytes()
    assert files["revisions.txt"].decode().split() == BRANCHES
    assert files["probes.jsonl"] == (folder / "probes.jsonl").read_bytes()
    states = [commit.files for commit in hub.repositories[repo_id].branches["main"]]
    assert all(one != other for one, other in itertools.pairwise(states)), "no commit without a change"


def test_a_run_is_on_the_hub_cycle_by_cycle_and_pushing_again_changes_nothing(hub, repo_id, run_folder, capsys):
    command = ["push", str(run_folder), "--hub_model_id", repo_id]
    assert main(command) == 0 and capsys.readouterr().out.strip() == f"{hub.url}/{repo_id}"
    assert_all_there_once(hub, repo_id, run_folder)
    hub.requests.clear()
    assert main(command) == 0
    (run_folder / "hub.json").write_text(json.dumps({"run_id": push.run_id(run_folder)}))
    assert main(command) == 0
    assert not [request for request in hub.requests if re.search("/(preupload|commit|branch)/", request)]
    assert_all_there_once(hub, repo_id, run_folder)


def test_what_was_deleted_on_the_hub_is_uploaded_again(hub, repo_id, run_folder):
    repository = open_repository(run_folder, repo_id)
    push_run(run_folder, repository)
    del hub.repositories[repo_id].branches["cycle-001"]
    push_run(run_folder, repository)
    assert_all_there_once(hub, repo_id, run_folder)
    del hub.repositories[repo_id]
    push_run(run_folder, open_repository(run_folder, repo_id))
    assert_all_there_once(hub, repo_id, run_folder)


def test_a_cycle_is_pushed_only_once_its_probe_is_recorded(hub, repo_id, run_folder):
    record = (run_folder / "cycle-002" / "probe.json").read_text()
    (run_folder / "cycle-002" / "probe.json").write_text(record[:50])
    (run_folder / "trainer_state.json").unlink()
    repository = open_repository(run_folder, repo_id)
    push_run(run_folder, repository)
    assert set(hub.repositories[repo_id].branches) == {"main", "cycle-000", "cycle-001"}
    files = hub.files(repo_id)
    assert not set(files) & MODEL, "the run is not finished"
    assert "The run is in progress. `main` will have its final model." in files["README.md"].decode()


def test_main_marks_a_run_finished_only_after_all_cycles_are_uploaded(hub, repo_id, run_folder, monkeypatch):
    """A probe process ends with a finished run, so its last cycle must be uploaded before."""
    late = [(run_folder / name, run_folder.parent / name) for name in ("cycle-002", "trainer_state.json")]
    for there, aside in late:
        there.rename(aside)
    look = push.saved_checkpoints

    def and_then_the_run_is_finished(folder):
        seen = look(folder)
        for there, aside in late:
            aside.rename(there)
        return seen

    monkeypatch.setattr(push, "saved_checkpoints", and_then_the_run_is_finished)
    repository = open_repository(run_folder, repo_id)
    push_run(run_folder, repository)
    assert "cycle-002" not in hub.repositories[repo_id].branches
    files = hub.files(repo_id)
    assert "model.safetensors" not in files and "global_step" not in json.loads(files["trainer_state.json"])
    monkeypatch.setattr(push, "saved_checkpoints", look)
    push_run(run_folder, repository)
    assert_all_there_once(hub, repo_id, run_folder)


@pytest.mark.parametrize("fault", [{"status": 503}, {"reset": "before"}, {"reset": "after"}, {"truncate": True}])
def test_every_request_may_fail_and_everything_is_uploaded_once(hub, repo_id, run_folder, fault):
    for request in (
        "GET /api/whoami", "POST /api/repos/create", "GET .*/auth-check", "GET .*/refs", "GET .*/commits/",
        "POST .*/branch/cycle-001", "GET .*/tree/", "POST .*/preupload/", "POST .*lfs/objects/batch", "PUT /lfs/",
        "POST .*/commit/cycle-000", "POST .*/commit/cycle-001", "POST .*/commit/main", "POST /api/validate-yaml",
    ):  # fmt: skip
        hub.fail(request, **fault)
    pusher = RunPusher(run_folder, repository_of(run_folder, repo_id), patience=20)
    pusher.start()
    pusher.finish()
    assert not any(one.times for one in hub.faults), "every request was made to fail"
    assert pusher.failure is None
    assert_all_there_once(hub, repo_id, run_folder)


def test_a_configuration_that_cannot_be_read_now_is_not_that_of_another_run(hub, repo_id, run_folder, monkeypatch):
    push_run(run_folder, open_repository(run_folder, repo_id))
    of_the_run = repository_of(run_folder, repo_id)

    def not_reached(*args, **kwargs):
        raise LocalEntryNotFoundError("the Hub was not reached")

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "hf_hub_download", not_reached)
        with pytest.raises(LocalEntryNotFoundError):
            of_the_run.branches()
    of_the_run.branches()


def test_uploads_have_no_local_paths_and_no_tokens(hub, repo_id, run_folder):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config |= {"data_dir": "../private/texts", "logging_dir": "/home/someone/logs", "run_name": f"x {OWNER_TOKEN}"}
    config["fsdp_config"] = {"path": "~/secret/fsdp.json"}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    push_run(run_folder, open_repository(run_folder, repo_id))
    shown = yaml.safe_load(hub.files(repo_id)["config.yaml"])
    assert (shown["output_dir"], shown["data_dir"], shown["logging_dir"]) == ("finished", "texts", "logs")
    assert shown["fsdp_config"] == {"path": "fsdp.json"}
    for branch in ["main", *BRANCHES]:
        for path, content in hub.files(repo_id, branch).items():
            assert OWNER_TOKEN.encode() not in content, path
            for private in (str(run_folder.parents[1]), "/home", "/tmp", "private", "secret"):
                assert private.encode() not in content, (path, private)


REFUSALS = {
    "no token": (None, {}, r"uploading to '{}' requires a token: log in with `hf auth login`, or set HF_TOKEN"),
    "unknown token": ("hf_unknown", {}, r"the token is not valid \(status 401\): log in with"),
    "no right": (READER_TOKEN, {}, r"the token has no write access to '{}' \(status 403\): use another"),
    "other things": (OWNER_TOKEN, {"model.bin": b"x"}, r"'{}' has other files \(model.bin\) and no run; choose"),
    "a config.yaml of something else": (OWNER_TOKEN, {"config.yaml": b"- seed"}, r"'{}' has other files \(config"),
    "another run": (
        OWNER_TOKEN,
        {"config.yaml": b"schedule: rotation\nseed: 5\n"},
        r"'{}' belongs to another run \(.*seed is 5 there and 42 here.*\); choose another name",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_rejection_by_the_hub_is_an_error_before_training(hub, repo_id, tmp_path, monkeypatch, case):
    token, files, message = REFUSALS[case]
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.create(repo_id, files)
    flags = ["--push_to_hub", f"--hub_model_id={repo_id}", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(PlasticityError, match="^hub_model_id: " + message.format(repo_id)) as caught:
        run_experiment(parse_experiment([*FLAGS, *flags]))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("c*"))
    assert len(hub.titles(repo_id)) == 1 + bool(files)


def test_another_run_of_the_same_configuration_is_refused(hub, repo_id, finished, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.copytree(finished, tmp_path / name)
    assert main(["push", str(tmp_path / "one"), "--hub_model_id", repo_id]) == 0
    assert main(["push", str(tmp_path / "two"), "--hub_model_id", repo_id]) == 2
    assert (
        f"'{repo_id}' belongs to another run (of the same configuration); choose another name"
        in capsys.readouterr().err
    )
    assert_all_there_once(hub, repo_id, tmp_path / "one")


def test_a_damaged_upload_state_is_an_error_that_names_its_repair(hub, repo_id, run_folder, capsys):
    command = ["push", str(run_folder), "--hub_model_id", repo_id]
    assert main(command) == 0
    (run_folder / "hub.json").write_text('{"run_id": "01')
    assert main(command) == 2
    assert "hub.json' is damaged; write" in capsys.readouterr().err.splitlines()[-1]
    config = yaml.safe_load(hub.files(repo_id)["config.yaml"])
    (run_folder / "hub.json").write_text(json.dumps({"run_id": config["provenance"]["run_id"]}))
    assert main(command) == 0
    assert_all_there_once(hub, repo_id, run_folder)


def test_invalid_names_and_folders_are_errors_on_one_line(run_folder, tmp_path, capsys):
    assert main(["push", str(run_folder), "--hub_model_id", "a b/c"]) == 2
    assert main(["push", str(tmp_path)]) == 2
    first, second = filter(None, capsys.readouterr().err.splitlines())
    assert "'a b/c' is neither a folder nor the name of a repository" in first
    assert "has no config.yaml: it is not the folder of a run" in second


def test_a_repository_belongs_to_the_run_that_writes_its_configuration_first(hub, repo_id, run_folder, tmp_path):
    """Two runs that start at the same time are not mixed, and the other one uploads nothing."""
    other = shutil.copytree(run_folder, tmp_path / "other", ignore=shutil.ignore_patterns("hub.json"))
    first, second = open_repository(run_folder, repo_id), open_repository(other, repo_id)
    hub.fail("POST .*/commit/cycle-000", status=500)
    with pytest.raises(HfHubHTTPError):
        push_run(run_folder, first)
    with pytest.raises(HubAccessError, match="belongs to another run"):
        push_run(other, second)
    push_run(run_folder, first)
    assert_all_there_once(hub, repo_id, run_folder)


def test_branches_stay_listed_after_their_checkpoints_are_deleted_here(hub, repo_id, run_folder):
    repository = open_repository(run_folder, repo_id)
    push_run(run_folder, repository)
    shutil.rmtree(run_folder / "cycle-000")
    push_run(run_folder, repository)
    assert hub.files(repo_id)["revisions.txt"].decode().split() == BRANCHES


def test_the_card_of_an_extended_run_names_the_model_of_its_earlier_end(hub, repo_id, run_folder):
    repository = open_repository(run_folder, repo_id)
    push_run(run_folder, repository)
    assert "The final model is on `main`" in hub.files(repo_id)["README.md"].decode()
    config = read_config(run_folder)
    write_config(run_folder, config | {"cycles": config["cycles"] + 1})
    push_run(run_folder, repository)
    assert "The run was extended and is in progress" in hub.files(repo_id)["README.md"].decode()


def test_a_run_is_uploaded_while_it_trains(hub, repo_id, finished, tmp_path, monkeypatch):
    steps, original = itertools.count(1), torch.optim.AdamW.step

    def step(self, *arguments, **options):
        # 4 steps of the first probe, 8 of cycle 1, 4 of its probe: at the next, cycle 1 is on its way to the Hub.
        if next(steps) == 17:
            deadline = time.monotonic() + 20
            while "cycle-001" not in hub.repositories[repo_id].branches:
                assert time.monotonic() < deadline, "the probed checkpoint waits for the end of the run"
                time.sleep(0.01)
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    flags = ["--push_to_hub", f"--hub_model_id={repo_id}", f"--output_dir={tmp_path / 'run'}"]
    run_experiment(parse_experiment([*FLAGS, *flags]))
    assert_all_there_once(hub, repo_id, tmp_path / "run")
    assert set(hub.titles(repo_id)) == {"initial commit", "Configuration of the run", "Records of the run"}, (
        "the Trainer does not upload"
    )
    assert_same_weights(finished, tmp_path / "run")


def assert_same_weights(one, other):
    for name in BRANCHES:
        mine, its = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        torch.testing.assert_close(mine, its, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["gone", "hanging", "failing", "slow"])
def test_a_failing_hub_delays_no_step_and_the_rest_is_uploaded_later(
    hub, repo_id, finished, tmp_path, monkeypatch, caplog, how
):
    folder = tmp_path / "run"
    if how == "gone":
        hub.stop()
    elif how == "slow":
        hub.fail(".*", times=10**6, delay=0.4)
    else:
        hub.fail(".*", times=10**6, **({"hang": True} if how == "hanging" else {"status": 503}))
    flags = ["--push_to_hub", f"--hub_model_id={repo_id}", f"--output_dir={folder}", "--hub_patience=0.5"]
    started = time.monotonic()
    run_experiment(parse_experiment([*FLAGS, *flags]))
    assert time.monotonic() - started < 15
    assert_same_weights(finished, folder)
    assert (folder / "report.html").exists()
    if how == "gone":
        hub.start()
    hub.heal()
    wait_for_pushers()
    if how == "failing":
        assert main(["push", str(folder)]) == 0
    else:
        run_experiment(parse_experiment([*FLAGS, *flags, "--hub_patience=30"]))
    assert_all_there_once(hub, repo_id, folder)


def wait_for_pushers():
    """A process would have ended by now."""
    for thread in threading.enumerate():
        if thread.name == "push-to-hub":
            thread.join()


def test_a_request_without_a_response_times_out(hub, repo_id, run_folder, monkeypatch):
    monkeypatch.setattr(repository, "TIMEOUT", 0.3)
    hub.fail("GET .*/refs", hang=True)
    hub.fail("POST .*/commit/cycle-001", hang=True)
    # Given up as lost and sent again, and then the Hub acts on the first one after all.
    hub.fail("POST .*/commit/cycle-002", delay=1.5)
    pusher = RunPusher(run_folder, repository_of(run_folder, repo_id), patience=20)
    pusher.start()
    pusher.finish()
    time.sleep(1.5)
    assert_all_there_once(hub, repo_id, run_folder)


def test_a_failed_upload_is_reported_with_the_command_that_completes_it(hub, repo_id, run_folder, capsys):
    hub.fail("POST .*/commit/cycle-001", status=507, times=10**6)
    assert main(["push", str(run_folder), "--hub_model_id", repo_id]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"hf-plasticity: error: '{run_folder}' could not be uploaded to '{repo_id}': the Hub returned status 507: "
        "made to fail; the same command uploads the rest"
    )
    assert set(hub.repositories[repo_id].branches) == {"main", "cycle-000", "cycle-001"}


def test_the_same_by_the_xet_protocol(hub, repo_id, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "xet", tmp_path / "xet")
    hub.requests.clear()
    for request in ("GET .*/xet-write-token/", "POST .*/commit/cycle-001", "POST .*/commit/main"):
        hub.fail(request, reset="after")
    script = f"""
from hf_plasticity.hub import push
push.FIRST_WAIT = push.LONGEST_WAIT = 0.05
pusher = push.RunPusher({str(run_folder)!r}, push.repository_of({str(run_folder)!r}, {repo_id!r}), patience=20)
pusher.start()
pusher.finish()
"""
    environment = os.environ | {"HF_HUB_DISABLE_XET": "0", "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / "xet").rglob("xorbs/*")), "the files went there"
    assert not any(one.times for one in hub.faults) and not any("PUT /lfs/" in one for one in hub.requests)
    for branch, cycle in [("main", "cycle-002"), *zip(BRANCHES, BRANCHES)]:
        content = (run_folder / cycle / "model.safetensors").read_bytes()
        history = hub.repositories[repo_id].branches[branch]
        sha = hashlib.sha256(content).hexdigest()
        assert history[-1].files["model.safetensors"] == sha
        assert len(history) == (3 if branch == "main" else 2)
        [uploaded] = hf_xet.hash_files([str(run_folder / cycle / "model.safetensors")])
        monkeypatch.setitem(hub.xet_hashes, sha, uploaded.hash)
    script = f"""
from hf_plasticity import load_probe_checkpoint
load_probe_checkpoint({repo_id!r}, 1)[0].save_pretrained({str(tmp_path / "loaded")!r})
"""
    hub.fail("GET .*/xet-read-token/", status=503)
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    # What the Hub itself would send of the file is zeros.
    loaded, mine = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "loaded", run_folder / "cycle-001")
    )
    torch.testing.assert_close(loaded, mine, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("event", ["push:2", "pushed:3"])
def test_a_run_killed_while_pushing_ends_with_every_branch_once(hub, repo_id, tmp_path, event):
    flags = [*TINY, "--evaluate_forgetting", "--push_to_hub", f"--hub_model_id={repo_id}", f"--output_dir={tmp_path}"]
    killed = launch_killed(event, *flags)
    hub.requests.clear()
    # On two processes, of which one talks to the Hub.
    process = launch(*flags, processes=2)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_all_there_once(hub, repo_id, tmp_path)
    assert hub.requests.count("GET /api/whoami-v2") == 1
    assert OWNER_TOKEN not in killed.stdout + killed.stderr + process.stdout + process.stderr


def test_the_command_reports_a_rejection_by_the_hub_on_one_line(hub, repo_id, tmp_path):
    hub.create(repo_id, {"model.bin": b"x"})
    process = launch(*TINY, "--push_to_hub", f"--hub_model_id={repo_id}", f"--output_dir={tmp_path}", options=["-q"])
    assert process.returncode != 0 and "Traceback" not in process.stderr
    assert error_line(process).startswith(f"hub_model_id: '{repo_id}' has other files (model.bin) and no run")


def test_a_model_loads_from_the_hub_without_this_package(hub, repo_id, run_folder, tmp_path):
    push_run(run_folder, open_repository(run_folder, repo_id))
    script = f"""
import sys
sys.modules["hf_plasticity"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
for cycle in ("main", "cycle-001"):
    model = AutoModelForCausalLM.from_pretrained("{repo_id}", revision=cycle)
    tokenizer = AutoTokenizer.from_pretrained("{repo_id}", revision=cycle)
    model.save_pretrained({str(tmp_path)!r} + "/" + cycle)
    assert tokenizer.decode(tokenizer("xin chào")["input_ids"]) == "xin chào"
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for branch, cycle in (("main", "cycle-002"), ("cycle-001", "cycle-001")):
        its, mine = load_file(tmp_path / branch / "model.safetensors"), run_folder / cycle / "model.safetensors"
        torch.testing.assert_close(its, load_file(mine), rtol=0, atol=0)


def test_the_records_of_a_run_load_equally_from_folder_and_hub(hub, repo_id, run_folder):
    push_run(run_folder, open_repository(run_folder, repo_id))
    hub.requests.clear()
    here, there = load_run(run_folder), load_run(repo_id)
    assert there.name == repo_id
    assert (there.probes, there.forgetting, there.training_log) == (here.probes, here.forgetting, here.training_log)
    assert not [request for request in hub.requests if "safetensors" in request]
    assert str(ROOT) not in str(there.config)
