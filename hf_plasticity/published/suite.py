"""Probe the checkpoints of a published suite, on the Hub or in a folder."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.config import DataConfig
from ..data.opening import open_blocks, open_source
from ..data.tokenizers import load_tokenizer, num_token_ids
from ..diagnostics import DiagnosticsConfig
from ..distributed import from_main_process, is_main_process, start_processes
from ..errors import PlasticityError
from ..experiment.folder import versions
from ..experiment.run import show_results
from ..network import num_non_embedding_parameters
from ..periodic import Timeline
from ..probing.recorder import ProbeRecorder
from ..records import PROVENANCE, differences, read_config, run_lock, write_config
from ..settings import NUMERICS, roles_of
from ..threads import choose_threads, set_threads
from .checkpoints import check_tokenizers, check_weights, find_checkpoints, load_model
from .config import BATCH, CHECKPOINTS, SuiteConfig
from .prober import CheckpointProber, make_accelerator


logger = logging.get_logger(__name__)


def probe_suite(suite: SuiteConfig, data: DataConfig) -> None:
    """
    Probe every checkpoint that is not recorded yet, and write the report. The same command resumes; with more
    revisions, it adds them.

    Raises:
        [`PlasticityError`]: The configuration is invalid.
        [`ProbeDivergedError`]: The loss of a probe is not finite.
    """
    # Transformers shows a progress bar for every model that it loads.
    logging.disable_progress_bar()
    use_cpu = start_processes(suite.use_cpu)
    accelerator = make_accelerator(suite.bf16, use_cpu)
    with contextlib.ExitStack() as stack:
        found = from_main_process(lambda: _begin(suite, data, stack))
        if use_cpu:
            recorded = from_main_process(lambda: (read_config(suite.output_dir) or {}).get("cpu_threads"))
            suite.cpu_threads = choose_threads(suite.cpu_threads, recorded)
            set_threads(suite.cpu_threads)
        if data.tokenizer is None:
            local = Path(suite.model).is_dir()
            data.tokenizer = os.path.join(suite.model, list(found.values())[-1]) if local else suite.model
        tokenizer = load_tokenizer(data.tokenizer)
        if data.dataset_commits is None:
            data.dataset_commits = from_main_process(
                lambda: (read_config(suite.output_dir) or {}).get("dataset_commits")
            )
        source = open_source(data)
        train_blocks, eval_blocks = open_blocks(
            data, source, data.probe_language, tokenizer, show_progress=not suite.disable_tqdm
        )
        for name, value in source.resolved_settings().items():
            setattr(data, name, value)
        recorder = ProbeRecorder(
            train_blocks,
            eval_blocks,
            suite.probe_config(),
            data.probe_language,
            Timeline(tokens_per_step=suite.tokens_per_step),
            eval_blocks.bytes_per_token(suite.probe_eval_sequences),
        )

        text = {"train": train_blocks.fingerprint, "validation": eval_blocks.fingerprint}
        from_main_process(lambda: _check_text(suite, data, text))
        local, writes = Path(suite.model).is_dir(), is_main_process()

        def load(name: str) -> PreTrainedModel:
            model = load_model(Path(suite.model) / name) if local else load_model(suite.model, name)
            _check_fit(model, name, data, num_token_ids(tokenizer))
            if writes:
                _write_config(suite, data, found, text, num_non_embedding_parameters(model))
            return model

        prober = CheckpointProber(
            suite.output_dir,
            recorder,
            found.__getitem__,
            load,
            accelerator,
            share=suite.share or (BATCH if accelerator.is_fsdp2 else CHECKPOINTS),
            head_loss=suite.head_loss,
            diagnostics=DiagnosticsConfig(measures=suite.diagnostics_measures),
            diagnostics_blocks=eval_blocks.first(suite.diagnostics_sequences, "diagnostics_sequences")
            if suite.diagnose
            else None,
            micro_batch_size=suite.per_device_train_batch_size,
            show_progress=not suite.disable_tqdm,
            skip_damaged=suite.skip_damaged,
        )
        prober.probe(list(found))
        if is_main_process():
            recorder.refer_to_first(suite.output_dir)
            for step, reason in prober.skipped.items():
                logger.warning(f"'{found[step]}' was left out: {reason}")
        if len(prober.skipped) == len(found):
            raise PlasticityError(f"model: none of the {len(found)} checkpoints of '{suite.model}' can be loaded")
        if is_main_process():
            show_results(suite.output_dir)


def _begin(suite: SuiteConfig, data: DataConfig, stack: contextlib.ExitStack) -> dict[int, str]:
    """The checkpoints of the suite. The run folder is locked until `stack` is closed."""
    stack.enter_context(run_lock(suite.output_dir))
    _check_folder(suite, data)
    found = find_checkpoints(suite)
    _check_steps(suite, found)
    check_weights(suite, found, (read_config(suite.output_dir) or {}).get(PROVENANCE, {}).get("checkpoints"))
    if data.tokenizer is None:
        check_tokenizers(suite, found)
    return found


def _roles(suite: SuiteConfig, data: DataConfig) -> dict[str, str]:
    return roles_of(suite) | roles_of(data)


def _settings(suite: SuiteConfig, data: DataConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(suite) | dataclasses.asdict(data) | suite.probe_config().as_settings()
    return {name: value for name, value in settings.items() if value is not None}


def _numerics(suite: SuiteConfig, data: DataConfig) -> dict[str, Any]:
    """The settings that affect the numbers. The tokenizer is compared as part of the text (`_check_text`)."""
    roles = _roles(suite, data)
    return {
        name: value
        for name, value in _settings(suite, data).items()
        if roles[name] == NUMERICS and name != "tokenizer"
    }


def _check_folder(suite: SuiteConfig, data: DataConfig) -> None:
    if Path(suite.model).is_dir() and Path(suite.model).resolve() == Path(suite.output_dir).resolve():
        raise PlasticityError(f"output_dir: '{suite.output_dir}' is the suite itself; choose another folder")
    recorded = read_config(suite.output_dir)
    if recorded is None:
        return
    if "schedule" in recorded:
        raise PlasticityError(f"output_dir: '{suite.output_dir}' belongs to a training run; choose another folder")
    different = differences(recorded, _numerics(suite, data))
    if different:
        raise PlasticityError(
            f"output_dir: '{suite.output_dir}' belongs to other probes ({'; '.join(different)}); choose another folder"
        )


def _check_steps(suite: SuiteConfig, found: dict[int, str]) -> None:
    """Check that checkpoints that were probed before have the same steps as now, because records are kept by step."""
    recorded = (read_config(suite.output_dir) or {}).get(PROVENANCE, {}).get("checkpoints", {})
    steps = {name: step for step, name in recorded.items()}
    for step, name in found.items():
        if recorded.get(step, name) != name:
            raise PlasticityError(
                f"revisions: '{name}' has the step {step}, as which '{suite.output_dir}' has '{recorded[step]}'; "
                "choose another output_dir"
            )
        if steps.get(name, step) != step:
            raise PlasticityError(
                f"step: '{name}' has the step {step} now, and {steps[name]} in '{suite.output_dir}'; choose another "
                "output_dir"
            )


def _check_text(suite: SuiteConfig, data: DataConfig, text: dict[str, str]) -> None:
    there = (read_config(suite.output_dir) or {}).get(PROVENANCE, {}).get("data", {}).get(data.probe_language, text)
    if there != text:
        raise PlasticityError(
            f"output_dir: '{suite.output_dir}' was started with other text; that of '{data.probe_language}', or the "
            "tokenizer, has changed; choose another folder"
        )


def _check_fit(model: PreTrainedModel, name: str, data: DataConfig, tokens: int) -> None:
    """Check that the blocks fit a model."""
    known = model.get_input_embeddings().num_embeddings
    if tokens > known:
        raise PlasticityError(
            f"tokenizer: '{data.tokenizer}' has {tokens} tokens and the vocabulary of '{name}' has {known}; choose "
            "the suite's tokenizer with --tokenizer"
        )
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if longest is not None and data.context_length > longest:
        raise PlasticityError(f"context_length: {data.context_length} is more than the {longest} tokens of '{name}'")


def _write_config(
    suite: SuiteConfig, data: DataConfig, found: dict[int, str], text: dict[str, str], parameters: int
) -> None:
    there = (read_config(suite.output_dir) or {}).get(PROVENANCE, {})
    checkpoints = there.get("checkpoints", {}) | found
    provenance = {
        "num_non_embedding_parameters": parameters,
        "checkpoints": {step: checkpoints[step] for step in sorted(checkpoints)},
        "data": {data.probe_language: text},
        "numerics": sorted(_numerics(suite, data)),
        "versions": versions(),
    }
    write_config(suite.output_dir, _settings(suite, data) | {PROVENANCE: provenance})
