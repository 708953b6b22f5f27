"""Measures of the weights: their magnitude and the ranks of their matrices."""

import math

from transformers import PreTrainedModel

from ..network import Structure, double, non_embedding_parameters, whole
from .config import DiagnosticsConfig
from .measure import Measure, mean_of, name_gaps
from .ranks import RANK_NAMES, singular_values_from_gram, spectrum_ranks


MAGNITUDE_NAMES = ("parameter_magnitude",)
WEIGHT_RANK_NAMES = tuple(f"weight_{name}" for name in RANK_NAMES)


def measure_magnitude(model: PreTrainedModel, structure: Structure) -> dict[str, Measure]:
    """
    `parameter_magnitude`: the mean of |w| over the non-embedding parameters, weights, biases and norms alike
    (huggingface.co/papers/2606.24752 and 2306.13812). Overall and per layer it is a mean over scalars, so that large
    matrices have more weight; `by_kind` gives it for each kind of parameter, over all layers.

    From 0 up. Cost: reading every parameter once.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, parameter in non_embedding_parameters(model).items():
        sums[name] = whole(parameter).abs().float().mean().item() * parameter.numel()
        counts[name] = parameter.numel()

    def mean_over(names: list[str]) -> float | None:
        return math.fsum(sums[name] for name in names) / sum(counts[name] for name in names) if names else None

    kinds: dict[str, list[str]] = {}
    layers: list[list[str]] = [[] for _ in structure.layers]
    for name in sums:
        kinds.setdefault(structure.kind_of(name), []).append(name)
        if (layer := structure.layer_of(name)) is not None:
            layers[layer.index].append(name)
    measure = Measure(
        overall=mean_over(list(sums)),
        per_layer=[mean_over(names) for names in layers],
        detail={"by_kind": {kind: mean_over(names) for kind, names in kinds.items()}},
    )
    return {"parameter_magnitude": measure}


def measure_weight_ranks(
    model: PreTrainedModel, structure: Structure, config: DiagnosticsConfig
) -> dict[str, Measure]:
    """
    `weight_effective_rank`, `weight_stable_rank`, `weight_srank`, `weight_approximate_rank`: the four ranks of
    `ranks.py` of every matrix in the decoder layers, embeddings left out. Per layer the mean over its matrices,
    overall the mean over all; `by_kind` has for each kind of matrix its value in each layer. A fused matrix (GPT-2's
    `c_attn` holds queries, keys and values) is measured as one matrix.

    From 1 to the smaller side of the matrix; 0 for a zero matrix. Cost: for an m × n matrix, m ≤ n, 2·m²·n + O(m³)
    operations in float64, at d_model 1,280 about half a forward pass of 16,384 tokens.
    """
    ranks: dict[str, dict[str, float]] = {}
    gaps: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        layer = structure.layer_of(name)
        if layer is not None and parameter.ndim > 2:
            gaps[layer.index] = f"'{structure.kind_of(name)}' is not a matrix, it has {parameter.ndim} dimensions"
        elif layer is not None and parameter.ndim == 2:
            matrix = double(parameter)
            gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            ranks[name] = spectrum_ranks(singular_values_from_gram(gram), config.delta)
    measures = {}
    for rank in RANK_NAMES:
        by_kind: dict[str, list[float | None]] = {}
        layers: list[list[float]] = [[] for _ in structure.layers]
        for name, values in ranks.items():
            index = structure.layer_of(name).index
            by_kind.setdefault(structure.kind_of(name), [None] * len(layers))[index] = values[rank]
            layers[index].append(values[rank])
        measures[f"weight_{rank}"] = Measure(
            overall=mean_of([values[rank] for values in ranks.values()]),
            per_layer=[mean_of(values) for values in layers],
            detail={"by_kind": by_kind},
            gap=name_gaps(gaps),
        )
    return measures
