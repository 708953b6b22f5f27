"""Distances of the weights from a reference, such as their initialization."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from safetensors import safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from ..errors import PlasticityError
from ..network import Structure, non_embedding_parameters, whole
from ..records import write_atomically
from .measure import Measure


EMBEDDING_NAMES = ("embedding_norm",)
REFERENCE_NAMES = ("distance_from_initialization", "embedding_norm_drift")


class SavedWeights(Mapping):
    """
    The tensors of a `.safetensors` file by name, read one at a time on access.

    Args:
        path (`str` or `os.PathLike`): The file.
    """

    def __init__(self, path: str | os.PathLike):
        if not Path(path).is_file():
            raise PlasticityError(f"reference: '{path}' does not exist; pass the initial weights")
        self._file = safe_open(path, framework="pt")
        self._names = set(self._file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # that of `Mapping` reads the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_weights(model: PreTrainedModel, path: str | os.PathLike, write: bool = True) -> None:
    """
    Save every parameter of a model for use as a reference, shared parameters once. Under FSDP2, every rank must call
    this; only ranks with `write` keep the weights and write the file.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = whole(parameter)
        if write:
            weights[name] = tensor.cpu().contiguous()
    if write:
        write_atomically(path, save(weights))


def measure_embedding_norm(model: PreTrainedModel) -> dict[str, Measure]:
    """
    `embedding_norm`: the mean Euclidean norm of the rows of the token embedding. From 0 up. Cost: reading it once.
    """
    embedding = model.get_input_embeddings()
    if isinstance(embedding, BaseTunerLayer | TrainableTokensWrapper):
        return {"embedding_norm": Measure(None, gap="its token embedding has adapters")}
    return {"embedding_norm": Measure(_row_norms(embedding.weight).mean().item())}


def measure_drift(
    model: PreTrainedModel, structure: Structure, reference: Mapping[str, torch.Tensor]
) -> dict[str, Measure]:
    """
    `distance_from_initialization`: ‖θ − θ₀‖₂ over the non-embedding parameters, overall and within each layer (the
    quantity that L2 Init, huggingface.co/papers/2308.11958, keeps small), with `relative`, the same divided by ‖θ₀‖₂.
    `embedding_norm_drift`: the mean row norm of the token embedding now, divided by that of the reference, minus 1,
    with `displacement`, the mean of ‖eᵢ − e₀ᵢ‖₂ over rows.

    The distance ranges from 0 up, the drift from −1 up. Cost: reading every parameter and its reference once.

    Args:
        reference (`Mapping[str, torch.Tensor]`): The earlier weights, by the names of `model.named_parameters()`.

    Raises:
        [`PlasticityError`]: The reference lacks a parameter or has it in another shape.
    """
    squares, reference_squares = [0.0] * (len(structure.layers) + 1), [0.0] * (len(structure.layers) + 1)
    for name, parameter in non_embedding_parameters(model).items():
        now, then = whole(parameter).float(), _look_up(reference, name, parameter)
        layer = structure.layer_of(name)
        index = len(structure.layers) if layer is None else layer.index
        squares[index] += torch.linalg.vector_norm(now - then).item() ** 2
        reference_squares[index] += torch.linalg.vector_norm(then).item() ** 2
    overall, size = math.sqrt(math.fsum(squares)), math.sqrt(math.fsum(reference_squares))

    embedding = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is embedding)
    then = _look_up(reference, name, embedding)
    norm, reference_norm = _row_norms(embedding).mean().item(), _row_norms(then).mean().item()
    displacement = _row_norms(whole(embedding).float() - then).mean().item()
    return {
        "distance_from_initialization": Measure(
            overall=overall,
            per_layer=[math.sqrt(square) for square in squares[:-1]],
            detail={"relative": overall / size if size else None},
        ),
        "embedding_norm_drift": Measure(
            overall=norm / reference_norm - 1 if reference_norm else None,
            detail={"norm": norm, "reference_norm": reference_norm, "displacement": displacement},
            undefined=None if reference_norm else "the reference embedding is zero",
        ),
    }


def _row_norms(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(whole(weight).float(), dim=1)


def _look_up(reference: Mapping[str, torch.Tensor], name: str, parameter: torch.Tensor) -> torch.Tensor:
    if name not in reference:
        raise PlasticityError(f"reference: it has no '{name}'; pass weights of the same model")
    tensor = reference[name]
    if tensor.shape != parameter.shape:
        raise PlasticityError(
            f"reference: '{name}' has shape {tuple(tensor.shape)}, the model has {tuple(parameter.shape)}"
        )
    return tensor.to(parameter.device).float()
