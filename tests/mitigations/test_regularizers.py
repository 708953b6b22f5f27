"""Decays, clips and mixtures of weights, compared with their definitions."""

import math

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_plasticity import PlasticityError
from hf_plasticity.mitigations import SWR, Fire, L2Init, ShrinkPerturb, Spectral, WeightClip, WeightDecay
from hf_plasticity.network import InitialDistribution, non_embedding_parameters
from support.mitigated import copy_of, make_optimizer, train


def matrices_of(model):
    return {name: one for name, one in non_embedding_parameters(model).items() if one.ndim == 2}


def test_weight_decay_shrinks_matrices_by_one_minus_rate_times_lambda(model, tokens):
    optimizer, before = make_optimizer(model, lr=0.1, weight_decay=0.01), copy_of(model)
    mitigation = WeightDecay(weight_decay=0.5)
    mitigation.attach(model, optimizer)
    train(model, optimizer, mitigation, tokens, steps=3, zero_gradient=True)
    for name, parameter in model.named_parameters():
        factor = (1 - 0.1 * 0.5) ** 3 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
    mitigation.detach()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_weight_decay_requires_decoupled_decay_and_matrices_in_a_separate_group(model):
    with pytest.raises(PlasticityError, match="optim: weight_decay requires AdamW"):
        WeightDecay().attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(PlasticityError, match="matrices in other parameter groups"):
        WeightDecay().attach(model, torch.optim.AdamW(model.parameters()))


def test_l2_init_approaches_the_initial_weights_geometrically_and_replaces_weight_decay(model, tokens):
    optimizer, initial = make_optimizer(model, lr=0.1, weight_decay=0.3), copy_of(model)
    mitigation = L2Init(strength=0.5)
    mitigation.attach(model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    train(model, optimizer, mitigation, tokens, steps=4, zero_gradient=True)
    for name, parameter in model.named_parameters():
        expected = initial[name] + (1 - 0.1 * 0.5) ** 4
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)
    mitigation.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_l2_init_keeps_the_initial_weights_in_its_state(model, tokens):
    optimizer, initial = make_optimizer(model), copy_of(model)
    first = L2Init()
    first.attach(model, optimizer)
    train(model, optimizer, first, tokens, steps=2)
    state = first.state_dict()
    second = L2Init()
    second.attach(model, optimizer)  # the weights have moved
    second.load_state_dict(state)
    torch.testing.assert_close(second.initial, initial, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [L2Init, Spectral])
def test_methods_with_small_steps_require_float32_weights(model, kind):
    model.bfloat16()
    mitigation, optimizer = kind(), make_optimizer(model)
    with pytest.raises(PlasticityError, match=r"is bfloat16, and .* requires float32 weights"):
        mitigation.attach(model, optimizer)
    mitigation.attach(model.float(), optimizer)


def test_norms_of_several_heads_are_no_matrices():
    config = CohereConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        use_qk_norm=True, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = CohereForCausalLM(config)
    norms = {name: one.clone() for name, one in model.named_parameters() if "norm" in name}
    assert any(one.ndim == 2 for one in norms.values())
    for mitigation in (WeightClip(), ShrinkPerturb()):
        mitigation.attach(model, make_optimizer(model), task_steps=1)
        mitigation.after_step(1)
        mitigation.task_end(1)
        mitigation.detach()
    for name, norm in norms.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), norm, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [WeightClip, ShrinkPerturb, Spectral, SWR, Fire])
def test_models_with_experts_are_refused(kind):
    config = MixtralConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    with pytest.raises(PlasticityError, match=f"experts.gate_up_proj' has 3 dimensions, and {kind.name} acts on"):
        kind().attach(model, make_optimizer(model), task_steps=1)


@pytest.mark.parametrize(("configured", "total"), [(0.5, True), (0.0, False)])
def test_a_weight_decay_of_zero_counts_if_it_is_a_change(model, tokens, configured, total):
    mitigation, optimizer = WeightDecay(weight_decay=0.0), make_optimizer(model, weight_decay=configured)
    mitigation.attach(model, optimizer)
    train(model, optimizer, mitigation, tokens, steps=1)
    mitigation.take_events(1, summarize=True)
    assert (mitigation.total > 0) == total


def test_shrink_and_perturb_with_one_and_zero_changes_nothing(model, tokens):
    optimizer, before = make_optimizer(model), copy_of(model)
    mitigation = ShrinkPerturb(shrink=1.0, perturb=0.0)
    mitigation.attach(model, optimizer, task_steps=1)
    mitigation.task_end(1)
    torch.testing.assert_close(copy_of(model), before, rtol=0, atol=0)
    assert mitigation.take_events(1, summarize=True) == []


def test_shrink_and_perturb_with_zero_and_one_is_a_fresh_draw_of_the_matrices(model):
    before, distribution = copy_of(model), InitialDistribution(model)
    mitigation = ShrinkPerturb(shrink=0.0, perturb=1.0)
    mitigation.attach(model, make_optimizer(model), seed=3, task_steps=7)
    mitigation.task_end(7)
    matrices = matrices_of(model)
    for name, parameter in model.named_parameters():
        expected = distribution.draw(name, seed=3, step=7) if name in matrices else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=0)


def test_shrink_and_perturb_gives_the_variance_of_the_mixture(model):
    optimizer = make_optimizer(model)
    with torch.no_grad():
        for parameter in matrices_of(model).values():
            parameter.normal_(std=0.05)
    mitigation = ShrinkPerturb()
    mitigation.attach(model, optimizer, task_steps=1)
    mitigation.task_end(1)
    sigma = 0.02 / (math.sqrt(4) if model.config.model_type == "gpt2" else 1)
    name = "transformer.h.0.mlp.c_proj.weight" if model.config.model_type == "gpt2" else (
        "model.layers.0.mlp.down_proj.weight"
    )  # fmt: skip
    expected = 0.4**2 * 0.05**2 + 0.1**2 * sigma**2
    weight = matrices_of(model)[name]
    assert weight.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / weight.numel()))


def test_shrink_and_perturb_toward_the_initial_weights_interpolates(model):
    initial = copy_of(model)
    mitigation = ShrinkPerturb(shrink=0.2, perturb=0.8, toward="initial")
    mitigation.attach(model, make_optimizer(model), task_steps=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    mitigation.task_end(1)
    for name, parameter in matrices_of(model).items():
        torch.testing.assert_close(parameter.detach(), initial[name] + 0.2, rtol=0, atol=1e-6)


def test_shrink_and_perturb_requires_task_instances(model):
    with pytest.raises(PlasticityError, match="task_steps: required by shrink_perturb"):
        ShrinkPerturb().attach(model, make_optimizer(model))


def test_weight_clipping_at_one_clips_a_twelfth_of_a_normal_initialization(model, tokens):
    optimizer = make_optimizer(model, lr=0.0)
    mitigation = WeightClip(kappa=1.0)
    mitigation.attach(model, optimizer)
    train(model, optimizer, mitigation, tokens, steps=1)
    [event] = mitigation.take_events(1, summarize=True)
    total = sum(parameter.numel() for parameter in matrices_of(model).values())
    # P(|z| > √3) for a normal z.
    assert sum(event["touched"].values()) / total == pytest.approx(math.erfc(math.sqrt(1.5)), abs=0.015)
    assert math.erfc(math.sqrt(1.5)) == pytest.approx(0.0833, abs=1e-4)


def test_weight_clipping_bounds_every_matrix_and_nothing_else(model, tokens):
    optimizer = make_optimizer(model, lr=0.0)
    mitigation = WeightClip(kappa=2.0)
    mitigation.attach(model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    train(model, optimizer, mitigation, tokens, steps=1)
    matrices = matrices_of(model)
    for name, parameter in model.named_parameters():
        if name in matrices:
            projected = model.config.model_type == "gpt2" and "c_proj" in name
            sigma = 0.02 / (math.sqrt(4) if projected else 1)
            bound = 2 * math.sqrt(3) * sigma
            assert parameter.min().item() == pytest.approx(bound, rel=0.2) and parameter.min() == parameter.max()
        else:
            assert parameter.min() == 1


def test_spectral_regularization_of_a_diagonal_matrix_moves_only_its_largest_entry(model, tokens):
    name = "transformer.h.1.mlp.c_proj.weight" if model.config.model_type == "gpt2" else (
        "model.layers.1.mlp.down_proj.weight"
    )  # fmt: skip
    weight = matrices_of(model)[name]
    with torch.no_grad():
        weight.zero_()
        weight[:4, :4] = torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.25]))
    optimizer = make_optimizer(model, lr=0.1)
    mitigation = Spectral(strength=0.02)
    mitigation.attach(model, optimizer)
    with torch.no_grad():
        weight[0, 0] = 3.0
    train(model, optimizer, mitigation, tokens, steps=1, zero_gradient=True)
    # The gradient of (σ² − 2²)² at 3 is 2·(9 − 4)·2·3 = 60.
    expected = torch.zeros_like(weight)
    expected[:4, :4] = torch.diag(torch.tensor([3.0 - 0.1 * 0.02 * 60, 1.0, 0.5, 0.25]))
    torch.testing.assert_close(weight.detach(), expected)


def test_spectral_regularization_returns_to_the_initial_singular_value(model, tokens):
    optimizer = make_optimizer(model, lr=0.1)
    targets = {name: torch.linalg.svdvals(one)[0].item() for name, one in matrices_of(model).items()}
    mitigation = Spectral(strength=5.0)
    mitigation.attach(model, optimizer)
    with torch.no_grad():
        for parameter in matrices_of(model).values():
            parameter *= 1.5
    train(model, optimizer, mitigation, tokens, steps=200, zero_gradient=True)
    # It follows one singular vector at a time, so others are still a little above the target.
    for name, parameter in matrices_of(model).items():
        assert 0.98 < torch.linalg.svdvals(parameter)[0].item() / targets[name] < 1.2
