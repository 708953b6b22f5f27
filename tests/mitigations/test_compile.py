"""Mitigations of a compiled run: they observe every training pass, and the run is the same up to rounding."""

import pytest
import torch
from accelerate.state import AcceleratorState

from hf_plasticity.records import MITIGATIONS_FILE, read_records
from support.mitigations import assert_close_events, settings_of
from support.trainers import assert_same, final_state, make_trainer


SETTINGS = {"dropout": 0.0, "adam_epsilon": 1e-3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


@pytest.fixture
def compiled(monkeypatch, cache):
    """Trains compiled; the backend keeps eager's kernels, so that the test does not wait for gcc."""
    # TrainingArguments hands the backend to Accelerate in the environment, and Accelerate keeps it in the process.
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")

    def train(folder, **settings):
        AcceleratorState._reset_state()
        torch._dynamo.reset()
        trainer = make_trainer(folder, cache, torch_compile_backend="aot_eager", **SETTINGS | settings)
        trainer.train()
        assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
        return trainer

    yield train
    AcceleratorState._reset_state()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["redo", "cbp", "swr", "l2_init", "head_reset", "snr", "grama"])
def test_a_compiled_run_is_mitigated_and_probes_do_not_change_it(compiled, tmp_path, cache, name):
    plain = make_trainer(tmp_path / "plain", cache, no_probe=True, **SETTINGS, **settings_of(name))
    plain.train()
    ends = [final_state(compiled(tmp_path / str(off), no_probe=off, **settings_of(name))) for off in (True, False)]
    losses = [[entry["loss"] for entry in end["log"]] for end in (final_state(plain), ends[0])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_close_events(*(read_records(tmp_path / folder / MITIGATIONS_FILE) for folder in ("plain", "True")))
    assert_same(*ends)
