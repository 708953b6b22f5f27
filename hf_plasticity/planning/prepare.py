"""Prepare all blocks of a run before it starts, for example on a machine with network and without a GPU."""

from dataclasses import dataclass
from pathlib import Path

from ..data.blocks import Blocks
from ..data.overlap import TextTooShortError, measure_overlap
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig
from ..experiment.data import open_data, training_stream, vocabulary
from ..probing.probe import check_text
from .text import sequences_needed


@dataclass(frozen=True)
class Prepared:
    """The blocks of one language and split, and their use: `"training"`, `"probe"` or `"evaluation"`."""

    blocks: Blocks
    use: str


def prepare_study(study: ExperimentConfig) -> list[Prepared]:
    """
    Prepare the training blocks of each language for the length of the run, and those of the probe. A second call
    prepares nothing.

    Raises:
        [`PlasticityError`]: Too little text, with the same message as at the start of the run, or blocks that are
            streamed.
    """
    training, probe_language = study.training, study.data.probe_language
    if study.data.streaming:
        raise PlasticityError(
            "streaming: blocks are prepared during the run and deleted afterwards; leave it out to prepare them "
            "all, or start the run"
        )
    data = open_data(study)
    vocabulary(study, data.tokenizer)
    stream = training_stream(study, data)
    batch_size = stream.schedule.task_slots // training.task_steps
    prepared = []
    for language, split, use, sequences in sequences_needed(study, stream.schedule, batch_size):
        blocks = (data.train if split == "train" else data.validation)[language]
        if use == "probe":
            check_text(blocks, data.validation[probe_language], training.probe_config(batch_size))
        elif use == "evaluation":
            blocks.require(sequences, "probe_eval_sequences")
        prepared.append(Prepared(blocks, use))
    return prepared


def overlap_with_training(prepared: list[Prepared]) -> str | None:
    """One sentence: how much of the validation text of the probe language occurs verbatim in the training text."""
    training = [one.blocks for one in prepared if one.use in ("training", "probe")]
    validation = [one.blocks for one in prepared if one.use == "evaluation"]
    if not validation:
        return None
    try:
        return measure_overlap(validation[-1], training).describe()
    except TextTooShortError as error:
        return f"{error}, so that the overlap with the training text is not measured"


def prepared_table(prepared: list[Prepared]) -> str:
    """A table of language, split, use, blocks, tokens and folder."""
    rows = [("language", "split", "use", "blocks", "tokens", "folder")]
    for one in prepared:
        blocks = one.blocks
        numbers = (f"{len(blocks):,}", f"{blocks.num_tokens:,}")
        rows.append((blocks.language, blocks.split, one.use, *numbers, str(Path(blocks.folder))))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            [
                *(f"{cell:<{width}}" for cell, width in zip(row[:3], widths)),
                *(f"{cell:>{width}}" for cell, width in zip(row[3:5], widths[3:])),
                row[5],
            ]
        )
        for row in rows
    )
