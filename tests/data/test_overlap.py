"""The share of the validation text in the training text, compared with a plain search."""

import random

import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.data import blocks as blocks_module
from hf_plasticity.data import overlap as overlap_module
from hf_plasticity.data.overlap import measure_overlap
from hf_plasticity.data.sources.base import split_of
from support.listed_source import FRACTION, ListedSource, byte_blocks


def by_hand(texts, training_texts):
    validation = [text for text in texts if split_of(text, FRACTION) == "validation"]
    training = [text for text in training_texts if split_of(text, FRACTION) == "train"]
    pieces = [text[start : start + 50] for text in validation for start in range(0, len(text), 50)]
    pieces = [piece for piece in pieces if len(piece) == 50]
    return len(pieces), sum(any(piece in text for text in training) for piece in pieces)


def corpus(seed, count=80):
    """Documents of random sentences, a third of which come from a common stock, at any position."""
    generator = random.Random(seed)
    stock_generator = random.Random(0)
    stock = ["".join(stock_generator.choices("abc de\nü世🎉", k=120)) for _ in range(8)]
    documents = []
    for _ in range(count):
        parts = [
            generator.choice(stock)
            if generator.random() < 0.4
            else "".join(generator.choices("abc de\nü世🎉", k=generator.randrange(1, 90)))
            for _ in range(6)
        ]
        documents.append("".join(parts) + generator.choice(["", "x"]))
    return documents


def blocks_of(folder, texts, split, language="a"):
    return byte_blocks(folder, ListedSource(**{language: texts}), language, split).prepare(10**6)


def test_the_share_is_that_of_a_plain_search(tmp_path):
    texts = corpus(1)
    measured = measure_overlap(blocks_of(tmp_path, texts, "validation"), [blocks_of(tmp_path, texts, "train")])
    pieces, repeated = by_hand(texts, texts)
    assert 0.1 < repeated / pieces < 0.9, "the case that is tested"
    assert (measured.pieces, measured.repeated, measured.share) == (pieces, repeated, repeated / pieces)
    assert measured.characters == sum(len(text) for text in texts if split_of(text, FRACTION) == "train")


def test_it_does_not_depend_on_the_hash_or_on_how_documents_are_cut_for_the_search(tmp_path, monkeypatch):
    texts = corpus(2)
    expected = by_hand(texts, texts)
    for bits, part in ((1, 64), (22, 51), (6, 2**18)):
        monkeypatch.setattr(overlap_module, "PREFILTER_BITS", bits)
        monkeypatch.setattr(overlap_module, "PART_LENGTH", part)
        overlap_module._powers.cache_clear()
        measured = measure_overlap(blocks_of(tmp_path, texts, "validation"), [blocks_of(tmp_path, texts, "train")])
        assert (measured.pieces, measured.repeated) == expected
    overlap_module._powers.cache_clear()


def test_several_languages_count_together(tmp_path):
    texts, others = corpus(3), corpus(4)
    validation = blocks_of(tmp_path, texts, "validation")
    training = [blocks_of(tmp_path, texts, "train"), blocks_of(tmp_path, others, "train", "b")]
    measured = measure_overlap(validation, training)
    assert (measured.pieces, measured.repeated) == by_hand(texts, texts + others)


def test_case_and_whitespace_matter(tmp_path):
    same = "The licence of this program is here in full, word by word."[:50]
    training = [f"{number} {same}" for number in range(40)]
    for line, repeated in ((same, 1), (same.upper(), 0), (same.replace(" ", "  ", 1)[:50], 0)):
        held_out = [line] if split_of(line, FRACTION) == "validation" else []
        number = 0
        while not held_out:
            number += 1
            candidate = f"{line}{number}"  # the number is beyond the only piece
            held_out = [candidate] if split_of(candidate, FRACTION) == "validation" else []
        validation = blocks_of(tmp_path, held_out, "validation")
        measured = measure_overlap(validation, [blocks_of(tmp_path, training, "train")])
        assert (measured.pieces, measured.repeated) == (1, repeated)


def test_the_sample_is_bounded_and_stated(tmp_path):
    texts = corpus(5)
    validation, training = blocks_of(tmp_path, texts, "validation"), blocks_of(tmp_path, texts, "train")
    measured = measure_overlap(validation, [training], max_pieces=7, max_characters=500)
    assert measured.pieces == 7 and 500 <= measured.characters < 1000
    assert measured.describe() == (
        f"{measured.repeated / 7:.1%} of 7 pieces of 50 characters of validation text occur verbatim in "
        f"{measured.characters:,} characters of training text"
    )


def test_only_what_is_prepared_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks_module, "FIRST_SHARD_TOKENS", 64)
    texts = corpus(6)
    training = byte_blocks(tmp_path, ListedSource(a=texts)).prepare(1)
    assert not training.exhausted
    documents = list(training.documents())
    own = [text for text in texts if split_of(text, FRACTION) == "train"]
    assert 0 < len(documents) < len(own) and documents == own[: len(documents)]
    assert len("".join(documents).encode()) + len(documents) >= training.num_tokens
    assert list(byte_blocks(tmp_path / "none", ListedSource(a=texts)).documents()) == []


def test_text_without_a_piece_is_an_error(tmp_path):
    texts = [f"short {number}" for number in range(60)]
    with pytest.raises(PlasticityError, match=r"^overlap: no prepared validation document of 'a' has 50 characters$"):
        measure_overlap(blocks_of(tmp_path, texts, "validation"), [blocks_of(tmp_path, texts, "train")])
