"""New weights from the model's own initialization, the same on every process."""

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hf_plasticity import PlasticityError
from hf_plasticity.network import InitialDistribution
from hf_plasticity.network.initialization import _key
from support.families import CONFIGS, make_model


def wide_gpt2(**settings):
    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(n_embd=128, n_layer=3, n_head=4, vocab_size=500, n_positions=64, **settings))


def test_draws_have_the_mean_and_the_deviation_of_the_models_own_weights(family):
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    distribution = InitialDistribution(model)
    for name, parameter in model.named_parameters():
        draw = distribution.draw(name, seed=0)
        assert (draw.shape, draw.dtype, draw.device.type) == (parameter.shape, torch.float32, "cpu")
        initial = parameter.detach().float()
        if initial.unique().numel() <= 2:
            assert torch.equal(draw, initial), f"{name}: a constant, such as a bias or the weight of a norm"
        else:
            assert initial.numel() > 500
            assert draw.std().item() == pytest.approx(initial.std().item(), rel=0.15), name
            assert abs(draw.mean()) < 5 * initial.std() / math.sqrt(initial.numel()), name


def test_gpt2s_output_projections_are_smaller_by_the_root_of_twice_the_layers():
    distribution = InitialDistribution(wide_gpt2(initializer_range=0.05))
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        deviation = 0.05 / math.sqrt(2 * 3) if name.endswith("c_proj") else 0.05
        draw = distribution.draw(f"transformer.h.2.{name}.weight", seed=1)
        assert draw.std().item() == pytest.approx(deviation, rel=0.03), name


def test_a_draw_is_what_the_models_initialization_draws_from_the_same_random_numbers():
    distribution, name = InitialDistribution(wide_gpt2()), "transformer.h.1.mlp.c_proj.weight"
    generator = torch.Generator().manual_seed(_key(5, 7, name))
    torch.empty(512, 128).normal_(std=0.02, generator=generator)  # of the linear module, before that of the MLP
    expected = torch.empty(512, 128).normal_(std=0.02 / math.sqrt(6), generator=generator)
    assert torch.equal(distribution.draw(name, seed=5, step=7), expected)


def test_a_draw_depends_only_on_seed_step_and_name():
    model = wide_gpt2()
    distribution, name = InitialDistribution(model), "transformer.h.0.mlp.c_fc.weight"
    expected = distribution.draw(name, seed=5, step=7)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(InitialDistribution(model).draw(name, seed=5, step=7), expected)
    assert torch.equal(torch.get_rng_state(), state), "no random number of training is used up"
    others = [
        distribution.draw(name, 5, 8),
        distribution.draw(name, 6, 7),
        distribution.draw(name.replace("h.0", "h.1"), 5, 7),
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([other.flatten(), expected.flatten()]))[0, 1]
        assert abs(correlation) < 0.02


def test_draws_do_not_depend_on_loaded_weights(tmp_path):
    wide_gpt2().save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight"
    draw = InitialDistribution(model).draw(name, seed=0)
    assert draw.std().item() == pytest.approx(0.02, rel=0.03)
    assert not torch.equal(draw, model.get_parameter(name))


def test_weights_without_a_known_initialization_are_an_error():
    model = make_model("llama")
    model.model.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(PlasticityError, match=r"has no parameter 'model\.extra'"):
        InitialDistribution(model).draw("model.extra", seed=0)

    class Silent(GPT2LMHeadModel):
        def _init_weights(self, module):
            pass

    config = copy.deepcopy(CONFIGS["gpt2"])
    config.tie_word_embeddings = False
    with pytest.raises(PlasticityError, match=r"'Silent' does not initialize its parameter 'lm_head\.weight'"):
        InitialDistribution(Silent(config)).draw("lm_head.weight", seed=0)
