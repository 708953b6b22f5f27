"""`torch.compile`: probes do not recompile, and do not change the training."""

import pytest
import torch
from accelerate.state import AcceleratorState

from hf_plasticity.probing import PlasticityProbeCallback
from support.trainers import assert_same, final_state, make_trainer


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


@pytest.fixture
def compiled(monkeypatch, cache):
    """Builds trainers that compile; the backend keeps eager's kernels, so that the test does not wait for gcc."""
    # TrainingArguments hands the backend to Accelerate in the environment, and Accelerate keeps it in the process.
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")

    def build(folder, **settings):
        AcceleratorState._reset_state()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        return make_trainer(folder, cache, torch_compile_backend="aot_eager", **settings)

    yield build
    AcceleratorState._reset_state()
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("adaptation", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_probes_are_invisible_to_a_compiled_run(compiled, tmp_path, adaptation):
    ends = []
    for off in (True, False):
        trainer = compiled(tmp_path / str(off), no_probe=off, probe_adaptation=adaptation)
        trainer.train()
        assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule) and graphs() > 0
        ends.append(final_state(trainer))
    assert_same(*ends)


def test_nothing_is_recompiled_after_the_first_probe(compiled, tmp_path, monkeypatch):
    trainer, counted = compiled(tmp_path), []
    probe, step = PlasticityProbeCallback.act, trainer.training_step

    def counting(*arguments, **options):
        probe(*arguments, **options)
        counted.append(("probe", graphs()))

    def counting_step(*arguments, **options):
        loss = step(*arguments, **options)
        counted.append(("step", graphs()))
        return loss

    monkeypatch.setattr(PlasticityProbeCallback, "act", counting)
    trainer.training_step = counting_step
    trainer.train()
    assert [kind for kind, _ in counted].count("probe") == 3
    # One graph for the probe's evaluation, one for its steps, one for those of training, which pass on the number of
    # tokens as well; and no more at later boundaries.
    assert counted[:2] == [("probe", 2), ("step", 3)] and {count for _, count in counted[2:]} == {3}
