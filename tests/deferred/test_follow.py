"""A run with `probe: deferred` and a probe process in its folder: the numbers of an inline run."""

import re
import shutil
from unittest.mock import Mock

import pytest
import yaml
from torch.testing import assert_close

from hf_plasticity import PlasticityError, load_run
from hf_plasticity.deferred.folder import DeferredFolder
from hf_plasticity.experiment import parse_experiment
from hf_plasticity.records import DEFERRED_LOCK_FILE, run_lock
from hf_plasticity.trainer import ContinualTrainer
from support.following import FLAGS, FOLLOW, assert_same, follow, train, wait_until
from support.launch import CONTINUAL, FSDP2_ON_CPU, KILLED, PROBE, launch, launch_killed, start
from support.runs import recorded, weights


def test_deferred_training_saves_checkpoints_without_probing(deferred, inline, capsys):
    assert_close(weights(deferred), weights(inline), rtol=0, atol=0)
    assert not (deferred / "probes.jsonl").exists() and not (deferred / "diagnostics.jsonl").exists()
    assert recorded(deferred)[1] == recorded(inline)[1] != [], "forgetting is measured in training"


def test_deferred_probes_equal_inline_probes(deferred, inline, capsys):
    follow(deferred)
    assert_same(deferred, inline)
    rows = re.findall(r"^ +\d+ .*%$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 2, "the table of probes"
    before = (deferred / "probes.jsonl").read_bytes()
    follow(deferred)
    assert (deferred / "probes.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--bf16", "--probe_repeats=2", "--per_device_train_batch_size=2"],
        ["--probe_adaptation=lora", "--probe_lora_rank=2", "--train_tokenizer=300", "--gradient_checkpointing"],
        ["--activation_checkpointing", '--activation_checkpointing_kwargs={"every_n_layers": 2}'],
    ],
)
def test_deferred_probes_equal_inline_probes_with_other_numerics(tmp_path, flags):
    folders = tmp_path / "inline", tmp_path / "deferred"
    common = [*FLAGS, *flags]
    for folder, probe in zip(folders, ("inline", "deferred")):
        process = launch(*common, f"--output_dir={folder}", f"--probe={probe}", direct=True)
        assert process.returncode == 0, process.stderr[-3000:]
    process = launch("--model", folders[1], *FOLLOW, script=PROBE, direct=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_same(folders[1], folders[0])


@pytest.mark.parametrize(
    ("names", "arguments"),
    [(["redo"], '{"threshold": 0.6, "every": 3, "window": 2}'), (["l2_init", "shrink_perturb"], "{}")],
)
def test_deferred_probes_of_a_run_with_mitigations_equal_inline_probes(tmp_path, names, arguments):
    flags = ["--mitigation", *names, f"--mitigation_args={arguments}"]
    inline = train(tmp_path / "inline", *flags)
    deferred = train(tmp_path / "deferred", *flags, "--probe=deferred")
    follow(deferred)
    assert_same(deferred, inline)
    assert {event["mitigation"] for event in load_run(deferred).mitigations if event["touched"]} == set(names)


def test_a_probe_process_probes_new_checkpoints_and_ends_with_the_run(inline, tmp_path):
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


def test_a_probe_process_killed_at_critical_points_resumes(deferred, inline):
    for event in ("probe:6", "record:1", "recorded:1"):
        process = launch(event, PROBE, "--model", deferred, *FOLLOW, script=KILLED, direct=True)
        assert process.returncode < 0, process.stderr[-3000:]
    follow(deferred)
    assert_same(deferred, inline)


def test_a_killed_and_extended_run_is_probed_to_its_end(inline, tmp_path):
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


def test_a_run_does_not_resume_inline_with_checkpoints_that_are_not_probed(deferred):
    with pytest.raises(PlasticityError, match=r"^probe: cycle-000, cycle-001, cycle-002 of .* are not probed yet"):
        train(deferred, "--cycles=3")
    follow(deferred)
    train(deferred, "--cycles=3")
    run = load_run(deferred)
    assert [record["cycle"] for record in run.probes] == [0, 1, 2, 3]
    assert run.probes[1]["delta_auc"] == 0


def test_a_folder_in_which_a_ladder_starts_a_run_has_no_other_files(tmp_path):
    for name in (".lock", "log.txt", ".config.yaml.0123456789ab"):
        (tmp_path / name).touch()
    DeferredFolder(tmp_path).check()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(PlasticityError, match=r"has other files \(notes.txt\) and no run"):
        DeferredFolder(tmp_path).check()


def test_runs_without_deferred_probes_are_errors_on_one_line(
    deferred, finished_deferred, inline, tmp_path, monkeypatch
):
    (tmp_path / "empty").mkdir()
    shutil.copytree(deferred, tmp_path / "other-text")
    config = yaml.safe_load((deferred / "config.yaml").read_text())
    config["provenance"]["data"]["syn9"]["train"] = "0" * 12
    (tmp_path / "other-text" / "config.yaml").write_text(yaml.safe_dump(config))
    for run, flags, message in (
        (inline, [], "follow: '.*' probes its checkpoints inline"),
        (tmp_path / "none", [], "model: there is no run folder '.*none'"),
        (deferred / "cycle-001", [], r"model: '.*' has other files \(complete.json\) and no run"),
        (tmp_path / "other-text", [], "data_dir: the text of 'syn9' on this machine is not that of '.*'"),
        (deferred, ["--probe_steps=7"], "probe_steps: the configuration of the run decides it; leave it out"),
        (deferred, ["--context_length=64"], "context_length: the configuration of the run decides it"),
        (deferred, ["--every=2"], "every: the configuration of the run decides it"),
        (deferred, ["--output_dir=elsewhere"], "output_dir: leave it out; the records go to"),
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
        PlasticityError,
        match=r"model: the checkpoint cycle-001 of .* is missing, but its probe is the reference of ΔAUC",
    ):
        follow(deferred)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(
        PlasticityError, match="mixed_precision: Accelerate was launched with bf16, and the probes are in 'no'"
    ):
        follow(finished_deferred)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    for flags, message in (
        (["--probe=later"], "probe: 'later' is unknown; choose inline or deferred"),
        (["--probe=deferred", "--no_probe"], "no_probe: True is not supported with --probe deferred"),
        (
            ["--probe=deferred", "--save_probe_checkpoints=false"],
            "save_probe_checkpoints: False is not supported with --probe deferred",
        ),
        (["--probe=deferred", "--neftune_noise_alpha=5"], "neftune_noise_alpha: 5.0 is not supported with"),
    ):
        with pytest.raises(PlasticityError, match=message):
            parse_experiment([*FLAGS, *flags])


def test_a_run_cannot_start_inline_during_deferred_probes(deferred):
    with (
        run_lock(deferred, DEFERRED_LOCK_FILE),
        pytest.raises(PlasticityError, match="is in use by another process; wait for it, stop it"),
    ):
        train(deferred, "--cycles=3")


def test_a_run_does_not_change_its_settings_under_a_probe_process(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ContinualTrainer, "training_step", Mock(side_effect=PlasticityError("loss: not finite")))
        with pytest.raises(PlasticityError, match="loss: not finite"):
            train(folder, "--probe=deferred")
    before = sorted(path.name for path in folder.iterdir())
    message = r"^output_dir: a probe process follows '.*' with other settings \(learning_rate is .*\); stop it"
    with run_lock(folder, DEFERRED_LOCK_FILE), pytest.raises(PlasticityError, match=message):
        train(folder, "--probe=deferred", "--learning_rate=0.02")
    assert sorted(path.name for path in folder.iterdir() if path.name != DEFERRED_LOCK_FILE) == [
        name for name in before if name != DEFERRED_LOCK_FILE
    ]


def test_a_probe_batch_larger_than_a_training_step_has_the_result_of_inline_probes(tmp_path):
    flags = ["--probe_batch_size=6", "--per_device_train_batch_size=4"]
    for folder, kind in ((tmp_path / "inline", "inline"), (tmp_path / "deferred", "deferred")):
        train(folder, *flags, f"--probe={kind}")
    follow(tmp_path / "deferred")
    assert_same(tmp_path / "deferred", tmp_path / "inline")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("sharded", [False, True])
def test_several_processes_have_the_exact_results_of_a_run_on_several(tmp_path, sharded):
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
