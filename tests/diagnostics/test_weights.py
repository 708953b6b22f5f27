import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config

from hf_plasticity import PlasticityError
from hf_plasticity.diagnostics import DiagnosticsConfig, diagnose, save_weights


BLOCKS = torch.zeros(2, 4, dtype=torch.long)


def small() -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16, n_positions=8))


def test_magnitude_is_the_mean_over_scalars_without_embeddings():
    model = small()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".0." in name else -3.0 if ".1." in name else 5.0)
    magnitude = diagnose(model, BLOCKS, DiagnosticsConfig(measures=["parameter_magnitude"]))["parameter_magnitude"]
    layer = 12 * 8**2 + 13 * 8
    assert magnitude.per_layer == [1.0, 3.0]
    assert magnitude.overall == pytest.approx((layer * 1 + layer * 3 + 2 * 8 * 5) / (2 * layer + 2 * 8))
    assert magnitude.detail["by_kind"]["attn.c_attn.weight"] == 2.0
    assert magnitude.detail["by_kind"]["transformer.ln_f.weight"] == 5.0
    assert not any("wte" in kind or "wpe" in kind or "lm_head" in kind for kind in magnitude.detail["by_kind"])


def test_magnitude_scales_with_the_weights():
    model = small()
    config = DiagnosticsConfig(measures=["parameter_magnitude"])
    before = diagnose(model, BLOCKS, config)["parameter_magnitude"].overall
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-2.0)
    assert diagnose(model, BLOCKS, config)["parameter_magnitude"].overall == pytest.approx(2 * before)


def test_weight_ranks_are_known_for_matrices_of_known_rank():
    model = small()
    with torch.no_grad():
        for block in model.transformer.h:
            for matrix in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                matrix.weight.zero_()
                matrix.weight[:3, :3] = torch.eye(3)
        model.transformer.h[1].mlp.c_fc.weight.zero_()
    config = DiagnosticsConfig(measures=["weight_effective_rank", "weight_stable_rank", "weight_srank"])
    diagnosis = diagnose(model, BLOCKS, config)
    for name in config.measures:
        assert diagnosis[name].per_layer == pytest.approx([3.0, 9 / 4])
        assert diagnosis[name].overall == pytest.approx(21 / 8)
        assert diagnosis[name].detail["by_kind"]["mlp.c_fc.weight"] == pytest.approx([3.0, 0.0])


def test_a_shared_matrix_counts_once_and_a_fused_one_as_one():
    kinds = diagnose(small(), BLOCKS)["weight_srank"].detail["by_kind"]
    assert set(kinds) == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}


def test_distance_and_drift_of_a_known_move(tmp_path):
    model = small()
    save_weights(model, tmp_path / "initial.safetensors")
    reference = {name: tensor.clone() for name, tensor in load_file(tmp_path / "initial.safetensors").items()}
    assert set(reference) == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        model.transformer.h[0].ln_1.bias.add_(3.0)  # 8 numbers: √(8 · 9)
        model.transformer.h[1].ln_1.bias[0] -= 4.0
        model.transformer.wte.weight.mul_(1.5)
    for source in (reference, tmp_path / "initial.safetensors"):
        diagnosis = diagnose(model, BLOCKS, reference=source)
        distance, drift = diagnosis["distance_from_initialization"], diagnosis["embedding_norm_drift"]
        assert distance.per_layer == pytest.approx([72**0.5, 4.0], rel=1e-6)
        assert distance.overall == pytest.approx((72 + 16) ** 0.5, rel=1e-6)
        assert drift.overall == pytest.approx(0.5, rel=1e-5)
        assert drift.detail["displacement"] == pytest.approx(0.5 * drift.detail["reference_norm"], rel=1e-5)
        assert diagnosis["embedding_norm"].overall == pytest.approx(drift.detail["norm"])


def test_drift_without_a_reference_is_left_out_by_default_and_an_error_by_name(tmp_path):
    model = small()
    diagnosis = diagnose(model, BLOCKS)
    assert "distance_from_initialization" not in diagnosis.measures
    config = DiagnosticsConfig(measures=["distance_from_initialization"])
    with pytest.raises(PlasticityError, match="'distance_from_initialization' requires a reference"):
        diagnose(model, BLOCKS, config)
    with pytest.raises(PlasticityError, match="does not exist"):
        diagnose(model, BLOCKS, config, reference=tmp_path / "nowhere.safetensors")
    with pytest.raises(PlasticityError, match="reference: it has no 'transformer"):
        diagnose(model, BLOCKS, config, reference={"other": torch.zeros(1)})
