"""A run: build the model and the trainer, train in the run folder, and show the results."""

import copy
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers import GPT2LMHeadModel, set_seed
from transformers.utils import logging

from ..data.sources import SOURCES
from ..distributed import from_main_process, is_main_process
from ..models import gpt2_config
from ..records import (
    DIAGNOSTICS_FILE,
    FORGETTING_FILE,
    MITIGATIONS_FILE,
    PROBES_FILE,
    REPORT_FILE,
    TRAINER_STATE_FILE,
    read_config,
    read_run,
)
from ..threads import choose_threads, set_threads
from ..trainer import ContinualTrainer, last_complete_checkpoint
from ..trainer.config import DEFERRED
from .config import ExperimentConfig
from .data import RunData, check_probe_text, open_data, training_stream, vocabulary
from .folder import check_same_text, is_finished, recorded_setting, run_folder, write_run_config


if TYPE_CHECKING:
    from ..hub.push import RunPusher


REPORTED_FILES = (PROBES_FILE, DIAGNOSTICS_FILE, FORGETTING_FILE, MITIGATIONS_FILE, TRAINER_STATE_FILE)


def build_trainer(config: ExperimentConfig, data: RunData) -> ContinualTrainer:
    """
    Build the model from the seed, and the trainer.

    Raises:
        [`PlasticityError`]: Too little text, a batch that does not divide, or a vocabulary that is too small.
    """
    training = config.training
    vocab_size = vocabulary(config, data.tokenizer)
    check_probe_text(config, data)
    stream = training_stream(config, data)
    set_seed(training.seed)
    model = GPT2LMHeadModel(
        gpt2_config(
            config.model.size,
            vocab_size,
            config.data.context_length,
            bos_token_id=data.tokenizer.eos_token_id,
            eos_token_id=data.tokenizer.eos_token_id,
        )
    )
    # PushCallback uploads the run folder, so the Trainer must not push. It also writes its arguments to a file, which
    # must not have a token.
    args = copy.copy(training)
    args.push_to_hub, args.hub_token = False, None
    probe_language = config.data.probe_language
    return ContinualTrainer(
        model=model,
        args=args,
        train_dataset=stream,
        probe_blocks=(data.train[probe_language], data.validation[probe_language]),
        eval_blocks={language: data.validation[language] for language in stream.schedule.languages},
        processing_class=data.tokenizer,
    )


def start_pushing(config: ExperimentConfig) -> "RunPusher | None":
    """
    Start uploading a run while it trains, on the main process of a run with `push_to_hub`.

    Raises:
        [`HubAccessError`]: The Hub rejects the upload.
    """
    training = config.training
    if not training.push_to_hub or not is_main_process():
        return None
    from ..hub.contents import public
    from ..hub.push import RunPusher, run_id
    from ..hub.repository import RunRepository

    repository = RunRepository(
        training.hub_model_id or Path(training.output_dir).resolve().name,
        public(config.numerics()),
        run_id(training.output_dir),
        token=training.hub_token,
        private=training.hub_private_repo,
    )
    pusher = RunPusher(training.output_dir, repository, patience=training.hub_patience)
    pusher.start()
    return pusher


def show_results(folder: str | Path) -> None:
    """Write the report of a run, and print its probes as a table and its result in words."""
    from ..analysis.report import write_report
    from ..analysis.series import probe_series
    from ..analysis.summary import run_result, unit_sentence

    run = read_run(folder)
    report = Path(folder) / REPORT_FILE
    write_report([run], report)
    if run.probes:
        unit = _unit(run.probes, run.tasks_per_cycle)
        print(f"\n{unit:>5} {'tokens':>16} {'start loss':>10} {'final loss':>10} {'AUC':>12} {'ΔAUC':>8}")
    for probe in run.probes:
        tokens = "" if probe["tokens"] is None else f"{probe['tokens']:,}"
        delta = "" if probe["delta_auc"] is None else f"{probe['delta_auc']:+.2f}%"
        print(
            f"{probe[unit]:>5} {tokens:>16} {probe['start_loss']:>10.4f} {probe['final_loss']:>10.4f} "
            f"{probe['auc']:>12.2f} {delta:>8}"
        )
    for sentence in [*run_result(probe_series(run)), unit_sentence(run)]:
        if sentence:
            print(f"\n{textwrap.fill(sentence, 100)}")
    print(f"\nrun folder  {folder}\nreport      {report}")
    source = SOURCES.get(run.config.get("source"))
    if source is not None and not source.natural:
        print("next        hf-plasticity train --config micro --source local --data_dir FOLDER (text of your own)")


def set_run_threads(config: ExperimentConfig) -> None:
    """Set the CPU threads of a run without a GPU: the given number, that of its earlier part, or all cores."""
    training = config.training
    if PartialState().device.type == "cpu":
        recorded = from_main_process(lambda: recorded_setting(training.output_dir, "cpu_threads"))
        training.cpu_threads = choose_threads(training.cpu_threads, recorded)
        set_threads(training.cpu_threads)


def print_start(config: ExperimentConfig) -> None:
    """Print whether the run starts or resumes, and on which devices."""
    if not is_main_process():
        return
    training, state = config.training, PartialState()
    device = f"{state.num_processes} process{'es' if state.num_processes > 1 else ''} on {state.device.type}"
    if state.device.type == "cpu":
        device += f", {training.cpu_threads} thread{'s' if training.cpu_threads > 1 else ''} each"
    checkpoint = last_complete_checkpoint(training.output_dir)
    start = "starts" if checkpoint is None else f"resumes from {Path(checkpoint).name}"
    print(f"'{training.output_dir}' {start} ({device})", flush=True)


def _unit(probes: list[dict[str, Any]], tasks_per_cycle: int | None) -> str:
    """The largest unit (cycle, task or step) for which all probes are at a whole number."""
    if any(probe["task"] is None for probe in probes):
        return "step"
    if tasks_per_cycle and all(probe["task"] % tasks_per_cycle == 0 for probe in probes):
        return "cycle"
    return "task"


def report_is_current(folder: str | Path) -> bool:
    """Whether a run folder has a report that is not older than its records."""
    report = Path(folder) / REPORT_FILE
    if not report.exists():
        return False
    records = [Path(folder) / name for name in REPORTED_FILES]
    return all(report.stat().st_mtime >= path.stat().st_mtime for path in records if path.exists())


def run_experiment(config: ExperimentConfig) -> None:
    """
    Run the experiment in its folder, resume it, or report that it is complete.

    Raises:
        [`PlasticityError`]: The configuration is invalid, or the Hub rejects the upload.
        [`TrainingDivergedError`], [`ProbeDivergedError`]: A loss is not finite.
        [`TrainingInterrupted`]: A signal stopped the run. The same call resumes it.
    """
    folder = config.training.output_dir
    # Transformers shows a progress bar for every file of weights that it writes.
    logging.disable_progress_bar()
    with run_folder(config):
        if from_main_process(lambda: is_finished(config)):
            pusher = start_pushing(config)
            if is_main_process():
                if not report_is_current(folder):
                    show_results(folder)
                print(f"'{folder}' is complete. To extend the run, increase --cycles.")
            if pusher is not None:
                pusher.finish()
            return
        set_run_threads(config)
        print_start(config)
        if config.data.dataset_commits is None:
            # Also those of a start without a training checkpoint.
            config.data.dataset_commits = from_main_process(lambda: (read_config(folder) or {}).get("dataset_commits"))
        data = open_data(config)
        check_same_text(config, data)
        pusher = start_pushing(config)
        trainer = build_trainer(config, data)
        write_run_config(config, data, trainer)
        if pusher is not None:
            from ..hub.push import PushCallback

            trainer.add_callback(PushCallback(pusher, trainer.timeline, *config.training.probe_period))
            pusher.wake()  # the configuration, before another run uses the repository
        trainer.folder_is_checked = True
        trainer.train(resume_from_checkpoint=True)
        trainer.save_state()
        if config.data.streaming and is_main_process():
            trainer.train_dataset.delete()
        if is_main_process():
            show_results(folder)
            if config.training.probe == DEFERRED:
                print(f"probes      deferred: hf-plasticity probe --model {folder} --follow")
        if pusher is not None:
            pusher.finish()
