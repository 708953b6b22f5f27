"""Checkpoints in, records out: each is loaded, probed, diagnosed, and forgotten again."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.hub_errors import one_line
from ..diagnostics import Diagnosis, DiagnosticsConfig, diagnose
from ..diagnostics.callback import INITIAL_WEIGHTS_FILE
from ..diagnostics.diagnose import diagnostics_hash
from ..diagnostics.drift import save_weights
from ..errors import PlasticityError
from ..probing import ProbeResult
from ..probing.evaluation import each_process_apart
from ..probing.recorder import ProbeRecorder
from ..records import DIAGNOSIS_KEY, DIAGNOSTICS_FILE, append_record, read_records
from .config import BATCH, CHECKPOINTS
from .processes import Processes


logger = logging.get_logger(__name__)


@dataclass
class Task:
    """What is to be found out about a checkpoint."""

    step: int
    place: str
    to_probe: bool
    to_diagnose: bool


@dataclass
class Found:
    """What one process found in a checkpoint, or why it did not."""

    probe: ProbeResult | None = None
    diagnosis: Diagnosis | None = None
    error: Exception | None = None


class SuiteProber:
    """
    Probes checkpoints under one protocol, and diagnoses them, into the records of a run folder.

    Args:
        folder (`str` or `Path`): The run folder.
        recorder ([`ProbeRecorder`]): The probe.
        fetch (`Callable[[int], str]`): Where the model after so many steps is; called on the main process alone.
        load (`Callable[[str], PreTrainedModel]`): The model that is there.
        accelerator (`Accelerator`): What the models are computed on.
        processes ([`Processes`]): Which take part.
        share (`str`): What they share, `"checkpoints"` or `"batch"`.
        diagnostics_blocks (`np.ndarray` of shape `(N, T)`, *optional*): Token ids to diagnose on; without them nothing
            is diagnosed.
        micro_batch_size (`int`, *optional*): Sequences in one forward on one process; its whole share by default.
        show_progress (`bool`, *optional*, defaults to `True`): Whether the main process shows a bar for each probe.
    """

    def __init__(
        self,
        folder: str | Path,
        recorder: ProbeRecorder,
        fetch: Callable[[int], str],
        load: Callable[[str], PreTrainedModel],
        accelerator: Accelerator,
        processes: Processes,
        share: str,
        diagnostics_blocks: np.ndarray | None = None,
        micro_batch_size: int | None = None,
        show_progress: bool = True,
    ):
        if share == CHECKPOINTS and accelerator.is_fsdp2:
            raise PlasticityError(f"share: '{share}' leaves no process to shard a model with; choose '{BATCH}'")
        self.folder, self.recorder, self.accelerator = Path(folder), recorder, accelerator
        self.fetch, self.load = fetch, load
        self.processes, self.together = processes, share == BATCH
        self.diagnostics, self.diagnostics_blocks = DiagnosticsConfig(), diagnostics_blocks
        self.micro_batch_size = micro_batch_size
        self.show_progress = show_progress and processes.is_main

    def probe(self, steps: Sequence[int], recorded: Callable[[int], None] | None = None) -> None:
        """
        Probe and diagnose the checkpoints of these steps, in order, as far as they have no records yet.

        Args:
            steps (`Sequence[int]`): Steps of the training; those of the untrained model and of the first trained one
                belong among them or have records, since distances and ΔAUC refer to them.
            recorded (`Callable[[int], None]`, *optional*): Called on the main process after each of them, while the
                others wait.

        Raises:
            [`PlasticityError`]: A checkpoint cannot be loaded, or not be probed as configured.
            [`ProbeDivergedError`]: A loss is not finite.
        """
        if self.diagnostics_blocks is not None and 0 in steps:
            self._keep_initial_weights()
        to_probe = set(steps) - {line["step"] for line in self.recorder.records(self.folder)}
        to_diagnose = set() if self.diagnostics_blocks is None else set(steps) - self._diagnosed()
        missing = [step for step in steps if step in to_probe | to_diagnose]
        for steps_at_once in _batches(missing, 1 if self.together else self.processes.count):
            places = self.processes.from_main(lambda steps=steps_at_once: [self.fetch(step) for step in steps])
            tasks = [
                Task(step, place, step in to_probe, step in to_diagnose) for step, place in zip(steps_at_once, places)
            ]
            found = [self._find(task) for task in tasks] if self.together else self._find_apart(tasks)
            errors = []
            for step, one in zip(steps_at_once, found):
                # Beyond one that failed, only what has a reference already: ΔAUC refers to the first trained model.
                if one.error is not None:
                    errors.append(one.error)
                elif not errors or self.recorder.has_reference(self.folder):
                    self._write(step, one)
                    if recorded is not None:
                        self.processes.from_main(partial(recorded, step))
            if errors:
                raise errors[0]

    def _find_apart(self, tasks: list[Task]) -> list[Found]:
        """Each process does one of the tasks; all know all that was found afterwards."""
        found = Found()
        if self.processes.rank < len(tasks):
            task = tasks[self.processes.rank]
            try:
                with each_process_apart():
                    found = self._find(task)
            except (PlasticityError, FloatingPointError) as error:
                found = Found(error=error)
            except Exception as error:  # whatever it is, what the others have found is not to be lost
                logger.error("".join(traceback.format_exception(error)))
                found = Found(error=PlasticityError(f"'{task.place}': {type(error).__name__}: {one_line(error)}"))
        return self.processes.gather(found)

    def _find(self, task: Task) -> Found:
        model, found = self._prepare(self.load(task.place)), Found()
        if task.to_diagnose:
            found.diagnosis = diagnose(model, self.diagnostics_blocks, self.diagnostics, reference=self._reference())
        if task.to_probe:
            found.probe = self.recorder.measure(model, task.step, self.micro_batch_size, self.show_progress)
        # Gone before the next is loaded: what Accelerate has made of the model refers to itself, and `free_memory`
        # collects garbage before it lets go of the model (seen in accelerate 1.15.0).
        del model
        self.accelerator.free_memory()
        clear_device_cache(garbage_collection=True)
        return found

    def _prepare(self, model: PreTrainedModel) -> nn.Module:
        # What Transformers takes by default for a causal model, though for GPT-2 with a warning.
        model.loss_type = "ForCausalLM"
        if self.accelerator.is_fsdp2:
            # Accelerate shards a model together with its optimizer only; the probe has one of its own.
            return self.accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))[0]
        # For evaluation: precision, device and compiler, but no DDP, which the probe does not need.
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _write(self, step: int, found: Found) -> None:
        if found.diagnosis is not None and self.processes.is_main:
            record = found.diagnosis.record(**self.recorder.timeline.position(step))
            append_record(self.folder / DIAGNOSTICS_FILE, record, DIAGNOSIS_KEY)
        if found.probe is not None:
            self.recorder.write(self.folder, step, found.probe)

    def _reference(self) -> Path | None:
        path = self.folder / INITIAL_WEIGHTS_FILE
        return path if path.exists() else None

    def _keep_initial_weights(self) -> None:
        def keep() -> None:
            if self._reference() is None:
                save_weights(self.load(self.fetch(0)), self.folder / INITIAL_WEIGHTS_FILE)

        self.processes.from_main(keep)

    def _diagnosed(self) -> set[int]:
        """The steps that have been diagnosed in this way."""
        mine = diagnostics_hash(self.diagnostics_blocks, self.diagnostics, self._reference() is not None)

        def read() -> set[int]:
            lines = read_records(self.folder / DIAGNOSTICS_FILE)
            return {line["step"] for line in lines if line["diagnostics_config_hash"] == mine}

        return self.processes.from_main(read)


def _batches(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
