"""From a configuration of text to its source and its blocks."""

import json
import os

from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from ..errors import PlasticityError
from .blocks import Blocks
from .config import DataConfig
from .sources import Source, make_source


def open_source(data: DataConfig) -> Source:
    """
    Where documents come from.

    Raises:
        [`PlasticityError`]: There is no such source, or options do not fit it.
    """
    return make_source(
        data.source,
        data_dir=data.data_dir,
        dataset=data.dataset,
        dataset_configs=_dataset_configs(data),
        text_column=data.text_column,
    )


def open_blocks(
    data: DataConfig, source: Source, language: str, tokenizer: PreTrainedTokenizerBase, show_progress: bool
) -> tuple[Blocks, Blocks]:
    """
    Training and validation blocks of a language, as far as they have been prepared.

    Raises:
        [`PlasticityError`]: The source does not have the language, or cannot be reached.
    """
    cache = data.data_cache_dir or os.path.join(constants.HF_HOME, "hf_plasticity", "blocks")
    train, validation = (
        Blocks(
            source,
            language,
            split,
            tokenizer,
            data.context_length,
            cache,
            data.validation_fraction,
            show_progress=show_progress,
        )
        for split in ("train", "validation")
    )
    return train, validation


def _dataset_configs(data: DataConfig) -> dict[str, str] | str | None:
    """The mapping or template of `dataset_configs`, from how it is written on a command line."""
    if data.dataset_configs is None or not data.dataset_configs.startswith('{"'):
        return data.dataset_configs
    try:
        return json.loads(data.dataset_configs)
    except json.JSONDecodeError as error:
        raise PlasticityError(f"dataset_configs: '{data.dataset_configs}' is not valid JSON: {error}") from None
