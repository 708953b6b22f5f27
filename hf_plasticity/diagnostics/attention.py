"""Lazy and collapsed heads, and the share of attention that goes to the first token."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ..errors import PlasticityError
from ..network import Structure
from .config import DiagnosticsConfig
from .measure import Measure, mean_of, name_gaps
from .observer import Observer


IMPLEMENTATION = "hf_plasticity_entropy"
DEFAULT_MIN_CONTEXT = 256
# Attention weights in memory at a time: 2^24 floats are 64 MiB, and about three such tensors exist at once.
CHUNK_ELEMENTS = 2**24


def default_min_context(context_length: int) -> int:
    """The fewest visible keys of a counted query: 256, or half the context if it is under 512; at least 2."""
    return max(2, min(DEFAULT_MIN_CONTEXT, context_length // 2))


def maximum_entropy(context_length: int, min_context: int | None = None, window: int | None = None) -> float:
    """
    H_max: the mean of the largest possible entropy, ln t for t visible keys, over the queries with at least
    `min_context` visible keys.

    Args:
        context_length (`int`): Tokens in a sequence; query t has t visible keys.
        min_context (`int`, *optional*): Fewest keys; by default 256, or half the context if it is under 512.
        window (`int`, *optional*): The sliding window, the maximum number of visible keys.

    Raises:
        [`PlasticityError`]: No query has so many visible keys.

    Example:

    ```python
    >>> from hf_plasticity.diagnostics import maximum_entropy

    >>> round(maximum_entropy(2_048), 4)
    6.9215
    ```
    """
    queries = torch.zeros(context_length + 1, dtype=torch.float64)
    for position in range(1, context_length + 1):
        queries[min(position, window or position)] += 1
    context = min(context_length, window or context_length)
    fewest = min_context or default_min_context(context)
    if fewest > context:
        raise PlasticityError(f"min_context: {fewest} keys are more than any query has, {context}")
    return _maximum_entropy(queries, fewest)


def _maximum_entropy(queries: torch.Tensor, min_context: int) -> float:
    keys = torch.arange(len(queries), dtype=torch.float64)[min_context:]
    return ((queries[min_context:] * keys.log()).sum() / queries[min_context:].sum()).item()


class HeadStatistics:
    """
    Sums over the queries of one layer by the number of visible keys, so that the counted queries can be chosen at the
    end.

    Args:
        heads (`int`): Query heads.
    """

    def __init__(self, heads: int):
        self.queries = torch.zeros(0, dtype=torch.float64)
        self.entropy = torch.zeros(0, heads, dtype=torch.float64)
        self.first_queries = torch.zeros(0, dtype=torch.float64)
        self.first_share = torch.zeros(0, heads, dtype=torch.float64)

    def add(self, keys: torch.Tensor, sees_first: torch.Tensor, entropy: torch.Tensor, share: torch.Tensor) -> None:
        """
        Add queries.

        Args:
            keys (`torch.Tensor` of shape `(n,)`): The number of visible keys of each.
            sees_first (`torch.Tensor` of shape `(n,)`): Whether the first token is among them.
            entropy (`torch.Tensor` of shape `(n, heads)`): Entropy of the query's attention, in nats.
            share (`torch.Tensor` of shape `(n, heads)`): The attention that goes to the first token.
        """
        missing = int(keys.max()) + 1 - len(self.queries)
        if missing > 0:
            for name in ("queries", "entropy", "first_queries", "first_share"):
                old = getattr(self, name)
                setattr(self, name, torch.cat([old, old.new_zeros(missing, *old.shape[1:])]))
        self.queries.index_add_(0, keys, torch.ones_like(keys, dtype=torch.float64))
        self.entropy.index_add_(0, keys, entropy.double())
        self.first_queries.index_add_(0, keys, sees_first.double())
        self.first_share.index_add_(0, keys, share.double() * sees_first[:, None])

    @property
    def context(self) -> int:
        """The largest number of visible keys: the sequence, or the window."""
        return len(self.queries) - 1


class AttentionObserver(Observer):
    """
    `attention_entropy`: for each query head the entropy −Σ a ln a of its attention, averaged over the queries with at
    least `min_context` visible keys, divided by H_max, the mean of ln t over the same queries (t visible keys).
    `lazy_heads`: the fraction of heads above 0.9, nearly uniform. `collapsed_heads`: the fraction below 0.1, nearly
    one-hot (huggingface.co/papers/2606.24752; the limit of 256 keys is inferred from its H_max = 6.9215 at context
    2,048). `first_token_attention`: the mean attention that goes to the first token of the sequence, over the same
    queries if it is visible to them (attention sinks, huggingface.co/papers/2309.17453).

    In a layer with a sliding window, H_max and the default of `min_context` refer to the keys within the window.
    Padding is excluded from queries and keys.

    All four range from 0 to 1. Cost: attention without a fused kernel, instead of that of the model: 2·B·H·T²·D
    multiply-adds per layer. At most `CHUNK_ELEMENTS` attention weights are in memory at a time.
    """

    names = ("attention_entropy", "lazy_heads", "collapsed_heads", "first_token_attention")

    def __init__(self, model: PreTrainedModel, structure: Structure, config: DiagnosticsConfig):
        super().__init__(model, structure, config)
        self.statistics: dict[int, HeadStatistics] = {}
        self.gap = self._unsupported()

    @contextmanager
    def watch(self) -> Iterator[None]:
        if self.gap is not None:
            yield
            return
        AttentionInterface.register(IMPLEMENTATION, self._attention)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
        implementation = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation(IMPLEMENTATION)
            yield
        finally:
            self.model.set_attn_implementation(implementation)
            # Otherwise the bound method would keep the model in memory.
            del AttentionInterface._global_mapping[IMPLEMENTATION]

    def measures(self) -> dict[str, Measure]:
        layers = range(len(self.structure.layers))
        ratios: list[list[float] | None] = [None] * len(layers)
        shares: list[list[float] | None] = [None] * len(layers)
        detail: dict[str, list] = {name: [None] * len(layers) for name in ("h_max", "min_context", "queries")}
        gaps = dict.fromkeys(layers, self.gap) if self.gap is not None else {}
        for layer in layers if self.gap is None else ():
            if layer not in self.statistics:
                gaps[layer] = "its attention is not supported"
                continue
            statistics = self.statistics[layer]
            least = self.config.min_context or default_min_context(statistics.context)
            if statistics.context < least:
                gaps[layer] = f"no query sees min_context = {least} keys; the maximum is {statistics.context}"
                continue
            h_max, queries = _maximum_entropy(statistics.queries, least), statistics.queries[least:].sum()
            ratios[layer] = (statistics.entropy[least:].sum(0) / queries / h_max).tolist()
            shares[layer] = (statistics.first_share[least:].sum(0) / statistics.first_queries[least:].sum()).tolist()
            for name, value in (("h_max", h_max), ("min_context", least), ("queries", int(queries))):
                detail[name][layer] = value
        gap = name_gaps(gaps)
        return {
            "attention_entropy": _head_measure(ratios, gap, detail),
            "lazy_heads": self._fraction(ratios, gap, self.config.lazy_threshold, above=True),
            "collapsed_heads": self._fraction(ratios, gap, self.config.collapsed_threshold, above=False),
            "first_token_attention": _head_measure(shares, gap, {}),
        }

    def _fraction(self, ratios: list, gap: str | None, threshold: float, above: bool) -> Measure:
        chosen = [
            None
            if layer is None
            else [
                ratio if math.isnan(ratio) else float(ratio > threshold if above else ratio < threshold)
                for ratio in layer
            ]
            for layer in ratios
        ]
        measure = _head_measure(chosen, gap, {"threshold": threshold})
        measure.per_head = None
        return measure

    def _unsupported(self) -> str | None:
        family = type(self.model).__name__
        if not self.model._can_set_attn_implementation():
            return f"'{family}' does not use the attention interface of Transformers"
        if any(name.endswith("sinks") for name, _ in self.model.named_parameters()):
            return f"'{family}' has learned attention sinks, under which a head's attention does not sum to one"
        return None

    def _attention(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Plain attention in float32, a chunk of queries at a time: query (B, H, T, D), key and value (B, K, T, ·)."""
        if position_bias is not None or (attention_mask is not None and attention_mask.dtype != torch.bool):
            raise PlasticityError(
                f"measures: the attention of '{type(module).__name__}' has a bias that the attention measures do "
                f"not support; leave out {', '.join(self.names)}"
            )
        batch, heads, length, width = query.shape
        groups = key.shape[1]
        scaling = width**-0.5 if scaling is None else scaling
        output = query.new_empty(batch, groups, heads // groups, length, value.shape[-1])
        chunk = max(1, CHUNK_ELEMENTS // (batch * heads * length))
        # Under autocast a matrix product of float32 would be done in half precision.
        with torch.autocast(query.device.type, enabled=False):
            q = query.float().reshape(batch, groups, heads // groups, length, width)
            k, v = key.float()[:, :, None], value.float()[:, :, None]
            for start in range(0, length, chunk):
                stop = min(start + chunk, length)
                # Without further masks, keys after the chunk are not visible to its queries.
                keys = stop if attention_mask is None else length
                visible = self._visible(attention_mask, start, stop, keys, query.device)  # (B or 1, 1, 1, c, keys)
                logits = q[..., start:stop, :] @ k[..., :keys, :].transpose(-1, -2) * scaling
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                weights = logits.masked_fill_(~visible, torch.finfo(logits.dtype).min).softmax(-1)
                output[..., start:stop, :] = (weights @ v[..., :keys, :]).to(output.dtype)
                self._add(module.layer_idx, weights.flatten(1, 2), visible[:, 0, 0].expand(batch, -1, -1), start)
        return output.flatten(1, 2).transpose(1, 2).contiguous(), None

    def _visible(
        self, mask: torch.Tensor | None, start: int, stop: int, keys: int, device: torch.device
    ) -> torch.Tensor:
        if mask is not None:
            return mask[:, :, None, start:stop]
        positions = torch.arange(keys, device=device)
        return (positions[start:stop, None] >= positions)[None, None, None]

    def _add(self, layer: int, weights: torch.Tensor, visible: torch.Tensor, start: int) -> None:
        """Add a chunk of queries: weights (B, H, c, keys), visible (B, c, keys)."""
        batch, heads, queries, _ = weights.shape
        if self.tokens is None:
            real = visible.new_ones(batch, queries)
            first = torch.zeros(batch, dtype=torch.long, device=weights.device)
        else:
            real = self.tokens[:, start : start + queries]
            first = self.tokens.int().argmax(-1)
        if not real.any():
            return
        at_first = first[:, None, None].expand(batch, queries, 1)
        entropy = torch.special.entr(weights).sum(-1)  # (B, H, c)
        share = weights.gather(-1, at_first[:, None].expand(batch, heads, queries, 1))[..., 0]
        self.statistics.setdefault(layer, HeadStatistics(heads)).add(
            visible.sum(-1)[real].cpu(),
            visible.gather(-1, at_first)[..., 0][real].cpu(),
            entropy.transpose(1, 2)[real].cpu(),
            share.transpose(1, 2)[real].cpu(),
        )


def _head_measure(per_head: list[list[float] | None], gap: str | None, detail: dict[str, Any]) -> Measure:
    heads = [value for layer in per_head if layer is not None for value in layer]
    return Measure(
        overall=mean_of(heads),
        per_layer=[None if layer is None else mean_of(layer) for layer in per_head],
        per_head=per_head,
        detail=detail,
        gap=gap,
    )
