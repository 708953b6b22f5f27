"""Documents from a folder of Parquet, JSONL and text files."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import PlasticityError, one_line
from .base import BATCH_CHARACTERS, Source, hash_content, hash_contents, shuffled_range


if TYPE_CHECKING:
    from ..config import DataConfig

FORMAT_VERSION = 1  # increase it when the same files give other documents or another order
SUFFIXES = (".parquet", ".jsonl", ".txt")
CHUNK_BYTES = 2**20  # of a text file, up to the next end of line; of a Parquet file a chunk is a row group
POOL_BYTES = 2**27


@dataclass(frozen=True)
class _Chunk:
    """A part of a file that is read in one piece: a row group, or `size` bytes from `start`."""

    path: Path
    start: int
    size: int  # bytes
    first: int  # the number of its first row or line in the file, from 1


class LocalSource(Source):
    """
    Documents from `<language>.parquet`, `<language>.jsonl` or `<language>.txt` in a folder, or from any number of such
    files in `<language>/` and the folders below it. A text file has one document per line. Null or blank rows, fields
    and lines are skipped.

    Corpora are often sorted by topic or date, so documents are shuffled, always in the same way. The row groups and
    one-megabyte pieces of all files are shuffled and read into memory in pools of about 128 MB. The documents of each
    pool are then shuffled. A corpus that fits into one pool is therefore shuffled completely, and a larger one does
    not require more memory. A row group that is larger than a pool is read as a whole.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        text_column (`str`, *optional*, defaults to `"text"`): The Parquet column or JSON field with the document.

    Raises:
        [`PlasticityError`]: The folder does not exist.
    """

    settings = ("data_dir", "text_column")

    def __init__(self, folder: str | os.PathLike, text_column: str = "text"):
        self.folder = Path(folder)
        self.text_column = text_column
        self._digests: dict[str, dict[Path, bytes]] = {}
        if not self.folder.is_dir():
            raise PlasticityError(f"data_dir: folder '{folder}' does not exist")

    @classmethod
    def from_config(cls, config: "DataConfig") -> "LocalSource":
        if config.data_dir is None:
            raise PlasticityError(
                "data_dir: missing; the source 'local' requires a folder with <language>.parquet files"
            )
        return cls(config.data_dir, config.text_column)

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> str:
        return "the author's own text files"

    def languages(self) -> list[str]:
        """The languages of the folder, sorted."""
        found = {path.stem for path in self.folder.iterdir() if path.suffix in SUFFIXES and path.is_file()}
        folders = (path for path in self.folder.iterdir() if path.is_dir())
        return sorted(found | {path.name for path in folders if self._files_below(path)})

    def fingerprint(self, language: str) -> str:
        digest = hashlib.blake2b(f"local {FORMAT_VERSION} {self.text_column}".encode(), digest_size=16)
        digest.update(hash_contents(self._contents(language), self.folder))
        return digest.hexdigest()

    def text_digest(self, language: str) -> str:
        return hashlib.blake2b(b"".join(self._contents(language).values()), digest_size=16).hexdigest()

    def _contents(self, language: str) -> dict[Path, bytes]:
        """The digest of each file of a language. It is kept, because it reads all text and is needed several times."""
        if language not in self._digests:
            self._digests[language] = {path: hash_content(path) for path in self._files(language)}
        return self._digests[language]

    def batches(
        self, language: str, state: dict[str, Any] | None = None
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        pools = self._pools(language)
        first_pool, first_document = (state["pool"], state["document"]) if state else (0, 0)
        empty = True
        for pool in range(first_pool, len(pools)):
            documents = [document for chunk in pools[pool] for document in self._read(chunk)]
            documents = [documents[i] for i in shuffled_range(len(documents), 1 + pool)]
            empty = empty and not documents
            for start, stop in _batch_bounds(documents, first_document):
                yield documents[start:stop], {"pool": pool, "document": start}
            first_document = 0
        if empty and state is None:
            raise PlasticityError(f"data_dir: the files of '{language}' in '{self.folder}' hold no documents")

    def num_bytes(self, language: str) -> int:
        """
        The size of the text of `language`: that of the Parquet column, or of the files, which includes the field names
        of JSONL.
        """
        return sum(chunk.size for pool in self._pools(language) for chunk in pool)

    def _files(self, language: str) -> list[Path]:
        candidates = [self.folder / f"{language}{suffix}" for suffix in SUFFIXES]
        candidates = [path for path in candidates if path.is_file()]
        below = self._files_below(self.folder / language)
        if len(candidates) + bool(below) > 1:
            names = [path.name for path in candidates] + [f"{language}/"] * bool(below)
            raise PlasticityError(
                f"data_dir: '{self.folder}' has {' and '.join(names)}; keep one of them for '{language}'"
            )
        if not candidates + below:
            there = ", ".join(self.languages()) or "no language at all"
            raise PlasticityError(
                f"data_dir: '{self.folder}' has no '{language}' ({language}.parquet, {language}.jsonl, {language}.txt "
                f"or {language}/ with such files); it has {there}"
            )
        for path in candidates + below:
            if path.stat().st_size == 0:
                raise PlasticityError(f"data_dir: '{path}' is empty")
        return candidates + below

    def _files_below(self, folder: Path) -> list[Path]:
        files = [path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
        return sorted(files, key=lambda path: path.relative_to(self.folder).as_posix())

    def _pools(self, language: str) -> list[list[_Chunk]]:
        chunks: list[_Chunk] = []
        for path in self._files(language):
            chunks += self._row_groups(path) if path.suffix == ".parquet" else _line_chunks(path)
        pools: list[list[_Chunk]] = [[]]
        size = 0
        for i in shuffled_range(len(chunks), 0):
            if pools[-1] and size + chunks[i].size > POOL_BYTES:
                pools.append([])
                size = 0
            pools[-1].append(chunks[i])
            size += chunks[i].size
        return pools

    def _row_groups(self, path: Path) -> list[_Chunk]:
        try:
            with pq.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
        except (pa.ArrowException, OSError) as error:
            raise PlasticityError(f"data_dir: '{path}' is not a readable Parquet file: {one_line(error)}") from None
        if self.text_column not in schema.names:
            raise PlasticityError(
                f"data_dir: '{path}' has no column '{self.text_column}'; its columns are {', '.join(schema.names)}"
            )
        kind = schema.field(self.text_column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise PlasticityError(f"data_dir: column '{self.text_column}' of '{path}' holds {kind}, not strings")
        if metadata.num_rows == 0:
            raise PlasticityError(f"data_dir: '{path}' has no rows")
        chunks, first = [], 1
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            columns = (row_group.column(i) for i in range(row_group.num_columns))
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == self.text_column)
            chunks.append(_Chunk(path, group, size, first))
            first += row_group.num_rows
        return chunks

    def _read(self, chunk: _Chunk) -> list[str]:
        """The documents of a chunk, without null and blank ones."""
        if chunk.path.suffix == ".parquet":
            documents = self._read_row_group(chunk)
        else:
            documents = _read_lines(chunk)
            if chunk.path.suffix == ".jsonl":
                documents = [self._field(line, f"{chunk.path}:{n}") for n, line in enumerate(documents, chunk.first)]
        return [document for document in documents if document and not document.isspace()]

    def _read_row_group(self, chunk: _Chunk) -> list[str | None]:
        try:
            with pq.ParquetFile(chunk.path) as file:
                column = file.read_row_group(chunk.start, columns=[self.text_column]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise PlasticityError(
                f"data_dir: '{chunk.path}' cannot be read from row {chunk.first} on: {one_line(error)}"
            ) from None
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            for row, value in enumerate(column, chunk.first):
                try:
                    value.as_py()
                except UnicodeDecodeError as error:
                    raise PlasticityError(f"data_dir: '{chunk.path}' row {row} is not UTF-8: {error.reason}") from None
            raise

    def _field(self, line: str, where: str) -> str | None:
        if not line or line.isspace():
            return None
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PlasticityError(f"data_dir: {where} is not valid JSON: {one_line(error)}") from None
        if not isinstance(row, dict) or self.text_column not in row:
            found = f"its fields are {', '.join(row)}" if isinstance(row, dict) else "it is not an object"
            raise PlasticityError(f"data_dir: {where} has no field '{self.text_column}'; {found}")
        text = row[self.text_column]
        if not isinstance(text, str | None):
            raise PlasticityError(
                f"data_dir: {where}: field '{self.text_column}' holds {type(text).__name__}, not a string"
            )
        if text is not None and "\\u" in line:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise PlasticityError(f"data_dir: {where} escapes half a surrogate pair, not a character") from None
        return text


def _line_chunks(path: Path) -> list[_Chunk]:
    chunks, line = [], 1
    with open(path, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            data += file.readline()
            chunks.append(_Chunk(path, file.tell() - len(data), len(data), line))
            line += data.count(b"\n")
    return chunks


def _read_lines(chunk: _Chunk) -> list[str]:
    with open(chunk.path, "rb") as file:
        file.seek(chunk.start)
        data = file.read(chunk.size)
    try:
        text = data.decode("utf-8-sig" if chunk.start == 0 else "utf-8")
    except UnicodeDecodeError as error:
        line = chunk.first + data.count(b"\n", 0, error.start)
        raise PlasticityError(f"data_dir: {chunk.path}:{line} is not UTF-8: {error.reason}") from None
    # Not `splitlines`, which also splits at characters that can occur within a document.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _batch_bounds(documents: list[str], start: int) -> Iterator[tuple[int, int]]:
    characters = 0
    for stop, document in enumerate(documents[start:], start + 1):
        characters += len(document)
        if characters >= BATCH_CHARACTERS or stop == len(documents):
            yield start, stop
            start, characters = stop, 0
