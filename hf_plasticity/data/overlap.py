"""
The share of the validation text that also occurs in the training text.

Splits share no document, but different documents can share passages: licenses, boilerplate, translations of the same
manual. The measure is the share of the pieces of the validation documents that occur verbatim in training documents.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import PlasticityError
from .blocks import Blocks


PIECE_LENGTH = 50
PART_LENGTH = 2**18  # long documents are searched in parts
PREFILTER_BITS = 22
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2⁶⁴


class TextTooShortError(PlasticityError):
    """No validation document is long enough to be compared."""


@dataclass(frozen=True)
class Overlap:
    """
    Args:
        pieces (`int`): Pieces of validation text that were searched for.
        repeated (`int`): The number of them that occur in the training text.
        characters (`int`): Characters of training text that were searched.
    """

    pieces: int
    repeated: int
    characters: int

    @property
    def share(self) -> float:
        """The share of the pieces that occur in the training text, from 0 to 1."""
        return self.repeated / self.pieces

    def describe(self) -> str:
        """One sentence with the share and the size of the sample."""
        return (
            f"{self.share:.1%} of {self.pieces:,} pieces of {PIECE_LENGTH} characters of validation text occur "
            f"verbatim in {self.characters:,} characters of training text"
        )


def measure_overlap(
    validation: Blocks,
    training: Iterable[Blocks],
    max_pieces: int = 20_000,
    max_characters: int = 20_000_000,
) -> Overlap:
    """
    The share of the validation text that occurs verbatim in training text.

    Every validation document is cut into pieces of 50 characters, from its beginning; a shorter remainder is left out.
    A piece is repeated if it occurs anywhere in a training document, with the same case and whitespace. Only documents
    of prepared blocks are read. Memory is bounded by `max_pieces`: training text is read in batches, and a rolling
    hash selects the positions that are compared with the pieces.

    Args:
        validation ([`Blocks`]): Prepared blocks of the validation split.
        training (iterable of [`Blocks`]): Prepared blocks of training splits, of any languages.
        max_pieces (`int`, *optional*, defaults to 20,000): The number of pieces, taken in the order of the source.
        max_characters (`int`, *optional*, defaults to 20,000,000): The first characters of each training split are
            searched, up to the end of a document.

    Raises:
        [`TextTooShortError`]: No prepared validation document has 50 characters.
    """
    pieces = _pieces(validation, max_pieces)
    total = pieces.total()
    if total == 0:
        raise TextTooShortError(
            f"overlap: no prepared validation document of '{validation.language}' has {PIECE_LENGTH} characters"
        )
    prefilter = np.zeros(2**PREFILTER_BITS, dtype=bool)
    for piece in pieces:
        prefilter[_keys(piece)] = True
    repeated = characters = 0
    for blocks in training:
        searched = 0
        for document in blocks.documents():
            for begin in range(0, len(document), PART_LENGTH):
                part = document[begin : begin + PART_LENGTH + PIECE_LENGTH - 1]
                for start in np.flatnonzero(prefilter[_keys(part)]):
                    repeated += pieces.pop(part[start : start + PIECE_LENGTH], 0)
            searched += len(document)
            if searched >= max_characters:
                break
        characters += searched
    return Overlap(total, repeated, characters)


def _pieces(blocks: Blocks, most: int) -> Counter[str]:
    """The first pieces of the documents, with their counts."""
    pieces: Counter[str] = Counter()
    count = 0
    for document in blocks.documents():
        for start in range(0, len(document) - PIECE_LENGTH + 1, PIECE_LENGTH):
            pieces[document[start : start + PIECE_LENGTH]] += 1
            count += 1
            if count == most:
                return pieces
    return pieces


def _keys(text: str) -> np.ndarray:
    """
    For each start of a piece in `text`, the first bits of a hash of that piece: the polynomial Σ cᵢ·Mⁱ modulo 2⁶⁴ of
    its code points c, as a difference of prefix sums.
    """
    if len(text) < PIECE_LENGTH:
        return np.zeros(0, dtype=np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    powers, inverses = _powers(MULTIPLIER), _powers(pow(MULTIPLIER, -1, 2**64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers[: len(codes)])])
    hashes = sums[PIECE_LENGTH:] - sums[:-PIECE_LENGTH]
    return (hashes * inverses[: len(hashes)] >> np.uint64(64 - PREFILTER_BITS)).astype(np.int64)


@cache
def _powers(base: int) -> np.ndarray:
    """The powers of `base` modulo 2⁶⁴, as many as a part has characters."""
    factors = np.full(PART_LENGTH + PIECE_LENGTH, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
