"""Every family against a slow computation that shares no code: eager attention maps, activations, a full SVD."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MixtralConfig, Qwen2MoeConfig

from hf_plasticity import PlasticityError, num_non_embedding_parameters
from hf_plasticity.diagnostics import DEFAULT_MEASURES, DiagnosticsConfig, diagnose
from hf_plasticity.network import find_structure, non_embedding_parameters
from support.diagnosed_families import CONFIGS
from support.tiny import VOCABULARY, tiny_model


T = 20


def random_blocks(count: int = 3) -> torch.Tensor:
    return torch.randint(2, 64, (count, T))


def padding(count: int = 3) -> torch.Tensor:
    """Right padding: sequences of 20, 15 and 11 tokens."""
    lengths = torch.tensor([20, 15, 11])[:count]
    return (torch.arange(T) < lengths[:, None]).long()


def eager_maps(model, blocks, mask) -> list[torch.Tensor]:
    """The attention maps (B, H, T, T) of each layer, from the model's own eager code."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(blocks, attention_mask=mask, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return list(maps)


def slow_heads(maps, mask, window, min_context=None) -> tuple[np.ndarray, np.ndarray, float]:
    """Entropy ratio and first-token share of each head, by a loop over queries; and H_max."""
    batch = len(maps)
    seen = [min(int(row.sum()), window or T) for row in mask]
    least = min_context or max(2, min(256, max(seen) // 2))
    entropies, largest, shares = [], [], []
    for b in range(batch):
        for t in range(T):
            keys = min(t + 1, window or T)
            if not mask[b, t] or keys < least:
                continue
            a = maps[b, :, t].double().numpy()
            entropies.append([-sum(x * math.log(x) for x in row if x > 0) for row in a])
            largest.append(math.log(keys))
            if t + 1 <= (window or T):
                shares.append(a[:, 0])
    h_max = float(np.mean(largest))
    return np.mean(entropies, 0) / h_max, np.mean(shares, 0), h_max


@pytest.mark.parametrize("padded", [False, True])
def test_heads_agree_with_eager_attention_maps(model, windows, padded):
    blocks, mask = random_blocks(), padding() if padded else torch.ones(3, T, dtype=torch.long)
    diagnosis = diagnose(model, blocks, DiagnosticsConfig(batch_size=2), attention_mask=mask)
    entropy, share = diagnosis["attention_entropy"], diagnosis["first_token_attention"]
    ratios = []
    for layer, maps in enumerate(eager_maps(model, blocks, mask if padded else None)):
        ratio, first, h_max = slow_heads(maps, mask, windows[layer])
        ratios.append(ratio)
        assert entropy.detail["h_max"][layer] == pytest.approx(h_max, rel=1e-9)
        np.testing.assert_allclose(entropy.per_head[layer], ratio, atol=2e-5)
        np.testing.assert_allclose(share.per_head[layer], first, atol=2e-5)
    assert np.std(ratios) > 0.002  # heads that differ, or the comparison would say little
    assert diagnosis["lazy_heads"].per_layer == [float((r > 0.9).mean()) for r in ratios]
    assert diagnosis["collapsed_heads"].overall == float((np.array(ratios) < 0.1).mean())


@pytest.mark.parametrize("padded", [False, True])
def test_units_agree_with_activation_times_up_projection(model, family, padded):
    blocks, mask = random_blocks(), padding() if padded else torch.ones(3, T, dtype=torch.long)
    parts: dict[str, list[torch.Tensor]] = {}

    def keep(name):
        return lambda module, args, output: parts.setdefault(name, []).append(output.detach())

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name.endswith((".act", ".act_fn", ".activation_fn", ".up_proj", ".gate_up_proj"))
    ]
    with torch.no_grad():
        model(blocks, attention_mask=mask if padded else None)
    for handle in handles:
        handle.remove()
    diagnosis = diagnose(model, blocks, DiagnosticsConfig(batch_size=2), attention_mask=mask)
    for layer, scores in enumerate(diagnosis["dormant_units"].scores):
        names = {name.rsplit(".", 1)[1]: values[0] for name, values in parts.items() if f".{layer}." in name}
        hidden = next(value for name, value in names.items() if name.startswith("act"))
        if "up_proj" in names:
            hidden = hidden * names["up_proj"]
        if "gate_up_proj" in names:
            hidden = hidden * names["gate_up_proj"].chunk(2, -1)[1]
        magnitude = hidden.reshape(3 * T, -1)[mask.flatten().bool()].abs().double().mean(0)
        np.testing.assert_allclose(scores, magnitude / magnitude.mean(), rtol=1e-5)


def test_feature_ranks_agree_with_a_full_svd(model):
    blocks = random_blocks()
    with torch.no_grad():
        outputs = model(blocks, output_hidden_states=True)
    # The last of `hidden_states` has gone through the final norm: what the head reads.
    final = outputs.hidden_states[-1].flatten(0, 1).double()
    sigma = torch.linalg.svdvals(final)
    p = sigma / sigma.sum()
    diagnosis = diagnose(model, blocks, DiagnosticsConfig(batch_size=2))
    assert diagnosis["feature_effective_rank"].overall == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-5)
    assert diagnosis["feature_stable_rank"].overall == pytest.approx(
        float(final.square().sum() / sigma[0] ** 2), rel=1e-5
    )
    assert diagnosis["feature_srank"].overall == int((p.cumsum(0) < 0.99).sum()) + 1
    first = torch.linalg.svdvals(outputs.hidden_states[1].flatten(0, 1).double())
    assert diagnosis["feature_stable_rank"].per_layer[0] == pytest.approx(
        float((first**2).sum() / first[0] ** 2), rel=1e-4
    )


def test_weight_ranks_agree_with_a_full_svd(model):
    diagnosis = diagnose(model, random_blocks(), DiagnosticsConfig(measures=["weight_stable_rank", "weight_srank"]))
    stable, sranks = [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and (".h." in name or ".layers." in name):
            sigma = torch.linalg.svdvals(parameter.detach().double())
            stable.append(float((sigma**2).sum() / sigma[0] ** 2))
            sranks.append(int((sigma.cumsum(0) / sigma.sum() < 0.99).sum()) + 1)
    assert diagnosis["weight_stable_rank"].overall == pytest.approx(np.mean(stable))
    assert diagnosis["weight_srank"].overall == pytest.approx(np.mean(sranks))


def test_non_embedding_parameters_are_those_the_package_counts(model):
    count = sum(parameter.numel() for parameter in non_embedding_parameters(model).values())
    assert count == num_non_embedding_parameters(model)


def test_every_default_measure_is_taken_of_every_family(model):
    diagnosis = diagnose(model, random_blocks())
    assert set(diagnosis.measures) == set(DEFAULT_MEASURES)
    assert diagnosis.not_measured == {}


def test_a_window_shorter_than_min_context_is_not_measured():
    model = AutoModelForCausalLM.from_config(CONFIGS["gemma2"])
    diagnosis = diagnose(model, random_blocks(), DiagnosticsConfig(min_context=10))
    assert diagnosis["lazy_heads"].per_layer[0] is None and diagnosis["lazy_heads"].per_layer[1] is not None
    assert diagnosis.not_measured["lazy_heads"] == "layer 0: no query sees min_context = 10 keys; the maximum is 8"


UNSUPPORTED = {
    "mixtral": MixtralConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=64,
        num_local_experts=2,
    ),
    "qwen2_moe": Qwen2MoeConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        vocab_size=64,
        num_experts=2,
        num_experts_per_tok=1,
    ),
    "bloom": BloomConfig(hidden_size=24, n_layer=2, n_head=4, vocab_size=64),
}


@pytest.mark.parametrize("name", list(UNSUPPORTED))
def test_unsupported_measures_are_named_and_raise_if_requested(name):
    model = AutoModelForCausalLM.from_config(UNSUPPORTED[name])
    diagnosis = diagnose(model, random_blocks())
    assert "dormant_units" not in diagnosis.measures
    assert "hidden units are not known" in diagnosis.not_measured["dormant_units"]
    assert ("lazy_heads" in diagnosis.not_measured) == (name == "bloom")
    assert ("weight_srank" in diagnosis.not_measured) == (name != "bloom")
    with pytest.raises(PlasticityError, match="'dormant_units' is not supported for this model: layers 0, 1: "):
        diagnose(model, random_blocks(), DiagnosticsConfig(measures=["dormant_units"]))


def test_the_down_projection_is_found_in_every_family(model, family):
    names = {module: name for name, module in model.named_modules()}
    found = [names[layer.down_projection].rsplit(".", 1)[1] for layer in find_structure(model).layers]
    expected = {"gpt2": "c_proj", "gpt_neox": "dense_4h_to_h", "opt": "fc2"}.get(family, "down_proj")
    assert found == [expected, expected]


def test_the_down_projection_is_the_last_when_all_matrices_are_square():
    for family, name, width in (("gpt2", "c_proj", "n_inner"), ("llama", "down_proj", "intermediate_size")):
        config = copy.deepcopy(CONFIGS[family])
        setattr(config, width, 24)
        layer = find_structure(AutoModelForCausalLM.from_config(config)).layers[0]
        assert layer.down_projection is getattr(layer.module.mlp, name)


def test_quantized_weights_are_a_gap_and_not_numbers():
    model = tiny_model("llama")
    model.packed = torch.nn.Parameter(torch.randint(256, (4, 4), dtype=torch.uint8), requires_grad=False)
    diagnosis = diagnose(model, torch.randint(VOCABULARY, (4, 12)))
    for name in ("parameter_magnitude", "weight_effective_rank"):
        assert name not in diagnosis.measures and diagnosis.not_measured[name] == "its weights are quantized"
