"""Model sizes: exactly the parameter counts of the study."""

import math

import pytest
import torch
from transformers import GPT2LMHeadModel

from hf_plasticity import MODEL_SIZES, PlasticityError, gpt2_config, num_non_embedding_parameters, peak_learning_rate
from hf_plasticity.models import PAPER_SIZES
from support.tiny import tiny_model


PAPER_COUNTS = {
    "5M": 4_932_480,
    "12M": 12_072_256,
    "27M": 27_922_752,
    "39M": 39_389_440,
    "53M": 53_610_304,
    "83M": 83_176_704,
    "106M": 106_101_632,
    "314M": 314_841_600,
}


@pytest.mark.parametrize("size", PAPER_COUNTS)
def test_the_papers_sizes_have_exactly_its_parameters(size):
    config = gpt2_config(size, vocab_size=151_680, context_length=2_048)
    assert num_non_embedding_parameters(config) == PAPER_COUNTS[size]
    assert config.n_embd // config.n_head == 64 and 78 <= config.n_embd / config.n_layer <= 91
    assert tuple(PAPER_COUNTS) == PAPER_SIZES


@pytest.mark.parametrize("size", [size for size in MODEL_SIZES if size not in PAPER_COUNTS])
def test_the_micro_ladder_is_named_by_its_parameters(size):
    named = float(size[:-1]) * {"K": 1e3, "M": 1e6}[size[-1]]
    count = num_non_embedding_parameters(gpt2_config(size, vocab_size=257, context_length=128))
    assert count == MODEL_SIZES[size].num_non_embedding_parameters == pytest.approx(named, rel=0.06)


def test_a_model_has_the_architecture_of_the_study():
    config = gpt2_config("25K", vocab_size=300, context_length=64)
    assert (config.activation_function, config.tie_word_embeddings) == ("gelu", True)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0
    assert config.n_inner is None, "four times the width"
    assert max(config.bos_token_id, config.eos_token_id) < 300
    assert gpt2_config("25K", 300, 64, eos_token_id=7).eos_token_id == 7
    model = GPT2LMHeadModel(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert num_non_embedding_parameters(model) == model.num_parameters() - 300 * 32 - 64 * 32


def test_an_untied_head_and_the_embeddings_do_not_count_in_any_family():
    model = tiny_model("llama")
    inner = sum(parameter.numel() for parameter in model.model.layers.parameters()) + model.model.norm.weight.numel()
    assert num_non_embedding_parameters(model) == inner
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert num_non_embedding_parameters(model.config) == inner and torch.get_default_dtype() == torch.float32


def test_the_learning_rate_is_the_papers_at_the_ends_and_a_line_between():
    assert peak_learning_rate("5M") == pytest.approx(3e-3) and peak_learning_rate("314M") == pytest.approx(1e-3)
    share = math.log(83_176_704 / 4_932_480) / math.log(314_841_600 / 4_932_480)
    assert peak_learning_rate("83M") == pytest.approx(math.exp((1 - share) * math.log(3e-3) + share * math.log(1e-3)))
    rates = [peak_learning_rate(size) for size in MODEL_SIZES]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == peak_learning_rate("25K") == 6e-3, "of the sweep"
    assert peak_learning_rate("100K") == peak_learning_rate("2.5M") == 3e-3


def test_an_unknown_size_is_an_error_that_lists_the_sizes():
    with pytest.raises(
        PlasticityError, match=r"size: '7B' is not a model size; choose one of 1\.8K, 3\.8K, 6\.6K, 14K, 25K"
    ):
        gpt2_config("7B", 300, 64)
    with pytest.raises(PlasticityError, match="vocab_size: 0 is not a positive number"):
        gpt2_config("25K", 0, 64)
