"""Hidden units: the matrix entries of each, checked with the outputs of the model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, MambaForCausalLM, MixtralConfig

from hf_plasticity.network import find_structure
from support.families import UNITS, make_model


GATED = {"llama", "llama_with_biases", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "phi3"}
UNIT = 7


def hidden_and_output(model, layer, tokens):
    """The input and the output of the down projection."""
    seen = []
    hook = layer.units.outgoing.module.register_forward_hook(lambda module, args, output: seen.append((*args, output)))
    with torch.no_grad():
        model(tokens)
    hook.remove()
    hidden, output = seen[0]
    return hidden.reshape(-1, UNITS), output.reshape(-1, output.shape[-1])


def perturb(slices):
    slices.write_(slices.read() + 1)


def others(tensor):
    return torch.cat([tensor[:, :UNIT], tensor[:, UNIT + 1 :]], dim=1)


def test_a_mixer_is_not_taken_for_an_mlp():
    model = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=24, num_hidden_layers=1, state_size=4))
    [layer] = find_structure(model).layers
    assert layer.down_projection is None and "'MambaMixer' are neither a plain nor a gated MLP" in layer.gap


def test_every_layer_has_its_units(model, family):
    for layer in find_structure(model).layers:
        assert layer.units_gap is None and layer.units.count == UNITS
        assert sum(one.index.shape[1] for one in layer.units.incoming) == (2 if family in GATED else 1)
        assert layer.units.outgoing.module is layer.down_projection
        parameters = dict(model.named_parameters())
        for partition in (*layer.units.incoming, layer.units.outgoing):
            assert all(parameters[slices.name] is slices.parameter for slices in partition.slices([0]))


def test_zeroed_outgoing_weights_take_exactly_the_units_contribution_away(model, tokens):
    for layer in find_structure(model).layers:
        hidden, output = hidden_and_output(model, layer, tokens)
        (outgoing,) = layer.units.outgoing.slices([UNIT])
        contribution = hidden[:, UNIT, None] * outgoing.read().flatten()
        outgoing.zero_()
        _, remaining = hidden_and_output(model, layer, tokens)
        torch.testing.assert_close(remaining, output - contribution, rtol=1e-12, atol=1e-12)
        assert contribution.abs().max() > 1e-3


def test_incoming_weights_affect_only_their_unit(model, tokens):
    layer = find_structure(model).layers[0]
    before, _ = hidden_and_output(model, layer, tokens)
    all_slices = [slices for partition in layer.units.incoming for slices in partition.slices([UNIT])]
    for slices in all_slices:
        perturb(slices)
        after, _ = hidden_and_output(model, layer, tokens)
        assert torch.equal(others(before), others(after)), slices.name
        assert not torch.equal(before[:, UNIT], after[:, UNIT]), slices.name
    for slices in all_slices:
        slices.zero_()
    after, _ = hidden_and_output(model, layer, tokens)
    # With nothing coming in, act(0) = 0: no weight and no bias of the unit was left out.
    assert not after[:, UNIT].any() and torch.equal(others(before), others(after))


def test_the_output_bias_is_that_of_the_down_projection(model, tokens):
    layer = find_structure(model).layers[0]
    bias = layer.units.output_bias
    _, before = hidden_and_output(model, layer, tokens)
    if bias is not None:
        with torch.no_grad():
            bias += 1
        _, after = hidden_and_output(model, layer, tokens)
        torch.testing.assert_close(after, before + 1)
    else:
        hidden, output = hidden_and_output(model, layer, tokens)
        torch.testing.assert_close(output, hidden @ layer.down_projection.weight.T, rtol=1e-12, atol=1e-12)


def test_the_activation_is_the_one_of_the_units(model, tokens, family):
    layer, seen = find_structure(model).layers[0], []
    layer.units.activation.register_forward_hook(lambda module, args, output: seen.append(output))
    hidden, _ = hidden_and_output(model, layer, tokens)
    assert torch.equal(seen[0].reshape(-1, UNITS), hidden) == (family not in GATED)
    assert seen[0].reshape(-1, UNITS).shape == hidden.shape


def test_members_are_indices_or_a_mask():
    partition = find_structure(make_model("phi3")).layers[0].units.incoming[0]
    mask = torch.zeros(UNITS, dtype=torch.bool)
    mask[[2, 5]] = True
    (by_mask,), (by_number,) = partition.slices(mask), partition.slices([2, 5])
    assert by_mask.index.tolist() == by_number.index.tolist() == [2, UNITS + 2, 5, UNITS + 5]
    assert partition.slices([])[0].read().shape == (0, 32)
    with pytest.raises(IndexError):
        partition.slices([UNITS])


def test_models_without_units_have_a_reason():
    shape = {"vocab_size": 32, "hidden_size": 24}
    bloom = AutoModelForCausalLM.from_config(BloomConfig(**shape, n_layer=2, n_head=4))
    experts = MixtralConfig(
        **shape, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20,
        num_local_experts=2,
    )  # fmt: skip
    for model in (bloom, AutoModelForCausalLM.from_config(experts)):
        for layer in find_structure(model).layers:
            assert layer.units is None and "hidden units are not known" in layer.units_gap


def test_an_mlp_with_a_further_matrix_is_not_supported():
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp.extra_proj = torch.nn.Linear(32, 20)
    layer = find_structure(model).layers[0]
    assert layer.units is None and "neither a plain nor a gated MLP of 20 hidden units" in layer.units_gap


def test_quantized_weights_are_refused():
    model = make_model("llama")
    up = model.model.layers[0].mlp.up_proj
    up.weight = torch.nn.Parameter(torch.zeros(240, 1, dtype=torch.uint8), requires_grad=False)
    first, second = find_structure(model).layers
    assert "'model.layers.0.mlp.up_proj' has no plain 20 by 32 matrix" in first.units_gap
    assert second.units is not None
