"""On CUDA, in one process: the final state of a run is bit-identical with probes, diagnoses and interruptions."""

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import GPT2LMHeadModel, set_seed

from hf_plasticity.benchmark.shared import RandomBlocks
from hf_plasticity.data.schedule import make_schedule
from hf_plasticity.data.stream import TrainingStream
from hf_plasticity.models import gpt2_config
from hf_plasticity.records import PROBES_FILE, read_records
from hf_plasticity.trainer import ContinualConfig, ContinualTrainer
from support.runs import UNREPEATABLE
from support.trainers import StopAt, assert_same, final_state, make_trainer, stop_at


PRECISIONS = ["fp32", "bf16"]
MEASUREMENTS = {
    "full": {"evaluate_forgetting": True},
    "diagnosed": {"diagnose": True, "diagnostics_sequences": 4},
    "lora": {"probe_adaptation": "lora", "probe_lora_rank": 2},
}


def settings_of(device, precision):
    return {"full_determinism": True, "bf16": precision == "bf16", "use_cpu": device == "cpu"}


def end_of(trainer):
    """The final state of a run, including the random numbers of the GPU."""
    assert next(trainer.model.parameters()).device.type == trainer.args.device.type
    cuda = {"cuda": torch.cuda.get_rng_state()} if trainer.args.device.type == "cuda" else {}
    return final_state(trainer) | cuda


def train(folder, cache, **settings):
    trainer = make_trainer(folder, cache, **settings)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def unprobed(tmp_path_factory, cache):
    """The ends of runs without probes, by precision."""
    ends = {}

    def of(device, precision):
        if precision not in ends:
            folder = tmp_path_factory.mktemp(precision)
            ends[precision] = end_of(train(folder, cache, no_probe=True, **settings_of(device, precision)))
        return dict(ends[precision])

    return of


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_probes_and_diagnoses_are_invisible(tmp_path, cache, unprobed, device, precision, measurement):
    probed = train(tmp_path, cache, **MEASUREMENTS[measurement], **settings_of(device, precision))
    assert len(read_records(tmp_path / PROBES_FILE)) == 3
    assert_same(end_of(probed), unprobed(device, precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_is_bit_identical(tmp_path, cache, device, precision):
    settings = settings_of(device, precision)
    whole = train(tmp_path / "whole", cache, **settings)
    dying = make_trainer(tmp_path / "cut", cache, **settings)
    stop_at(dying, 17)
    with pytest.raises(StopAt):
        dying.train()
    resumed = make_trainer(tmp_path / "cut", cache, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._resumed_from is not None
    assert_same(end_of(resumed), end_of(whole))
    assert probes(tmp_path / "cut") == probes(tmp_path / "whole")


def probes(folder):
    return [
        {name: value for name, value in record.items() if name not in UNREPEATABLE}
        for record in read_records(folder / PROBES_FILE)
    ]


@pytest.fixture
def compiled(monkeypatch):
    """Trainers that compile. Accelerate keeps the backend in the environment and in the process."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    backend = "inductor" if torch.cuda.is_available() else "aot_eager"

    def forget():
        AcceleratorState._reset_state()
        torch._dynamo.reset()

    def build(folder, cache, **settings):
        forget()
        return make_trainer(folder, cache, torch_compile_backend=backend, **settings)

    yield build
    forget()


def test_probes_are_invisible_to_a_compiled_run(tmp_path, cache, compiled, device):
    ends = []
    for off in (True, False):
        trainer = compiled(tmp_path / str(off), cache, no_probe=off, **settings_of(device, "bf16"))
        trainer.train()
        assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
        ends.append(end_of(trainer))
    assert_same(*ends)


def study_trainer(folder, device, **settings):
    """A model of the study with its vocabulary: two tasks of three steps, in bf16."""
    small = device == "cpu"
    vocabulary, context, batch = (512, 32, 4) if small else (151_680, 512, 8)
    blocks = {
        language: RandomBlocks(1_000, context, vocabulary, language) for language in ("a", "b", "train", "validation")
    }
    args = ContinualConfig(
        output_dir=str(folder), cycles=1, task_steps=3, global_batch_tokens=batch * context, learning_rate=1e-3,
        warmup_steps=1, logging_steps=1, probe_steps=3, probe_eval_sequences=8, save_probe_checkpoints=False,
        per_device_train_batch_size=batch // 2, disable_tqdm=True, **settings, **settings_of(device, "bf16"),
    )  # fmt: skip
    schedule = make_schedule("rotation", ("a", "b"), task_slots=3 * batch)
    set_seed(0)
    model = GPT2LMHeadModel(gpt2_config("25K" if small else "5M", vocabulary, context))
    stream = TrainingStream(blocks, schedule, tasks=2, seed=0)
    return ContinualTrainer(model, args, stream, probe_blocks=(blocks["train"], blocks["validation"]))


@pytest.mark.parametrize("head_loss", ["logits", "fused"])
def test_probes_are_invisible_with_the_vocabulary_of_the_study(tmp_path, device, head_loss):
    ends = []
    for off in (True, False):
        trainer = study_trainer(tmp_path / str(off), device, no_probe=off, head_loss=head_loss)
        trainer.train()
        ends.append(end_of(trainer))
    assert len(read_records(tmp_path / "False" / PROBES_FILE)) == 2
    assert_same(*ends)


def test_the_compared_values_can_differ(tmp_path, cache, unprobed, device):
    """Another seed or precision gives another final state."""
    other = end_of(train(tmp_path, cache, no_probe=True, seed=8, **settings_of(device, "fp32")))
    for end in (other, unprobed(device, "bf16")):
        with pytest.raises(AssertionError):
            assert_same(end, unprobed(device, "fp32"))
