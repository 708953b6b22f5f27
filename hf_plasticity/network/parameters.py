"""The embeddings, the output head and the other parameters of a causal language model."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def embedding_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """
    Token embeddings, learned position embeddings and the output head, by name; each shared parameter once.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    embeddings |= {id(parameter) for parameter in output_head_parameters(model).values()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in embeddings}


def non_embedding_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """All parameters but the `embedding_parameters`, by name; each shared parameter once."""
    embeddings = embedding_parameters(model)
    return {name: parameter for name, parameter in model.named_parameters() if name not in embeddings}


def output_head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """
    The parameters of the output head by name, empty for a model without one. The weight of a tied head has the name
    of the token embedding.
    """
    head = model.get_output_embeddings()
    parameters = set() if head is None else {id(parameter) for parameter in head.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in parameters}


def num_non_embedding_parameters(model: PreTrainedModel | PreTrainedConfig) -> int:
    """
    The number of parameters other than token embeddings, learned position embeddings and the output head: P in the
    law of the study.

    Args:
        model (`PreTrainedModel` or `PreTrainedConfig`): A causal language model, or the configuration of one, from
            which a model without storage is built and counted.

    Returns:
        `int`: The count; each tied or shared parameter counts once.
    """
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model)
    return sum(parameter.numel() for parameter in non_embedding_parameters(model).values())
