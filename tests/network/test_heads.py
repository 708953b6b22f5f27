"""Attention heads: the rows, columns and biases of each, checked with the outputs of the model."""

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, BloomConfig, FalconConfig, MambaConfig

from hf_plasticity.network import find_structure
from support.families import CONFIGS, HEADS, make_model


GROUPED = {"llama", "llama_with_biases", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "phi3", "phi"}
# Their attention does not go through the attention interface of Transformers.
OLD = {"gptj", "gpt_neo"}
HEAD = 3


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def perturb(slices):
    generator = torch.Generator().manual_seed(2)
    values = slices.read()
    slices.write_(values + torch.randn(values.shape, generator=generator, dtype=values.dtype))


def queries_keys_values(model, tokens):
    """q (B, H, T, D), k and v (B, H_kv, T, D) of the first layer, as they enter attention."""
    seen = []

    def attention(module, query, key, value, mask, **kwargs):
        seen.append((query, key, value))
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    AttentionInterface.register("seen", attention)
    before = model.config._attn_implementation
    model.set_attn_implementation("seen")
    try:
        logits(model, tokens)
    finally:
        model.set_attn_implementation(before)
        del AttentionInterface._global_mapping["seen"]
    return seen[0]


def test_every_layer_has_its_heads(model, family):
    parameters = dict(model.named_parameters())
    for layer in find_structure(model).layers:
        heads = layer.heads
        assert layer.heads_gap is None
        assert (heads.count, heads.kv_count) == (HEADS, 2 if family in GROUPED else HEADS)
        assert heads.dim == (12 if family in ("qwen3", "gemma2") else 8)
        assert (heads.coupling is not None) == (family == "olmo2")
        for partition in (heads.query, heads.key, heads.value, heads.output):
            assert all(parameters[slices.name] is slices.parameter for slices in partition.slices([0]))


def test_each_query_head_is_served_by_its_key_value_head():
    heads = find_structure(make_model("llama")).layers[0].heads
    assert [heads.kv_head(head) for head in range(4)] == [0, 0, 1, 1]
    assert [list(heads.query_heads(head)) for head in range(2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("family", sorted(CONFIGS.keys() - OLD), indirect=True)
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_rows_and_biases_affect_only_their_head(model, family, tokens, part):
    heads = find_structure(model).layers[0].heads
    partition, which = getattr(heads, part), ["query", "key", "value"].index(part)
    head = partition.index.shape[0] - 1
    before = queries_keys_values(model, tokens)
    for slices in partition.slices([head]):
        perturb(slices)
        after = queries_keys_values(model, tokens)
        for index, (old, new) in enumerate(zip(before, after)):
            changed = [bool((old[:, number] != new[:, number]).any()) for number in range(old.shape[1])]
            if heads.coupling is not None and index == which and part != "value":
                assert all(changed)
            else:
                assert changed == [index == which and number == head for number in range(old.shape[1])], slices.name
    for slices in partition.slices([head]):
        slices.zero_()
    # No weight and no bias of the head was left out.
    assert not queries_keys_values(model, tokens)[which][:, head].any()


def test_logits_do_not_depend_on_a_head_without_output(model, tokens):
    for layer in find_structure(model).layers:
        heads = layer.heads
        group = heads.kv_head(HEAD)
        for slices in heads.output.slices(heads.query_heads(group)):
            slices.zero_()
        expected = logits(model, tokens)
        mine = [*heads.value.slices([group])]
        if heads.coupling is None:
            mine += [*heads.query.slices(heads.query_heads(group)), *heads.key.slices([group])]
        for slices in mine:
            perturb(slices)
        assert torch.equal(logits(model, tokens), expected)
        for partition, head in ((heads.query, 0), (heads.key, 0), (heads.value, 0)):
            for slices in partition.slices([head])[:1]:
                perturb(slices)
                assert not torch.equal(logits(model, tokens), expected), "the other heads are still read"


def test_a_head_with_zeroed_keys_does_not_read_its_queries(model, tokens):
    heads = find_structure(model).layers[0].heads
    if heads.coupling is not None:
        pytest.skip("a norm over all heads passes the change of one on to the others")
    for slices in heads.key.slices([heads.kv_head(HEAD)]):
        slices.zero_()
    expected = logits(model, tokens)
    for slices in heads.query.slices([HEAD]):
        perturb(slices)
    assert torch.equal(logits(model, tokens), expected)


def test_a_head_without_values_is_a_head_without_output(model, tokens):
    heads = find_structure(model).layers[0].heads
    group = heads.kv_head(HEAD)
    for slices in heads.value.slices([group]):
        slices.zero_()
    expected = logits(model, tokens)
    for slices in heads.output.slices(heads.query_heads(group)):
        slices.zero_()
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=32, hidden_size=24, n_layer=2, n_head=4),
        FalconConfig(vocab_size=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=4),
    ],
    ids=["bloom", "falcon"],
)
def test_a_fused_matrix_of_unknown_layout_is_not_supported(config):
    for layer in find_structure(AutoModelForCausalLM.from_config(config)).layers:
        assert layer.heads is None and "attention heads are not known" in layer.heads_gap


def test_heads_that_do_not_divide_the_matrices_are_not_supported():
    model = make_model("llama")
    model.config.num_attention_heads = 5
    assert "do not divide into 5 heads" in find_structure(model).layers[0].heads_gap


def test_a_model_without_attention_has_a_reason():
    config = MambaConfig(vocab_size=32, hidden_size=24, num_hidden_layers=2, state_size=4, time_step_rank=2)
    layer = find_structure(AutoModelForCausalLM.from_config(config)).layers[0]
    assert layer.heads is None and "no number of attention heads" in layer.heads_gap
