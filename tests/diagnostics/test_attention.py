import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config

from hf_plasticity import PlasticityError
from hf_plasticity.diagnostics import DiagnosticsConfig, attention, diagnose, maximum_entropy
from hf_plasticity.diagnostics.attention import AttentionObserver
from hf_plasticity.network import find_structure


T = 8


def observer(layers: int = 1, min_context: int | None = None) -> AttentionObserver:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=layers, n_head=2, vocab_size=16))
    return AttentionObserver(model, find_structure(model), DiagnosticsConfig(min_context=min_context))


def attend(watcher: AttentionObserver, query, key, mask=None) -> torch.Tensor:
    value = torch.randn_like(key)
    return watcher._attention(SimpleNamespace(layer_idx=0), query, key, value, mask, scaling=1.0)[0]


def built_heads() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys (1, 4, T, T) of four heads: uniform, one-hot on itself, one-hot on the first, half and half."""
    one_hot = torch.eye(T)
    first = torch.zeros(T, T)
    first[:, 0] = 1
    key = one_hot.expand(1, 4, T, T)
    query = 1e3 * torch.stack([torch.zeros(T, T), one_hot, first, one_hot + first])[None]
    return query, key


def test_h_max_at_context_2048_is_the_papers():
    assert maximum_entropy(2048) == pytest.approx(6.9215, abs=5e-5)
    with pytest.raises(PlasticityError, match="min_context: 256 keys are more than any query has, 128"):
        maximum_entropy(128, min_context=256)
    assert maximum_entropy(2048) == pytest.approx(sum(math.log(t) for t in range(256, 2049)) / 1793, rel=1e-12)


@pytest.mark.parametrize(
    ("context", "window", "keys"),
    [
        (512, None, range(256, 513)),
        (100, None, range(50, 101)),
        (3, None, range(2, 4)),
        (10, 4, [2, 3, *[4] * 7]),
        (1000, 600, [*range(256, 601), *[600] * 400]),
    ],
)
def test_h_max_depends_on_the_visible_keys(context, window, keys):
    expected = sum(math.log(t) for t in keys) / len(keys)
    assert maximum_entropy(context, window=window) == pytest.approx(expected, rel=1e-12)


def test_uniform_one_hot_and_mixed_heads_have_their_known_entropies():
    watcher = observer()
    attend(watcher, *built_heads())
    measures = watcher.measures()
    h_max = sum(math.log(t) for t in range(4, T + 1)) / 5
    assert measures["attention_entropy"].detail["h_max"] == [pytest.approx(h_max)]
    assert measures["attention_entropy"].detail["queries"] == [5]
    assert measures["attention_entropy"].per_head[0] == pytest.approx([1, 0, 0, math.log(2) / h_max], abs=1e-6)
    assert measures["lazy_heads"].overall == 0.25
    assert measures["collapsed_heads"].overall == 0.5
    harmonic = sum(1 / t for t in range(4, T + 1)) / 5
    assert measures["first_token_attention"].per_head[0] == pytest.approx([harmonic, 0, 1, 0.5], abs=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_neither_query_nor_key(side):
    watcher = observer()
    query, key = built_heads()
    real = torch.ones(1, T, dtype=torch.bool)
    real[:, 6:] = False
    if side == "left":
        real = real.flip(1)
        # The first token is now the third: the heads that attended to place 0 attend to place 2.
        query[:, 2:, :, 2] += query[:, 2:, :, 0]
        query[:, 2:, :, 0] = 0
        query[:, 3, 2, 2] = 1e3
    watcher.tokens = real
    mask = (torch.tril(torch.ones(T, T, dtype=torch.bool)) & real)[None, None]
    attend(watcher, query, key, mask)
    measures = watcher.measures()
    h_max = sum(math.log(t) for t in range(3, 7)) / 4  # six tokens: the queries that see 3 to 6 keys
    assert measures["attention_entropy"].detail["queries"] == [4]
    assert measures["attention_entropy"].per_head[0] == pytest.approx([1, 0, 0, math.log(2) / h_max], abs=1e-6)
    assert measures["first_token_attention"].per_head[0][2:] == pytest.approx([1, 0.5], abs=1e-6)


def test_a_sliding_window_is_uniform_over_what_it_sees_and_first_token_over_who_sees_it():
    watcher = observer()
    band = torch.tril(torch.ones(T, T, dtype=torch.bool)) & ~torch.tril(torch.ones(T, T, dtype=torch.bool), -4)
    attend(watcher, torch.zeros(1, 2, T, T), torch.eye(T).expand(1, 2, T, T), band[None, None])
    measures = watcher.measures()
    assert measures["attention_entropy"].detail["min_context"] == [2]
    assert measures["attention_entropy"].overall == pytest.approx(1)
    assert measures["lazy_heads"].overall == 1
    assert measures["first_token_attention"].overall == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)


def collapse(model) -> None:
    """Every query of every head attends to position 0 alone."""
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wpe.weight[:, 0] = -1.0
        model.transformer.wpe.weight[0, 0] = 1.0
        for block in model.transformer.h:
            width = block.attn.c_attn.weight.shape[0]
            block.attn.c_attn.weight.zero_()
            block.attn.c_attn.bias.zero_()
            block.attn.c_attn.bias[:width] = 100.0
            block.attn.c_attn.weight[0, width : 2 * width] = 1.0


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_whole_model_of_uniform_or_of_collapsed_heads(collapsed):
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16, n_positions=32))
    if collapsed:
        collapse(model)
    else:
        for block in model.transformer.h:
            torch.nn.init.zeros_(block.attn.c_attn.weight)
    diagnosis = diagnose(model, torch.randint(16, (3, 32)))
    assert diagnosis["lazy_heads"].per_layer == [float(not collapsed)] * 2
    assert diagnosis["collapsed_heads"].per_layer == [float(collapsed)] * 2
    expected = 1 if collapsed else sum(1 / t for t in range(16, 33)) / 17
    assert diagnosis["first_token_attention"].overall == pytest.approx(expected, abs=1e-5)


def test_chunks_of_queries_change_nothing(model, monkeypatch):
    blocks = torch.randint(2, 64, (3, 20))
    whole = diagnose(model, blocks)
    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", 3 * 4 * 20 * 3)
    parts = diagnose(model, blocks)
    for layer in range(2):
        assert parts["attention_entropy"].per_head[layer] == pytest.approx(
            whole["attention_entropy"].per_head[layer], abs=1e-6
        )
        assert parts["first_token_attention"].per_head[layer] == pytest.approx(
            whole["first_token_attention"].per_head[layer], abs=1e-6
        )


def test_no_whole_attention_map_is_in_memory(gpt2, monkeypatch):
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            output = function(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                largest = max(largest, output.numel())
            return output

    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", 4096)
    with Watch():
        diagnose(gpt2, torch.randint(64, (8, 64)), DiagnosticsConfig(batch_size=4))
    assert largest < 4 * 4 * 64 * 64 / 2


def test_the_output_of_the_watched_attention_is_the_models(model):
    blocks = torch.randint(2, 64, (2, 20))
    watcher = AttentionObserver(model, find_structure(model), DiagnosticsConfig())
    with torch.no_grad():
        expected = model(blocks).logits
        with watcher.watch():
            torch.testing.assert_close(model(blocks).logits, expected, rtol=1e-4, atol=1e-4)


def test_autocast_does_not_round_the_entropies():
    query, key = torch.randn(2, 1, 4, T, 16).unbind(0)
    exact, cast = observer(), observer()
    attend(exact, 4 * query, key)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attend(cast, 4 * query, key)
    assert cast.measures()["attention_entropy"] == exact.measures()["attention_entropy"]


def test_half_precision_models_are_measured_in_float32(gpt2):
    blocks = torch.randint(64, (2, 20))
    full = diagnose(gpt2, blocks)["attention_entropy"].overall
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert diagnose(gpt2, blocks)["attention_entropy"].overall == pytest.approx(full, abs=0.02)
    assert diagnose(gpt2.bfloat16(), blocks)["attention_entropy"].overall == pytest.approx(full, abs=0.02)


def test_min_context_beyond_the_sequence_is_an_error(gpt2):
    with pytest.raises(PlasticityError, match="min_context: 30 keys are more than the longest sequence has, 20"):
        diagnose(gpt2, torch.randint(64, (2, 20)), DiagnosticsConfig(min_context=30))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 30), st.integers(2, T))
def test_entropy_is_within_range_and_follows_its_head(seed, sharpness, least):
    generator = torch.Generator().manual_seed(seed)
    query = sharpness * torch.randn(2, 3, T, 4, generator=generator)
    key = torch.randn(2, 3, T, 4, generator=generator)
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        watcher = observer(min_context=least)
        attend(watcher, query[:, order], key[:, order])
        results.append(watcher.measures())
    for name in ("attention_entropy", "first_token_attention"):
        heads, permuted = results[0][name].per_head[0], results[1][name].per_head[0]
        assert all(-1e-6 <= head <= 1 + 1e-6 for head in heads)
        assert permuted == pytest.approx([heads[2], heads[0], heads[1]], abs=1e-6)
    assert 0 <= results[0]["lazy_heads"].overall + results[0]["collapsed_heads"].overall <= 1
