"""Mitigations that reset single weights, matrices, heads, embeddings or the whole model."""

import math

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from hf_plasticity import PlasticityError
from hf_plasticity.diagnostics import DiagnosticsConfig, diagnose
from hf_plasticity.mitigations import SWR, ActiveForgetting, Fire, FullReset, HeadReset
from hf_plasticity.network import InitialDistribution, find_structure, non_embedding_parameters, preserve_model
from support.mitigated import copy_of, logits_of, make_optimizer, train
from support.tiny import VOCABULARY, tiny_model


def matrices_of(model):
    return {name: one for name, one in non_embedding_parameters(model).items() if one.ndim == 2}


def test_a_full_reset_is_a_new_model_with_a_new_optimizer(model, tokens):
    optimizer, distribution = make_optimizer(model), InitialDistribution(model)
    mitigation = FullReset()
    mitigation.attach(model, optimizer, seed=5, task_steps=3)
    train(model, optimizer, mitigation, tokens, steps=3, task_steps=3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, distribution.draw(name, seed=5, step=3)), name
        assert all((value == 0).all() for value in optimizer.state[parameter].values())
    [event] = mitigation.take_events(3, summarize=True)
    assert sum(event["touched"].values()) == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("utility", ["gradient", "magnitude"])
def test_swr_resamples_the_weights_of_lowest_utility(model, tokens, utility):
    optimizer, distribution = make_optimizer(model, lr=0.0), InitialDistribution(model)
    mitigation = SWR(fraction=0.1, every=2, utility=utility)
    mitigation.attach(model, optimizer, seed=5)
    train(model, optimizer, mitigation, tokens, steps=1)
    assert mitigation.take_events(1, summarize=False) == []
    before = copy_of(model)
    model(input_ids=tokens, labels=tokens).loss.backward()
    scores = {
        name: (one * one.grad if utility == "gradient" else one).detach().abs().flatten().tolist()
        for name, one in matrices_of(model).items()
    }
    model.zero_grad()
    train(model, optimizer, mitigation, tokens, steps=1, first=2)
    for name, parameter in model.named_parameters():
        expected = before[name].flatten()
        if name in scores:
            lowest = sorted(range(len(expected)), key=lambda place: scores[name][place])[: int(0.1 * len(expected))]
            expected[lowest] = distribution.draw(name, seed=5, step=2).flatten()[lowest]
            for kind in ("exp_avg", "exp_avg_sq"):
                assert (optimizer.state[parameter][kind].flatten()[lowest] == 0).all()
        assert torch.equal(parameter.detach().flatten(), expected), name
    assert all(state["step"] == 2 for state in optimizer.state.values())


def test_swr_carries_fractions_of_a_weight_over(model, tokens):
    name, parameter = next(iter(matrices_of(model).items()))
    mitigation = SWR(fraction=0.5 / parameter.numel(), every=1, utility="random")
    optimizer = make_optimizer(model)
    mitigation.attach(model, optimizer)
    train(model, optimizer, mitigation, tokens, steps=6)
    events = mitigation.take_events(6, summarize=False)
    assert [event["touched"].get(name, 0) for event in events if name in event["touched"]] == [1, 1, 1]
    assert [event["step"] for event in events if name in event["touched"]] == [2, 4, 6]


@pytest.mark.parametrize("method", ["exact", "newton_schulz"])
def test_fire_gives_the_scaled_polar_factor_of_every_block(model, method):
    mitigation, optimizer = Fire(method=method, iterations=60), make_optimizer(model)
    mitigation.attach(model, optimizer, task_steps=1)
    before, blocks = copy_of(model), 0
    mitigation.task_end(1)
    plain = model.config.model_type == "gpt2"
    for name, parameter in model.named_parameters():
        if name not in matrices_of(model):
            assert torch.equal(parameter, before[name])
            continue
        old, new = (one.detach().T if plain else one.detach() for one in (before[name], parameter))
        parts = zip(old.split(16), new.split(16)) if name.endswith("c_attn.weight") else [(old, new)]
        for old_block, new_block in parts:
            u, _, vh = torch.linalg.svd(old_block.double(), full_matrices=False)
            expected = math.sqrt(old_block.shape[0] / old_block.shape[1]) * (u @ vh)
            torch.testing.assert_close(new_block.double(), expected, rtol=0, atol=1e-4)
            blocks += 1
    assert blocks == 2 * (6 if plain else 7)


def test_five_newton_schulz_iterations_are_those_of_the_formula():
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    x = weight / weight.norm()
    for _ in range(5):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    torch.testing.assert_close(Fire().isometry(weight), math.sqrt(3 / 5) * x)
    torch.testing.assert_close(Fire().isometry(weight.T), math.sqrt(5 / 3) * x.T)


@pytest.mark.parametrize("every", [3, None])
def test_active_forgetting_resets_only_the_token_embedding(model, tokens, every):
    optimizer, distribution = make_optimizer(model, lr=0.0), InitialDistribution(model)
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding += 1
    before = copy_of(model)
    mitigation = ActiveForgetting(every=every)
    mitigation.attach(model, optimizer, seed=5, task_steps=3)
    train(model, optimizer, mitigation, tokens, steps=3, task_steps=3)
    for name, parameter in model.named_parameters():
        if parameter is embedding:
            assert torch.equal(parameter, distribution.draw(name, seed=5, step=3))
            assert all((value == 0).all() for value in optimizer.state[parameter].values())
        else:
            assert torch.equal(parameter, before[name]), name
    assert len(mitigation.take_events(3, summarize=True)) == 1


def collapse(model, layer, head):
    """Make the queries and keys of a head so large that its attention is one-hot."""
    heads = find_structure(model).layers[layer].heads
    for partition, member in ((heads.query, head), (heads.key, heads.kv_head(head))):
        for slices in partition.slices([member]):
            slices.write_(1000 * slices.read())


def test_head_reset_measures_what_a_diagnosis_measures(model, tokens):
    mitigation = HeadReset(every=1)
    mitigation.attach(model, make_optimizer(model))
    model(input_ids=tokens, labels=tokens)
    logits = []
    hook = model.register_forward_hook(lambda module, args, output: logits.append(output.logits))
    entropies, shares = mitigation._measure()
    hook.remove()
    assert [one.shape[1] for one in logits] == [1], "the logits of a whole batch may not fit into memory"
    names = ["attention_entropy", "first_token_attention"]
    diagnosis = diagnose(model, tokens, DiagnosticsConfig(measures=names))
    torch.testing.assert_close(entropies, diagnosis[names[0]].per_head)
    torch.testing.assert_close(shares, diagnosis[names[1]].per_head)


def test_head_reset_flags_collapsed_heads_that_are_no_sinks():
    mitigation = HeadReset()
    assert mitigation.flagged([0.05, 0.05, 0.5, 0.95], [0.1, 0.9, 0.1, 0.1]) == [0]
    assert HeadReset(lazy_threshold=0.9).flagged([0.05, 0.05, 0.5, 0.95], [0.1, 0.9, 0.1, 0.1]) == [0, 3]


@pytest.mark.parametrize("mode", ["group", "query"])
def test_head_reset_resets_a_group_once_all_its_heads_are_flagged(mode):
    # Four query heads, two key-value heads.
    model = tiny_model("llama", dropout=0.0).train()
    mitigation, optimizer = HeadReset(mode=mode), make_optimizer(model)
    mitigation.attach(model, optimizer, seed=5)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    before, distribution = copy_of(model), InitialDistribution(model)
    mitigation._reset(7, [[0.01, 0.01, 0.01, 0.5], [0.5] * 4], [[0.0] * 4, [0.0] * 4])
    reset = {"group": [0, 1], "query": [0, 1, 2]}[mode]
    assert mitigation.take_events(7, summarize=False)[0]["touched"] == {"0": reset}
    rows = {"q_proj": range(4 * len(reset)), "o_proj": range(4 * len(reset))}
    if mode == "group":
        rows |= {"k_proj": range(4), "v_proj": range(4)}
    for name, parameter in model.named_parameters():
        expected, child = before[name], name.split(".")[-2]
        if ".layers.0.self_attn." in name and child in rows:
            touched = list(rows[child])
            state = optimizer.state[parameter]
            if child == "o_proj":
                expected[:, touched] = 0
                assert (state["exp_avg"][:, touched] == 0).all()
            else:
                expected[touched] = distribution.draw(name, seed=5, step=7)[touched]
                assert (state["exp_avg"][touched] == 0).all()
        assert torch.equal(parameter, expected), name


def test_logits_do_not_depend_on_the_queries_keys_and_values_of_a_group_that_was_reset(model, tokens):
    mitigation = HeadReset()
    mitigation.attach(model, make_optimizer(model))
    heads = mitigation.structure.layers[0].heads
    group = list(heads.query_heads(0))
    mitigation.reset(heads, group, step=1)
    logits = logits_of(model, tokens)
    for partition, members in ((heads.query, group), (heads.key, [0]), (heads.value, [0])):
        for slices in partition.slices(members):
            slices.write_(torch.randn_like(slices.read()))
    assert torch.equal(logits_of(model, tokens), logits)


def test_head_reset_resets_a_collapsed_head_of_a_training(model, tokens):
    heads = find_structure(model).layers[1].heads
    group = list(heads.query_heads(0))
    for head in group[:1] if heads.count == heads.kv_count else group:
        collapse(model, 1, head)
    # The threshold for sinks is set aside: which token an arbitrary head collapses on is arbitrary.
    mitigation, optimizer = (
        HeadReset(every=2, collapsed_threshold=0.4, sink_threshold=1.0),
        make_optimizer(model, lr=0.0),
    )
    mitigation.attach(model, optimizer)
    train(model, optimizer, mitigation, tokens, steps=2)
    [event] = mitigation.take_events(2, summarize=False)
    assert event["touched"] == {"1": group}
    assert mitigation.batches == []


def test_head_reset_refuses_packed_batches_from_the_first_step(model, tokens):
    mitigation = HeadReset(every=1000)
    mitigation.attach(model, make_optimizer(model))
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with preserve_model(model):
        model(input_ids=tokens, position_ids=positions)
    with pytest.raises(PlasticityError, match="head_reset does not support packed batches"):
        model(input_ids=tokens, position_ids=positions)


def test_head_reset_refuses_a_norm_over_all_heads():
    config = Olmo2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Olmo2ForCausalLM(config)
    with pytest.raises(PlasticityError, match="head_reset is not supported for 'Olmo2ForCausalLM', in which 'q_norm'"):
        HeadReset().attach(model, make_optimizer(model))
