import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from hf_plasticity.diagnostics import DiagnosticsConfig, diagnose
from hf_plasticity.diagnostics.curvature import largest_eigenvalue
from hf_plasticity.diagnostics.gradients import causal_lm_loss


def quadratic(eigenvalues: list[float], seed: int = 0) -> tuple:
    """v ↦ Hv for the Hessian H of ½xᵀHx with these eigenvalues, differentiated twice, and a random start."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    hessian = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    x = torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)

    def product(v):
        gradient = torch.autograd.grad(x @ hessian @ x / 2, x, create_graph=True)[0]
        return [torch.autograd.grad(gradient @ v[0], x)[0]]

    return product, [torch.randn(size, generator=generator, dtype=torch.float64)]


@pytest.mark.parametrize(
    ("eigenvalues", "largest"),
    [
        ([4.0, 1.0, -2.0], 4.0),
        ([-9.0, 4.0, 1.0], 4.0),  # largest in absolute value is not the largest
        ([5.0, -5.0, 1.0], 5.0),  # plain power iteration never converges
        ([-3.0, -1.0, -2.0], -1.0),
        ([7.0], 7.0),
    ],
)
def test_the_largest_eigenvalue_of_a_quadratic(eigenvalues, largest):
    found = largest_eigenvalue(*quadratic(eigenvalues), iterations=500, tolerance=1e-6)
    assert found.value == pytest.approx(largest, rel=1e-4)
    assert found.converged


def test_a_zero_hessian_has_largest_eigenvalue_zero():
    found = largest_eigenvalue(lambda v: [torch.zeros_like(v[0])], [torch.ones(3)], iterations=5, tolerance=1e-3)
    assert (found.value, found.converged) == (0.0, True)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.integers(1, 30), st.floats(0.1, 10))
def test_the_eigenvalue_is_a_lower_bound_and_scales_with_the_loss(eigenvalues, iterations, scale):
    product, start = quadratic(eigenvalues)
    found = largest_eigenvalue(product, start, iterations, tolerance=1e-3)
    assert min(eigenvalues) - 1e-4 <= found.value <= max(eigenvalues) + 1e-4
    scaled = largest_eigenvalue(lambda v: [scale * product(v)[0]], start, iterations, tolerance=1e-3)
    assert scaled.value == pytest.approx(scale * found.value, rel=1e-2, abs=1e-2)


CONFIGS = {
    "gpt2": GPT2Config(n_embd=4, n_layer=1, n_head=1, n_inner=4, vocab_size=6, n_positions=6, initializer_range=0.5),
    "llama": LlamaConfig(
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=6,
        vocab_size=6,
        initializer_range=0.5,
    ),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_model_against_its_whole_hessian(name):
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    blocks = torch.randint(6, (4, 6))
    parameters = list(model.parameters())
    model.set_attn_implementation("eager")
    gradients = torch.autograd.grad(causal_lm_loss(model, blocks, None), parameters, create_graph=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    hessian = torch.stack(
        [
            torch.cat([part.flatten() for part in torch.autograd.grad(entry, parameters, retain_graph=True)])
            for entry in flat
        ]
    )
    expected = np.linalg.eigvalsh((hessian + hessian.T).double().numpy() / 2)[-1]
    model.set_attn_implementation("sdpa")
    config = DiagnosticsConfig(
        measures=["hessian_largest_eigenvalue"], hessian_iterations=300, hessian_tolerance=1e-2, gradient_batch_size=2
    )
    found = diagnose(model, blocks, config)["hessian_largest_eigenvalue"]
    assert found.overall == pytest.approx(expected, rel=1e-3)
    assert abs(found.overall - expected) <= found.detail["residual"] + 1e-4
    assert model.config._attn_implementation == "sdpa"
    settings = {"measures": ["hessian_largest_eigenvalue"], "hessian_iterations": 3}
    some = diagnose(model, torch.cat([blocks, blocks.flip(1)]), DiagnosticsConfig(**settings, hessian_sequences=4))
    assert some.scalars() == diagnose(model, blocks, DiagnosticsConfig(**settings)).scalars()
