"""Checkpoints: damage is detected before use, no code in them is executed, and they have no tokens."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from hf_plasticity import PlasticityError
from hf_plasticity.checksums import find_damage, mark_complete
from hf_plasticity.experiment import parse_experiment, run_experiment
from hf_plasticity.trainer import last_complete_checkpoint
from support.launch import TINY
from support.trainers import StopAt, assert_same, final_state, make_trainer, stop_at


SETTINGS = {"no_probe": True, "cycles": 1, "logging_steps": 3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A run that kept all its checkpoints: 4, 8 and 12."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole") / "run", cache, save_total_limit=3, **SETTINGS)
    trainer.train()
    return trainer


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of its folder, as it was after step 8."""
    folder = Path(shutil.copytree(whole.args.output_dir, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoint-12")
    return folder


def resume(folder, cache):
    trainer = make_trainer(folder, cache, **SETTINGS)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def zero_bytes(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)


FILES = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "loss_state_0.json",
]


@pytest.mark.parametrize("name", FILES)
def test_zeroed_bytes_are_found_and_the_run_resumes_from_the_checkpoint_before(folder, whole, cache, caplog, name):
    path = folder / "checkpoint-8" / name
    size = path.stat().st_size
    zero_bytes(path)
    assert path.stat().st_size <= max(size, 128) and find_damage(folder / "checkpoint-8") is not None
    with caplog.at_level("WARNING"):
        trainer = resume(folder, cache)
    assert f"skipping '{folder / 'checkpoint-8'}': {name} has" in caplog.text
    assert trainer._resumed_from == str(folder / "checkpoint-4")
    assert_same(final_state(trainer), final_state(whole))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"files": []}', b'{"files": {"model.safetensors": 1}}']
)
def test_a_damaged_marker_makes_a_checkpoint_unusable(folder, content):
    (folder / "checkpoint-8" / "complete.json").write_bytes(content)
    assert find_damage(folder / "checkpoint-8") == "complete.json is damaged"
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-4")


def test_files_of_a_start_on_more_processes_do_not_affect_the_loss(folder, whole, cache):
    """Two processes were killed before the marker of step 8; one process resumes, is killed again, and resumes."""
    stale = folder / "checkpoint-8"
    (stale / "complete.json").unlink()
    (stale / "loss_state_1.json").write_text(json.dumps({"loss": 1e6, "since_step": 6}))
    (stale / "rng_state_1.pth").write_bytes(b"")
    dying = make_trainer(folder, cache, **SETTINGS)
    stop_at(dying, 10)
    with pytest.raises(StopAt):
        dying.train(resume_from_checkpoint=True)
    assert dying._resumed_from == str(folder / "checkpoint-4")
    assert sorted(stale.glob("*_1.*")) == []
    trainer = resume(folder, cache)
    assert trainer._resumed_from == str(stale)
    assert_same(final_state(trainer), final_state(whole))


# Security


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_an_untrusted_checkpoint_is_not_executed(folder, cache, tmp_path, name):
    checkpoint, executed = folder / "checkpoint-8", tmp_path / "executed"
    torch.save(Payload(executed), checkpoint / name)
    mark_complete(checkpoint)
    if name == "training_args.bin":
        resume(folder, cache)
    else:
        with pytest.raises(PlasticityError, match=f"'{checkpoint}' cannot be loaded: .* which are not executed; "):
            resume(folder, cache)
    assert not executed.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint / name, weights_only=True)
    torch.load(checkpoint / name, weights_only=False)
    assert executed.exists(), "the payload is one"


def test_everything_that_a_resumed_run_unpickles_is_restricted(folder, cache, monkeypatch):
    loaded = {}
    load = torch.load

    def spy(file, *arguments, **options):
        loaded[Path(file).name] = options.get("weights_only")
        return load(file, *arguments, **options)

    monkeypatch.setattr(torch, "load", spy)
    resume(folder, cache)
    assert loaded == {"optimizer.pt": True, "scheduler.pt": True, "rng_state.pth": True}


def test_no_token_is_in_any_file_of_a_run(tmp_path):
    token = "hf_" + "secretSECRET0123456789" * 2
    config = parse_experiment(
        [*TINY, "--use_cpu", "--disable_tqdm=true", f"--hub_token={token}", f"--output_dir={tmp_path / 'run'}",
         f"--data_cache_dir={tmp_path / 'blocks'}", "--diagnose=true", "--diagnostics_sequences=4"]
    )  # fmt: skip
    assert config.training.hub_token == token
    run_experiment(config)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "run" / "checkpoint-16" / "training_args.bin") in files and len(files) > 40
    assert [path for path in files if token.encode() in path.read_bytes()] == []


def test_no_token_is_in_a_checkpoint_of_a_custom_trainer(tmp_path, cache):
    trainer = make_trainer(tmp_path, cache, hub_token="hf_secret", **SETTINGS)
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == "hf_secret", "it is still there for a push"
    assert (tmp_path / "training_args.bin").exists()
    assert not any(b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
