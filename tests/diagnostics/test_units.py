import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from hf_plasticity.diagnostics import DiagnosticsConfig, diagnose
from hf_plasticity.diagnostics.units import TAU_GRID, fraction_at_or_below, unit_scores


ONLY_UNITS = DiagnosticsConfig(measures=["dormant_units"])


def relu_gpt2(biases: list[float]):
    """A GPT-2 whose hidden units in layer 0 are relu(bias), whatever the input."""
    config = GPT2Config(
        n_embd=8, n_layer=2, n_head=2, n_inner=len(biases), vocab_size=16, n_positions=32, activation_function="relu"
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.zero_()
        model.transformer.h[0].mlp.c_fc.bias.copy_(torch.tensor(biases))
    return model


def test_exactly_the_dead_and_the_dormant_units_are_counted():
    # 3 dead (relu of a negative), 2 dormant, 5 alive: the layer's mean is (5 · 1 + 2 · 0.001) / 10 = 0.5002.
    model = relu_gpt2([-1.0] * 3 + [0.001] * 2 + [1.0] * 5)
    diagnosis = diagnose(model, torch.randint(16, (3, 32)), ONLY_UNITS)
    units = diagnosis["dormant_units"]
    np.testing.assert_allclose(units.scores[0], [0] * 3 + [0.001 / 0.5002] * 2 + [1 / 0.5002] * 5, rtol=1e-6)
    assert units.per_layer[0] == 0.5
    assert diagnosis.fraction("dormant_units", 0.0)[1][0] == 0.3
    assert diagnosis.fraction("dormant_units", 0.001 / 0.5002 * 0.99)[1][0] == 0.3
    assert diagnosis.fraction("dormant_units", 0.001 / 0.5002 * 1.01)[1][0] == 0.5
    assert diagnosis.fraction("dormant_units", 100)[0] == 1


def test_overall_counts_units_not_layers():
    model = relu_gpt2([-1.0] * 4 + [1.0] * 6)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.zero_()
        model.transformer.h[1].mlp.c_fc.bias.copy_(torch.tensor([-1.0] * 2 + [1.0] * 8))
    units = diagnose(model, torch.randint(16, (2, 8)), ONLY_UNITS)["dormant_units"]
    assert (units.per_layer, units.overall) == ([0.4, 0.2], pytest.approx(6 / 20))


def test_a_layer_without_active_units_is_dormant():
    units = diagnose(relu_gpt2([-1.0] * 6), torch.randint(16, (2, 8)), ONLY_UNITS)["dormant_units"]
    assert units.per_layer[0] == 1.0


def test_a_gated_unit_is_dead_when_either_factor_is():
    config = LlamaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10, vocab_size=16
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[:2] = 0  # silu(0) = 0
        model.model.layers[0].mlp.up_proj.weight[2:5] = 0
    diagnosis = diagnose(model, torch.randint(16, (2, 8)), ONLY_UNITS)
    assert (diagnosis["dormant_units"].scores[0] == 0).tolist() == [True] * 5 + [False] * 5


def test_the_mean_is_over_tokens_not_over_units():
    # A unit that fires on one token in 32 has score 1/32 of one that always does: alive. Mistaking the time axis for
    # units would call 31 of 32 "units" dormant.
    model = relu_gpt2([1.0, 1.0])
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wpe.weight[:, 0] = -1.0
        model.transformer.wpe.weight[5, 0] = 1.0
        model.transformer.h[0].attn.c_proj.weight.zero_()
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = 1.0
        model.transformer.h[0].mlp.c_fc.bias[0] = 0.0
        # Layer norm of (±1, 0, …, 0) over 8 features has ±√7 in the first place.
        model.transformer.h[0].mlp.c_fc.bias[1] = 7**0.5
    scores = diagnose(model, torch.randint(16, (3, 32)), ONLY_UNITS)["dormant_units"].scores[0]
    assert scores[0] / scores[1] == pytest.approx(1 / 32, rel=1e-3)


def test_the_record_holds_the_distribution_for_any_tau_on_the_grid():
    model = relu_gpt2([-1.0] * 3 + [0.001] * 2 + [0.02] * 1 + [1.0] * 4)
    diagnosis = diagnose(model, torch.randint(16, (2, 8)), ONLY_UNITS)
    recorded = diagnosis.record(step=0)["measures"]["dormant_units"]
    for tau in (0.0, 0.01, 0.025, 0.1):
        index = recorded["tau_grid"].index(tau)
        assert recorded["fraction_at_or_below"][0][index] == diagnosis.fraction("dormant_units", tau)[1][0]
    assert recorded["tau_grid"] == pytest.approx(list(TAU_GRID))


magnitudes = st.lists(st.floats(0, 1e3).map(lambda x: x if x > 1e-6 else 0.0), min_size=1, max_size=30)


@given(magnitudes, st.floats(1e-3, 1e3), st.randoms(use_true_random=False), st.floats(0, 2))
def test_scores_do_not_depend_on_scale_nor_on_the_order_of_units(values, scale, random, tau):
    tensor = torch.tensor(values, dtype=torch.float64)
    order = random.sample(range(len(values)), len(values))
    scores = unit_scores(tensor)
    torch.testing.assert_close(unit_scores(tensor * scale), scores)
    torch.testing.assert_close(unit_scores(tensor[order]), scores[order])
    assert scores.min() >= 0 and (scores.mean() == pytest.approx(1) or tensor.sum() == 0)
    assert 0 <= fraction_at_or_below(scores, tau) <= fraction_at_or_below(scores, tau + 0.1) <= 1
