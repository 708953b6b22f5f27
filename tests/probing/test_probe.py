"""The probe: its measurements, and that it does not change the model."""

import copy
import random

import numpy as np
import pytest
import torch

from hf_plasticity import PlasticityError
from hf_plasticity.network import preserve_model
from hf_plasticity.probing import ProbeConfig, ProbeDivergedError, run_probe
from support.tiny import CONTEXT, VOCABULARY, random_blocks, tiny_model


TRAIN, EVALUATION = random_blocks(80, seed=1), random_blocks(10, seed=2)


def probe_config(**changes):
    settings = {
        "steps": 6,
        "eval_every": 4,
        "eval_sequences": 10,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
    }
    return ProbeConfig(**(settings | changes))


def probe(model, **changes):
    return run_probe(model, TRAIN, EVALUATION, probe_config(**changes), show_progress=False)


def everything(model):
    """All state that a probe could change."""
    return {
        "parameters": {name: value.detach().clone() for name, value in model.named_parameters()},
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "python": random.getstate(),
        "numpy": [value.tolist() if hasattr(value, "tolist") else value for value in np.random.get_state()],
        "torch": torch.get_rng_state(),
    }


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    model = tiny_model(request.param)
    # A state to preserve: gradients, a frozen parameter, a module in another mode.
    model(input_ids=torch.from_numpy(TRAIN[:2]), labels=torch.from_numpy(TRAIN[:2])).loss.backward()
    next(model.parameters()).requires_grad_(False)
    next(model.children()).eval()
    return model


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_a_probe_does_not_change_the_model(model, adaptation):
    before, names = everything(model), [name for name, _ in model.named_modules()]
    result = probe(model, adaptation=adaptation)
    assert result.losses[-1] < result.losses[0], "it did train"
    after = everything(model)
    python, numpy = (before.pop("python"), after.pop("python")), (before.pop("numpy"), after.pop("numpy"))
    assert python[0] == python[1] and numpy[0] == numpy[1]
    assert_equal(before, after)
    assert [name for name, _ in model.named_modules()] == names


def test_every_random_state_is_restored():
    draw = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(1).item()}
    with preserve_model(tiny_model()):
        inside = {name: function() for name, function in draw.items()}
    assert {name: function() for name, function in draw.items()} == inside


def test_buffers_are_restored_in_place():
    model = torch.nn.BatchNorm1d(3)
    buffer = model.running_mean
    with preserve_model(model):
        model(torch.rand(5, 3))
    assert model.running_mean is buffer and not buffer.any() and model.num_batches_tracked == 0


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_an_interrupted_probe_does_not_change_the_model(model, adaptation, monkeypatch):
    before, steps = everything(model)["parameters"], []

    def interrupt(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        probe(model, adaptation=adaptation)
    assert_equal(dict(model.named_parameters()), before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_probe_has_the_losses_of_a_plain_loop(family):
    model = tiny_model(family, dropout=0.0)
    expected, copied = [], copy.deepcopy(model)
    decaying = [p for n, p in copied.named_parameters() if p.ndim == 2]
    others = [p for n, p in copied.named_parameters() if p.ndim == 1]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    order = np.random.default_rng(5).permutation(48)

    def loss(ids):
        logits = copied(input_ids=torch.from_numpy(ids)).logits[:, :-1].reshape(-1, VOCABULARY)
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[:, 1:].reshape(-1))

    for step in range(7):
        if step in (0, 4, 6):
            with torch.no_grad():
                expected.append(loss(EVALUATION).item())
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 2)
        optimizer.zero_grad()
        loss(TRAIN[order[8 * step : 8 * step + 8]]).backward() if step < 6 else None
        torch.nn.utils.clip_grad_norm_(copied.parameters(), 1.0)
        optimizer.step()
    result = probe(model, seed=5)
    assert result.probe_steps == [0, 4, 6]
    assert result.losses == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_a_repeated_probe_is_bit_identical(adaptation):
    model = tiny_model()
    first = probe(model, adaptation=adaptation)
    torch.rand(3)
    model.eval()
    assert probe(model, adaptation=adaptation).losses == first.losses
    assert probe(model, adaptation=adaptation, seed=1).losses != first.losses


def test_a_probe_trains_with_the_dropout_that_training_has():
    with_dropout, without = tiny_model(dropout=0.5), tiny_model(dropout=0.0)
    without.load_state_dict(with_dropout.state_dict())
    one, other = probe(with_dropout).losses, probe(without).losses
    assert one[0] == other[0] and one[1] != other[1]


def test_micro_batches_do_not_change_the_result():
    model = tiny_model(dropout=0.0)
    config = probe_config()
    whole = run_probe(model, TRAIN, EVALUATION, config, show_progress=False)
    cut = run_probe(model, TRAIN, EVALUATION, config, micro_batch_size=2, show_progress=False)
    assert cut.losses == pytest.approx(whole.losses, abs=1e-6)


def test_repeats_have_different_seeds_and_a_standard_error():
    model = tiny_model()
    repeated = probe(model, repeats=3, seed=4)
    singles = [probe(model, seed=seed) for seed in (4, 5, 6)]
    assert repeated.curves == [single.losses for single in singles]
    areas = [4 * (c[0] + c[1]) / 2 + 2 * (c[1] + c[2]) / 2 for c in repeated.curves]
    assert repeated.auc == pytest.approx(np.mean(areas))
    assert repeated.auc_stderr == pytest.approx(np.std(areas, ddof=1) / np.sqrt(3))
    assert singles[0].auc_stderr is None


def test_the_record_has_the_values_of_the_metrics():
    result = probe(tiny_model())
    protocol = {"language": "vi", "adaptation": "full", "seed": 0, "probe_config_hash": "0" * 12}
    position = {"cycle": 2, "task": 16, "step": 160, "tokens": None}
    first, second, third = result.losses
    area = 2 * (first + second) + (second + third)
    record = result.record(position, protocol, reference_auc=10.0)
    assert record["auc"] == pytest.approx(area) and record["mean_loss"] == pytest.approx(area / 6)
    assert (record["start_loss"], record["final_loss"]) == (first, third)
    assert record["delta_auc"] == pytest.approx(100 * (area / 10 - 1))
    assert record["bits_per_byte"] is None and record["tokens"] is None, "missing values are null"
    assert result.record(position, protocol, reference_auc=None)["delta_auc"] is None
    result.bytes_per_token = 2.5
    assert result.bits_per_byte == pytest.approx(third / np.log(2) / 2.5)


def test_a_dense_start_adds_powers_of_two():
    assert probe_config(steps=40, eval_every=20, dense_start=True).evaluation_steps() == [0, 1, 2, 4, 8, 16, 20, 40]


def test_the_default_probe_is_a_short_one():
    config = ProbeConfig()
    assert (config.steps, config.warmup_steps, config.learning_rate) == (200, 20, 3e-4)
    assert config.evaluation_steps() == list(range(0, 201, 10))


def test_a_lora_probe_leaves_no_hook_under_gradient_checkpointing():
    model = tiny_model()
    model.gradient_checkpointing_enable()
    before = dict(model.get_input_embeddings()._forward_hooks)
    probe(model, adaptation="lora")
    assert dict(model.get_input_embeddings()._forward_hooks) == before


def test_lora_settings_matter_only_to_lora():
    assert probe_config(lora_rank=4).protocol() == probe_config().protocol()
    assert probe_config(adaptation="lora", lora_rank=4).protocol() != probe_config(adaptation="lora").protocol()


def test_a_diverging_probe_is_an_error_and_does_not_change_the_model():
    model = tiny_model()
    before = everything(model)["parameters"]
    with pytest.raises(ProbeDivergedError, match="validation loss is nan after"):
        probe(model, learning_rate=1e30, max_grad_norm=0)
    assert_equal(dict(model.named_parameters()), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 11}, "probe_steps: 11 steps require 88 training sequences and there are 80"),
        (
            {"eval_sequences": 11},
            "probe_eval_sequences: 11 are requested and the validation split of",
        ),
        ({"steps": 0}, "probe_steps: 0 is not positive"),
        ({"adaptation": "prefix"}, "probe_adaptation: 'prefix' is unknown; choose one of full, lora"),
        ({"lr_scheduler_type": "sawtooth"}, "lr_scheduler_type: 'sawtooth' is unknown"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "is not a function of the step alone"),
        ({"warmup_steps": 7}, "probe_warmup_steps: 7 is not between 0 and the 6 probe steps"),
    ],
)
def test_an_invalid_probe_is_an_error(changes, message):
    with pytest.raises(PlasticityError, match=message):
        probe(tiny_model(), **changes)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(PlasticityError, match="micro_batch_size: 3 does not divide the 8 sequences"):
        run_probe(tiny_model(), TRAIN, EVALUATION, probe_config(), micro_batch_size=3, show_progress=False)


def test_a_small_corpus_may_be_repeated_if_asked():
    assert len(probe(tiny_model(), steps=11, allow_repeats=True).losses) == 4
    assert TRAIN.shape == (80, CONTEXT)
