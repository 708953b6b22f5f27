"""
Blocks: documents joined by an end-of-text token and cut into token sequences of one length, kept in memory-mapped
files that are prepared once and found again by a hash of everything they are made from.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from ..errors import PlasticityError
from ..records import config_hash, write_atomically
from .sources.base import SPLITS, Source, split_of
from .tokenizers import encode_documents, tokenizer_fingerprint


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
# Shards double from small, so that a short run prepares little, to large, so that a long one has few files.
FIRST_SHARD_TOKENS = 2**20
LARGEST_SHARD_TOKENS = 2**28


class Blocks:
    """
    The token blocks of one language and split, prepared as far as they have been asked for.

    Several processes may share a folder: whichever needs a shard first makes it while the others wait.

    Args:
        source ([`Source`]): Where the documents come from.
        language (`str`): One of the source's languages.
        split (`str`): `"train"` or `"validation"`.
        tokenizer (`PreTrainedTokenizerBase`): Must have an end-of-text token.
        context_length (`int`): Tokens in a block.
        cache_dir (`str` or `Path`): Parent of the folders in which blocks are kept.
        validation_fraction (`float`): Share of the documents, chosen by their hash, that form the validation split.
        show_progress (`bool`, *optional*, defaults to `True`): Whether preparing shows a bar.

    Raises:
        [`PlasticityError`]: The source does not have the language, or one of its documents cannot be read.
    """

    def __init__(
        self,
        source: Source,
        language: str,
        split: str,
        tokenizer: "PreTrainedTokenizerBase",
        context_length: int,
        cache_dir: str | Path,
        validation_fraction: float,
        show_progress: bool = True,
    ):
        assert split in SPLITS
        if not 0 < validation_fraction < 1:
            raise PlasticityError(f"validation_fraction: {validation_fraction} is not between 0 and 1")
        if context_length < 2:
            raise PlasticityError(f"context_length: {context_length} leaves no token to predict; 2 is the least")
        self.source, self.language, self.split, self.tokenizer = source, language, split, tokenizer
        self.context_length, self.validation_fraction = context_length, validation_fraction
        self.show_progress = show_progress
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
        self.made_from = {
            "format_version": FORMAT_VERSION,
            "source": source.fingerprint(language),
            "language": language,
            "split": split,
            "validation_fraction": validation_fraction,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "context_length": context_length,
        }
        self.fingerprint = config_hash(self.made_from)
        self.folder = Path(cache_dir) / f"{language}-{split}-{self.fingerprint}"
        self._open = lru_cache(maxsize=8)(self._open_shard)
        self._read_index()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens in the blocks prepared so far."""
        return len(self) * self.context_length

    @property
    def exhausted(self) -> bool:
        """Whether the source has no more documents than those prepared."""
        return self._index["exhausted"]

    def bytes_per_token(self, num_blocks: int) -> float:
        """
        UTF-8 bytes of text for each token, end-of-text tokens included, around the first `num_blocks` blocks: in the
        shards that hold them, however many more have been prepared.

        Raises:
            [`PlasticityError`]: There is no text.
        """
        self.prepare(num_blocks)
        shards = [shard for shard, start in zip(self._index["shards"], self._ends) if start < num_blocks]
        tokens = sum(shard["tokens_encoded"] for shard in shards)
        if tokens == 0:
            raise PlasticityError(
                f"'{self.language}' has no {self.split} text; give it more documents, or another validation_fraction"
            )
        return sum(shard["bytes_encoded"] for shard in shards) / tokens

    def first(self, count: int, setting: str) -> np.ndarray:
        """
        The first blocks: `(count, context_length)`.

        Raises:
            [`PlasticityError`]: There are fewer than `setting` asks for.
        """
        if len(self.prepare(count)) < count:
            raise PlasticityError(
                f"{setting}: {count} are asked for and the {self.split} split of '{self.language}' has {len(self)}; "
                "give it more text, or ask for fewer"
            )
        return self[range(count)]

    def prepare(self, num_blocks: int) -> "Blocks":
        """
        Make sure that the first `num_blocks` blocks are on disk, or all there are if the source has fewer.

        Returns:
            [`Blocks`]: Itself, with `len()` at least `num_blocks` unless it is `exhausted`.
        """
        if num_blocks <= len(self) or self.exhausted:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self._read_index()
            with tqdm(
                desc=f"tokenizing {self.language} ({self.split})",
                initial=self.num_tokens,
                total=num_blocks * self.context_length,
                unit="tok",
                unit_scale=True,
                leave=False,
                disable=not self.show_progress,
            ) as bar:
                while num_blocks > len(self) and not self.exhausted:
                    shard = len(self._index["shards"])
                    entry, following = self._make_shard(shard, self._index["next"], bar)
                    if entry["blocks"]:
                        self._index["shards"].append(entry)
                    self._index |= {"next": following, "exhausted": following is None}
                    self._write_index()
        return self

    def __getitem__(self, indices: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """
        Blocks by number, prepared now if they have not been.

        Args:
            indices (`int` or sequence of `int`): Block numbers, of shape `(n,)`.

        Returns:
            `np.ndarray` of shape `(n, context_length)` and type `int64`, or `(context_length,)` for a single number.

        Raises:
            [`PlasticityError`]: The source ran out before the highest of them.
        """
        numbers = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if numbers.size and numbers.max() >= len(self):
            self.prepare(int(numbers.max()) + 1)
            if numbers.max() >= len(self):
                raise PlasticityError(
                    f"languages: '{self.language}' ran out of fresh {self.split} text after {self.num_tokens:,} tokens"
                )
        result = np.empty((len(numbers), self.context_length), dtype=np.int64)
        shards = np.searchsorted(self._ends, numbers, side="right") - 1
        for shard in np.unique(shards):
            chosen = shards == shard
            result[chosen] = self._open(int(shard))[numbers[chosen] - self._ends[shard]]
        return result if np.ndim(indices) else result[0]

    def release(self, before: int) -> None:
        """Delete the shards that hold only blocks below `before`; they are made again should they be needed."""
        for shard, end in enumerate(self._ends[1:]):
            if end <= before and (path := self._shard_path(shard)).exists():
                path.unlink(missing_ok=True)
                self._open.cache_clear()

    def _shard_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bin"

    def _open_shard(self, shard: int) -> np.ndarray:
        entry, path = self._index["shards"][shard], self._shard_path(shard)
        shape = (entry["blocks"], self.context_length)
        if not path.exists():
            with FileLock(self.folder / ".lock"):
                if not path.exists():
                    self._make_shard(shard, entry["start"], bar=None)
        if path.stat().st_size != shape[0] * shape[1] * self.dtype.itemsize:
            raise PlasticityError(f"'{path}' is damaged; delete its folder and it is prepared anew")
        return np.memmap(path, dtype=self.dtype, mode="r", shape=shape)

    def _make_shard(
        self, shard: int, start: dict[str, Any], bar: tqdm | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """
        Write one shard from `start`, a source state and the tokens of the batch there that earlier shards hold.

        Returns its entry in the index, and where the next one starts, `None` at the end of the source.
        """
        wanted = _blocks_of_shard(shard, self.context_length)
        tokens = np.empty(wanted * self.context_length, dtype=self.dtype)
        filled = bytes_encoded = tokens_encoded = 0
        following = None
        used = start["tokens_used"]
        for documents, state in self.source.batches(self.language, start["state"]):
            chosen = [text for text in documents if split_of(text, self.validation_fraction) == self.split]
            encoded, lengths = encode_documents(self.tokenizer, chosen)
            encoded = np.insert(encoded, np.cumsum(lengths), self.tokenizer.eos_token_id)
            bytes_encoded += sum(len(text.encode("utf-8", "surrogatepass")) for text in chosen)
            tokens_encoded += len(encoded)
            taken = encoded[used : used + len(tokens) - filled]
            tokens[filled : filled + len(taken)] = taken
            filled += len(taken)
            used += len(taken)
            if bar is not None:
                bar.update(len(taken))
            if filled == len(tokens):
                following = {"state": state, "tokens_used": used}
                break
            used = 0
        blocks = filled // self.context_length
        if blocks:
            write_atomically(self._shard_path(shard), tokens[: blocks * self.context_length].tobytes())
        entry = {
            "blocks": blocks,
            "start": start,
            "bytes_encoded": bytes_encoded,
            "tokens_encoded": tokens_encoded,
        }
        return entry, following

    def _read_index(self) -> None:
        path = self.folder / "index.json"
        if path.exists():
            self._index = json.loads(path.read_text(encoding="utf-8"))
        else:
            self._index = {
                "made_from": self.made_from,
                "shards": [],
                "next": {"state": None, "tokens_used": 0},
                "exhausted": False,
            }
        self._count()

    def _write_index(self) -> None:
        write_atomically(self.folder / "index.json", json.dumps(self._index, indent=1).encode())
        self._count()

    def _count(self) -> None:
        self._ends = np.cumsum([0, *(shard["blocks"] for shard in self._index["shards"])])


def blocks_on_disk(num_blocks: int, context_length: int) -> int:
    """The blocks on disk once `num_blocks` have been asked for of a source that has enough: whole shards."""
    blocks = shard = 0
    while blocks < num_blocks:
        blocks += _blocks_of_shard(shard, context_length)
        shard += 1
    return blocks


def _blocks_of_shard(shard: int, context_length: int) -> int:
    return min(FIRST_SHARD_TOKENS << shard, LARGEST_SHARD_TOKENS) // context_length or 1
