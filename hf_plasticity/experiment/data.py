"""The text of a run: tokenizer, blocks, schedule and training stream."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ..data.blocks import Blocks
from ..data.opening import open_blocks, open_source
from ..data.schedule import GradualSchedule, Schedule, make_schedule
from ..data.sources import Source
from ..data.sources.base import split_of
from ..data.stream import TrainingStream
from ..data.tokenizers import load_tokenizer, num_token_ids, train_tokenizer
from ..errors import PlasticityError
from ..probing.probe import check_text
from ..trainer.checkpoint import has_started
from .config import ExperimentConfig


TOKENIZER_FOLDER, TRAINED_FROM_FILE = "tokenizer", "trained_from.json"
# Characters of each language, enough for the largest vocabulary of the study.
TOKENIZER_TRAINING_CHARACTERS = 2_000_000


class BlocksOfSplit(Mapping[str, Blocks]):
    """
    The blocks of one split by language, opened at the first access, because with `fresh_languages` a run has more
    languages than its configuration lists.

    Args:
        languages (`Sequence[str]`): The languages of the configuration.
        open_language (`Callable[[str], Blocks]`): Opens the blocks of a language.
    """

    def __init__(self, languages: Sequence[str], open_language: Callable[[str], Blocks]):
        self._languages, self._open = tuple(languages), lru_cache(maxsize=None)(open_language)

    def __getitem__(self, language: str) -> Blocks:
        return self._open(language)

    def __iter__(self) -> Iterator[str]:
        return iter(self._languages)

    def __len__(self) -> int:
        return len(self._languages)


@dataclass
class RunData:
    """
    The text of a run.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of all blocks.
        train (`Mapping[str, Blocks]`): Training blocks of each language, the probe language included.
        validation (`Mapping[str, Blocks]`): Validation blocks of each language.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Mapping[str, Blocks]
    validation: Mapping[str, Blocks]

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Hashes of all inputs of the blocks of each language."""
        return {
            language: {"train": self.train[language].fingerprint, "validation": self.validation[language].fingerprint}
            for language in self.train
        }


def open_data(config: ExperimentConfig) -> RunData:
    """
    Open the tokenizer and the blocks of a run. Blocks are not prepared yet. With `train_tokenizer`, the
    tokenizer is trained and saved in the run folder.

    Raises:
        [`PlasticityError`]: The text or the tokenizer is not available.
    """
    source = open_source(config.data)
    with PartialState().main_process_first():
        tokenizer = _tokenizer(config, source)
    data = open_run_data(config, source, tokenizer)
    for name, value in source.resolved_settings().items():
        setattr(config.data, name, value)
    return data


def open_run_data(config: ExperimentConfig, source: Source, tokenizer: PreTrainedTokenizerBase) -> RunData:
    """
    Open the blocks of a run. Nothing is prepared.

    Raises:
        [`PlasticityError`]: The source does not have a language, two languages have the same text, or the source
            cannot be reached.
    """
    languages = [*config.data.languages, config.data.probe_language]

    @cache
    def both_splits(language: str) -> tuple[Blocks, Blocks]:
        streamed = config.data.streaming and language != config.data.probe_language
        return open_blocks(
            config.data,
            source,
            language,
            tokenizer,
            show_progress=not config.training.disable_tqdm,
            streamed_by=config.training.output_dir if streamed else None,
        )

    with_this_text: dict[str, str] = {}
    for language in languages:
        both_splits(language)
        other = with_this_text.setdefault(source.text_digest(language), language)
        if other != language:
            raise PlasticityError(
                f"languages: '{other}' and '{language}' have the same text; give each language its own, so that the "
                "text of the probe is never trained on"
            )
    return RunData(
        tokenizer,
        train=BlocksOfSplit(languages, lambda language: both_splits(language)[0]),
        validation=BlocksOfSplit(languages, lambda language: both_splits(language)[1]),
    )


def _tokenizer(config: ExperimentConfig, source: Source) -> PreTrainedTokenizerBase:
    data = config.data
    if data.train_tokenizer is None:
        return load_tokenizer(data.tokenizer)
    folder = Path(config.training.output_dir) / TOKENIZER_FOLDER
    trained_from = _trained_from(config, source)
    known = _read_json(folder / TRAINED_FROM_FILE)
    if known != trained_from:
        if known is not None and has_started(config.training.output_dir):
            raise PlasticityError(
                f"output_dir: '{config.training.output_dir}' was started with other text or another tokenizer; choose "
                "another folder"
            )
        # There is no tokenizer yet, or it is from an earlier start with other settings.
        partial = folder.with_name(f".{TOKENIZER_FOLDER}.partial")
        for path in (folder, partial):
            shutil.rmtree(path, ignore_errors=True)
        tokenizer = train_tokenizer(_tokenizer_text(config, source), data.train_tokenizer)
        tokenizer.save_pretrained(partial)
        (partial / TRAINED_FROM_FILE).write_text(json.dumps(trained_from, indent=1), encoding="utf-8")
        partial.rename(folder)
    return load_tokenizer(str(folder))


def _trained_from(config: ExperimentConfig, source: Source) -> dict[str, Any]:
    """Everything that a trained tokenizer depends on."""
    languages = [*config.data.languages, config.data.probe_language]
    return {
        "train_tokenizer": config.data.train_tokenizer,
        "validation_fraction": config.data.validation_fraction,
        "languages": {language: source.fingerprint(language) for language in languages},
    }


def _read_json(path: Path) -> Any:
    """The content of a JSON file; `None` if there is none, or if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _tokenizer_text(config: ExperimentConfig, source: Source) -> Iterator[str]:
    """Training documents of every language, the same number of characters of each."""
    data = config.data
    for language in [*data.languages, data.probe_language]:
        characters = 0
        for documents, _ in source.batches(language):
            for document in documents:
                if split_of(document, data.validation_fraction) == "train":
                    characters += len(document)
                    yield document
            if characters >= TOKENIZER_TRAINING_CHARACTERS:
                break


def vocabulary(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """
    Rows of the model's embedding.

    Raises:
        [`PlasticityError`]: `vocab_size` is less than the number of tokens.
    """
    needed = num_token_ids(tokenizer)
    vocab_size = config.model.vocab_size or needed
    if vocab_size < needed:
        raise PlasticityError(f"vocab_size: {vocab_size} is less than the tokenizer's {needed} tokens")
    return vocab_size


def run_schedule(config: ExperimentConfig, batch_size: int) -> Schedule:
    """The schedule of a run whose global batch has `batch_size` sequences."""
    training = config.training
    return make_schedule(
        training.schedule,
        config.data.languages,
        task_slots=training.task_steps * batch_size,
        blend=training.blend,
        seed=data_seed(config),
        fresh_languages=config.data.fresh_languages,
    )


def data_seed(config: ExperimentConfig) -> int:
    """The seed of the order of the training text: `data_seed`, or `seed` without one."""
    return config.training.seed if config.training.data_seed is None else config.training.data_seed


def check_probe_text(config: ExperimentConfig, data: RunData) -> None:
    """
    Check that there is enough text for the probes and diagnoses, deferred ones included, and prepare it. Call this
    before `training_stream`, which may prepare text for hours.

    Raises:
        [`PlasticityError`]: Too little text, or a batch that does not divide.
    """
    training, language = config.training, config.data.probe_language
    if not training.no_probe:
        probe = training.probe_config(training.set_batch(config.data.context_length))
        check_text(data.train[language], data.validation[language], probe)
    if training.diagnose:
        data.validation[language].require(training.diagnostics_sequences, "diagnostics_sequences")


def training_stream(config: ExperimentConfig, data: RunData) -> TrainingStream:
    """
    The sequences of the whole run, prepared unless they are streamed.

    Raises:
        [`PlasticityError`]: Too little text, a batch that does not divide, or a blend of less than two sequences.
    """
    training = config.training
    schedule = run_schedule(config, training.set_batch(config.data.context_length))
    if isinstance(schedule, GradualSchedule) and schedule.half == 0:
        raise PlasticityError(
            f"blend: {training.blend} of a task instance is less than two of its {schedule.task_slots} sequences; use "
            "more, or the schedule rotation"
        )
    return TrainingStream(
        data.train,
        schedule,
        tasks=training.cycles * schedule.tasks_per_cycle,
        seed=data_seed(config),
        allow_repeats=training.allow_repeats,
        streaming=config.data.streaming,
        permute_tokens=config.data.permute_tokens,
    )
