"""Procedurally generated languages: unlimited text, the same on every machine, without a download."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ...errors import PlasticityError
from .base import Source


SYNTHETIC_LANGUAGES = ("syn1", "syn2", "syn3", "syn4", "syn5", "syn6", "syn7", "syn8")
SYNTHETIC_PROBE_LANGUAGE = "syn9"

FORMAT_VERSION = 1  # increase it when the same seed gives other text
DOCUMENTS_PER_BATCH = 1024
MAX_WORDS = 256  # in a document; the shortest has a quarter of it

# Words of a class. The first three classes are the function words: few, short and frequent.
CLASS_SIZES = (8, 12, 20, 80, 120, 160, 240, 320, 400, 480, 560, 640)
FUNCTION_CLASSES = 3
QUESTION_CLASS = 0  # a sentence that begins with it ends with a question mark
SENTENCE_START = len(CLASS_SIZES)  # the class before the first word of a sentence
SHARED_CLASSES = (0, 1, 3, 5, 7, 9)  # their successors are the same in every language
LOAN_WORDS = 0.15  # share of the content words that all languages have in common


@dataclass(frozen=True)
class Script:
    """The script of a language: its letters, and its marks between words, for a pause and for an end."""

    consonants: str
    vowels: str
    codas: str
    space: str = " "
    pause: str = ","
    end: str = "."


SCRIPTS = {
    "syn1": Script("bdfghklmnprstw", "aeiou", "dklnrst"),
    "syn2": Script("cfghjlmnqrstxz", "aeiouäöü", "hnrtx", pause=";"),
    "syn3": Script("βγδζθκλμνπρστφχ", "αεηιου", "νρκ"),
    "syn4": Script("kstnhmyrwgzdb", "aiueo", "n", space=""),
    "syn5": Script("bcdfglmnprstvñ", "aeioáéíó", "lnrsz", end="!"),
    "syn6": Script("bdfghjklmnprstvwz", "aeiouy", "bdfgklmnrstz"),
    "syn7": Script("бвгджзклмнпрстх", "аеиоуыя", "вдйклмнрст"),
    "syn8": Script("bcdfglmnprstvx", "aeouãéõ", "lmrsz", pause=" -"),
    "syn9": Script("bcdghklmnprstvxđ", "aeiouăâêôơư", "cmnpt"),
}
LOAN_SCRIPT = Script("bdfgklmnprstvz", "aeiou", "lnrs")


class SyntheticSource(Source):
    """
    Nine languages, `syn1` to `syn9`, each with its own letters and syllables, a lexicon of three thousand words with
    Zipfian frequencies, and a sparse bigram grammar over word classes. They share loan words and half of the grammar,
    so that training on one helps with another.

    `syn1.2`, `syn1.3`, … are further languages, without limit. The same holds for the other eight. Each uses the
    letters of the language before the dot and has its own lexicon and grammar.

    Document number i of a language depends only on (seed, language, i) and is generated without the earlier ones.
    Every choice is integer arithmetic on raw PCG64 output, so the text is the same with all versions of NumPy.

    Args:
        seed (`int`, *optional*, defaults to 0): Another seed gives other languages with the same letters.

    Example:

    ```python
    >>> from hf_plasticity.data.sources.synthetic import SyntheticSource

    >>> documents, state = next(SyntheticSource().batches("syn1"))
    >>> state
    {'document': 0}
    ```
    """

    natural = False
    unlimited = True
    fresh_languages = True
    default_languages = SYNTHETIC_LANGUAGES
    default_probe_language = SYNTHETIC_PROBE_LANGUAGE

    def __init__(self, seed: int = 0):
        if seed < 0:
            raise PlasticityError(f"seed: {seed} is negative; give 0 or more")
        self.seed = seed
        self._language = lru_cache(maxsize=16)(self._make_language)

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> str:
        return "procedurally generated languages, not natural ones; `hf-plasticity` generates them"

    def fingerprint(self, language: str) -> str:
        digest = hashlib.blake2b(f"synthetic {FORMAT_VERSION} {self.seed} {language}".encode(), digest_size=16)
        for document in self._language(language).documents(0, 16):
            digest.update(document.encode() + b"\0")
        return digest.hexdigest()

    def batches(
        self, language: str, state: dict[str, Any] | None = None
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        generator = self._language(language)
        first = state["document"] if state else 0
        while True:
            yield generator.documents(first, DOCUMENTS_PER_BATCH), {"document": first}
            first += DOCUMENTS_PER_BATCH

    def _make_language(self, language: str) -> "_Language":
        parts = re.fullmatch(r"(\w+)(?:\.([2-9]|[1-9][0-9]+))?", language, re.ASCII)
        if parts is None or parts[1] not in SCRIPTS:
            raise PlasticityError(
                f"languages: '{language}' is not a synthetic language; choose from {', '.join(SCRIPTS)} and the "
                "further languages of each, such as syn1.2"
            )
        return _Language(parts[1], int(parts[2] or 1), self.seed)


class _Language:
    """
    The tables of one language and the text drawn from them.

    Shapes: D documents, W = `MAX_WORDS`, C classes, V words. A word is its number in the lexicon, where the words of a
    class are adjacent and sorted by falling frequency.

    Args:
        name (`str`): The language of `SCRIPTS` with its letters.
        variant (`int`): 1 for the language of that name, n for `<name>.<n>`.
        seed (`int`): The seed of the source.
    """

    def __init__(self, name: str, variant: int, seed: int):
        number = 1 + list(SCRIPTS).index(name)
        script = SCRIPTS[name]
        # A seed sequence ignores trailing zeros, so no two of these may differ only in trailing zeros.
        entropy = (seed, number) if variant == 1 else (seed, number, variant)
        common, own = _Random(seed, 0), _Random(*entropy)
        common_grammar, loans = _grammar(common), _lexicon(LOAN_SCRIPT, common)
        grammar, words = _grammar(own), _lexicon(script, own)
        grammar[list(SHARED_CLASSES)] = common_grammar[list(SHARED_CLASSES)]
        for word in range(sum(CLASS_SIZES[:FUNCTION_CLASSES]), len(words)):
            if own.uniform() < LOAN_WORDS:
                words[word] = loans[word]

        self.successors = grammar  # (C + 1, 16): the next class, by four random bits
        self.thresholds = _zipf_thresholds()  # (V,)
        # A word with what follows it (space, pause, end, end of a paragraph, question), in the middle or at the start
        # of a sentence: entry (2 · follows + starts) · V + word.
        follows = (script.space, script.pause + " ", script.end + " ", script.end + "\n", "? ")
        self.strings = np.array(
            [text + mark for mark in follows for start in (False, True) for text in _cased(words, start)], dtype=object
        )
        self.seeds = np.random.SeedSequence([*entropy, 1])

    def documents(self, first: int, count: int) -> list[str]:
        """Documents number `first` to `first + count - 1`; each has `MAX_WORDS` random numbers, used or not."""
        bits_DW = np.random.PCG64(self.seeds).advance(first * MAX_WORDS).random_raw(count * MAX_WORDS)
        bits_DW = bits_DW.reshape(count, MAX_WORDS)
        classes_DW, starts_DW, follows_DW = self._sentences(bits_DW)

        keys_DW = (classes_DW.astype(np.uint64) << np.uint64(32)) | (bits_DW & np.uint64(0xFFFFFFFF))
        words_DW = np.searchsorted(self.thresholds, keys_DW, side="right")
        entries_DW = (2 * follows_DW + starts_DW) * len(self.thresholds) + words_DW

        fewest = MAX_WORDS // 4
        lengths_D = fewest + ((bits_DW[:, 0] >> np.uint64(40)) % np.uint64(MAX_WORDS - fewest + 1)).astype(int)
        return ["".join(row[:length]).rstrip() for row, length in zip(self.strings[entries_DW].tolist(), lengths_D)]

    def _sentences(self, bits_DW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Word classes, whether a word starts a sentence, and what follows it (the first index of `strings`)."""
        choices_DW = (bits_DW >> np.uint64(60)).astype(np.intp)
        marks_DW = ((bits_DW >> np.uint64(56)) & np.uint64(15)).astype(np.intp)
        classes_DW, openers_DW = np.empty_like(choices_DW), np.empty_like(choices_DW)
        previous_D = np.full(len(bits_DW), SENTENCE_START)
        opener_D = previous_D
        for position in range(MAX_WORDS):
            class_D = self.successors[previous_D, choices_DW[:, position]]
            opener_D = np.where(previous_D == SENTENCE_START, class_D, opener_D)
            classes_DW[:, position], openers_DW[:, position] = class_D, opener_D
            # Three in sixteen content words end their sentence; a function word never does.
            ends_D = (marks_DW[:, position] < 3) & (class_D >= FUNCTION_CLASSES)
            previous_D = np.where(ends_D, SENTENCE_START, class_D)

        content_DW = classes_DW >= FUNCTION_CLASSES
        ends_DW = content_DW & (marks_DW < 3)
        follows_DW = np.where(content_DW & (marks_DW == 15), 1, 0)
        follows_DW = np.where(ends_DW, np.where(marks_DW == 2, 3, 2), follows_DW)
        follows_DW = np.where(ends_DW & (openers_DW == QUESTION_CLASS), 4, follows_DW)
        starts_DW = np.concatenate([np.ones_like(ends_DW[:, :1]), ends_DW[:, :-1]], axis=1)
        return classes_DW, starts_DW, follows_DW


class _Random:
    """Random numbers for the tables, from raw PCG64 output: NumPy may change the results of its `Generator`."""

    def __init__(self, *seed: int):
        self.bits = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self) -> float:
        return (self.bits.random_raw() >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        return int(self.uniform() * count)

    def skewed(self, items: str | list[str]) -> str:
        """An item; the first ones are much more frequent than the last."""
        return items[int(self.uniform() * self.uniform() * len(items))]

    def shuffled(self, items: str | list[str]) -> list[str]:
        return [item for _, item in sorted((self.bits.random_raw(), item) for item in items)]


def _grammar(random: _Random) -> np.ndarray:
    """The next class (C + 1, 16) by four random bits: three successors with probabilities 8, 5 and 3 in 16."""
    content = list(range(FUNCTION_CLASSES, len(CLASS_SIZES)))
    rows = []
    for word_class in range(len(CLASS_SIZES) + 1):
        successors = [content[random.below(len(content))] for _ in range(3)]
        if word_class >= FUNCTION_CLASSES:  # a content word, or the start: a function word often comes next
            successors[random.below(3)] = random.below(FUNCTION_CLASSES)
        rows.append([successors[0]] * 8 + [successors[1]] * 5 + [successors[2]] * 3)
    rows[SENTENCE_START] = [random.below(len(CLASS_SIZES)) for _ in range(15)] + [QUESTION_CLASS]
    return np.array(rows)


def _lexicon(script: Script, random: _Random) -> list[str]:
    """V different words, class by class; the frequent ones are short."""
    consonants, vowels = random.shuffled(script.consonants), random.shuffled(script.vowels)
    codas = random.shuffled(script.codas)
    clusters = [random.skewed(consonants) + random.skewed(consonants) for _ in range(6)]
    words: dict[str, None] = {}
    for word_class, size in enumerate(CLASS_SIZES):
        last = len(words) + size
        while len(words) < last:
            frequent = word_class < FUNCTION_CLASSES or last - len(words) > size - size // 8
            word = ""
            for _ in range(1 + random.below(2 if frequent else 4)):
                onset = random.skewed(clusters) if random.uniform() < 0.1 else random.skewed(consonants)
                coda = random.skewed(codas) if random.uniform() < 0.3 else ""
                word += onset + random.skewed(vowels) + coda
            words[word] = None
    return list(words)


def _zipf_thresholds() -> np.ndarray:
    """
    The upper end (V,) of each word's interval on a scale of 2³² per class. Within its class, the frequency of a word
    is proportional to 1 / (rank + 1).
    """
    thresholds = []
    for word_class, size in enumerate(CLASS_SIZES):
        cumulative = np.cumsum(1.0 / np.arange(2, size + 2))
        thresholds.append((cumulative / cumulative[-1] * 2**32).astype(np.uint64) + np.uint64(word_class << 32))
    return np.concatenate(thresholds)


def _cased(words: list[str], sentence_start: bool) -> list[str]:
    return [word.capitalize() for word in words] if sentence_start else words
