"""The models of the study: a size by name, its `GPT2Config` and its learning rate."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import PlasticityError


if TYPE_CHECKING:
    from transformers import GPT2Config

# Of the sizes below 5M, from a sweep (docs/experiments.md): up to 25K, and above.
MICRO_LEARNING_RATES = (6e-3, 3e-3)


@dataclass(frozen=True)
class ModelSize:
    """
    The shape of a GPT-2-style decoder: pre-LN, GELU, MLP expansion 4, tied embeddings.

    Args:
        d_model (`int`): Width of the residual stream.
        layers (`int`): Number of blocks.
        heads (`int`): Attention heads in a block; `d_model / heads` is the head dimension.
    """

    d_model: int
    layers: int
    heads: int

    @property
    def num_non_embedding_parameters(self) -> int:
        """12·L·d² weights, 13·L·d biases and layer norms in the blocks, 2·d in the final layer norm."""
        return 12 * self.layers * self.d_model**2 + 13 * self.layers * self.d_model + 2 * self.d_model


# The eight sizes of the paper (huggingface.co/papers/2606.24752) have head dimension 64 and d_model / layers near 80.
# The paper states only the parameter counts; the shapes are our reconstruction. Below them is a micro ladder for CPUs
# and single GPUs. It follows the same rule as closely as integers and at least two layers allow, with head dimension
# 32, or one head in narrower models.
MODEL_SIZES: dict[str, ModelSize] = {
    "1.8K": ModelSize(8, 2, 1),
    "3.8K": ModelSize(12, 2, 1),
    "6.6K": ModelSize(16, 2, 1),
    "14K": ModelSize(24, 2, 1),
    "25K": ModelSize(32, 2, 1),
    "100K": ModelSize(64, 2, 2),
    "220K": ModelSize(96, 2, 3),
    "400K": ModelSize(128, 2, 4),
    "600K": ModelSize(160, 2, 5),
    "1.3M": ModelSize(192, 3, 6),
    "2.5M": ModelSize(256, 3, 8),
    "5M": ModelSize(320, 4, 5),
    "12M": ModelSize(448, 5, 7),
    "27M": ModelSize(576, 7, 9),
    "39M": ModelSize(640, 8, 10),
    "53M": ModelSize(704, 9, 11),
    "83M": ModelSize(832, 10, 13),
    "106M": ModelSize(896, 11, 14),
    "314M": ModelSize(1280, 16, 20),
}
PAPER_SIZES = ("5M", "12M", "27M", "39M", "53M", "83M", "106M", "314M")


def model_size(size: str) -> ModelSize:
    """
    The shape of a model size.

    Raises:
        [`PlasticityError`]: There is no such size.
    """
    if size not in MODEL_SIZES:
        raise PlasticityError(f"size: '{size}' is not a model size; choose one of {', '.join(MODEL_SIZES)}")
    return MODEL_SIZES[size]


def gpt2_config(size: str, vocab_size: int, context_length: int, **overrides: Any) -> "GPT2Config":
    """
    The `GPT2Config` of a size, as the study trains it: no dropout, tied embeddings, exact GELU.

    Args:
        size (`str`): A name of `MODEL_SIZES`.
        vocab_size (`int`): Rows of the embedding; at least the tokenizer's length.
        context_length (`int`): Longest sequence in tokens.
        **overrides: Any other field of `GPT2Config`. `bos_token_id` and `eos_token_id` default to the last entry of
            the vocabulary, so that they are valid token ids.

    Returns:
        `GPT2Config`: With dropout 0 everywhere.

    Raises:
        [`PlasticityError`]: An unknown size, or a count that is not positive.

    Example:

    ```python
    >>> from hf_plasticity import gpt2_config, num_non_embedding_parameters

    >>> config = gpt2_config("5M", vocab_size=151_680, context_length=2_048)
    >>> num_non_embedding_parameters(config)
    4932480
    ```
    """
    from transformers import GPT2Config

    shape = model_size(size)
    for name, value in (("vocab_size", vocab_size), ("context_length", context_length)):
        if value < 1:
            raise PlasticityError(f"{name}: {value} is not a positive number of tokens")
    settings = {
        "n_embd": shape.d_model,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "vocab_size": vocab_size,
        "n_positions": context_length,
        "activation_function": "gelu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": vocab_size - 1,
        "eos_token_id": vocab_size - 1,
        "use_cache": False,
    }
    return GPT2Config(**(settings | overrides))


def peak_learning_rate(size: str) -> float:
    """
    The peak learning rate of a size: 3e-3 at 5M, 1e-3 at 314M (the paper), and between them a straight line in the
    logarithms of rate and non-embedding parameters (our reading of "interpolated"). Below 5M it is the best rate of a
    sweep over one cycle (docs/experiments.md): 6e-3 up to 25K parameters (swept at 1.8K, 6.6K and 25K), 3e-3 above
    (swept at 100K and 400K).

    Raises:
        [`PlasticityError`]: An unknown size.
    """
    parameters = model_size(size).num_non_embedding_parameters
    smallest, largest = (MODEL_SIZES[name].num_non_embedding_parameters for name in ("5M", "314M"))
    if parameters < smallest:
        return MICRO_LEARNING_RATES[parameters > MODEL_SIZES["25K"].num_non_embedding_parameters]
    position = math.log(parameters / smallest) / math.log(largest / smallest)
    return 3e-3 * (1e-3 / 3e-3) ** position
