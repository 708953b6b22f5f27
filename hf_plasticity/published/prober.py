"""Load checkpoints one at a time, probe and diagnose them, and write the records."""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..diagnostics import Diagnosis, DiagnosticsConfig, diagnose
from ..diagnostics.diagnose import diagnostics_hash
from ..diagnostics.drift import save_weights
from ..distributed import from_main_process, gather, independent_processes, is_main_process, rank_and_world_size
from ..errors import PlasticityError, one_line
from ..network.head_loss import LOGITS, use_head_loss
from ..probing import ProbeResult
from ..probing.checks import precision
from ..probing.recorder import ALL, ProbeRecorder
from ..records import DIAGNOSIS_KEY, DIAGNOSTICS_FILE, INITIAL_WEIGHTS_FILE, append_record, read_records
from .checkpoints import DamagedCheckpointError
from .config import BATCH, CHECKPOINTS


logger = logging.get_logger(__name__)


@dataclass
class Task:
    """A checkpoint, and the records that are missing for it."""

    step: int
    path: str
    to_probe: bool
    to_diagnose: bool


@dataclass
class Measured:
    """The results of one process for a checkpoint, or the error."""

    probe: ProbeResult | None = None
    diagnosis: Diagnosis | None = None
    error: Exception | None = None


def make_accelerator(bf16: bool, use_cpu: bool) -> Accelerator:
    """
    The `Accelerator` of this launch, with the precision of the probes.

    Args:
        bf16 (`bool`): Whether the precision is mixed.
        use_cpu (`bool`): Whether to use only the CPU.

    Raises:
        [`PlasticityError`]: `accelerate launch` has an unsupported configuration.
    """
    mixed, launched = "bf16" if bf16 else "no", os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in (mixed, "no"):
        raise PlasticityError(
            f"mixed_precision: Accelerate was launched with {launched}, and the probes are in '{mixed}'; launch it "
            "without mixed precision"
        )
    accelerator = Accelerator(mixed_precision=mixed, cpu=use_cpu)
    kind = accelerator.distributed_type
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharding and kind == DistributedType.NO:
        raise PlasticityError("fsdp: it requires more than one process; launch more, or without FSDP")
    if sharding and not accelerator.is_fsdp2:
        why = "only version 2 is supported" if kind == DistributedType.FSDP else f"not supported on {kind.value}"
        raise PlasticityError(f"fsdp: {why}; launch with the Accelerate configuration fsdp2 or ddp")
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise PlasticityError(f"distributed_type: {kind.value} is not supported; launch with FSDP2 or DDP")
    return accelerator


class CheckpointProber:
    """
    Probes and diagnoses checkpoints with one protocol, and writes the records to a run folder.

    Args:
        folder (`str` or `Path`): The run folder.
        recorder ([`ProbeRecorder`]): The probe.
        fetch (`Callable[[int], str]`): Returns the path of the checkpoint of a step; called on the main process only.
        load (`Callable[[str], PreTrainedModel]`): Loads the model from the path.
        accelerator (`Accelerator`): Decides devices, precision and sharding.
        share (`str`): What the processes share, `"checkpoints"` or `"batch"`.
        head_loss (`str`, *optional*, defaults to `"logits"`): `"logits"` or `"fused"`.
        diagnostics (`DiagnosticsConfig`, *optional*): The settings of a diagnosis.
        diagnostics_blocks (`np.ndarray` of shape `(N, T)`, *optional*): Token ids for diagnoses; without them there
            are no diagnoses.
        micro_batch_size (`int`, *optional*): Sequences in one forward pass on one process; its whole share by default.
        largest_micro_batch_size (`int`, *optional*): The most sequences in one forward pass, instead of their number.
        show_progress (`bool`, *optional*, defaults to `True`): Whether the main process shows a bar for each probe.
        skip_damaged (`bool`, *optional*, defaults to `False`): Whether to leave out checkpoints that cannot be loaded.

    Attributes:
        skipped (`dict[int, str]`): The reason for each checkpoint that was left out, by step.
    """

    def __init__(
        self,
        folder: str | Path,
        recorder: ProbeRecorder,
        fetch: Callable[[int], str],
        load: Callable[[str], PreTrainedModel],
        accelerator: Accelerator,
        share: str,
        head_loss: str = LOGITS,
        diagnostics: DiagnosticsConfig | None = None,
        diagnostics_blocks: np.ndarray | None = None,
        micro_batch_size: int | None = None,
        largest_micro_batch_size: int | None = None,
        show_progress: bool = True,
        skip_damaged: bool = False,
    ):
        if share == CHECKPOINTS and accelerator.is_fsdp2:
            raise PlasticityError(f"share: '{share}' is not supported with FSDP; choose '{BATCH}'")
        self.folder, self.recorder, self.accelerator = Path(folder), recorder, accelerator
        self.fetch, self.load = fetch, load
        self.rank, self.world_size = rank_and_world_size()
        self.together = share == BATCH
        self.diagnostics, self.diagnostics_blocks = diagnostics or DiagnosticsConfig(), diagnostics_blocks
        self.micro_batch_size, self.largest_micro_batch_size = micro_batch_size, largest_micro_batch_size
        self.show_progress = show_progress and is_main_process()
        self.head_loss = head_loss
        self.skip_damaged, self.skipped = skip_damaged, dict[int, str]()
        conditions = {"precision": precision(torch.float32), "trained": ALL}
        recorder.begin(conditions if head_loss == LOGITS else conditions | {"head_loss": head_loss}, folder)

    def probe(self, steps: Sequence[int], recorded: Callable[[int], None] | None = None) -> None:
        """
        Probe and diagnose the checkpoints of these steps, in order, except those that are recorded already.

        Args:
            steps (`Sequence[int]`): Steps of the training. They must include the untrained checkpoint and the first
                trained one, unless these are already recorded, because distances and ΔAUC refer to them.
            recorded (`Callable[[int], None]`, *optional*): Called on the main process after each of them, while the
                others wait.

        Raises:
            [`PlasticityError`]: A checkpoint cannot be loaded, or cannot be probed with this configuration.
            [`ProbeDivergedError`]: A loss is not finite.
        """
        if self.diagnostics_blocks is not None and 0 in steps:
            self._keep_initial_weights()
        to_probe = set(steps) - {line["step"] for line in self.recorder.records(self.folder)}
        to_diagnose = set() if self.diagnostics_blocks is None else set(steps) - self._diagnosed()
        missing = [step for step in steps if step in to_probe | to_diagnose]
        for batch in _batches(missing, 1 if self.together else self.world_size):
            paths = from_main_process(partial(self._fetch, batch))
            tasks = [Task(step, path, step in to_probe, step in to_diagnose) for step, path in zip(batch, paths)]
            results = self._measure_together(tasks) if self.together else self._measure_in_parallel(tasks)
            errors = []
            for step, measured in zip(batch, results):
                if self.skip_damaged and isinstance(measured.error, DamagedCheckpointError):
                    self.skipped[step] = str(measured.error)
                    continue
                # After a failed checkpoint, write only records with a reference: the first trained checkpoint.
                if measured.error is not None:
                    errors.append(measured.error)
                elif not errors or self.recorder.has_reference(self.folder):
                    self._write(step, measured)
                    if recorded is not None:
                        from_main_process(partial(recorded, step))
            if errors:
                raise errors[0]

    def _fetch(self, steps: Sequence[int]) -> list[str]:
        return [self.fetch(step) for step in steps]

    def _measure_together(self, tasks: list[Task]) -> list[Measured]:
        """All processes measure one checkpoint."""
        [task] = tasks
        try:
            return [self._measure(task)]
        except DamagedCheckpointError as error:
            return [Measured(error=error)]

    def _measure_in_parallel(self, tasks: list[Task]) -> list[Measured]:
        """Each process measures one of the checkpoints; all receive all results."""
        measured = Measured()
        if self.rank < len(tasks):
            task = tasks[self.rank]
            try:
                with independent_processes():
                    measured = self._measure(task)
            except (PlasticityError, FloatingPointError) as error:
                measured = Measured(error=error)
            except Exception as error:  # keep the results of the other processes
                logger.error("".join(traceback.format_exception(error)))
                measured = Measured(error=PlasticityError(f"'{task.path}': {type(error).__name__}: {one_line(error)}"))
        return gather(measured)

    def _measure(self, task: Task) -> Measured:
        model, measured = self._prepare(self.load(task.path)), Measured()
        if task.to_diagnose:
            measured.diagnosis = diagnose(
                model, self.diagnostics_blocks, self.diagnostics, reference=self._reference()
            )
        if task.to_probe:
            measured.probe = self.recorder.measure(
                model,
                task.step,
                self.micro_batch_size,
                self.largest_micro_batch_size,
                show_progress=self.show_progress,
            )
        # The prepared model has a reference to itself, and `free_memory` collects garbage before it drops its
        # references (seen in accelerate 1.15.0). The next model requires the memory.
        del model
        self.accelerator.free_memory()
        clear_device_cache(garbage_collection=True)
        return measured

    def _prepare(self, model: PreTrainedModel) -> nn.Module:
        use_head_loss(model, self.head_loss, self.accelerator.device)
        if self.accelerator.is_fsdp2:
            # Accelerate shards a model only together with an optimizer (seen in accelerate 1.15.0). The probe has a
            # separate optimizer.
            return self.accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))[0]
        # For evaluation: with precision, device and compiler, but without DDP, which the probe does not require.
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _write(self, step: int, measured: Measured) -> None:
        if measured.diagnosis is not None and is_main_process():
            record = measured.diagnosis.record(**self.recorder.timeline.position(step))
            append_record(self.folder / DIAGNOSTICS_FILE, record, DIAGNOSIS_KEY)
        if measured.probe is not None:
            self.recorder.write(self.folder, step, measured.probe)

    def _reference(self) -> Path | None:
        path = self.folder / INITIAL_WEIGHTS_FILE
        return path if path.exists() else None

    def _keep_initial_weights(self) -> None:
        def keep() -> None:
            if self._reference() is None:
                try:
                    save_weights(self.load(self.fetch(0)), self.folder / INITIAL_WEIGHTS_FILE)
                except DamagedCheckpointError:
                    if not self.skip_damaged:
                        raise

        from_main_process(keep)

    def _diagnosed(self) -> set[int]:
        """The steps with a diagnosis of the same settings."""
        mine = diagnostics_hash(self.diagnostics_blocks, self.diagnostics, self._reference() is not None)

        def read() -> set[int]:
            lines = read_records(self.folder / DIAGNOSTICS_FILE)
            return {line["step"] for line in lines if line["diagnostics_config_hash"] == mine}

        return from_main_process(read)


def _batches(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
