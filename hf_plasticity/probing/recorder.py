"""The probes of one training: under which protocol, at which points, and what is recorded of them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .. import metrics
from ..records import PROBE_KEY, PROBES_FILE, append_record, config_hash, read_records, update_records
from .config import ProbeConfig
from .evaluation import from_main_process, process_rank_and_count
from .probe import ProbeDivergedError, run_probe
from .result import ProbeResult
from .timeline import Timeline


if TYPE_CHECKING:
    from .evaluation import TokenBlocks


class ProbeRecorder:
    """
    Probes models at points of one training, and keeps a line of each probe in `probes.jsonl`.

    Args:
        train_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Token ids of the probe language to adapt to.
        eval_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Token ids of the probe language to measure on.
        config ([`ProbeConfig`]): The probe.
        language (`str`): The probe language.
        timeline ([`Timeline`]): Of the training.
        bytes_per_token (`float`, *optional*): Of the validation text, for `bits_per_byte`.
    """

    def __init__(
        self,
        train_blocks: "TokenBlocks",
        eval_blocks: "TokenBlocks",
        config: ProbeConfig,
        language: str,
        timeline: Timeline,
        bytes_per_token: float | None = None,
    ):
        self.train_blocks, self.eval_blocks, self.config, self.language = train_blocks, eval_blocks, config, language
        self.timeline, self.bytes_per_token = timeline, bytes_per_token
        self.protocol = {
            "language": language,
            "adaptation": config.adaptation,
            "seed": config.seed,
            "probe_config_hash": config_hash(
                config.protocol()
                | {"language": language, "train": fingerprint(train_blocks), "evaluation": fingerprint(eval_blocks)}
            ),
        }

    def measure(
        self,
        model: nn.Module,
        step: int,
        micro_batch_size: int | None = None,
        show_progress: bool = True,
        before_step: Callable[[], None] | None = None,
    ) -> ProbeResult:
        """
        Probe a model as it is after `step` optimizer steps; every process that shares it calls this.

        Raises:
            [`PlasticityError`]: Too few blocks, or a batch that does not divide.
            [`ProbeDivergedError`]: A loss is not finite, with the place in the training.
        """
        where, position = self.timeline.describe(step), self.timeline.position(step)
        try:
            return run_probe(
                model,
                self.train_blocks,
                self.eval_blocks,
                self.config,
                micro_batch_size=micro_batch_size,
                bytes_per_token=self.bytes_per_token,
                description=f"probe {self.language} ({where})",
                show_progress=show_progress,
                before_step=before_step,
            )
        except ProbeDivergedError as error:
            place = where if position["task"] is None else f"{where}, task {position['task']}, step {step}"
            raise ProbeDivergedError(f"probe on '{self.language}' ({place}): {error}") from None

    def records(self, folder: str | Path) -> list[dict[str, Any]]:
        """The probes of a run folder under this very protocol by step, on all processes as the main one sees it."""
        return from_main_process(lambda: self.mine(folder))

    def mine(self, folder: str | Path) -> list[dict[str, Any]]:
        """The same as this process sees it."""
        lines = read_records(Path(folder) / PROBES_FILE)
        return sorted((line for line in lines if self._is_mine(line)), key=lambda line: line["step"])

    def _is_mine(self, line: dict[str, Any]) -> bool:
        return line["probe_config_hash"] == self.protocol["probe_config_hash"]

    def has_reference(self, folder: str | Path) -> bool:
        """Whether a trained model has been probed, so that ΔAUC has something to refer to."""
        return any(line["step"] > 0 for line in self.records(folder))

    def write(self, folder: str | Path, step: int, result: ProbeResult) -> dict[str, Any]:
        """
        Add the line of a probe to a run folder, once, by the main process.

        ΔAUC refers to the first probe after training began: that of cycle 1 in the study.

        Returns:
            `dict`: The line, on every process.
        """
        trained = [line["auc"] for line in self.records(folder) if line["step"] > 0]

        def record() -> dict[str, Any]:
            reference = trained[0] if trained else result.auc if step > 0 else None
            return result.record(self.timeline.position(step), self.protocol, reference)

        line = from_main_process(record)
        if process_rank_and_count()[0] == 0:
            append_record(Path(folder) / PROBES_FILE, line, PROBE_KEY)
        return line

    def refer_to_first(self, folder: str | Path) -> None:
        """
        Let the ΔAUC of all probes of a run folder refer to the first of them by step: one that was probed after later
        ones, as it is when revisions are added, changes what theirs refers to. For the main process.
        """
        trained = [line for line in self.mine(folder) if line["step"] > 0]
        if not trained:
            return
        aucs = [line["auc"] for line in trained]
        changes = metrics.load("delta_auc").compute(aucs=aucs, reference=aucs[0])["delta_auc"]
        fresh = {line["step"]: change for line, change in zip(trained, changes)}

        def change(line: dict[str, Any]) -> dict[str, Any]:
            return {"delta_auc": fresh[line["step"]]} if self._is_mine(line) and line["step"] in fresh else {}

        update_records(Path(folder) / PROBES_FILE, change)


def fingerprint(blocks: "TokenBlocks") -> str:
    """Hexadecimal digits that stand for the tokens of `blocks`."""
    if hasattr(blocks, "fingerprint"):
        return blocks.fingerprint
    array = np.ascontiguousarray(blocks.cpu().numpy() if isinstance(blocks, torch.Tensor) else blocks, dtype=np.int64)
    return hashlib.blake2b(repr(array.shape).encode() + array.tobytes(), digest_size=6).hexdigest()
