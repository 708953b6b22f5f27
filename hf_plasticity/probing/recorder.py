"""The probes of one training: their protocol, and their lines in `probes.jsonl`."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.token_blocks import TokenBlocks, as_blocks
from ..distributed import from_main_process, is_main_process
from ..metrics.delta_auc.definition import delta_auc
from ..network.head_loss import LOGITS, head_loss_of
from ..periodic import Timeline
from ..records import (
    PROBE_KEY,
    PROBES_FILE,
    TIMELINE,
    append_record,
    config_hash,
    read_records,
    update_records,
    write_protocol,
)
from .checks import precision, unwrapped, without_adapters
from .config import ProbeConfig
from .probe import ProbeDivergedError, run_probe
from .result import ProbeResult


ALL = "all"
# The adaptation of a probe that trains a part of the parameters, as its training does, for example with PEFT.
PARTIAL = "partial"


class ProbeRecorder:
    """
    Probes the models of one training and keeps one line for each probe in `probes.jsonl`.

    Args:
        train_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Training token ids of the probe language.
        eval_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Validation token ids of the probe language.
        config ([`ProbeConfig`]): The probe.
        language (`str`): The probe language.
        timeline ([`Timeline`]): The timeline of the training.
        bytes_per_token (`float`, *optional*): Bytes per token of the validation text, for `bits_per_byte`.
    """

    def __init__(
        self,
        train_blocks: TokenBlocks,
        eval_blocks: TokenBlocks,
        config: ProbeConfig,
        language: str,
        timeline: Timeline,
        bytes_per_token: float | None = None,
    ):
        self.train_blocks, self.eval_blocks = as_blocks(train_blocks), as_blocks(eval_blocks)
        self.config, self.language = config, language
        self.timeline, self.bytes_per_token = timeline, bytes_per_token
        self._identity: dict[str, Any] | None = None

    def begin(self, conditions: Mapping[str, Any], folder: str | Path) -> None:
        """
        Fix the protocol of the probes, and write it to `probe_protocols.json` in the run folder. Called before the
        first probe, on every process.

        Args:
            conditions (`Mapping[str, Any]`): The result of [`probe_conditions`] for the probed models.
            folder (`str` or `Path`): The run folder.
        """
        if self.config.adaptation == "lora":  # trains its adapters, whichever parameters the training trains
            conditions = {**conditions, "trained": ALL}
        protocol = {
            "language": self.language,
            "train": fingerprint(self.train_blocks),
            "evaluation": fingerprint(self.eval_blocks),
            **self.config.protocol(),
            **conditions,
        }
        self._identity = {
            "language": self.language,
            "adaptation": self.config.adaptation if conditions["trained"] == ALL else PARTIAL,
            "seed": self.config.seed,
            "probe_config_hash": config_hash(protocol),
        }
        if is_main_process():
            timeline = {"task_steps": self.timeline.task_steps, "tasks_per_cycle": self.timeline.tasks_per_cycle}
            write_protocol(folder, self._identity["probe_config_hash"], protocol | {TIMELINE: timeline})

    @property
    def identity(self) -> dict[str, Any]:
        """`language`, `adaptation`, `seed` and `probe_config_hash` of every record."""
        assert self._identity is not None, "begin() comes first"
        return self._identity

    def measure(
        self,
        model: nn.Module,
        step: int,
        micro_batch_size: int | None = None,
        largest_micro_batch_size: int | None = None,
        show_progress: bool = True,
        before_step: Callable[[], None] | None = None,
    ) -> ProbeResult:
        """
        Probe a model after `step` optimizer steps. Every process that shares it must call this.

        Raises:
            [`PlasticityError`]: Too few blocks, or a batch that does not divide.
            [`ProbeDivergedError`]: A loss is not finite; the message has the position in the training.
        """
        where, position = self.timeline.describe(step), self.timeline.position(step)
        try:
            return run_probe(
                model,
                self.train_blocks,
                self.eval_blocks,
                self.config,
                micro_batch_size=micro_batch_size,
                largest_micro_batch_size=largest_micro_batch_size,
                bytes_per_token=self.bytes_per_token,
                description=f"probe {self.language} ({where})",
                show_progress=show_progress,
                before_step=before_step,
            )
        except ProbeDivergedError as error:
            point = where if position["task"] is None else f"{where}, task {position['task']}, step {step}"
            raise ProbeDivergedError(f"probe on '{self.language}' ({point}): {error}") from None

    def records(self, folder: str | Path) -> list[dict[str, Any]]:
        """The probes of a run folder with this protocol by step, as the main process reads them."""
        return from_main_process(lambda: self.read(folder))

    def read(self, folder: str | Path) -> list[dict[str, Any]]:
        """The probes of a run folder with this protocol by step, as this process reads them."""
        lines = read_records(Path(folder) / PROBES_FILE)
        return sorted((line for line in lines if self._matches(line)), key=lambda line: line["step"])

    def _matches(self, line: dict[str, Any]) -> bool:
        return line["probe_config_hash"] == self.identity["probe_config_hash"]

    def has_reference(self, folder: str | Path) -> bool:
        """Whether a trained model has been probed, so that ΔAUC has a reference."""
        return any(line["step"] > 0 for line in self.records(folder))

    def write(self, folder: str | Path, step: int, result: ProbeResult) -> dict[str, Any]:
        """
        Add the line of a probe to a run folder, once, by the main process.

        The reference of ΔAUC is the first probe of a trained model: cycle 1 if every cycle is probed.

        Returns:
            `dict`: The line, on every process.
        """
        trained = [line["auc"] for line in self.records(folder) if line["step"] > 0]

        def record() -> dict[str, Any]:
            reference = trained[0] if trained else result.auc if step > 0 else None
            return result.record(self.timeline.position(step), self.identity, reference)

        line = from_main_process(record)
        if is_main_process():
            append_record(Path(folder) / PROBES_FILE, line, PROBE_KEY)
        return line

    def refer_to_first(self, folder: str | Path) -> None:
        """
        Recompute ΔAUC of all probes of a run folder relative to the first by step, because adding an earlier
        checkpoint changes the reference of later ones. Call it on the main process.
        """
        trained = [line for line in self.read(folder) if line["step"] > 0]
        if not trained:
            return
        reference = trained[0]["auc"]
        fresh = {line["step"]: delta_auc(line["auc"], reference) for line in trained}

        def change(line: dict[str, Any]) -> dict[str, Any]:
            return {"delta_auc": fresh[line["step"]]} if self._matches(line) and line["step"] in fresh else {}

        update_records(Path(folder) / PROBES_FILE, change)


def probe_conditions(model: nn.Module) -> dict[str, Any]:
    """
    Everything that influences the numbers of a probe in addition to its configuration and text.

    Args:
        model (`nn.Module`): A model of the training, prepared by Accelerate.

    Returns:
        `dict`: `precision` of the weights and of the computation; `trained`: `"all"` parameters, or how many of them;
        `head_loss` if it is not that of the logits; `router_aux_loss_coef` if a mixture of experts trains with the
        loss of its router; `neftune_noise_alpha` if training adds noise to the embeddings.
    """
    base = unwrapped(model)
    parameters = list(base.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    total, trained = (sum(parameter.numel() for parameter in some) for some in (parameters, trainable))
    conditions = {
        "precision": precision(parameters[0].dtype),
        "trained": ALL if trained == total else f"{trained} of {total} parameters",
    }
    model = without_adapters(base)
    if not isinstance(model, PreTrainedModel):
        return conditions
    if head_loss_of(model) != LOGITS:
        conditions["head_loss"] = head_loss_of(model)
    if getattr(model.config, "output_router_logits", False):
        conditions["router_aux_loss_coef"] = getattr(model.config, "router_aux_loss_coef", None)
    noise = getattr(model.get_input_embeddings(), "neftune_noise_alpha", None)
    return conditions if noise is None else conditions | {"neftune_noise_alpha": noise}


def fingerprint(blocks: TokenBlocks) -> str:
    """Hexadecimal digits that identify the tokens of `blocks`."""
    if hasattr(blocks, "fingerprint"):
        return blocks.fingerprint
    array = np.ascontiguousarray(blocks.cpu().numpy() if isinstance(blocks, torch.Tensor) else blocks, dtype=np.int64)
    return hashlib.blake2b(repr(array.shape).encode() + array.tobytes(), digest_size=6).hexdigest()
