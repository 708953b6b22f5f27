import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from hf_plasticity import PlasticityError
from hf_plasticity.diagnostics import GRADIENT_MEASURES, DiagnosticsConfig, diagnose
from hf_plasticity.diagnostics.gradients import causal_lm_loss, summarize_gradients
from support.tiny import random_blocks, tiny_model


CONFIG = DiagnosticsConfig(measures=GRADIENT_MEASURES)


def linear_regression(inputs, targets, weight) -> tuple[dict[str, nn.Parameter], list]:
    """½(w·x − y)² for each example: its gradient is (w·x − y)·x."""
    parameter = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    x, y = torch.tensor(inputs, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    return {"w": parameter}, [
        lambda index=index: (x[index] @ parameter - y[index]).square() / 2 for index in range(len(inputs))
    ]


def test_linear_regression_has_its_known_gradients():
    # w = (1, 1): residuals 1 − 3 = −2 on (1, 0) and 2 − 1 = 1 on (0, 2); gradients (−2, 0) and (0, 2).
    summary = summarize_gradients(*linear_regression([[1, 0], [0, 2]], [3, 1], [1.0, 1.0]))
    assert summary.loss == pytest.approx((2 + 0.5) / 2)
    assert summary.squared_norms == pytest.approx([4, 4])
    assert summary.norm == pytest.approx(2**0.5)  # (−1, 1)
    assert summary.diversity == pytest.approx(8 / 8)
    assert summary.readiness == pytest.approx(2**2 / (1.25 * 4))


def test_equal_gradients_have_diversity_one_over_n_and_full_reliability():
    summary = summarize_gradients(*linear_regression([[1, 0]] * 5, [3] * 5, [1.0, 1.0]))
    assert summary.diversity == pytest.approx(1 / 5)
    assert summary.readiness == pytest.approx(4 / 2)  # ‖∇L‖² / L


def test_cancelling_gradients_have_no_diversity_and_readiness_zero():
    summary = summarize_gradients(*linear_regression([[1, 0], [1, 0]], [0, 2], [1.0, 1.0]))
    assert summary.diversity is None
    assert summary.readiness == 0.0


def test_a_perfect_fit_has_readiness_zero():
    assert summarize_gradients(*linear_regression([[1, 0], [0, 1]], [1, 1], [1.0, 1.0])).readiness == 0.0


def slow_gradients(model, blocks, size, mask=None) -> tuple[list[torch.Tensor], float]:
    """Each mini-batch's gradient as one long vector, through the model's own loss."""
    model.eval()
    model.loss_type = "ForCausalLM"  # GPT-2 does not say so itself, and its loss would be scaled
    vectors, losses = [], []
    for part in blocks.split(size):
        loss = model(part, labels=part).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        vectors.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
        losses.append(loss.item())
    return vectors, float(np.mean(losses))


@pytest.mark.parametrize("size", [1, 2])
def test_gradient_measures_agree_with_whole_gradient_vectors(model, size):
    blocks = torch.randint(2, 64, (4, 12))
    vectors, loss = slow_gradients(model, blocks, size)
    stacked = torch.stack(vectors)
    mean = stacked.mean(0)
    squares = stacked.square().sum(1)
    diagnosis = diagnose(model, blocks, DiagnosticsConfig(measures=GRADIENT_MEASURES, gradient_batch_size=size))
    assert diagnosis["gradient_norm"].overall == pytest.approx(mean.norm().item(), rel=1e-4)
    assert diagnosis["gradient_norm"].detail["loss"] == pytest.approx(loss, rel=1e-5)
    assert diagnosis["gradient_diversity"].overall == pytest.approx(
        (squares.sum() / stacked.sum(0).square().sum()).item(), rel=1e-4
    )
    assert diagnosis["optimization_readiness"].overall == pytest.approx(
        (mean.norm() ** 4 / (loss * squares.mean())).item(), rel=1e-4
    )
    inside = [
        torch.cat([p.flatten() for n, p in gradients_by_name(model, blocks, size).items() if f".{layer}." in n]).norm()
        for layer in range(2)
    ]
    assert diagnosis["gradient_norm"].per_layer == pytest.approx([float(norm) for norm in inside], rel=1e-4)


def gradients_by_name(model, blocks, size) -> dict[str, torch.Tensor]:
    total = sum(causal_lm_loss(model, part, None) for part in blocks.split(size)) / (len(blocks) // size)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(total, list(model.parameters()))))


def test_padding_is_not_predicted(gpt2):
    blocks = torch.randint(2, 64, (2, 12))
    mask = torch.ones_like(blocks)
    mask[:, 8:] = 0
    short = diagnose(gpt2, blocks[:, :8], CONFIG)
    padded = diagnose(gpt2, blocks, CONFIG, attention_mask=mask)
    for name in GRADIENT_MEASURES:
        assert padded[name].overall == pytest.approx(short[name].overall, rel=1e-4)


def test_every_predicted_token_counts_the_same_whatever_the_padding():
    model = tiny_model("llama", dropout=0.0)
    blocks, lengths = torch.from_numpy(random_blocks(4)), (3, 5, 12, 12)
    right, left, shifted = torch.zeros_like(blocks), torch.zeros_like(blocks), torch.zeros_like(blocks)
    for row, length in enumerate(lengths):
        right[row, :length] = left[row, -length:] = 1
        shifted[row, -length:] = blocks[row, :length]
    every = [model(input_ids=blocks[row : row + 1, :n]).logits[0, :-1] for row, n in enumerate(lengths)]
    targets = torch.cat([blocks[row, 1:n] for row, n in enumerate(lengths)])
    loss = torch.nn.functional.cross_entropy(torch.cat(every), targets)
    norm = torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))]).norm().item()
    for size in (1, 2):
        config = DiagnosticsConfig(measures=["gradient_norm"], gradient_batch_size=size)
        for tokens, mask in ((blocks, right), (shifted, left)):
            measure = diagnose(model, tokens, config, attention_mask=mask)["gradient_norm"]
            assert measure.overall == pytest.approx(norm, rel=1e-4)
            assert measure.detail["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_gradient_activity_is_zero_exactly_where_no_gradient_arrives():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_inner=10, vocab_size=16))
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight[:4] = 0  # what leaves these units goes nowhere
    diagnosis = diagnose(model, torch.randint(16, (4, 12)), CONFIG)
    activity = diagnosis["gradient_activity"]
    assert (activity.scores[0] == 0).tolist() == [True] * 4 + [False] * 6
    assert diagnosis.fraction("gradient_activity", 0.0) == (0.2, [0.4, 0.0])
    assert [float(scores.mean()) for scores in activity.scores] == pytest.approx([1, 1])


def test_gradient_activity_agrees_with_retained_gradients(gpt2):
    blocks = torch.randint(64, (2, 12))
    kept = []

    def keep(module, args):
        args[0].retain_grad()
        kept.append(args[0])

    handle = gpt2.transformer.h[1].mlp.c_proj.register_forward_pre_hook(keep)
    for part in blocks.split(1):
        causal_lm_loss(gpt2, part, None).backward()
    handle.remove()
    magnitude = torch.cat([hidden.grad.flatten(0, 1) for hidden in kept]).abs().double().mean(0)
    scores = diagnose(gpt2, blocks, CONFIG)["gradient_activity"].scores[1]
    np.testing.assert_allclose(scores, magnitude / magnitude.mean(), rtol=1e-4)


def test_frozen_parameters_are_left_out_and_all_frozen_is_an_error(gpt2):
    for name, parameter in gpt2.named_parameters():
        parameter.requires_grad_("ln_f" in name)
    config = DiagnosticsConfig(measures=["gradient_norm"])
    assert diagnose(gpt2, torch.randint(64, (2, 8)), config)["gradient_norm"].per_layer == [0.0, 0.0]
    with pytest.raises(
        PlasticityError, match="'gradient_activity' is not supported for this model: layers 0, 1: no gr"
    ):
        diagnose(gpt2, torch.randint(64, (2, 8)), CONFIG)
    gpt2.requires_grad_(False)
    with pytest.raises(PlasticityError, match="all are frozen"):
        diagnose(gpt2, torch.randint(64, (2, 8)), config)


def test_mini_batches_must_divide_the_blocks_and_be_two_at_least(gpt2):
    blocks = torch.randint(64, (4, 8))
    for size, message in ((3, "3 does not divide the 4 blocks"), (4, "4 leaves one mini-batch of 4 blocks")):
        with pytest.raises(PlasticityError, match=message):
            diagnose(gpt2, blocks, DiagnosticsConfig(measures=["gradient_norm"], gradient_batch_size=size))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0.1, 10))
def test_ranges_and_scaling_of_the_loss(seed, count, scale):
    rng = np.random.default_rng(seed)
    parameters, losses = linear_regression(rng.normal(size=(count, 3)), rng.normal(size=count), rng.normal(size=3))
    summary = summarize_gradients(parameters, losses)
    scaled = summarize_gradients(parameters, [lambda loss=loss: scale * loss() for loss in losses])
    assert summary.diversity >= 1 / count - 1e-9
    assert 0 <= summary.readiness <= summary.norm**2 / summary.loss * (1 + 1e-6)
    assert scaled.diversity == pytest.approx(summary.diversity, rel=1e-4)
    assert scaled.norm == pytest.approx(scale * summary.norm, rel=1e-4)
    assert scaled.readiness == pytest.approx(scale * summary.readiness, rel=1e-4)


def test_an_undefined_diversity_is_named(gpt2):
    # Without weights in the head every token is equally likely, and no gradient reaches the body.
    gpt2.requires_grad_(False)
    gpt2.transformer.h[0].ln_1.bias.requires_grad_(True)
    with torch.no_grad():
        gpt2.transformer.wte.weight.zero_()
    config = DiagnosticsConfig(measures=["gradient_norm", "gradient_diversity", "optimization_readiness"])
    diagnosis = diagnose(gpt2, torch.randint(64, (2, 8)), config)
    assert diagnosis.not_measured == {"gradient_diversity": "the mean gradient is zero"}
    assert (diagnosis["gradient_norm"].overall, diagnosis["optimization_readiness"].overall) == (0.0, 0.0)
