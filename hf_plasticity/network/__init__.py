"""
The parts of a model that the rest of the package uses: layers, hidden units and attention heads, parameters and their
shards, initialization, and exact save and restore.
"""

from .activation_checkpointing import enable_activation_checkpointing
from .heads import AttentionHeads
from .initialization import InitialDistribution
from .optimizer import optimizer_moments
from .parameters import (
    embedding_parameters,
    non_embedding_parameters,
    num_non_embedding_parameters,
    output_head_parameters,
)
from .restore import evaluation_mode, preserve_model, preserve_random_state, preserve_with
from .sharding import double, is_fsdp, local, reshard, shard_of, shard_offset, whole
from .slices import Partition, Slices
from .structure import Layer, Structure, find_structure
from .units import HiddenUnits


__all__ = [
    "AttentionHeads",
    "HiddenUnits",
    "InitialDistribution",
    "Layer",
    "Partition",
    "Slices",
    "Structure",
    "double",
    "embedding_parameters",
    "enable_activation_checkpointing",
    "evaluation_mode",
    "find_structure",
    "is_fsdp",
    "local",
    "non_embedding_parameters",
    "num_non_embedding_parameters",
    "optimizer_moments",
    "output_head_parameters",
    "preserve_model",
    "preserve_random_state",
    "preserve_with",
    "reshard",
    "shard_of",
    "shard_offset",
    "whole",
]
