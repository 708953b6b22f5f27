"""The source and the blocks that a configuration describes."""

import os

from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from ..errors import PlasticityError
from ..records import config_hash
from .blocks import Blocks
from .config import DataConfig
from .sources import SOURCES, Source, source_class


def open_source(data: DataConfig) -> Source:
    """
    The source of the documents.

    Raises:
        [`PlasticityError`]: There is no such source, or a setting does not apply to it.
    """
    chosen, defaults = source_class(data.source), DataConfig()
    owners: dict[str, list[str]] = {}
    for name, kind in SOURCES.items():
        for setting in kind.settings:
            owners.setdefault(setting, []).append(f"'{name}'")
    for setting, names in owners.items():
        value = getattr(data, setting)
        if setting not in chosen.settings and value != getattr(defaults, setting):
            raise PlasticityError(f"{setting}: '{value}' is for the source {' or '.join(names)}, not '{data.source}'")
    if data.fresh_languages and not chosen.fresh_languages:
        able = ", ".join(f"'{name}'" for name, kind in SOURCES.items() if kind.fresh_languages)
        raise PlasticityError(
            f"fresh_languages: the source '{data.source}' cannot generate new languages; choose the source {able}"
        )
    return chosen.from_config(data)


def open_blocks(
    data: DataConfig,
    source: Source,
    language: str,
    tokenizer: PreTrainedTokenizerBase,
    show_progress: bool,
    streamed_by: str | None = None,
) -> tuple[Blocks, Blocks]:
    """
    Training and validation blocks of a language. Nothing is prepared yet.

    Args:
        data ([`DataConfig`]): The text.
        source ([`Source`]): Its source.
        language (`str`): A language of the source.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        show_progress (`bool`): Whether to show progress bars.
        streamed_by (`str`, *optional*): The run folder of the run that streams the training blocks. They have a folder
            of their own, because another run would miss blocks that this one deletes.

    Raises:
        [`PlasticityError`]: The source does not have the language, or cannot be reached.
    """
    cache = data.data_cache_dir or os.path.join(constants.HF_HOME, "hf_plasticity", "blocks")
    own = (
        cache
        if streamed_by is None
        else os.path.join(cache, f"streamed-{config_hash({'folder': os.path.abspath(streamed_by)})}")
    )
    train, validation = (
        Blocks(
            source,
            language,
            split,
            tokenizer,
            data.context_length,
            own if split == "train" else cache,
            data.validation_fraction,
            show_progress=show_progress,
        )
        for split in ("train", "validation")
    )
    return train, validation
