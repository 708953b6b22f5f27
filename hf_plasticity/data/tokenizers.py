"""Tokenizers: bytes, trained on the text of a run, or loaded from a folder or the Hub; and documents to tokens."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import PlasticityError, one_line
from ..hub_errors import explain_hub_error
from .sources.base import utf8


END_OF_TEXT = "<|endoftext|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """
    A tokenizer without a file: token b is the byte b of the UTF-8 text, and token 256 is the end of text. Decoding
    returns any text exactly. Once saved, it loads with `AutoTokenizer.from_pretrained` like any other.
    """
    tokenizer = Tokenizer(models.BPE(vocab={character: byte for byte, character in enumerate(_alphabet())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_end_of_text(tokenizer)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer that splits text into words as GPT-2 does. Decoding returns any text exactly.

    Args:
        texts (`Iterator[str]`): The training documents; read once.
        vocab_size (`int`): Number of tokens, 258 or more. The last one is the end-of-text token.

    Raises:
        [`PlasticityError`]: Too few tokens to hold all bytes, or too little text for so many tokens.
    """
    if vocab_size < 258:
        raise PlasticityError(
            f"train_tokenizer: {vocab_size} leaves no token to train besides the 256 bytes and the end of text; use "
            "258 or more, or use the tokenizer 'byte'"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size - 1:
        raise PlasticityError(
            f"train_tokenizer: {vocab_size} tokens cannot be trained on so little text, only "
            f"{tokenizer.get_vocab_size() + 1}; give more text or a smaller number"
        )
    return _with_end_of_text(tokenizer)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """
    A tokenizer by name. No code from the Hub or the folder is executed.

    Args:
        name_or_path (`str`): `"byte"`, a folder, or a repository on the Hub.

    Raises:
        [`PlasticityError`]: There is no such tokenizer, it cannot be reached, or it has no end-of-text token.
    """
    if name_or_path == "byte":
        return byte_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:
        raise PlasticityError(f"tokenizer: {_why_not_loaded(name_or_path, error)}") from None
    if tokenizer.is_fast and not tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids:
        # Transformers makes an empty tokenizer from a folder with a model and no tokenizer (seen in transformers
        # 5.23.0).
        raise PlasticityError(f"tokenizer: '{name_or_path}' has no tokenizer, or an empty one; choose another")
    return check_tokenizer(tokenizer)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """
    Check that blocks can be made with a tokenizer, and return it.

    Raises:
        [`PlasticityError`]: It is not a fast tokenizer, or has no end-of-text token.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise PlasticityError(
            f"tokenizer: {type(tokenizer).__name__} is not a tokenizer of Transformers; load one with AutoTokenizer"
        )
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise PlasticityError(f"tokenizer: '{name}' is not a fast tokenizer (tokenizer.json); convert or replace it")
    if tokenizer.eos_token_id is None:
        raise PlasticityError(
            f"tokenizer: '{name}' has no end-of-text token (eos_token), which separates the documents; set one in its "
            "tokenizer_config.json, or as tokenizer.eos_token"
        )
    return tokenizer


def num_token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest token id plus one: more than `len(tokenizer)` if there are gaps between the ids."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """
    A hexadecimal hash of the tokenizer: vocabulary, merges, normalizer, pre-tokenizer and special tokens. It does not
    depend on the path from which it was loaded, or on its last truncation and padding.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    del content["truncation"], content["padding"]
    content = [content, tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def encode_documents(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """
    Tokenize documents on all cores, without special tokens, whole and without padding. The name of a special token in
    a document is plain text.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        documents (`Sequence[str]`): The documents.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The tokens (int32) of all documents in a row, and the number of tokens of each
        document (int64).

    Raises:
        [`PlasticityError`]: As [`utf8`].
    """
    if _is_byte_tokenizer(tokenizer):
        encoded = [utf8(document) for document in documents]
        return np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.int32), _lengths(encoded)
    with _plain(tokenizer.backend_tokenizer) as backend:
        # Not `tokenizer(documents)`, which builds masks and offsets, and warns about documents longer than the model's
        # context.
        try:
            tokens = [encoding.ids for encoding in backend.encode_batch_fast(documents, add_special_tokens=False)]
        except TypeError:  # so that sound documents are not checked
            for document in documents:
                utf8(document)
            raise
    lengths = _lengths(tokens)
    return np.fromiter(chain.from_iterable(tokens), dtype=np.int32, count=lengths.sum()), lengths


@contextlib.contextmanager
def _plain(backend: Tokenizer) -> Iterator[Tokenizer]:
    """
    The tokenizer without truncation, padding and special tokens. A call of the Transformers tokenizer leaves its
    truncation and padding in the backend, and saving the tokenizer saves them.
    """
    special, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield backend
    finally:
        backend.encode_special_tokens = special
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def join_documents(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> np.ndarray:
    """
    The tokens of documents in a row, each document followed by the end-of-text token: `(n,)`, int32. Blocks are this
    row, cut into pieces of the context length.
    """
    tokens, lengths = encode_documents(tokenizer, documents)
    return np.insert(tokens, np.cumsum(lengths), tokenizer.eos_token_id)


@dataclass(frozen=True)
class Vocabulary:
    """
    Args:
        size (`int`): The highest token id plus one.
        text_ids (`np.ndarray` of shape `(n,)`): The ids of all tokens but the special ones, sorted.
    """

    size: int
    text_ids: np.ndarray


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """
    The token ids that `permute_tokens` exchanges.

    Raises:
        [`PlasticityError`]: There are fewer than two.
    """
    ids = set(tokenizer.get_vocab().values())
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    text_ids = sorted(ids - special - set(tokenizer.all_special_ids))
    if len(text_ids) < 2:
        raise PlasticityError(
            f"permute_tokens: the tokenizer has {len(text_ids)} tokens besides its special tokens, and a permutation "
            "requires at least 2; use another tokenizer, or leave permute_tokens out"
        )
    return Vocabulary(size=num_token_ids(tokenizer), text_ids=np.array(text_ids, dtype=np.int64))


def _alphabet() -> list[str]:
    """
    The characters that represent the 256 bytes in byte-level vocabularies (GPT-2): a printable byte represents itself,
    the other bytes are represented by the characters from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _why_not_loaded(name_or_path: str, error: Exception) -> str:
    if (reason := explain_hub_error(name_or_path, "model", error)) is not None:
        return reason
    if "trust_remote_code" in str(error):
        return f"'{name_or_path}' requires custom code, which is never executed; use one that has a tokenizer.json"
    return f"'{name_or_path}' has no tokenizer that can be loaded: {one_line(error)}"


def _with_end_of_text(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _byte_fingerprint() -> str:
    return tokenizer_fingerprint(byte_tokenizer())


def _is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) == 257 and tokenizer_fingerprint(tokenizer) == _byte_fingerprint()


def _lengths(encoded: list[bytes] | list[list[int]]) -> np.ndarray:
    return np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
