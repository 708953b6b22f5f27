"""The text that a run requires, and how much the source has."""

from collections.abc import Iterator
from typing import TypedDict

from transformers import PreTrainedTokenizerBase

from ..data.blocks import LARGEST_SHARD_TOKENS, Blocks, blocks_on_disk
from ..data.opening import open_source
from ..data.schedule import Schedule
from ..data.sources import Source, split_of
from ..data.tokenizers import encode_documents
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig
from ..experiment.data import RunData, open_run_data, run_schedule


class Text(TypedDict):
    """
    The text that a run requires of one language and split.

    Args:
        language (`str`): A training language, or the probe language.
        split (`str`): `"train"` or `"validation"`.
        use (`str`): `"training"`, `"probe"` or `"evaluation"`.
        sequences, tokens (`int`): Needed, in sequences of the context length.
        bytes_on_disk (`int`): Of the blocks once they are prepared.
        available (`int` or `None`): Tokens that the source has; `None` if unlimited or unknown.
        how (`str`): How that is known: `"unlimited"`, `"counted"`, `"prepared"` (there are at least so many),
            `"estimated"`, or `"unknown"` and why.
    """

    language: str
    split: str
    use: str
    sequences: int
    tokens: int
    bytes_on_disk: int
    available: int | None
    how: str


def sequences_needed(
    study: ExperimentConfig, schedule: Schedule, batch_size: int
) -> Iterator[tuple[str, str, str, int]]:
    """Language, split, use and number of sequences of all text that a run reads."""
    training, probe_language = study.training, study.data.probe_language
    for language, count in schedule.sequences_needed(training.cycles * schedule.tasks_per_cycle).items():
        yield language, "train", "training", count
    if training.evaluate_forgetting:
        for language in schedule.languages:
            yield language, "validation", "evaluation", training.probe_eval_sequences
    if not training.no_probe:
        yield probe_language, "train", "probe", training.probe_steps * training.probe_config(batch_size).batch_size
    evaluated = 0 if training.no_probe else training.probe_eval_sequences
    diagnosed = training.diagnostics_sequences if training.diagnose else 0
    if evaluated or diagnosed:
        yield probe_language, "validation", "evaluation", max(evaluated, diagnosed)


def text_of_study(study: ExperimentConfig, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> list[Text]:
    """
    The text that a run requires of every language, and how much the source has. Nothing is prepared or written.

    Args:
        study ([`ExperimentConfig`]): The run.
        vocab_size (`int`): Decides the size of a token on disk.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): `None` if it is not available.

    Raises:
        [`PlasticityError`]: The source does not fit the run. A source that cannot be reached is noted in `how`.
    """
    length = study.data.context_length
    batch_size = study.training.global_batch_tokens // length
    schedule = run_schedule(study, batch_size)
    source = open_source(study.data)
    data, why_not = _opened(study, source, tokenizer)
    found = []
    for language, split, use, sequences in sequences_needed(study, schedule, batch_size):
        available, how = None, why_not
        if data is not None:
            available, how = _available((data.train if split == "train" else data.validation)[language], sequences)
        stored = blocks_on_disk(sequences, length) * length
        if study.data.streaming and use == "training":
            # The current task instance and the one before it, with the rest of the shards that they begin and end in.
            stored = min(stored, 2 * schedule.task_slots * length + 2 * LARGEST_SHARD_TOKENS)
        if available is not None and how != "prepared":
            stored = min(stored, available)
        itemsize = 2 if vocab_size <= 2**16 else 4
        found.append(
            Text(
                language=language,
                split=split,
                use=use,
                sequences=sequences,
                tokens=sequences * length,
                bytes_on_disk=stored * itemsize,
                available=available,
                how=how,
            )
        )
    return found


def _opened(
    study: ExperimentConfig, source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[RunData | None, str]:
    """The blocks of the run, or the reason why they cannot be opened or need not be."""
    if source.unlimited:
        return None, "unlimited"
    if tokenizer is None:
        return None, "unknown: no tokenizer available"
    try:
        return open_run_data(study, source, tokenizer), ""
    except PlasticityError as error:
        # A remote source may be unreachable from the machine that plans; any other error is the user's.
        if not source.remote:
            raise
        return None, f"unknown: {error}"


def _available(blocks: Blocks, sequences: int) -> tuple[int | None, str]:
    if blocks.exhausted:
        return blocks.num_tokens, "counted"
    if len(blocks) >= sequences:
        return blocks.num_tokens, "prepared"
    size = blocks.source.num_bytes(blocks.language)
    return (None, "unknown: not prepared") if size is None else (_estimate(blocks, size), "estimated")


def _estimate(blocks: Blocks, size: int) -> int:
    """Tokens of a split: the size of the files, times tokens of the split for each byte in the first documents."""
    documents, _ = next(iter(blocks.source.batches(blocks.language)))
    chosen = [text for text in documents if split_of(text, blocks.validation_fraction) == blocks.split]
    tokens, lengths = encode_documents(blocks.tokenizer, chosen)
    read = sum(len(text.encode()) for text in documents)
    return int(size * (len(tokens) + len(lengths)) / read)
