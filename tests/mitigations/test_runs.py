"""Runs with a mitigation: invisible probes, exact resumes, and records."""

import json
import shutil

import pytest
import torch

from hf_plasticity import PlasticityError
from hf_plasticity.mitigations import MITIGATIONS
from hf_plasticity.mitigations.callback import STATE_FILE
from hf_plasticity.records import MITIGATIONS_FILE, PROBES_FILE, read_records
from hf_plasticity.trainer import ContinualConfig
from support.mitigations import CASES, assert_close_events, settings_of
from support.trainers import StopAt, assert_same, final_state, make_trainer, stop_at


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


def run(folder, cache, **settings):
    trainer = make_trainer(folder, cache, **settings)
    trainer.train()
    return trainer


def records_of(folder):
    probes = [{k: v for k, v in one.items() if k != "seconds"} for one in read_records(folder / PROBES_FILE)]
    return probes, read_records(folder / MITIGATIONS_FILE)


def weight_decays(trainer):
    return {group["weight_decay"] for group in trainer.optimizer.param_groups}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, cache):
    return final_state(run(tmp_path_factory.mktemp("plain"), cache, no_probe=True))


def test_every_mitigation_is_tested():
    assert CASES.keys() == MITIGATIONS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_run_with_a_mitigation_is_exact(tmp_path, cache, plain, name):
    settings = settings_of(name)
    whole = run(tmp_path / "whole", cache, **settings)
    expected = final_state(whole)

    # It acts, and this is recorded.
    assert not all(torch.equal(one, plain["weights"][key]) for key, one in expected["weights"].items())
    events = read_records(tmp_path / "whole" / MITIGATIONS_FILE)
    *acts, end = events
    assert acts and all(event["mitigation"] == name and event["touched"] for event in acts)
    assert (end["event"], end["step"]) == ("end", 24) and end["total"] > 0 and end["state_bytes"] >= 0
    # Single events have the loss on the batch of their step, before and after.
    measured = [event for event in acts if event["event"] != "summary"]
    assert all(event["loss_before"] != event["loss_after"] for event in measured)
    assert all("loss_before" not in event for event in acts if event["event"] == "summary")
    assert all(event["task"] == event["step"] // 4 and event["cycle"] == event["step"] // 12 for event in events)

    # Probes are invisible to it.
    assert_same(final_state(run(tmp_path / "unprobed", cache, no_probe=True, **settings)), dict(expected))

    # A run that is killed between two checkpoints and resumes is bit-identical. Checkpoints are also within task
    # instances.
    dying = make_trainer(tmp_path / "cut", cache, save_steps=7, **settings)
    stop_at(dying, 18)
    with pytest.raises(StopAt):
        dying.train()
    resumed = make_trainer(tmp_path / "cut", cache, save_steps=7, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._resumed_from == str(tmp_path / "cut" / "checkpoint-14")
    assert_same(final_state(resumed), dict(expected))
    assert weight_decays(resumed) == weight_decays(whole) == {0.0, 0.1}, "it is restored at the end"
    assert records_of(tmp_path / "cut") == records_of(tmp_path / "whole")


def test_several_mitigations_act_in_their_order(tmp_path, cache):
    both = {"weight_clip": {"kappa": 1.0}, "shrink_perturb": {}}
    trainer = run(tmp_path, cache, mitigation=list(both), mitigation_args=both, no_probe=True)
    assert [one.name for one in trainer.mitigations.mitigations] == list(both)
    events = read_records(tmp_path / MITIGATIONS_FILE)
    assert [event["mitigation"] for event in events[:2]] == list(both)
    assert [event["event"] for event in events[12:]] == ["end", "end"]
    assert {event["step"] for event in events[:12]} == {4, 8, 12, 16, 20, 24}


def test_a_summary_counts_one_task_instance(tmp_path, cache):
    trainer = run(tmp_path, cache, no_probe=True, **settings_of("l2_init"))
    number = sum(parameter.numel() for parameter in trainer.model.parameters())
    *events, end = read_records(tmp_path / MITIGATIONS_FILE)
    assert end["total"] == 24 * number
    assert [event["touched"] for event in events] == [{"parameters": 4 * number}] * 6
    assert [event["since_step"] for event in events] == [0, 4, 8, 12, 16, 20]


def test_a_mitigation_that_does_nothing_is_reported(tmp_path, cache, plain, caplog):
    settings = settings_of("redo", threshold=0.0)
    with caplog.at_level("WARNING"):
        trainer = run(tmp_path, cache, no_probe=True, **settings)
    assert_same(final_state(trainer), dict(plain))
    assert read_records(tmp_path / MITIGATIONS_FILE) == [
        {
            "cycle": 2, "task": 6, "step": 24, "tokens": 2304, "mitigation": "redo", "event": "nothing", "touched": {},
            "total": 0, "state_bytes": trainer.mitigations.mitigations[0].state_bytes(),
        }
    ]  # fmt: skip
    assert "changed nothing in 24 steps" in caplog.text


@pytest.mark.parametrize("name", ["redo", "cbp", "grama", "head_reset", "swr"])
def test_accumulation_and_gradient_checkpointing_change_only_the_rounding(tmp_path, cache, name):
    settings = settings_of(name) | {"dropout": 0.0, "no_probe": True, "adam_epsilon": 1e-3}
    whole = run(tmp_path / "whole", cache, **settings)
    cut = run(tmp_path / "cut", cache, per_device_train_batch_size=2, gradient_checkpointing=True, **settings)
    for one, other in zip(final_state(whole)["log"], final_state(cut)["log"]):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert_close_events(*(read_records(tmp_path / folder / MITIGATIONS_FILE) for folder in ("whole", "cut")))


@pytest.mark.parametrize("name", ["redo", "cbp", "grama", "l2_init", "head_reset"])
def test_runs_in_bfloat16_are_mitigated_and_probes_do_not_change_them(tmp_path, cache, name):
    settings = settings_of(name) | {"bf16": True, "use_cpu": True}
    runs = [run(tmp_path / str(off), cache, no_probe=off, **settings) for off in (False, True)]
    assert read_records(tmp_path / "True" / MITIGATIONS_FILE)
    assert_same(final_state(runs[0]), final_state(runs[1]))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, cache):
    """A run with ReDo that was killed at step 18."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    trainer = make_trainer(folder, cache, no_probe=True, **settings_of("redo"))
    stop_at(trainer, 18)
    with pytest.raises(StopAt):
        trainer.train()
    return folder


@pytest.fixture
def interrupted(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def resume(folder, cache, checkpoint="checkpoint-16", **settings):
    make_trainer(folder, cache, no_probe=True, **settings).train(resume_from_checkpoint=str(folder / checkpoint))


def test_the_state_is_part_of_a_complete_checkpoint(interrupted):
    files = json.loads((interrupted / "checkpoint-16" / "complete.json").read_text())["files"]
    assert STATE_FILE in files
    assert torch.load(interrupted / "checkpoint-16" / STATE_FILE, weights_only=True)["step"] == 16


def test_a_checkpoint_without_the_state_is_an_error(interrupted, cache):
    (interrupted / "checkpoint-16" / STATE_FILE).unlink()
    with pytest.raises(PlasticityError, match=r"mitigations\.pt' does not exist"):
        resume(interrupted, cache, **settings_of("redo"))


def test_a_checkpoint_of_another_mitigation_is_an_error(interrupted, cache):
    with pytest.raises(PlasticityError, match=r"is of redo and the training has grama; resume with the same"):
        resume(interrupted, cache, **settings_of("grama"))
    with pytest.raises(PlasticityError, match=r"redo\(.*threshold=0\.6.* and the training has redo\(.*threshold=0\.5"):
        resume(interrupted, cache, **settings_of("redo", threshold=0.5))


def test_the_configuration_has_every_default_and_gives_the_same_run():
    one = ContinualConfig(output_dir="x", mitigation=["redo"], mitigation_args='{"threshold": 0.1}')
    assert one.mitigation_args == {"redo": {"threshold": 0.1, "every": 1000, "window": 10, "exact_moments": False}}
    again = ContinualConfig(output_dir="x", mitigation=one.mitigation, mitigation_args=one.mitigation_args)
    assert again.mitigation_args == one.mitigation_args
    assert ContinualConfig(output_dir="x", mitigation=["full_reset"]).mitigation_args is None
    assert ContinualConfig(output_dir="x").mitigation is None


def redo(**arguments):
    return {"mitigation": ["redo"], "mitigation_args": arguments}


BAD = [
    ({"mitigation": ["reduce"]}, "mitigation: 'reduce' is unknown; choose from weight_decay, l2_init"),
    ({"mitigation": ["redo", "redo"]}, "mitigation: 'redo' is given twice"),
    (redo(tau=1), "redo has no argument 'tau'; choose from"),
    (redo(threshold=-1), "threshold of redo is -1.0 and must be 0 or more"),
    (redo(threshold="x"), "threshold of redo is 'x' and must be float"),
    (redo(every=2.5), "every of redo is 2.5 and must be int"),
    (redo(every=True), "every of redo is True and must be int"),
    ({"mitigation": ["redo"], "mitigation_args": "threshold=1"}, "'threshold=1' is not a JSON object"),
    (redo(cbp={}), "'cbp' is not a mitigation of this run"),
    ({"mitigation": ["redo", "cbp"], "mitigation_args": {"every": 1}}, "'every' is not a mitigation of this run"),
    ({"mitigation_args": {"redo": {}}}, "'redo' is not a mitigation of this run (there is none)"),
    ({"mitigation": ["full_reset"], "mitigation_args": {"every": 1}}, "full_reset has no argument 'every'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_invalid_settings_are_reported_on_one_line(settings, message):
    with pytest.raises(PlasticityError) as error:
        ContinualConfig(output_dir="x", **settings)
    assert message in str(error.value) and "\n" not in str(error.value)
