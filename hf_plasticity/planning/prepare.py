"""All blocks of a study, prepared before it runs: on a machine with network and without a GPU, say."""

from dataclasses import dataclass
from pathlib import Path

from ..data.blocks import Blocks
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig
from ..experiment.data import open_data, training_stream, vocabulary
from .text import sequences_needed


@dataclass(frozen=True)
class Prepared:
    """The blocks of one language and split, and what they are for: `"training"`, `"probe"` or `"evaluation"`."""

    blocks: Blocks
    use: str


def prepare_study(study: ExperimentConfig) -> list[Prepared]:
    """
    Prepare the training blocks of each language as far as the run goes, and those of the probe. The run finds them,
    and a second call has nothing left to do.

    Raises:
        [`PlasticityError`]: Too little text, as the run would say it, or blocks that are to be streamed.
    """
    training = study.training
    if study.data.streaming:
        raise PlasticityError(
            "streaming: blocks are prepared as the run needs them and deleted afterwards; leave it out to prepare "
            "them all, or start the run"
        )
    data = open_data(study)
    vocabulary(study, data.tokenizer)
    stream = training_stream(study, data)
    batch_size = stream.schedule.task_slots // training.task_steps
    prepared = []
    for language, split, use, sequences in sequences_needed(study, stream.schedule, batch_size):
        blocks = (data.train if split == "train" else data.validation)[language]
        if use != "training":
            blocks.prepare(sequences)
            _check(study, blocks, use, sequences)
        prepared.append(Prepared(blocks, use))
    return prepared


def _check(study: ExperimentConfig, blocks: Blocks, use: str, wanted: int) -> None:
    """What trainer and probe would say once they come to it."""
    have = len(blocks)
    if have >= wanted or (use == "probe" and study.training.allow_repeats and have):
        return
    if use == "probe":
        raise PlasticityError(
            f"probe_steps: {study.training.probe_steps} steps take {wanted:,} training sequences and there are "
            f"{have:,}; give the probe language more text, shorten the probe, or set allow_repeats"
        )
    if blocks.language == study.data.probe_language:
        raise PlasticityError(
            f"probe_eval_sequences: {wanted} are asked for and the validation split has {have}; give it more text, or "
            "ask for fewer"
        )
    raise PlasticityError(
        f"probe_eval_sequences: {wanted} are asked for and the validation split of '{blocks.language}' has {have}; "
        "give it more text, ask for fewer, or leave evaluate_forgetting out"
    )


def prepared_table(prepared: list[Prepared]) -> str:
    """Language, split, use, blocks, tokens and folder, a line each."""
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
