"""Probing a run from elsewhere: its cycles as they appear, with the numbers that it would have found itself."""

import contextlib
import dataclasses
import importlib.metadata
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments, enable_full_determinism
from transformers.utils import logging

from .. import __version__
from ..arguments import PROVENANCE
from ..data.config import DataConfig
from ..data.opening import open_blocks, open_source
from ..data.tokenizers import load_tokenizer
from ..errors import PlasticityError
from ..hub.loading import is_repository
from ..probing.recorder import ProbeRecorder
from ..probing.timeline import Timeline
from ..records import FOLLOW_LOCK_FILE, read_config, run_lock
from ..run import show_results
from ..study import ModelConfig, Study, parse_study
from ..trainer import ContinualConfig
from .config import BATCH, SuiteConfig
from .followed import FollowedFolder, Progress, check_followed
from .followed_hub import FollowedRepository
from .loading import load_model
from .prober import SuiteProber
from .processes import Processes, make_accelerator


logger = logging.get_logger(__name__)

# Of the settings of Transformers in a run's configuration, those that shape its probes.
OF_TRANSFORMERS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "tf32", "seed", "full_determinism",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "per_device_train_batch_size",
)  # fmt: skip
# Seconds that a finished run's follower goes on trying to send its records.
PATIENCE = 600.0
NUMERIC_PACKAGES = ("torch", "transformers")


def follow_run(suite: SuiteConfig, data: DataConfig) -> None:
    """
    Probe the cycles of a run with `probe: deferred` as they appear, until it is finished and all are probed. The same
    command goes on where it was stopped.

    Raises:
        [`PlasticityError`]: There is no such run, it probes itself, or its text cannot be had here.
        [`ProbeDivergedError`]: The loss of a probe is not finite.
    """
    processes = Processes(suite.use_cpu)
    run = _followed(suite)
    with contextlib.ExitStack() as stack:
        processes.from_main(run.check)
        processes.from_main(lambda: stack.enter_context(run_lock(run.folder, FOLLOW_LOCK_FILE)))
        config = processes.from_main(lambda: _wait_for_config(run, suite.poll_seconds))
        processes.from_main(run.check_rights)
        study = _study_of(config, run.folder, suite, data)
        follower = Follower(run, study, config, suite, processes)
        follower.follow()
        if processes.is_main:
            show_results(run.folder)
            if config.get("push_to_hub") and not isinstance(run, FollowedRepository):
                print(f"on the Hub  hf-plasticity push {run.folder} sends what is not there yet")


def _followed(suite: SuiteConfig) -> "FollowedFolder | FollowedRepository":
    """Where the run is, and where its records go."""
    if is_repository(suite.model):
        folder = suite.output_dir or f"runs/follow-{suite.model.replace('/', '-')}"
        return FollowedRepository(suite.model, folder, suite.push_to_hub)
    if suite.output_dir is not None:
        raise PlasticityError(f"output_dir: {suite.output_dir} would not be heeded; the records go to '{suite.model}'")
    return FollowedFolder(suite.model)


def _wait_for_config(run: FollowedFolder, poll_seconds: float) -> dict[str, Any]:
    """The configuration of a run, which a run that has just been started is about to write."""
    told = False
    while (config := run.config()) is None or not run.progress().cycles:
        if config is not None:
            check_followed(run.name, config)
        if not told:
            print(f"waiting for '{run.name}' to begin", flush=True)
            told = True
        time.sleep(poll_seconds)
    check_followed(run.name, config)
    return config


def _study_of(config: Mapping[str, Any], folder: Path, suite: SuiteConfig, data: DataConfig) -> Study:
    """The study of the followed run, as it is to be probed on this machine."""
    own = {one.name for kind in (ModelConfig, DataConfig) for one in dataclasses.fields(kind)}
    own |= {name for name in ContinualConfig.__annotations__ if not hasattr(TrainingArguments, name)}
    taken = own.union(OF_TRANSFORMERS) - {"data_cache_dir", "train_tokenizer"}
    settings = {name: value for name, value in config.items() if name in taken}
    if not settings.get("gradient_checkpointing"):
        settings.pop("gradient_checkpointing", None)  # Transformers warns of it whatever its value
    settings["output_dir"] = str(folder)
    for name in ("data_dir", "data_cache_dir", "dataset"):
        if getattr(data, name) is not None:
            settings[name] = getattr(data, name)
    if suite.per_device_train_batch_size is not None:
        settings["per_device_train_batch_size"] = suite.per_device_train_batch_size
    settings |= {"disable_tqdm": suite.disable_tqdm, "use_cpu": suite.use_cpu}
    return parse_study([], settings=settings)


class Follower:
    """
    Probes the cycles of one run.

    Args:
        run ([`FollowedFolder`] or [`FollowedRepository`]): The run.
        study ([`Study`]): Its study.
        config (`Mapping[str, Any]`): Its resolved configuration, with what it says of its text and versions.
        suite ([`SuiteConfig`]): How it is followed.
        processes ([`Processes`]): Which take part.

    Raises:
        [`PlasticityError`]: The text of the probe language is not the run's, or there is too little of it.
    """

    def __init__(
        self,
        run: FollowedFolder,
        study: Study,
        config: Mapping[str, Any],
        suite: SuiteConfig,
        processes: Processes,
    ):
        self.run, self.study, self.processes, self.poll_seconds = run, study, processes, suite.poll_seconds
        self._undelivered_since: float | None = None
        training, text = study.training, study.data
        if training.full_determinism:
            enable_full_determinism(training.seed)
        # Before the text: the tokenizer comes with every checkpoint, wherever the run had it from.
        tokenizer = load_tokenizer(processes.from_main(lambda: str(run.checkpoint(run.progress().cycles[0]))))
        train_blocks, eval_blocks = open_blocks(
            text, open_source(text), text.probe_language, tokenizer, show_progress=not suite.disable_tqdm
        )
        theirs = config[PROVENANCE]["data"][text.probe_language]
        if theirs != {"train": train_blocks.fingerprint, "validation": eval_blocks.fingerprint}:
            raise PlasticityError(
                f"data_dir: the text of '{text.probe_language}' here is not that of '{run.name}', and "
                "neither would its probes be"
            )
        provenance = config[PROVENANCE]
        self.timeline = Timeline(training.task_steps, provenance["tasks_per_cycle"], training.global_batch_tokens)
        self.recorder = ProbeRecorder(
            train_blocks,
            eval_blocks,
            training.probe_config(training.global_batch_tokens // text.context_length),
            text.probe_language,
            self.timeline,
            eval_blocks.bytes_per_token(training.probe_eval_sequences),
        )
        accelerator = make_accelerator(config["bf16"], processes.use_cpu)
        self.prober = SuiteProber(
            run.folder,
            self.recorder,
            self._fetch,
            self._load,
            accelerator,
            processes,
            share=suite.share or BATCH,
            diagnostics_blocks=eval_blocks.first(training.diagnostics_sequences, "diagnostics_sequences")
            if training.diagnose
            else None,
            micro_batch_size=training.micro_batch_size,
            show_progress=not suite.disable_tqdm,
        )
        if processes.is_main:
            _compare_versions(provenance.get("versions", {}))

    def follow(self) -> None:
        """Probe what there is and what comes, until the run is finished and everything is probed and delivered."""
        progress, delivered = Progress([], finished=False), True
        while not (progress.finished and (delivered or self._out_of_patience)):
            progress = self.processes.from_main(partial(self._news, progress.cycles, delivered))
            self._check_reference(progress.cycles)
            steps = [cycle * self.timeline.steps_between(1, "cycles") for cycle in progress.cycles]
            self.prober.probe(steps, recorded=self._recorded)
            delivered = self.processes.from_main(self._deliver)

    def _news(self, known: list[int], delivered: bool) -> Progress:
        """Wait until the run has cycles that are not known yet, or is finished, or it is time to send again."""
        check_followed(self.run.name, read_config(self.run.folder))
        progress = self.run.progress()
        waiting = False
        while progress.cycles == known and (not progress.finished or not delivered):
            if delivered and not waiting:
                print(f"'{self.run.name}' is probed as far as it is; waiting for more", flush=True)
                waiting = True
            time.sleep(self.poll_seconds)
            progress = self.run.progress()
            if not delivered:
                break
        return progress

    def _check_reference(self, cycles: list[int]) -> None:
        first = self.study.training.probe_every_cycles
        if not self.recorder.has_reference(self.run.folder) and max(cycles) > first and first not in cycles:
            raise PlasticityError(
                f"model: the checkpoint of cycle {first} of '{self.run.name}' is gone, and ΔAUC refers to its probe"
            )

    def _recorded(self, step: int) -> None:
        self._deliver()
        self.run.release(self.timeline.position(step)["cycle"])

    def _deliver(self) -> bool:
        delivered = self.run.deliver(self.recorder.mine(self.run.folder))
        self._undelivered_since = None if delivered else self._undelivered_since or time.monotonic()
        return delivered

    @property
    def _out_of_patience(self) -> bool:
        def give_up() -> bool:
            late = time.monotonic() - (self._undelivered_since or math.inf) > PATIENCE
            if late:
                logger.warning(f"not all records of '{self.run.name}' are sent; the same command sends the rest")
            return late

        return self.processes.from_main(give_up)

    def _fetch(self, step: int) -> str:
        return str(self.run.checkpoint(self.timeline.position(step)["cycle"]))

    def _load(self, path: str) -> PreTrainedModel:
        model = load_model(path)
        if self.study.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(self.study.training.gradient_checkpointing_kwargs)
        return model


def _compare_versions(theirs: Mapping[str, str]) -> None:
    here = {"hf-plasticity": __version__} | {name: importlib.metadata.version(name) for name in NUMERIC_PACKAGES}
    different = [
        f"{name} {theirs[name]} there and {version} here"
        for name, version in here.items()
        if name in theirs and theirs[name] != version
    ]
    if different:
        logger.warning(f"the run is computed with {', '.join(different)}: its probes may differ in the last digits")
