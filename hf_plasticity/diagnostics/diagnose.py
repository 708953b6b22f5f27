"""Diagnose a causal language model: all measures on one set of blocks."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..data.token_blocks import as_blocks
from ..errors import PlasticityError
from ..network import evaluation_mode, find_structure, reshard
from ..network.supported import check_gradients, check_sharding
from ..records import config_hash
from . import curvature, gradients
from .attention import AttentionObserver
from .config import DiagnosticsConfig
from .drift import EMBEDDING_NAMES, REFERENCE_NAMES, SavedWeights, measure_drift, measure_embedding_norm
from .features import FeatureObserver
from .gradients import predicted
from .measure import Measure
from .units import UnitObserver, fraction_at_or_below
from .weights import MAGNITUDE_NAMES, WEIGHT_RANK_NAMES, measure_magnitude, measure_weight_ranks


OBSERVERS = (UnitObserver, AttentionObserver, FeatureObserver)

FORWARD_MEASURES = tuple(name for observer in OBSERVERS for name in observer.names)
WEIGHT_MEASURES = MAGNITUDE_NAMES + WEIGHT_RANK_NAMES + EMBEDDING_NAMES
REFERENCE_MEASURES = REFERENCE_NAMES
GRADIENT_MEASURES = gradients.NAMES
CURVATURE_MEASURES = curvature.NAMES

DEFAULT_MEASURES = WEIGHT_MEASURES + FORWARD_MEASURES
MEASURES = DEFAULT_MEASURES + REFERENCE_MEASURES + GRADIENT_MEASURES + CURVATURE_MEASURES


@dataclass
class Diagnosis:
    """
    The result of a diagnosis.

    Args:
        measures (`dict[str, Measure]`): The measures by name.
        not_measured (`dict[str, str]`): For each measure that is missing or incomplete, the reason.
        config_hash (`str`): A hash of the settings and the blocks. Diagnoses with equal hashes can be compared.
        seconds (`float`): Duration of the diagnosis.
    """

    measures: dict[str, Measure]
    not_measured: dict[str, str] = field(default_factory=dict)
    config_hash: str = ""
    seconds: float = 0.0

    def __getitem__(self, name: str) -> Measure:
        if name in self.measures:
            return self.measures[name]
        raise KeyError(f"{name}: {self.not_measured.get(name, 'it was not requested')}")

    def scalars(self, prefix: str = "diagnostics/") -> dict[str, float]:
        """The overall values by name, for a log. Measures without one are left out."""
        return {
            prefix + name: measure.overall for name, measure in self.measures.items() if measure.overall is not None
        }

    def fraction(self, name: str, tau: float) -> tuple[float, list[float | None]]:
        """
        The fraction of units at or below another τ.

        Args:
            name (`str`): `dormant_units` or `gradient_activity`.
            tau (`float`): The threshold.

        Returns:
            `tuple[float, list[float | None]]`: Overall and per layer.
        """
        scores = self[name].scores
        if scores is None:
            raise PlasticityError(f"name: '{name}' has no scores; choose dormant_units or gradient_activity")
        measured = [layer for layer in scores if layer is not None]
        return fraction_at_or_below(torch.cat(measured), tau), [
            None if layer is None else fraction_at_or_below(layer, tau) for layer in scores
        ]

    def record(
        self, step: int, cycle: int | None = None, task: int | None = None, tokens: int | None = None
    ) -> dict[str, Any]:
        """
        The diagnosis as a line of `diagnostics.jsonl`.

        Args:
            step (`int`): Optimizer steps taken.
            cycle (`int`, *optional*): Cycles completed.
            task (`int`, *optional*): Task instances completed.
            tokens (`int`, *optional*): Tokens trained on.
        """
        return {
            "cycle": cycle,
            "task": task,
            "step": step,
            "tokens": tokens,
            "diagnostics_config_hash": self.config_hash,
            "measures": {name: measure.record() for name, measure in self.measures.items()},
            "not_measured": self.not_measured,
            "seconds": round(self.seconds, 3),
        }


def diagnose(
    model: nn.Module,
    blocks: torch.Tensor | np.ndarray,
    config: DiagnosticsConfig | None = None,
    *,
    attention_mask: torch.Tensor | np.ndarray | None = None,
    reference: Mapping[str, torch.Tensor] | str | os.PathLike | None = None,
) -> Diagnosis:
    """
    Diagnose a causal language model without changing it: weights, gradients, training mode, random state and attention
    implementation are restored.

    Dropout is off. Memory beyond the model is bounded by `batch_size` and does not grow with the number of blocks.
    Under DDP every rank measures the same blocks and gets the same numbers; under FSDP2 all ranks must call
    this.

    Args:
        model (`PreTrainedModel`): A causal language model of Transformers: plain, compiled, wrapped by DDP or PEFT,
            or sharded by FSDP2. PEFT's adapters are part of the model; hidden units behind them are not measured.
        blocks (`torch.Tensor` or `np.ndarray` of shape `(N, T)`): Token ids, two or more in a sequence. A list of
            lists or a `datasets.Dataset` with `input_ids` works too.
        config ([`DiagnosticsConfig`], *optional*): What to measure, and the thresholds.
        attention_mask (`torch.Tensor` or `np.ndarray` of shape `(N, T)`, *optional*): 1 for a token, 0 for padding,
            which no measure counts. Pad on the right.
        reference (`Mapping[str, torch.Tensor]` or path, *optional*): Earlier weights of the model, usually those at
            initialization, by the names of `model.named_parameters()`, or a `.safetensors` file of them.

    Returns:
        [`Diagnosis`]: The measures that the model supports, and the reasons for the others.

    Raises:
        [`PlasticityError`]: An unknown measure, a requested one that the model does not support, or blocks that do not
            fit.

    Example:

    ```python
    >>> import torch
    >>> from transformers import AutoModelForCausalLM
    >>> from hf_plasticity import gpt2_config
    >>> from hf_plasticity.diagnostics import diagnose

    >>> model = AutoModelForCausalLM.from_config(gpt2_config("25K", vocab_size=256, context_length=64))
    >>> diagnosis = diagnose(model, torch.randint(256, (4, 64)))
    >>> diagnosis["dormant_units"].overall
    0.0
    ```
    """
    started = time.perf_counter()
    config = config or DiagnosticsConfig()
    model = plain_model(model)
    structure = find_structure(model)
    if isinstance(reference, str | os.PathLike):
        reference = SavedWeights(reference)
    check_sharding(model)
    names = _names(config, reference is not None)
    blocks, mask = _check_blocks(model, blocks, attention_mask, config, names)

    def wanted(group: tuple[str, ...]) -> bool:
        return any(name in names for name in group)

    def batches(size: int, most: int = len(blocks)) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for start in range(0, min(most, len(blocks)), size):
            part = slice(start, start + size)
            yield blocks[part].to(model.device), None if mask is None else mask[part].to(model.device)

    def targets(size: int, most: int = len(blocks)) -> float | None:
        """The mean number of predicted tokens of a mini-batch, with padding."""
        return None if mask is None else predicted(mask[:most]).sum().item() * size / min(most, len(blocks))

    found: dict[str, Measure] = {}
    with evaluation_mode(model), torch.no_grad():
        if wanted(FORWARD_MEASURES):
            found |= _observe(
                model,
                [kind(model, structure, config) for kind in OBSERVERS if wanted(kind.names)],
                batches(config.batch_size),
            )
        if wanted(EMBEDDING_NAMES):
            found |= measure_embedding_norm(model)
        if all(parameter.is_floating_point() for parameter in model.parameters()):
            if wanted(MAGNITUDE_NAMES):
                found |= measure_magnitude(model, structure)
            if wanted(WEIGHT_RANK_NAMES):
                found |= measure_weight_ranks(model, structure, config)
            if wanted(REFERENCE_MEASURES):
                found |= measure_drift(model, structure, reference)
        else:
            quantized = Measure(None, gap="its weights are quantized")
            found |= dict.fromkeys((*MAGNITUDE_NAMES, *WEIGHT_RANK_NAMES, *REFERENCE_MEASURES), quantized)
        if wanted(GRADIENT_MEASURES) or wanted(CURVATURE_MEASURES):
            check_gradients(model)
        if wanted(GRADIENT_MEASURES):
            size = config.gradient_batch_size
            found |= gradients.measure_gradients(model, structure, config, batches(size), targets(size))
        if wanted(CURVATURE_MEASURES):
            size = config.gradient_batch_size
            most = max(1, config.hessian_sequences // size) * size
            found |= curvature.measure_curvature(model, config, lambda: batches(size, most), targets(size, most))

    diagnosis = Diagnosis({}, config_hash=_hash(config, names, blocks, mask))
    for name in names:
        measure = found[name]
        if measure.gap is not None and config.measures is not None:
            raise PlasticityError(f"measures: '{name}' is not supported for this model: {measure.gap}")
        if not measure.is_finite():
            measure = Measure(None, undefined="a weight or an activation of the model is infinite or NaN")
        if measure.overall is not None:
            diagnosis.measures[name] = measure
        if reason := measure.gap or measure.undefined:
            diagnosis.not_measured[name] = reason
    diagnosis.seconds = time.perf_counter() - started
    return diagnosis


def plain_model(model: nn.Module) -> PreTrainedModel:
    """
    The model inside DDP, `torch.compile` and PEFT.

    Raises:
        [`PlasticityError`]: PEFT adds virtual tokens to the input, which are not in the model.
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise PlasticityError(
            f"model: its {model.active_peft_config.peft_type.value} adapter adds virtual tokens to the input, which "
            "are not supported; diagnose `model.get_base_model()`"
        )
    return model.get_base_model()


def _observe(
    model: PreTrainedModel, observers: list, batches: Iterator[tuple[torch.Tensor, torch.Tensor | None]]
) -> dict[str, Measure]:
    with ExitStack() as stack:
        for observer in observers:
            stack.enter_context(observer.watch())
        for input_ids, mask in batches:
            for observer in observers:
                observer.tokens = None if mask is None else mask.bool()
            # No measure uses the logits, so only those of the last position are computed.
            model(input_ids=input_ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    reshard(model)
    return {name: measure for observer in observers for name, measure in observer.measures().items()}


def _names(config: DiagnosticsConfig, has_reference: bool) -> list[str]:
    if config.measures is None:
        return list(DEFAULT_MEASURES + (REFERENCE_MEASURES if has_reference else ()))
    for name in config.measures:
        if name not in MEASURES:
            raise PlasticityError(f"measures: '{name}' is not a measure; choose from {', '.join(MEASURES)}")
        if name in REFERENCE_MEASURES and not has_reference:
            raise PlasticityError(f"measures: '{name}' requires a reference; pass the initial weights")
    return list(dict.fromkeys(config.measures))


def _check_blocks(
    model: PreTrainedModel,
    blocks: torch.Tensor | np.ndarray,
    mask: torch.Tensor | np.ndarray | None,
    config: DiagnosticsConfig,
    names: list[str],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    blocks = _on_cpu(as_blocks(blocks, padded=mask is not None)).long()
    if blocks.ndim != 2 or len(blocks) < 1 or blocks.shape[1] < 2:
        raise PlasticityError(
            f"blocks: shape {tuple(blocks.shape)}; expected (sequences, tokens) with at least 2 tokens"
        )
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and blocks.shape[1] > context:
        raise PlasticityError(
            f"blocks: sequences of {blocks.shape[1]} tokens are longer than the context of the model, {context}"
        )
    vocabulary = len(model.get_input_embeddings().weight)
    if blocks.min() < 0 or blocks.max() >= vocabulary:
        raise PlasticityError(
            f"blocks: token ids from {blocks.min()} to {blocks.max()}; the vocabulary of the model is 0 to "
            f"{vocabulary - 1}"
        )
    if mask is not None:
        mask = _on_cpu(mask).long()
        if mask.shape != blocks.shape:
            raise PlasticityError(f"attention_mask: shape {tuple(mask.shape)}; expected the shape of the blocks")
        if (mask.sum(1) < 2).any():
            raise PlasticityError("attention_mask: a sequence has fewer than 2 tokens; leave it out")
        mask = None if mask.all() else mask
    longest = blocks.shape[1] if mask is None else int(mask.sum(1).max())
    if config.min_context is not None and config.min_context > longest:
        raise PlasticityError(
            f"min_context: {config.min_context} keys are more than the longest sequence has, {longest}"
        )
    if set(names) & set(GRADIENT_MEASURES + CURVATURE_MEASURES):
        if len(blocks) % config.gradient_batch_size:
            raise PlasticityError(
                f"gradient_batch_size: {config.gradient_batch_size} does not divide the {len(blocks)} blocks"
            )
        if len(blocks) == config.gradient_batch_size:
            raise PlasticityError(
                f"gradient_batch_size: {config.gradient_batch_size} leaves one mini-batch of {len(blocks)} blocks; "
                "two or more are required"
            )
    return blocks, mask


def diagnostics_hash(
    blocks: torch.Tensor | np.ndarray, config: DiagnosticsConfig | None = None, has_reference: bool = False
) -> str:
    """The `diagnostics_config_hash` of a diagnosis on these blocks without padding."""
    config = config or DiagnosticsConfig()
    tokens = _on_cpu(as_blocks(blocks)).long()
    return _hash(config, _names(config, has_reference), tokens, None)


def _on_cpu(numbers: Any) -> torch.Tensor:
    return numbers.cpu() if isinstance(numbers, torch.Tensor) else torch.as_tensor(np.asarray(numbers))


def _hash(config: DiagnosticsConfig, names: list[str], blocks: torch.Tensor, mask: torch.Tensor | None) -> str:
    digests = [
        None if tensor is None else hashlib.blake2b(tensor.numpy().tobytes(), digest_size=8).hexdigest()
        for tensor in (blocks, mask)
    ]
    settings = asdict(config) | {"measures": sorted(names)}
    return config_hash(settings | {"shape": list(blocks.shape), "blocks": digests[0], "attention_mask": digests[1]})
