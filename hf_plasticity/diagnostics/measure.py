"""One measure: its values, details, and the reason if it is missing or incomplete."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Measure:
    """
    The result of one measure.

    Args:
        overall (`float`, *optional*): The value for the whole model; `None` if nothing could be measured.
        per_layer (`list[float | None]`): A value for each decoder layer, `None` for one that could not be measured;
            empty for a measure without layers.
        per_head (`list[list[float] | None]`, *optional*): For each layer a value for each query head.
        detail (`dict`): Further fields of the record, JSON-serializable.
        scores (`list[torch.Tensor | None]`, *optional*): For each layer a score for each unit; kept in memory, not
            recorded.
        gap (`str`, *optional*): What cannot be measured for models of this kind, and why.
        undefined (`str`, *optional*): Why it has no value for these weights, although the model is supported.
    """

    overall: float | None
    per_layer: list[float | None] = field(default_factory=list)
    per_head: list[list[float] | None] | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    scores: list[torch.Tensor | None] | None = field(default=None, repr=False)
    gap: str | None = None
    undefined: str | None = None

    def is_finite(self) -> bool:
        """Whether every number that would be recorded is finite."""
        return all(math.isfinite(number) for number in _numbers(self.record()))

    def record(self) -> dict[str, Any]:
        """The measure as it is written to a record: seven significant digits, `scores` left out."""
        record = {"overall": self.overall, "per_layer": self.per_layer}
        if self.per_head is not None:
            record["per_head"] = self.per_head
        return _rounded(record | self.detail)


def mean_of(values: list[float | None]) -> float | None:
    """The mean of the values that are not `None`; `None` if there are none."""
    measured = [value for value in values if value is not None]
    return math.fsum(measured) / len(measured) if measured else None


def name_gaps(reasons: dict[int, str]) -> str | None:
    """One line for the layers that could not be measured, grouped by reason: `layers 0, 2: no MLP was found`."""
    if not reasons:
        return None
    grouped: dict[str, list[str]] = {}
    for layer, reason in sorted(reasons.items()):
        grouped.setdefault(reason, []).append(str(layer))
    return "; ".join(
        f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}: {reason}" for reason, layers in grouped.items()
    )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
