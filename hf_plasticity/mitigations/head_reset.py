"""Reset attention heads that have collapsed."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..diagnostics.attention import AttentionObserver, HeadStatistics
from ..diagnostics.config import DiagnosticsConfig
from ..distributed import gather
from ..errors import PlasticityError
from ..network import AttentionHeads, Slices, evaluation_mode, find_structure, optimizer_moments, reshard
from .base import Mitigation, argument
from .search import LogUniform, Steps


GROUP, QUERY = "group", "query"


@dataclass(eq=False, kw_only=True)
class HeadReset(Mitigation):
    """
    Reset of attention heads that are collapsed, and optionally of those that are lazy.

    Every F steps, the entropy of each head and its attention to the first token are measured on the batch of that step
    without dropout, as in the diagnoses `attention_entropy` and `first_token_attention`. A head is collapsed if its
    entropy is below `collapsed_threshold`·H_max and its first-token share is below `sink_threshold`. Heads that attend
    mostly to the first token are attention sinks, which are useful. Queries, keys and values of a collapsed head are
    drawn from the model's initial distribution. Its output weights and the moments of these entries become 0.

    With grouped-query attention, several query heads share keys and values. With `mode="group"`, a group is reset as a
    whole if all its query heads are flagged. With `"query"`, the queries and output weights of every flagged head are
    reset, but not the shared keys and values.

    Reference: the thresholds of collapsed and lazy heads are those of huggingface.co/papers/2606.24752. Resetting
    such heads is defined here and has no paper.

    Cost: one more forward pass over the batch every F steps, with attention unfused.

    Limits: models with a query or key norm over all heads together (OLMo 2) are not supported, because a reset would
    change every head. Nearly all heads are lazy at initialization, so lazy heads are not reset by default.

    Args:
        collapsed_threshold (`float`, *optional*, defaults to 0.1):
            Share of H_max below which a head is collapsed (huggingface.co/papers/2606.24752).
        sink_threshold (`float`, *optional*, defaults to 0.5):
            First-token share from which a head is a sink and is not reset; chosen here.
        lazy_threshold (`float`, *optional*):
            Share of H_max above which a head is lazy and also reset; by default lazy heads are not reset.
        every (`int`, *optional*, defaults to 1000):
            F, optimizer steps between two resets; chosen here, as for ReDo.
        mode (`str`, *optional*, defaults to `"group"`):
            `"group"` or `"query"`.
    """

    name: ClassVar[str] = "head_reset"
    reference: ClassVar[str] = "thresholds of huggingface.co/papers/2606.24752; the reset is defined here"
    resets_moments: ClassVar[bool] = True

    collapsed_threshold: float = argument(
        0.1, "share of H_max below which a head is collapsed", "2606.24752", LogUniform(0.05, 0.3)
    )
    sink_threshold: float = argument(0.5, "first-token share from which a head is not reset", "chosen here")
    lazy_threshold: float | None = argument(None, "share of H_max above which a head is also reset", "2606.24752: 0.9")
    every: int = argument(1000, "F: optimizer steps between two resets", "chosen here", Steps(0.1, 1))
    mode: str = argument(GROUP, "group (whole key-value groups) or query (only queries and outputs)", "chosen here")

    def check(self) -> None:
        for name in ("collapsed_threshold", "sink_threshold"):
            self.require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        self.require(self.lazy_threshold is None or 0 <= self.lazy_threshold <= 1, "lazy_threshold", "between 0 and 1")
        self.require(self.every >= 1, "every", "1 or more")
        self.require(self.mode in (GROUP, QUERY), "mode", f"{GROUP} or {QUERY}")

    def start(self) -> None:
        kind, self.structure = type(self.model).__name__, find_structure(self.model)
        for layer in self.structure.layers:
            if layer.heads is None:
                raise PlasticityError(
                    f"model: head_reset requires the attention heads of '{kind}', and those of layer {layer.index} "
                    f"are not known: {layer.heads_gap}"
                )
            if layer.heads.coupling is not None:
                raise PlasticityError(
                    f"model: head_reset is not supported for '{kind}', in which {layer.heads.coupling}"
                )
            everything = (*self._fresh(layer.heads, range(layer.heads.count)), *self._zeroed(layer.heads, [0]))
            self.check_trained({slices.name: slices.parameter for slices in everything})
        if (gap := AttentionObserver(self.model, self.structure, DiagnosticsConfig()).gap) is not None:
            raise PlasticityError(f"model: head_reset cannot measure its attention: {gap}")
        self.batches: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.watching, self.active = self.every == 1, True
        handle = self.model.register_forward_pre_hook(self._keep_batch, with_kwargs=True)
        self._undo.append(handle.remove)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        active, self.active = self.active, False
        try:
            yield
        finally:
            self.active = active

    def state(self) -> dict[str, Any]:
        return {"watching": self.watching}

    def load_state(self, state: dict[str, Any]) -> None:
        self.watching = state["watching"]

    def _keep_batch(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not (self.active and module.training):
            return
        if kwargs.get("position_ids") is not None:
            raise PlasticityError(
                "mitigation: head_reset does not support packed batches (position_ids), whose heads see only a part "
                "of a row; train without packing"
            )
        if self.watching:
            input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self.batches.append((input_ids, kwargs.get("attention_mask")))

    def step_end(self, step: int) -> None:
        if step % self.every == 0:
            if not self.batches:
                raise PlasticityError(f"mitigation: head_reset saw no training pass in step {step}")
            self._reset(step, *self._measure())
        self.batches = []
        self.watching = (step + 1) % self.every == 0

    def _measure(self) -> tuple[list[list[float]], list[list[float]]]:
        """For each layer the entropy of each head as a share of H_max and its first-token share."""
        observer = AttentionObserver(self.model, self.structure, DiagnosticsConfig())
        with torch.no_grad(), evaluation_mode(self.model), observer.watch():
            for input_ids, mask in self.batches:
                observer.tokens = None if mask is None else mask.bool()
                # Only the attention is measured, so only the logits of the last position are computed.
                self.model(input_ids=input_ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        reshard(self.model)
        others = gather(observer.statistics)
        for layer in observer.statistics:
            observer.statistics[layer] = _together([one[layer] for one in others])
        measures = observer.measures()
        entropy, share = measures["attention_entropy"], measures["first_token_attention"]
        if entropy.gap is not None:
            raise PlasticityError(f"mitigation: head_reset cannot measure the attention: {entropy.gap}")
        return entropy.per_head, share.per_head

    def flagged(self, entropy: Sequence[float], share: Sequence[float]) -> list[int]:
        """The heads of a layer to reset, from entropies (as shares of H_max) and first-token shares."""
        return [
            head
            for head, (ratio, first) in enumerate(zip(entropy, share))
            if (ratio < self.collapsed_threshold and first < self.sink_threshold)
            or (self.lazy_threshold is not None and ratio > self.lazy_threshold)
        ]

    def _reset(self, step: int, entropies: list[list[float]], shares: list[list[float]]) -> None:
        touched = {}
        for layer, entropy, share in zip(self.structure.layers, entropies, shares):
            heads = self.flagged(entropy, share)
            if self.mode == GROUP:
                groups = (layer.heads.query_heads(group) for group in range(layer.heads.kv_count))
                heads = [head for group in groups if set(group) <= set(heads) for head in group]
            if heads:
                self.changing()
                self.reset(layer.heads, heads, step)
                touched[str(layer.index)] = heads
        if touched:
            self.record(step, "reset", touched)

    def reset(self, heads: AttentionHeads, flagged: Sequence[int], step: int) -> None:
        """Reset query heads; with `mode="group"`, whole groups."""
        reshard(self.model)
        fresh, zeroed = self._fresh(heads, flagged), self._zeroed(heads, flagged)
        for slices in fresh:
            slices.write_(slices.of(self.initialization.draw(slices.name, self.seed, step)))
        for slices in zeroed:
            slices.zero_()
        for slices in (*fresh, *zeroed):
            for moment in optimizer_moments(self.optimizer, slices.parameter).values():
                slices.zero_(moment)

    def _fresh(self, heads: AttentionHeads, flagged: Sequence[int]) -> list[Slices]:
        fresh = heads.query.slices(list(flagged))
        if self.mode == GROUP:
            groups = sorted({heads.kv_head(head) for head in flagged})
            fresh += heads.key.slices(groups) + heads.value.slices(groups)
        return fresh

    @staticmethod
    def _zeroed(heads: AttentionHeads, flagged: Sequence[int]) -> list[Slices]:
        return heads.output.slices(list(flagged))


def _together(parts: list[HeadStatistics]) -> HeadStatistics:
    """The sums of several processes."""
    whole = HeadStatistics(parts[0].entropy.shape[1])
    length = max(len(part.queries) for part in parts)
    for name in ("queries", "entropy", "first_queries", "first_share"):
        tensors = [getattr(part, name) for part in parts]
        padded = [torch.cat([one, one.new_zeros(length - len(one), *one.shape[1:])]) for one in tensors]
        setattr(whole, name, torch.stack(padded).sum(0))
    return whole
