"""
Blocks: documents joined by an end-of-text token and cut into token sequences of one length, stored in memory-mapped
files. They are prepared once and found by a hash of all their inputs.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from ..errors import PlasticityError
from ..records import config_hash, write_atomically
from .sources.base import SPLITS, Source, split_of
from .tokenizers import check_tokenizer, join_documents, num_token_ids, tokenizer_fingerprint


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
# Each shard is twice as large as the one before, so that a short run prepares little and a long run has few files.
FIRST_SHARD_TOKENS = 2**20
LARGEST_SHARD_TOKENS = 2**28
START = {"state": None, "tokens_used": 0}


class Blocks:
    """
    The token blocks of one language and split, prepared on demand.

    Several processes may share a folder: the first that needs a shard writes it while the others wait. The checksum of
    a shard is verified when a process first opens it.

    Args:
        source ([`Source`]): Provides the documents.
        language (`str`): A language of the source.
        split (`str`): `"train"` or `"validation"`.
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer with an end-of-text token.
        context_length (`int`): Tokens in a block.
        cache_dir (`str` or `Path`): Parent of the folders of prepared blocks.
        validation_fraction (`float`): Share of the documents, chosen by their hash, that form the validation split.
        show_progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar during preparation.

    Raises:
        [`PlasticityError`]: The source does not have the language, a document cannot be read, or prepared blocks are
            damaged.
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
        check_context_length(context_length)
        self.source, self.language, self.split, self.tokenizer = source, language, split, check_tokenizer(tokenizer)
        self.context_length, self.validation_fraction = context_length, validation_fraction
        self.show_progress = show_progress
        fits = len(tokenizer) <= 2**16 and num_token_ids(tokenizer) <= 2**16
        self.dtype = np.dtype(np.uint16 if fits else np.uint32)
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
        self._verified: set[int] = set()
        self._read_index()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens in the blocks prepared so far."""
        return len(self) * self.context_length

    @property
    def exhausted(self) -> bool:
        """Whether all documents of the source are prepared."""
        return self._index["exhausted"]

    def bytes_per_token(self, num_blocks: int) -> float:
        """
        UTF-8 bytes of text per token, end-of-text tokens included, in the shards that hold the first `num_blocks`
        blocks. It does not depend on how many more blocks are prepared.

        Raises:
            [`PlasticityError`]: There is no text.
        """
        self.prepare(num_blocks)
        shards = [shard for shard, start in zip(self._index["shards"], self._ends) if start < num_blocks]
        tokens = sum(shard["tokens_encoded"] for shard in shards)
        if tokens == 0:
            raise PlasticityError(
                f"languages: '{self.language}' has no {self.split} text; give it more documents, or another "
                "validation_fraction"
            )
        return sum(shard["bytes_encoded"] for shard in shards) / tokens

    def first(self, count: int, setting: str) -> np.ndarray:
        """
        The first blocks: `(count, context_length)`.

        Args:
            count (`int`): The number of blocks.
            setting (`str`): The setting that requests them, for the error message.

        Raises:
            [`PlasticityError`]: There are fewer blocks.
        """
        return self.require(count, setting)[range(count)]

    def require(self, count: int, setting: str) -> "Blocks":
        """
        Prepare the first `count` blocks.

        Args:
            count (`int`): The number of blocks.
            setting (`str`): The setting that requests them, for the error message.

        Returns:
            [`Blocks`]: Itself.

        Raises:
            [`PlasticityError`]: There are fewer blocks.
        """
        if len(self.prepare(count)) < count:
            raise PlasticityError(
                f"{setting}: {count} are requested and the {self.split} split of '{self.language}' has {len(self)}; "
                "give it more text, or request fewer"
            )
        return self

    def prepare(self, num_blocks: int) -> "Blocks":
        """
        Make sure that the first `num_blocks` blocks are on disk, or all blocks if the source has fewer.

        Returns:
            [`Blocks`]: Itself. `len()` is at least `num_blocks` unless the source is `exhausted`.
        """
        if num_blocks <= len(self) or self.exhausted:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
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
        Blocks by number; those that are missing are prepared first.

        Args:
            indices (`int` or sequence of `int`): Block numbers, of shape `(n,)`.

        Returns:
            `np.ndarray` of shape `(n, context_length)` and type `int64`, or `(context_length,)` for a single number.

        Raises:
            [`PlasticityError`]: The source has fewer blocks, or a shard is damaged.
        """
        numbers = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if numbers.size and numbers.max() >= len(self):
            self.prepare(int(numbers.max()) + 1)
            if numbers.max() >= len(self):
                raise PlasticityError(
                    f"languages: '{self.language}' has no fresh {self.split} text after {self.num_tokens:,} tokens"
                )
        result = np.empty((len(numbers), self.context_length), dtype=np.int64)
        shards = np.searchsorted(self._ends, numbers, side="right") - 1
        for shard in np.unique(shards):
            chosen = shards == shard
            result[chosen] = self._open(int(shard))[numbers[chosen] - self._ends[shard]]
        return result if np.ndim(indices) else result[0]

    def release(self, start: int, stop: int) -> None:
        """Delete the shards whose blocks all lie in `start … stop − 1`. They are prepared again when required."""
        for shard, (first, end) in enumerate(pairwise(self._ends)):
            if start <= first and end <= stop and (path := self._shard_path(shard)).exists():
                path.unlink(missing_ok=True)
                self._open.cache_clear()
                self._verified.discard(shard)

    def refresh(self) -> None:
        """Read the index again, which other processes, such as the workers of a DataLoader, may have extended."""
        self._read_index()

    def documents(self) -> Iterator[str]:
        """The documents of the prepared blocks of this split, in order, read from the source again."""
        following = self._index["next"]
        if following == START:
            return
        for documents, state in self.source.batches(self.language):
            yield from self._of_split(documents)
            if following is not None and state == following["state"]:
                return

    def _of_split(self, documents: Sequence[str]) -> list[str]:
        return [text for text in documents if split_of(text, self.validation_fraction) == self.split]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """
        Lock the folder. Only the process with the lock writes files, so the temporary files in it are those of killed
        processes.
        """
        with FileLock(self.folder / ".lock"):
            for pattern in (".shard-*.bin.*", ".index.json.*"):
                for path in self.folder.glob(pattern):
                    path.unlink(missing_ok=True)
            yield

    def _shard_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bin"

    def _open_shard(self, shard: int) -> np.ndarray:
        entry, path = self._index["shards"][shard], self._shard_path(shard)
        shape = (entry["blocks"], self.context_length)
        if not path.exists():
            with self._locked():
                if not path.exists():
                    self._make_shard(shard, entry["start"], bar=None)
        if path.stat().st_size != shape[0] * shape[1] * self.dtype.itemsize:
            raise self._damaged(path)
        tokens = np.memmap(path, dtype=self.dtype, mode="r", shape=shape)
        if shard not in self._verified:
            if entry.get("checksum") != zlib.crc32(tokens.data):
                raise self._damaged(path)
            self._verified.add(shard)
        return tokens

    def _damaged(self, path: Path) -> PlasticityError:
        return PlasticityError(f"'{path}' is damaged; delete the folder '{self.folder}' to prepare it again")

    def _make_shard(
        self, shard: int, start: dict[str, Any], bar: tqdm | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """
        Write the shard that begins at `start`: a state of the source, and how many tokens of the batch there belong to
        earlier shards.

        Returns its entry in the index, and where the next shard begins, or `None` at the end of the source.
        """
        wanted = _blocks_of_shard(shard, self.context_length)
        tokens = np.empty(wanted * self.context_length, dtype=self.dtype)
        filled = bytes_encoded = tokens_encoded = 0
        following = None
        used = start["tokens_used"]
        for documents, state in self.source.batches(self.language, start["state"]):
            chosen = self._of_split(documents)
            encoded = join_documents(self.tokenizer, chosen)
            bytes_encoded += sum(len(text.encode()) for text in chosen)
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
        data = tokens[: blocks * self.context_length].tobytes()
        if blocks:
            write_atomically(self._shard_path(shard), data)
        entry = {
            "blocks": blocks,
            "start": start,
            "bytes_encoded": bytes_encoded,
            "tokens_encoded": tokens_encoded,
            "checksum": zlib.crc32(data),
        }
        return entry, following

    def _read_index(self) -> None:
        path = self.folder / "index.json"
        if path.exists():
            try:
                self._index = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # not JSON, or not UTF-8
                raise self._damaged(path) from None
            if not isinstance(self._index, dict) or not {"shards", "next", "exhausted"} <= self._index.keys():
                raise self._damaged(path)
        else:
            self._index = {"made_from": self.made_from, "shards": [], "next": START, "exhausted": False}
        self._count()

    def _write_index(self) -> None:
        write_atomically(self.folder / "index.json", json.dumps(self._index, indent=1).encode())
        self._count()

    def _count(self) -> None:
        self._ends = np.cumsum([0, *(shard["blocks"] for shard in self._index["shards"])])


def check_context_length(context_length: int) -> None:
    """
    Raises:
        [`PlasticityError`]: A block of this length has no token to predict.
    """
    if context_length < 2:
        raise PlasticityError(f"context_length: {context_length} leaves no token to predict; use 2 or more")


def blocks_on_disk(num_blocks: int, context_length: int) -> int:
    """The blocks on disk after `num_blocks` were prepared from a source that has enough: whole shards."""
    blocks = shard = 0
    while blocks < num_blocks:
        blocks += _blocks_of_shard(shard, context_length)
        shard += 1
    return blocks


def _blocks_of_shard(shard: int, context_length: int) -> int:
    return min(FIRST_SHARD_TOKENS << shard, LARGEST_SHARD_TOKENS) // context_length or 1
