"""The base class of sources, and helpers for sources of files."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import PlasticityError
from ..schedule import LANGUAGES, PROBE_LANGUAGE


if TYPE_CHECKING:
    from ..config import DataConfig

SPLITS = ("train", "validation")
BATCH_CHARACTERS = 10**6


def utf8(document: str) -> bytes:
    """
    The bytes of a document.

    Raises:
        [`PlasticityError`]: It has half a surrogate pair, which is not a character.
    """
    try:
        return document.encode()
    except UnicodeEncodeError as error:
        before = document[max(0, error.start - 20) : error.start]
        raise PlasticityError(
            f"text: a document has half a surrogate pair, which is not a character, after {before!r}; remove it"
        ) from None


def split_of(document: str, validation_fraction: float) -> str:
    """
    The split of a document, chosen only by a hash of its text. Equal documents are in the same split, so no validation
    document occurs in the training split, for any order, source and machine.

    Raises:
        [`PlasticityError`]: As [`utf8`].
    """
    digest = hashlib.blake2b(utf8(document), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < validation_fraction * 2**64 else "train"


class Source(ABC):
    """
    Documents of several languages, in a fixed order.

    A new source is one file with a subclass, and one line in [`~hf_plasticity.data.sources.SOURCES`]. The rest of the
    package depends only on these attributes, not on the class.

    Attributes:
        natural (`bool`): Whether the documents are natural language. A generated language keeps its code in reports.
        unlimited (`bool`): Whether every language has an unlimited number of documents.
        remote (`bool`): Whether documents are downloaded, so that the source can be unreachable.
        fresh_languages (`bool`): Whether `"<language>.<n>"` is another new language for every n from 2 on.
        default_languages (`tuple[str, ...]`): The default training languages of a run.
        default_probe_language (`str`): The default held-out language of a run.
        settings (`tuple[str, ...]`): The fields of [`DataConfig`] that this source reads but not all sources do.
    """

    natural: ClassVar[bool] = True
    unlimited: ClassVar[bool] = False
    remote: ClassVar[bool] = False
    fresh_languages: ClassVar[bool] = False
    default_languages: ClassVar[tuple[str, ...]] = LANGUAGES
    default_probe_language: ClassVar[str] = PROBE_LANGUAGE
    settings: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls, config: "DataConfig") -> "Source":
        """
        The source that a configuration describes.

        Raises:
            [`PlasticityError`]: A setting that the source requires is missing or wrong.
        """
        return cls()

    def resolved_settings(self) -> dict[str, Any]:
        """
        Fields of [`DataConfig`] that the source has resolved, for `config.yaml`: with them, a later start reads the
        same text.
        """
        return {}

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> str:
        """A description of the text of a run, from its recorded settings."""
        return f"the source '{settings['source']}'"

    @classmethod
    def hub_datasets(cls, settings: Mapping[str, Any]) -> list[str]:
        """The datasets on the Hub that a run reads, from its recorded settings."""
        return []

    @abstractmethod
    def fingerprint(self, language: str) -> str:
        """
        A hexadecimal hash that changes whenever the documents of `language` or their order change.

        Raises:
            [`PlasticityError`]: The source does not have this language, or cannot be reached.
        """

    def text_digest(self, language: str) -> str:
        """
        A hexadecimal hash of the documents of `language` without its name, if the source can compute one. Two
        languages with the same hash have the same text. By default, it is the fingerprint.
        """
        return self.fingerprint(language)

    @abstractmethod
    def batches(
        self, language: str, state: dict[str, Any] | None = None
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """
        The documents of `language` in batches of about a million characters, both splits mixed.

        Args:
            language (`str`): A language of this source.
            state (`dict`, *optional*): Where to start, as yielded earlier; by default the beginning.

        Yields:
            `tuple[list[str], dict]`: A batch of documents (none empty), and a JSON-serializable state. From that
            state `batches` starts with this batch, without reading the earlier ones if the source supports it.

        Raises:
            [`PlasticityError`]: A document cannot be read; the message has the file or row and the reason.
        """

    def num_bytes(self, language: str) -> int | None:
        """The size of the text of `language` if it is known without reading the documents, otherwise `None`."""
        return None


def shuffled_range(length: int, *entropy: int) -> list[int]:
    """
    `range(length)` in a shuffled order that depends only on the arguments. It uses raw PCG64 output, so it is the same
    for all versions of NumPy.
    """
    bits = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(length)
    return np.argsort(bits, kind="stable").tolist()


def hash_files(files: Iterable[Path], folder: Path) -> bytes:
    """A digest of the contents of `files` and their names relative to `folder`."""
    return hash_contents({path: hash_content(path) for path in files}, folder)


def hash_content(path: Path) -> bytes:
    """A digest of the content of a file."""
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.digest()


def hash_contents(contents: Mapping[Path, bytes], folder: Path) -> bytes:
    """A digest of the digests of files and their names relative to `folder`."""
    digest = hashlib.blake2b(digest_size=32)
    for path, content in contents.items():
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.digest()
