"""A run with `probe: deferred` and its follower, in a folder and on the Hub: the numbers of an inline run."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.utils._http as client_http
import pytest
import yaml
from hub_server import READER_TOKEN
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import enable_progress_bars
from launch import CONTINUAL, KILLED, ROOT, TINY, launch, launch_killed, start
from runs import UNREPEATABLE, recorded, weights
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from hf_plasticity import PlasticityError, load_run
from hf_plasticity.cli import main
from hf_plasticity.hub import push, repository
from hf_plasticity.records import FOLLOW_LOCK_FILE, run_lock
from hf_plasticity.run import run_study
from hf_plasticity.study import parse_study
from hf_plasticity.suite import follow as follow_module
from hf_plasticity.suite import followed_hub, parse_suite, probe_models


pytestmark = pytest.mark.filterwarnings("ignore:It seems that you are about to commit a data file")
PROBE = ROOT / "recipes" / "probe.py"
FSDP2_ON_CPU = Path(__file__).with_name("fsdp2_on_cpu.py")
# fmt: off
FLAGS = [*TINY, "--use_cpu", "--disable_tqdm=true", "--diagnose", "--diagnostics_sequences=4", "--evaluate_forgetting"]
FOLLOW = ["--follow", "--disable_tqdm=true", "--use_cpu", "--poll_seconds=0.05"]
# fmt: on
BRANCHES = ["cycle-000", "cycle-001", "cycle-002"]


def train(folder, *flags):
    run_study(parse_study([*FLAGS, f"--output_dir={folder}", *flags]))
    return folder


def follow(run, *flags):
    probe_models(*parse_suite(["--model", str(run), *FOLLOW, *flags]))


def diagnosed(folder):
    return [
        {name: value for name, value in record.items() if name not in UNREPEATABLE}
        for record in load_run(folder).diagnostics
    ]


def assert_same(folder, inline):
    """Every record, and every checkpoint with its probe's record."""
    assert recorded(folder)[:2] == recorded(inline)[:2]
    assert diagnosed(folder) == diagnosed(inline) != []
    assert_close(weights(folder), weights(inline), rtol=0, atol=0)
    for record in load_run(folder).probes:
        assert json.loads((folder / f"cycle-{record['cycle']:03d}" / "probe.json").read_text()) == record


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """A tiny run that probes and diagnoses itself."""
    return train(tmp_path_factory.mktemp("runs") / "inline")


@pytest.fixture(scope="module")
def finished_deferred(tmp_path_factory):
    """The same run with its probes left for later, finished."""
    return train(tmp_path_factory.mktemp("runs") / "deferred", "--probe=deferred")


@pytest.fixture
def deferred(finished_deferred, tmp_path):
    return Path(shutil.copytree(finished_deferred, tmp_path / "deferred"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(push, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(push, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(followed_hub, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield
    enable_progress_bars()


def test_deferred_training_keeps_its_checkpoints_and_probes_nothing(deferred, inline, capsys):
    assert_close(weights(deferred), weights(inline), rtol=0, atol=0)
    assert not (deferred / "probes.jsonl").exists() and not (deferred / "diagnostics.jsonl").exists()
    assert recorded(deferred)[1] == recorded(inline)[1] != [], "forgetting is measured in training"


def test_a_follower_finds_what_the_run_would_have_found(deferred, inline, capsys):
    follow(deferred)
    assert_same(deferred, inline)
    assert capsys.readouterr().out.count("%") == 2, "the table of probes"
    before = (deferred / "probes.jsonl").read_bytes()
    follow(deferred)
    assert (deferred / "probes.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--bf16", "--probe_repeats=2", "--per_device_train_batch_size=2"],
        ["--probe_adaptation=lora", "--probe_lora_rank=2", "--train_tokenizer=300", "--gradient_checkpointing"],
    ],
)
def test_so_it_does_whatever_the_run_computes_with(tmp_path, flags):
    folders = tmp_path / "inline", tmp_path / "deferred"
    common = [*FLAGS, *flags]
    for folder, probe in zip(folders, ("inline", "deferred")):
        process = launch(*common, f"--output_dir={folder}", f"--probe={probe}", direct=True)
        assert process.returncode == 0, process.stderr[-3000:]
    process = launch("--model", folders[1], *FOLLOW, script=PROBE, direct=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_same(folders[1], folders[0])


def test_a_follower_beside_the_run_probes_what_appears_and_ends_with_it(inline, tmp_path):
    folder = tmp_path / "run"
    trainer = start(*FLAGS, f"--output_dir={folder}", "--probe=deferred", direct=True)
    try:
        wait_until((folder / "config.yaml").exists)
        follower = launch("--model", folder, *FOLLOW, script=PROBE, direct=True)
        assert trainer.wait(timeout=100) == 0
    finally:
        trainer.kill()
    assert follower.returncode == 0, follower.stderr[-3000:]
    assert_same(folder, inline)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_follower_killed_at_its_weakest_points_goes_on(deferred, inline):
    for event in ("probe:6", "record:1", "recorded:1"):
        process = launch(event, PROBE, "--model", deferred, *FOLLOW, script=KILLED, direct=True)
        assert process.returncode < 0, process.stderr[-3000:]
    follow(deferred)
    assert_same(deferred, inline)


def test_a_run_that_is_killed_and_gets_more_cycles_is_followed_to_its_end(inline, tmp_path):
    folder = tmp_path / "run"
    launch_killed("task:11", *FLAGS, f"--output_dir={folder}", "--probe=deferred")
    follower = start("--model", folder, *FOLLOW, script=PROBE, direct=True)
    try:
        wait_until((folder / "cycle-001" / "probe.json").exists)
        assert follower.poll() is None, "it waits for a run that has not been finished"
        train(folder, "--probe=deferred")
        assert follower.wait(timeout=60) == 0, follower.stderr.read()
    finally:
        follower.kill()
    assert_same(folder, inline)
    train(folder, "--probe=deferred", "--cycles=3")
    follow(folder)
    assert [record["cycle"] for record in load_run(folder).probes] == [0, 1, 2, 3]


def test_a_run_does_not_go_on_inline_over_checkpoints_that_were_never_probed(deferred):
    with pytest.raises(PlasticityError, match=r"^probe: cycle-000, cycle-001, cycle-002 of .* were left for later"):
        train(deferred, "--cycles=3")
    follow(deferred)
    train(deferred, "--cycles=3")
    run = load_run(deferred)
    assert [record["cycle"] for record in run.probes] == [0, 1, 2, 3]
    assert run.probes[1]["delta_auc"] == 0


def test_what_cannot_be_followed_is_said_in_a_line(deferred, finished_deferred, inline, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    shutil.copytree(deferred, tmp_path / "other-text")
    config = yaml.safe_load((deferred / "config.yaml").read_text())
    config["provenance"]["data"]["syn9"]["train"] = "0" * 12
    (tmp_path / "other-text" / "config.yaml").write_text(yaml.safe_dump(config))
    for run, flags, message in (
        (inline, [], "follow: '.*' probes its cycles itself"),
        (tmp_path / "none", [], "model: there is no run folder '.*none'"),
        (deferred / "cycle-001", [], r"model: '.*' holds other things \(config.json\) and no run to follow"),
        (tmp_path / "other-text", [], "data_dir: the text of 'syn9' here is not that of '.*'"),
        (deferred, ["--probe_steps=7"], "probe_steps: 7 would not be heeded; with --follow the run's own"),
        (deferred, ["--context_length=64"], "context_length: 64 would not be heeded"),
        (deferred, ["--every=2"], "every: 2 would not be heeded"),
        (deferred, ["--output_dir=elsewhere"], "output_dir: elsewhere would not be heeded"),
        (deferred, ["--poll_seconds=0"], "poll_seconds: 0.0 is not a positive number"),
        (deferred, ["--share=nothing"], "share: 'nothing' is unknown; choose checkpoints or batch"),
    ):
        with pytest.raises(PlasticityError, match=message) as caught:
            follow(run, *flags)
        assert "\n" not in str(caught.value)
    shutil.rmtree(deferred / "cycle-001")
    shutil.copyfile(inline / "probes.jsonl", deferred / "probes.jsonl")
    untrained = (deferred / "probes.jsonl").read_text().splitlines()[0]
    (deferred / "probes.jsonl").write_text(untrained + "\n")
    with pytest.raises(
        PlasticityError, match=r"model: the checkpoint of cycle 1 of .* is gone, and ΔAUC refers to it"
    ):
        follow(deferred)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(PlasticityError, match="mixed_precision: bf16 is what it was launched with, and 'no' what the"):
        follow(finished_deferred)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    for flags, message in (
        (["--probe=later"], "probe: 'later' is unknown; choose inline or deferred"),
        (["--probe=deferred", "--no_probe"], "no_probe: True leaves nothing to probe later"),
        (["--probe=deferred", "--save_probe_checkpoints=false"], "save_probe_checkpoints: False leaves nothing"),
    ):
        with pytest.raises(PlasticityError, match=message):
            parse_study([*FLAGS, *flags])


# On the Hub.


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
    assert "The run goes on" not in files["README.md"].decode()


@pytest.mark.parametrize("order", ["after", "beside"])
def test_a_run_is_followed_on_the_hub_and_its_records_go_back_there(
    hub, repo_id, inline, tmp_path, monkeypatch, order
):
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
    assert_same(run, inline), "what the follower found has come home"
    follow(repo_id)
    assert {branch: hub.titles(repo_id, branch) for branch in ("main", *BRANCHES)} == before


@pytest.mark.parametrize("fault", [{"status": 503}, {"reset": "before"}, {"reset": "after"}, {"truncate": True}])
def test_a_hub_in_trouble_keeps_a_follower_waiting_and_nothing_is_lost(
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


def test_a_follower_killed_while_it_sends_goes_on_even_from_another_machine(hub, repo_id, deferred, inline, tmp_path):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    for folder, event in (("one", "push:2"), ("one", "pushed:1"), ("two", "pushed:1")):
        flags = ["--model", repo_id, *FOLLOW, f"--output_dir={tmp_path / folder}"]
        process = launch(event, PROBE, *flags, script=KILLED, direct=True)
        assert process.returncode < 0, process.stderr[-3000:]
    follow(repo_id, f"--output_dir={tmp_path / 'three'}")
    assert_all_there_once(hub, repo_id, inline)


@pytest.mark.slow
def test_run_and_follower_killed_while_pushing_end_with_everything_once(hub, repo_id, inline, tmp_path):
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


def test_records_stay_here_where_they_may_not_be_sent_or_should_not(
    hub, repo_id, deferred, inline, tmp_path, monkeypatch
):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    before = {branch: hub.titles(repo_id, branch) for branch in ("main", *BRANCHES)}
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    with pytest.raises(
        PlasticityError, match=r"may not write to .* or keep the records here with --push_to_hub false"
    ):
        follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    assert not (tmp_path / "mirror" / "probes.jsonl").exists()
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}", "--push_to_hub=false")
    assert recorded(tmp_path / "mirror")[:2] == recorded(inline)[:2]
    assert {branch: hub.titles(repo_id, branch) for branch in ("main", *BRANCHES)} == before
    with pytest.raises(PlasticityError, match=r"output_dir: '.*' holds a run of its own; choose another folder, or"):
        follow(repo_id, f"--output_dir={deferred}")
    with pytest.raises(PlasticityError, match="model: there is no folder of that name here, and there is no 'org/"):
        follow("org/none-such", f"--output_dir={tmp_path / 'none'}")


def test_two_runs_of_one_configuration_do_not_get_into_one_folder(hub, repo_id, deferred, tmp_path):
    other = Path(shutil.copytree(deferred, tmp_path / "other"))
    for folder, name in ((deferred, repo_id), (other, f"{repo_id}-2")):
        assert main(["push", str(folder), "--hub_model_id", name]) == 0
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    before = {branch: hub.files(f"{repo_id}-2", branch) for branch in BRANCHES}
    with pytest.raises(PlasticityError, match=r"output_dir: '.*' holds the probes of another run \(run_id "):
        follow(f"{repo_id}-2", f"--output_dir={tmp_path / 'mirror'}")
    assert {branch: hub.files(f"{repo_id}-2", branch) for branch in BRANCHES} == before


def test_what_is_not_a_run_is_not_waited_for(hub, repo_id, tmp_path):
    hub.create(repo_id, {"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(PlasticityError, match=r"model: '.*' holds other things \(config.json\) and no run to follow"):
        follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    with pytest.raises(PlasticityError, match="there is no folder of that name here, and there is no 'runs/none'"):
        follow("runs/none", f"--output_dir={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def test_a_follower_that_may_not_send_any_more_ends_too(hub, repo_id, deferred, inline, tmp_path, monkeypatch):
    monkeypatch.setattr(follow_module, "PATIENCE", 0.3)
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    denied = hub.fail("POST .*/commit/", status=403, times=10**6)
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    assert recorded(tmp_path / "mirror")[:2] == recorded(inline)[:2]
    denied.times = 0
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    assert_all_there_once(hub, repo_id, inline)


def test_records_are_not_lost_where_a_snapshot_is_there_in_part(hub, repo_id, deferred, inline, tmp_path):
    """Of a commit of which one file is in the cache, the client may call that all when the Hub does not answer."""
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}")
    commit = hub.repositories[repo_id].commit("main").oid
    hf_hub_download(repo_id, "config.yaml", revision=commit)
    hub.fail("GET .*/tree/", status=429, times=50)
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) != 0, "nothing is sent that knows less"
    hub.heal()
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    assert_same(deferred, inline)
    assert_all_there_once(hub, repo_id, inline)


def test_a_hub_that_does_not_answer_a_follower_is_asked_again(hub, repo_id, deferred, inline, tmp_path, monkeypatch):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    monkeypatch.setattr(repository, "TIMEOUT", 0.3)
    monkeypatch.setattr(followed_hub.FollowedRepository, "check", lambda self: hub.fail("GET .*/refs", hang=True))
    follow(repo_id, f"--output_dir={tmp_path / 'mirror'}", "--push_to_hub=false")
    assert recorded(tmp_path / "mirror")[:2] == recorded(inline)[:2]


def test_an_inline_run_waits_for_its_follower(deferred):
    with (
        run_lock(deferred, FOLLOW_LOCK_FILE),
        pytest.raises(PlasticityError, match="is in use by another process; wait for it, stop it"),
    ):
        train(deferred, "--cycles=3")


def test_final_weights_are_there_though_the_last_cycle_is_not_probed_yet(hub, repo_id, deferred):
    assert main(["push", str(deferred), "--hub_model_id", repo_id]) == 0
    content = hub.files(repo_id)["model.safetensors"]
    assert content == (deferred / "cycle-002" / "model.safetensors").read_bytes()
    assert load_file(deferred / "cycle-002" / "model.safetensors")
    assert hub.titles(repo_id, "cycle-002") == ["initial commit", "Checkpoint cycle-002"]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_several_processes_follow_a_run_of_several_to_the_bit(tmp_path, sharded):
    flags = [flag for flag in FLAGS if flag != "--use_cpu"]
    how = {"processes": 2, **({"script": FSDP2_ON_CPU} if sharded else {})}
    before = {script: [script] if sharded else [] for script in (CONTINUAL, PROBE)}
    folders = tmp_path / "inline", tmp_path / "deferred"
    for folder, probe in zip(folders, ("inline", "deferred")):
        process = launch(*before[CONTINUAL], *flags, f"--output_dir={folder}", f"--probe={probe}", **how)
        assert process.returncode == 0, process.stderr[-3000:]
    process = launch(*before[PROBE], "--model", folders[1], *FOLLOW, **{"script": PROBE, **how})
    assert process.returncode == 0, process.stderr[-3000:]
    assert_same(folders[1], folders[0])
    assert process.stdout.count("ΔAUC") == 1, "one table"
