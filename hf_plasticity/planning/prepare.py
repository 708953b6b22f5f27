"""Prepare all blocks of a run before it starts, for example on a machine with network and without a GPU."""

import contextlib

from ..data.blocks import Blocks
from ..data.overlap import TextTooShortError, measure_overlap
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig
from ..experiment.data import check_probe_text, open_data, training_stream, vocabulary
from ..records import run_lock
from .text import sequences_needed


def prepare_study(study: ExperimentConfig) -> list[tuple[Blocks, str]]:
    """
    Prepare the training blocks of each language for the length of the run, and those of the probe. A second call
    prepares nothing.

    Returns:
        `list[tuple[Blocks, str]]`: The blocks of each language and split, and their use: `"training"`, `"probe"` or
        `"evaluation"`.

    Raises:
        [`PlasticityError`]: Too little text, with the same message as at the start of the run, or blocks that are
            streamed.
    """
    training = study.training
    if study.data.streaming:
        raise PlasticityError(
            "streaming: blocks are prepared during the run and deleted afterwards; leave it out to prepare them "
            "all, or start the run"
        )
    # A tokenizer is trained in the run folder.
    tokenizer_is_trained = study.data.train_tokenizer is not None
    with run_lock(training.output_dir) if tokenizer_is_trained else contextlib.nullcontext():
        data = open_data(study)
    vocabulary(study, data.tokenizer)
    check_probe_text(study, data)
    stream = training_stream(study, data)
    batch_size = stream.schedule.task_slots // training.task_steps
    prepared = []
    for language, split, use, sequences in sequences_needed(study, stream.schedule, batch_size):
        blocks = (data.train if split == "train" else data.validation)[language]
        if use == "evaluation":
            blocks.require(sequences, "probe_eval_sequences")
        prepared.append((blocks, use))
    return prepared


def describe_prepared(prepared: list[tuple[Blocks, str]]) -> str:
    """Language, split, use, blocks, tokens and folder, and how much validation text occurs in the training text."""
    lines = [f"{'language':<10} {'split':<10} {'use':<10} {'blocks':>13} {'tokens':>17}  folder"]
    for blocks, use in prepared:
        lines.append(
            f"{blocks.language:<10} {blocks.split:<10} {use:<10} {len(blocks):>13,} {blocks.num_tokens:>17,}  "
            f"{blocks.folder}"
        )
    validation = [blocks for blocks, use in prepared if use == "evaluation"]
    if validation:
        # The last is that of the probe language.
        training = [blocks for blocks, use in prepared if use != "evaluation"]
        try:
            overlap = measure_overlap(validation[-1], training).describe()
        except TextTooShortError as error:
            overlap = f"{error}, so that the overlap with the training text is not measured"
        lines += ["", overlap]
    return "\n".join(lines)
