"""What the other parts of the package need to know of a model."""

from .parameters import (
    embedding_parameters,
    non_embedding_parameters,
    num_non_embedding_parameters,
    output_head_parameters,
)
from .restore import evaluation_mode, preserve_model, preserve_random_state, preserve_with
from .sharding import double, is_fsdp, local, reshard, whole
from .structure import Layer, Structure, find_structure


__all__ = [
    "Layer",
    "Structure",
    "double",
    "embedding_parameters",
    "evaluation_mode",
    "find_structure",
    "is_fsdp",
    "local",
    "non_embedding_parameters",
    "num_non_embedding_parameters",
    "output_head_parameters",
    "preserve_model",
    "preserve_random_state",
    "preserve_with",
    "reshard",
    "whole",
]
