"""The parameters of the embeddings and of the output head."""

import torch
from transformers import AutoModelForCausalLM

from hf_plasticity.network import (
    embedding_parameters,
    non_embedding_parameters,
    num_non_embedding_parameters,
    output_head_parameters,
)
from support.families import CONFIGS, make_model


EMBEDDINGS = {
    "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
    "gpt_neox": {"gpt_neox.embed_in.weight", "lm_head.weight"},
    "gptj": {"transformer.wte.weight", "lm_head.weight", "lm_head.bias"},
    "opt": {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"},
    "gemma2": {"model.embed_tokens.weight"},
    "llama": {"model.embed_tokens.weight", "lm_head.weight"},
}
HEADS = {"gpt2": {"transformer.wte.weight"}, "gptj": {"lm_head.weight", "lm_head.bias"}, "llama": {"lm_head.weight"}}


def test_embeddings_are_found_by_name_in_every_family():
    for family, expected in EMBEDDINGS.items():
        assert embedding_parameters(make_model(family)).keys() == expected, family
    for family, expected in HEADS.items():
        assert output_head_parameters(make_model(family)).keys() == expected, family


def test_every_parameter_is_either_an_embedding_or_not(model):
    embeddings, rest = embedding_parameters(model), non_embedding_parameters(model)
    assert embeddings.keys().isdisjoint(rest)
    assert embeddings | rest == dict(model.named_parameters())
    assert num_non_embedding_parameters(model) == sum(parameter.numel() for parameter in rest.values())


def test_a_configuration_has_the_parameter_count_of_its_model(family):
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    state = torch.get_rng_state()
    assert num_non_embedding_parameters(CONFIGS[family]) == num_non_embedding_parameters(model)
    assert torch.equal(torch.get_rng_state(), state)
