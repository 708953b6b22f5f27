"""A run from its study: data, model and trainer, the folder that it belongs to, and what is shown at its end."""

import contextlib
import errno
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from . import __version__
from .arguments import PROVENANCE
from .data.blocks import Blocks
from .data.opening import open_blocks, open_source
from .data.schedule import Schedule, make_schedule
from .data.sources import Source
from .data.sources.base import split_of
from .data.stream import TrainingStream
from .data.tokenizers import load_tokenizer, train_tokenizer
from .errors import PlasticityError
from .models import gpt2_config
from .network import num_non_embedding_parameters
from .probing.checkpoint import RECORD_FILE
from .probing.evaluation import from_main_process
from .records import (
    FOLLOW_LOCK_FILE,
    REPORT_FILE,
    TRAINER_STATE_FILE,
    load_run,
    read_config,
    run_lock,
    write_config,
)
from .study import IDENTITY, Study
from .trainer import ContinualTrainer, TrainingInterrupted
from .trainer.config import DEFERRED, INLINE


if TYPE_CHECKING:
    from .hub.push import RunPusher

TOKENIZER_FOLDER = "tokenizer"
# Enough for a vocabulary of any size the study uses; the same amount of every language.
TOKENIZER_TRAINING_CHARACTERS = 2_000_000
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "peft", "huggingface-hub", "tokenizers")


@dataclass
class RunData:
    """
    The text of a run.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Which all of it was encoded with.
        train (`dict[str, Blocks]`): Training blocks of each language, the probe language among them.
        validation (`dict[str, Blocks]`): Validation blocks of each language.
    """

    tokenizer: PreTrainedTokenizerBase
    train: dict[str, Blocks]
    validation: dict[str, Blocks]

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """What the blocks of each language are made from."""
        return {
            language: {"train": self.train[language].fingerprint, "validation": self.validation[language].fingerprint}
            for language in self.train
        }


def open_data(study: Study) -> RunData:
    """
    Tokenizer and blocks of a study. Blocks are not prepared yet; a tokenizer that is to be trained is, and kept in the
    run folder.

    Raises:
        [`PlasticityError`]: Text or tokenizer cannot be had.
    """
    source = open_source(study.data)
    with PartialState().main_process_first():
        tokenizer = _tokenizer(study, source)
    return open_run_data(study, source, tokenizer)


def open_run_data(study: Study, source: Source, tokenizer: PreTrainedTokenizerBase) -> RunData:
    """
    The blocks of a study as far as they have been prepared.

    Raises:
        [`PlasticityError`]: The source does not have a language, or cannot be reached.
    """
    blocks = {
        language: open_blocks(study.data, source, language, tokenizer, not study.training.disable_tqdm)
        for language in [*study.data.languages, study.data.probe_language]
    }
    train, validation = ({language: pair[split] for language, pair in blocks.items()} for split in (0, 1))
    return RunData(tokenizer, train, validation)


def _tokenizer(study: Study, source: Source) -> PreTrainedTokenizerBase:
    data = study.data
    if data.train_tokenizer is None:
        return load_tokenizer(data.tokenizer)
    folder = Path(study.training.output_dir) / TOKENIZER_FOLDER
    if not folder.exists():
        unfinished = folder.with_name(f".{TOKENIZER_FOLDER}.unfinished")
        tokenizer = train_tokenizer(_tokenizer_text(study, source), data.train_tokenizer)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    return load_tokenizer(str(folder))


def _tokenizer_text(study: Study, source: Source) -> Iterator[str]:
    """Training documents of every language, the same number of characters of each."""
    data = study.data
    for language in [*data.languages, data.probe_language]:
        characters = 0
        for documents, _ in source.batches(language):
            for document in documents:
                if split_of(document, data.validation_fraction) == "train":
                    characters += len(document)
                    yield document
            if characters >= TOKENIZER_TRAINING_CHARACTERS:
                break


def vocabulary(study: Study, tokenizer: PreTrainedTokenizerBase) -> int:
    """
    Rows of the model's embedding.

    Raises:
        [`PlasticityError`]: Fewer than the tokenizer has tokens.
    """
    vocab_size = study.model.vocab_size or len(tokenizer)
    if vocab_size < len(tokenizer):
        raise PlasticityError(f"vocab_size: {vocab_size} is less than the tokenizer's {len(tokenizer)} tokens")
    return vocab_size


def study_schedule(study: Study, batch_size: int) -> Schedule:
    """The schedule of a study whose global batch has `batch_size` sequences."""
    training = study.training
    return make_schedule(
        training.schedule,
        study.data.languages,
        task_slots=training.task_steps * batch_size,
        blend=training.blend,
        seed=training.seed,
    )


def training_stream(study: Study, data: RunData) -> TrainingStream:
    """
    The sequences of the whole run, prepared unless they are to be streamed.

    Raises:
        [`PlasticityError`]: Too little text, or a batch that does not divide.
    """
    training = study.training
    schedule = study_schedule(study, training.set_batch(study.data.context_length))
    return TrainingStream(
        data.train,
        schedule,
        tasks=training.cycles * schedule.tasks_per_cycle,
        seed=training.seed if training.data_seed is None else training.data_seed,
        allow_repeats=training.allow_repeats,
        streaming=study.data.streaming,
    )


def build_trainer(study: Study, data: RunData) -> ContinualTrainer:
    """
    The model, fresh from its seed, and the trainer that leads it through the study.

    Raises:
        [`PlasticityError`]: Too little text, a batch that does not divide, or a vocabulary that is too small.
    """
    training = study.training
    vocab_size = vocabulary(study, data.tokenizer)
    stream = training_stream(study, data)
    set_seed(training.seed)
    model = GPT2LMHeadModel(
        gpt2_config(
            study.model.size,
            vocab_size,
            study.data.context_length,
            bos_token_id=data.tokenizer.eos_token_id,
            eos_token_id=data.tokenizer.eos_token_id,
        )
    )
    probe_language = study.data.probe_language
    return ContinualTrainer(
        model=model,
        args=training,
        train_dataset=stream,
        probe_blocks=(data.train[probe_language], data.validation[probe_language]),
        eval_blocks={language: data.validation[language] for language in stream.schedule.languages},
        processing_class=data.tokenizer,
    )


@contextlib.contextmanager
def run_folder(study: Study) -> Iterator[None]:
    """
    Hold the run folder for as long as the run lasts.

    Raises:
        [`PlasticityError`]: Another process holds it, or it belongs to a run of another configuration.
    """
    with contextlib.ExitStack() as stack:
        # On every process alike: one that knew nothing of it would wait for the others in vain.
        if problem := from_main_process(lambda: _take_folder(study, stack)):
            raise PlasticityError(problem)
        yield


def _take_folder(study: Study, stack: contextlib.ExitStack) -> str | None:
    """What speaks against running in this folder; nothing, and then it is held until `stack` is closed."""
    folder = study.training.output_dir
    try:
        stack.enter_context(run_lock(folder))
        if study.training.probe == INLINE:
            # A follower that is still there would probe what this run is about to.
            stack.enter_context(run_lock(folder, FOLLOW_LOCK_FILE))
        there = read_config(folder)
    except PlasticityError as error:
        return str(error)
    if there is None:
        return None
    here = study.identity()
    different = [
        f"{name} is {there.get(name)} there and {here[name]} here"
        for name in IDENTITY
        if there.get(name) != here[name]
    ]
    if different:
        return f"output_dir: '{folder}' belongs to another run ({'; '.join(different)}); choose another folder"
    if there.get("probe") == DEFERRED and study.training.probe == INLINE:
        left_out = [path.name for path in sorted(Path(folder).glob("cycle-*")) if not (path / RECORD_FILE).exists()]
        if left_out:
            return (
                f"probe: {', '.join(left_out)} of '{folder}' were left for later, and ΔAUC refers to the first probe "
                "of a run; let recipes/probe.py --follow probe them (hf-plasticity push brings home what a follower "
                "has sent to the Hub), or go on with --probe deferred"
            )
    return None


def write_resolved_config(study: Study, data: RunData, trainer: ContinualTrainer) -> None:
    """
    Write `config.yaml`: every setting, and under `provenance` what the run is made of and by.

    Raises:
        [`PlasticityError`]: The run was begun on other text.
    """
    if not PartialState().is_main_process:
        return
    folder = study.training.output_dir
    there = (read_config(folder) or {}).get(PROVENANCE, {})
    fingerprints = data.fingerprints()
    for language, made_from in there.get("data", {}).items():
        if language in fingerprints and made_from != fingerprints[language]:
            raise PlasticityError(
                f"output_dir: '{folder}' was begun on other text: that of '{language}' has changed since; choose "
                "another folder"
            )
    provenance = {
        "num_parameters": trainer.model.num_parameters(),
        "num_non_embedding_parameters": num_non_embedding_parameters(trainer.model),
        "tasks_per_cycle": trainer.schedule.tasks_per_cycle,
        "data": fingerprints,
        "versions": {"hf-plasticity": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "hardware": _hardware(),
    }
    write_config(folder, study.settings() | {PROVENANCE: provenance})


def _git_commit() -> str | None:
    """The commit of the source tree that this package is imported from; `None` if it is an installed copy."""
    tree = Path(__file__).parents[1]
    if not (tree / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() or None


def _hardware() -> str:
    """What the run is computed on: `"8 x NVIDIA H100 80GB HBM3"`."""
    device = PartialState().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} process"
    return f"{PartialState().num_processes} x {name}"


def start_pushing(study: Study) -> "RunPusher | None":
    """
    What pushes a run to the Hub while it goes on, on the main process of a run that asks for it.

    Raises:
        [`HubRefusal`]: The Hub will not have this run.
    """
    training = study.training
    if not training.push_to_hub or not PartialState().is_main_process:
        return None
    from .hub.push import RunPusher, run_id, run_identity
    from .hub.repository import RunRepository

    repository = RunRepository(
        training.hub_model_id or Path(training.output_dir).resolve().name,
        run_identity(study.identity()),
        run_id(training.output_dir),
        token=training.hub_token,
        private=training.hub_private_repo,
    )
    pusher = RunPusher(training.output_dir, repository, patience=training.hub_patience)
    pusher.start()
    return pusher


def is_finished(study: Study) -> bool:
    """Whether the run folder holds this run to its end."""
    state = Path(study.training.output_dir) / TRAINER_STATE_FILE
    if not state.exists():
        return False
    schedule = make_schedule(study.training.schedule, study.data.languages, task_slots=1, blend=study.training.blend)
    steps = study.training.cycles * schedule.tasks_per_cycle * study.training.task_steps
    return json.loads(state.read_text(encoding="utf-8"))["global_step"] >= steps


def show_results(folder: str | Path) -> None:
    """Write the report of a run, and print its probes as a table."""
    from .analysis.report import write_report
    from .hub.card import DRAWING

    run = load_run(folder)
    report = Path(folder) / REPORT_FILE
    with DRAWING:
        write_report([run], report)
    if run.probes:
        place = "cycle" if all(probe["cycle"] is not None for probe in run.probes) else "step"
        print(f"\n{place:>5} {'tokens':>16} {'start loss':>10} {'final loss':>10} {'AUC':>12} {'ΔAUC':>8}")
    for probe in run.probes:
        tokens = "" if probe["tokens"] is None else f"{probe['tokens']:,}"
        delta = "" if probe["delta_auc"] is None else f"{probe['delta_auc']:+.2f}%"
        print(
            f"{probe[place]:>5} {tokens:>16} {probe['start_loss']:>10.4f} {probe['final_loss']:>10.4f} "
            f"{probe['auc']:>12.2f} {delta:>8}"
        )
    print(f"\nrun folder  {folder}\nreport      {report}")


def run_study(study: Study) -> None:
    """
    Run a study in its folder, go on with it, or say that it is finished.

    Raises:
        [`PlasticityError`]: It cannot be run as configured, or the Hub will not have it.
        [`TrainingDivergedError`], [`ProbeDivergedError`]: A loss is not finite.
        [`TrainingInterrupted`]: By a signal; the same call goes on.
    """
    folder = study.training.output_dir
    # Transformers shows a bar for every file of weights it writes; the run's own are enough.
    logging.disable_progress_bar()
    with run_folder(study):
        pusher = start_pushing(study)
        if from_main_process(lambda: is_finished(study)):
            if PartialState().is_main_process:
                print(f"'{folder}' is finished; there is nothing to do. Give it more cycles to go on with it.")
            if pusher is not None:
                pusher.finish()
            return
        data = open_data(study)
        trainer = build_trainer(study, data)
        write_resolved_config(study, data, trainer)
        if pusher is not None:
            pusher.follow(trainer)
        trainer.train(resume_from_checkpoint=True)
        trainer.save_state()
        if PartialState().is_main_process:
            show_results(folder)
            if study.training.probe == DEFERRED:
                print(f"probes      deferred: accelerate launch recipes/probe.py --model {folder} --follow")
        if pusher is not None:
            pusher.finish()


@contextlib.contextmanager
def errors_on_one_line(program: str) -> Iterator[None]:
    """
    Turn what the user, the data or the disk did wrong into one line on standard error and exit status 2, and an
    interruption into one line and 130 (Ctrl-C) or 143 (SIGTERM).
    """
    try:
        yield
        _part_together()
    except TrainingInterrupted as interrupted:
        _part_together()
        _end(program, str(interrupted), interrupted.exit_status)
    except KeyboardInterrupt:
        _end(program, "stopped by SIGINT; the same command goes on", 130)
    except (PlasticityError, FloatingPointError) as error:
        _end(program, f"error: {error}", 2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _end(program, f"error: the disk is full ({error.filename}); free some and start again", 2)


def _part_together() -> None:
    # A process that leaves while the others are at work may abort in a thread of gloo's, and the launcher then ends
    # the others (seen in torch 2.13.0).
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _end(program: str, message: str, status: int) -> NoReturn:
    # On a line of its own, even below the progress bars of a run that broke off.
    print(f"\n{program}: {message}", file=sys.stderr)
    sys.exit(status)
