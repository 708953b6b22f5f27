"""Probe the checkpoints of a run as they appear, with the same results as inline probes."""

import contextlib
import importlib.metadata
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, enable_full_determinism
from transformers.utils import logging

from .. import __version__
from ..data.opening import open_blocks, open_source
from ..data.tokenizers import load_tokenizer
from ..diagnostics import DiagnosticsConfig
from ..distributed import from_main_process, is_main_process, rank_and_world_size, start_processes
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig, parse_experiment
from ..experiment.run import show_results
from ..hub.loading import is_repository
from ..network import enable_activation_checkpointing
from ..network.head_loss import FUSED, LOGITS
from ..periodic import Timeline
from ..probing.checkpoint import restore_probe_records
from ..probing.recorder import ProbeRecorder
from ..published.checkpoints import load_model
from ..published.config import BATCH
from ..published.prober import CheckpointProber, make_accelerator
from ..records import DEFERRED_LOCK_FILE, PROVENANCE, checkpoint_task, differences, read_config, run_lock
from ..threads import choose_threads, set_threads
from .config import DeferredConfig
from .folder import DeferredFolder, Progress, check_deferred
from .repository import DeferredRepository


logger = logging.get_logger(__name__)

# Seconds for which uploads are retried after the run is complete.
PATIENCE = 600.0
NUMERIC_PACKAGES = ("torch", "transformers")
# Every checkpoint has the trained tokenizer.
NOT_TAKEN = ("train_tokenizer",)
# Further settings of the run that apply: the measurements, and the memory of a probe.
TAKEN = (
    "data_dir", "dataset_commits", "cycles", "diagnose", "diagnostics_measures", "diagnostics_sequences",
    "per_device_train_batch_size",
)  # fmt: skip
# The names since transformers 5.23, and those before. A configuration of a later version has both.
CHECKPOINTING = (
    ("activation_checkpointing", "activation_checkpointing_kwargs"),
    ("gradient_checkpointing", "gradient_checkpointing_kwargs"),
)


def probe_deferred(deferred: DeferredConfig) -> None:
    """
    Probe the checkpoints of a run with `probe: deferred` as they appear, until the run is complete and all are probed.
    The same command resumes.

    Raises:
        [`PlasticityError`]: There is no such run, it probes inline, or its text is not available.
        [`ProbeDivergedError`]: The loss of a probe is not finite.
    """
    # Transformers shows a progress bar for every model that it loads.
    logging.disable_progress_bar()
    use_cpu = start_processes(deferred.use_cpu)
    run = _open_run(deferred)
    with contextlib.ExitStack() as stack:
        from_main_process(run.check)
        from_main_process(lambda: stack.enter_context(run_lock(run.folder, DEFERRED_LOCK_FILE)) and None)
        from_main_process(lambda: restore_probe_records(run.folder))
        recorded = from_main_process(lambda: _wait_for_config(run, deferred.poll_seconds))
        from_main_process(run.check_rights)
        prober = DeferredProber(run, _experiment(recorded, run.folder, deferred), recorded, deferred, use_cpu)
        prober.probe()
        if is_main_process():
            show_results(run.folder)
            if recorded.get("push_to_hub") and not isinstance(run, DeferredRepository):
                print(f"on the Hub  `hf-plasticity push {run.folder}` uploads the rest")


def _open_run(deferred: DeferredConfig) -> DeferredFolder | DeferredRepository:
    if is_repository(deferred.model):
        folder = deferred.output_dir or f"runs/follow-{deferred.model.replace('/', '-')}"
        return DeferredRepository(deferred.model, folder, deferred.push_to_hub)
    if deferred.output_dir is not None:
        raise PlasticityError(f"output_dir: leave it out; the records go to '{deferred.model}'")
    return DeferredFolder(deferred.model)


def _wait_for_config(run: DeferredFolder, poll_seconds: float) -> dict[str, Any]:
    """The configuration of a run. Waits for a run that has just started to write it."""
    announced = False
    while (recorded := run.config()) is None or not run.progress().checkpoints:
        if recorded is not None:
            check_deferred(run.name, recorded)
        if not announced:
            print(f"waiting for '{run.name}' to start", flush=True)
            announced = True
        time.sleep(poll_seconds)
    check_deferred(run.name, recorded)
    return recorded


def _experiment(recorded: Mapping[str, Any], folder: Path, deferred: DeferredConfig) -> ExperimentConfig:
    """
    The configuration of the run for this machine: its numerics, and the settings that decide the memory of a probe.
    """
    checkpointing = next(names for names in CHECKPOINTING if names[0] in recorded)
    taken = {*recorded[PROVENANCE]["numerics"], *TAKEN, *checkpointing} - set(NOT_TAKEN)
    settings = {name: recorded[name] for name in taken if name in recorded}
    settings["output_dir"] = str(folder)
    for name in ("data_dir", "data_cache_dir", "dataset", "per_device_train_batch_size"):
        if getattr(deferred, name) is not None:
            settings[name] = getattr(deferred, name)
    settings |= {"disable_tqdm": deferred.disable_tqdm, "use_cpu": deferred.use_cpu}
    return parse_experiment([], settings=settings)


class DeferredProber:
    """
    Probes the checkpoints of one run.

    Args:
        run ([`DeferredFolder`] or [`DeferredRepository`]): The run.
        config ([`ExperimentConfig`]): Its configuration, for this machine.
        recorded (`Mapping[str, Any]`): The content of its `config.yaml`.
        deferred ([`DeferredConfig`]): The settings of this command.
        use_cpu (`bool`): Whether the processes compute on the CPU.

    Raises:
        [`PlasticityError`]: The text of the probe language is not that of the run, or there is too little of it.
    """

    def __init__(
        self,
        run: DeferredFolder,
        config: ExperimentConfig,
        recorded: Mapping[str, Any],
        deferred: DeferredConfig,
        use_cpu: bool,
    ):
        self.run, self.config, self.poll_seconds = run, config, deferred.poll_seconds
        # When the run was complete, and some of its records were not uploaded.
        self._retrying_since: float | None = None
        training, text, provenance = config.training, config.data, recorded[PROVENANCE]
        if use_cpu:
            set_threads(choose_threads(deferred.cpu_threads, recorded.get("cpu_threads")))
        if training.full_determinism:
            enable_full_determinism(training.seed)
        # Every checkpoint has the tokenizer of the run.
        tokenizer = load_tokenizer(from_main_process(lambda: str(run.checkpoint(run.progress().checkpoints[0]))))
        train_blocks, eval_blocks = open_blocks(
            text, open_source(text), text.probe_language, tokenizer, show_progress=not deferred.disable_tqdm
        )
        fingerprints = {"train": train_blocks.fingerprint, "validation": eval_blocks.fingerprint}
        if provenance["data"][text.probe_language] != fingerprints:
            raise PlasticityError(
                f"data_dir: the text of '{text.probe_language}' on this machine is not that of '{run.name}', so the "
                "probes would not be comparable"
            )
        self.tasks_per_cycle = provenance["tasks_per_cycle"]
        self.timeline = Timeline(training.task_steps, self.tasks_per_cycle, training.global_batch_tokens)
        sequences = training.global_batch_tokens // text.context_length
        processes = rank_and_world_size()[1] if deferred.share == BATCH else 1
        self.recorder = ProbeRecorder(
            train_blocks,
            eval_blocks,
            training.probe_config(sequences),
            text.probe_language,
            self.timeline,
            eval_blocks.bytes_per_token(training.probe_eval_sequences),
        )
        self.prober = CheckpointProber(
            run.folder,
            self.recorder,
            self._fetch,
            self._load,
            make_accelerator(recorded["bf16"], use_cpu),
            share=deferred.share,
            # This machine may not have Triton, which only changes rounding.
            head_loss=FUSED if provenance["head_loss"] != LOGITS else LOGITS,
            diagnostics=DiagnosticsConfig(measures=training.diagnostics_measures),
            diagnostics_blocks=eval_blocks.first(training.diagnostics_sequences, "diagnostics_sequences")
            if training.diagnose
            else None,
            # As in the run: a probe takes at most as many sequences as a training step.
            largest_micro_batch_size=training.micro_batch_size or max(1, sequences // processes),
            show_progress=not deferred.disable_tqdm,
        )
        if is_main_process():
            _compare_versions(provenance.get("versions", {}))

    def probe(self) -> None:
        """Probe all checkpoints, until the run is complete and all records are delivered."""
        progress, delivered = Progress([], complete=False), True
        while not (progress.complete and (delivered or self._gives_up())):
            progress = from_main_process(partial(self._wait_for_progress, progress.checkpoints, delivered))
            steps = sorted(self._step(name) for name in progress.checkpoints)
            self._check_reference(steps)
            self.prober.probe(steps, recorded=self._recorded)
            delivered = from_main_process(self._deliver)

    def _step(self, name: str) -> int:
        return checkpoint_task(name, self.tasks_per_cycle) * self.timeline.task_steps

    def _wait_for_progress(self, known: list[str], delivered: bool) -> Progress:
        """Wait until the run has new checkpoints or is complete, or until the next attempt to upload records."""
        check_deferred(self.run.name, read_config(self.run.folder))
        progress = self.run.progress()
        waiting = False
        while progress.checkpoints == known and (not progress.complete or not delivered):
            if delivered and not waiting:
                print(f"all checkpoints of '{self.run.name}' are probed; waiting for more", flush=True)
                waiting = True
            time.sleep(self.poll_seconds)
            progress = self.run.progress()
            if not delivered:
                break
        return progress

    def _check_reference(self, steps: list[int]) -> None:
        every, unit = self.config.training.probe_period
        first = self.timeline.steps_between(every, unit)
        if not self.recorder.has_reference(self.run.folder) and max(steps) > first and first not in steps:
            raise PlasticityError(
                f"model: the checkpoint {self.timeline.checkpoint_name(first)} of '{self.run.name}' is missing, but "
                "its probe is the reference of ΔAUC"
            )

    def _recorded(self, step: int) -> None:
        self._deliver()
        self.run.release(self.timeline.checkpoint_name(step))

    def _deliver(self) -> bool:
        return self.run.deliver(self.recorder.read(self.run.folder))

    def _gives_up(self) -> bool:
        """Whether uploads have been retried for long enough. Every process must call this."""

        def is_late() -> bool:
            self._retrying_since = self._retrying_since or time.monotonic()
            late = time.monotonic() - self._retrying_since > PATIENCE
            if late:
                logger.warning(f"not all records of '{self.run.name}' are uploaded; the same command uploads the rest")
            return late

        return from_main_process(is_late)

    def _fetch(self, step: int) -> str:
        return str(self.run.checkpoint(self.timeline.checkpoint_name(step)))

    def _load(self, path: str) -> PreTrainedModel:
        model = load_model(path)
        if self.config.training.gradient_checkpointing:
            enable_activation_checkpointing(model, self.config.training.gradient_checkpointing_kwargs)
        return model


def _compare_versions(theirs: Mapping[str, str]) -> None:
    here = {"hf-plasticity": __version__} | {name: importlib.metadata.version(name) for name in NUMERIC_PACKAGES}
    different = differences(theirs, {name: version for name, version in here.items() if name in theirs})
    if different:
        logger.warning(
            f"the versions differ from those of the run ({', '.join(different)}); the last digits of the probes may "
            "differ"
        )
