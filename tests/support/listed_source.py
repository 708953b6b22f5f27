"""A source whose documents are known in advance, and blocks of it."""

import hashlib

from hf_plasticity.data.blocks import Blocks
from hf_plasticity.data.sources.base import Source
from hf_plasticity.data.tokenizers import byte_tokenizer


FRACTION = 0.3


class ListedSource(Source):
    """Lists of documents by language, in batches of three. `read` holds the numbers of the batches that were read."""

    def __init__(self, **texts):
        self.texts, self.read = texts, []

    def fingerprint(self, language):
        return hashlib.sha256(repr(self.texts[language]).encode()).hexdigest()

    def batches(self, language, state=None):
        for start in range((state or {"document": 0})["document"], len(self.texts[language]), 3):
            self.read.append(start // 3)
            yield self.texts[language][start : start + 3], {"document": start}


def numbered(language="a", count=200):
    """Different documents of different lengths."""
    return [f"{language}{number} " * (number % 7 + 1) for number in range(count)]


def byte_blocks(folder, source, language="a", split="train", context_length=16):
    return Blocks(source, language, split, byte_tokenizer(), context_length, folder, FRACTION, show_progress=False)
