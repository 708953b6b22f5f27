"""Blocks of token ids from texts in memory, for probes and diagnoses in your own script."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PlasticityError
from .blocks import check_context_length
from .sources.base import BATCH_CHARACTERS, SPLITS, split_of
from .tokenizers import check_tokenizer, join_documents


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_blocks(
    texts: Iterable[str | Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    context_length: int = 128,
    text_column: str = "text",
    max_blocks: int | None = None,
    split: str | None = None,
    validation_fraction: float = 0.05,
) -> np.ndarray:
    """
    Make token blocks from a dataset or any iterable of texts. The documents are joined by the end-of-text token and
    cut into sequences of one length, as in the study. Null and blank texts are skipped. Reading stops soon after
    `max_blocks` blocks.

    With `split`, only the documents of that split are used. The split is chosen by a hash of the document's text, so
    the blocks of `"train"` and of `"validation"` never share a document, even if the dataset repeats it.

    Args:
        texts (`datasets.Dataset`, `datasets.IterableDataset` or iterable of `str` or `dict`): The documents.
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer with an end-of-text token (`eos_token`).
        context_length (`int`, *optional*, defaults to 128): Tokens in a block.
        text_column (`str`, *optional*, defaults to `"text"`): The column of a dataset with the text.
        max_blocks (`int`, *optional*): The maximum number of blocks; unlimited by default.
        split (`str`, *optional*): `"train"` or `"validation"`; by default both.
        validation_fraction (`float`, *optional*, defaults to 0.05): With `split`: share of the documents in the
            validation split.

    Returns:
        `np.ndarray` of shape `(n, context_length)` and type `int64`: The blocks. Tokens that do not fill a last block
        are left out.

    Raises:
        [`PlasticityError`]: The tokenizer has no end-of-text token, a text is not a string, or the texts do not fill a
            single block.

    Example:

    ```python
    >>> from hf_plasticity import text_blocks
    >>> from hf_plasticity.data.tokenizers import byte_tokenizer

    >>> text_blocks(["four", "more"], byte_tokenizer(), context_length=5).tolist()
    [[102, 111, 117, 114, 256], [109, 111, 114, 101, 256]]
    ```
    """
    check_tokenizer(tokenizer)
    check_context_length(context_length)
    if max_blocks is not None and max_blocks < 1:
        raise PlasticityError(f"max_blocks: {max_blocks} is not a positive number")
    if split not in (None, *SPLITS):
        raise PlasticityError(f"split: '{split}' is unknown; choose one of {', '.join(SPLITS)}")
    if not 0 < validation_fraction < 1:
        raise PlasticityError(f"validation_fraction: {validation_fraction} is not between 0 and 1")
    documents = _documents(texts, text_column)
    if split is not None:
        documents = (text for text in documents if split_of(text, validation_fraction) == split)
    rows, count = [], 0
    for batch in _batches(documents):
        rows.append(join_documents(tokenizer, batch))
        count += len(rows[-1])
        if max_blocks is not None and count >= max_blocks * context_length:
            break
    blocks = count // context_length if max_blocks is None else min(count // context_length, max_blocks)
    if blocks == 0:
        raise PlasticityError(
            f"texts: the {f'{split} split' if split else 'text'} has {count} tokens, which do not fill a block of "
            f"{context_length}; give more text, or a shorter context_length"
        )
    return np.concatenate(rows)[: blocks * context_length].reshape(blocks, context_length).astype(np.int64)


def _documents(texts: Iterable[str | Mapping[str, Any]], text_column: str) -> Iterator[str]:
    """The texts that are neither null nor blank."""
    if isinstance(texts, str):
        raise PlasticityError("texts: a single string; give an iterable of documents, such as a list of strings")
    if isinstance(texts, Mapping):
        raise PlasticityError(f"texts: a mapping of {', '.join(map(str, texts))}; give one of its values")
    import datasets  # slow

    if isinstance(texts, datasets.Dataset | datasets.IterableDataset) and text_column in (texts.column_names or ()):
        texts = texts.select_columns([text_column])  # otherwise all columns of every row are decoded
    for number, row in enumerate(texts):
        if isinstance(row, Mapping):
            if text_column not in row:
                raise PlasticityError(
                    f"text_column: the texts have no column '{text_column}'; their columns are {', '.join(row)}"
                )
            row = row[text_column]
        if row is not None and not isinstance(row, str):
            raise PlasticityError(f"texts: number {number} is of type {type(row).__name__}, not a string")
        if row and not row.isspace():
            yield row


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
