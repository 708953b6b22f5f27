"""`text_blocks`: the same blocks from texts and a tokenizer as in a run."""

from itertools import count

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_plasticity import PlasticityError
from hf_plasticity.data.texts import text_blocks
from hf_plasticity.data.tokenizers import byte_tokenizer, train_tokenizer
from support.listed_source import FRACTION, ListedSource, byte_blocks, numbered


END = 256
TOKENIZER = byte_tokenizer()


def test_documents_are_joined_by_the_end_of_text_and_cut():
    blocks = text_blocks(["ab", None, "cde", " \n", "f"], TOKENIZER, context_length=4)
    assert blocks.tolist() == [[97, 98, END, 99], [100, 101, END, 102]] and blocks.dtype == np.int64


@pytest.mark.parametrize("split", [None, "train"])
def test_half_a_surrogate_pair_is_an_error(split):
    with pytest.raises(PlasticityError, match="half a surrogate pair, which is not a character, after 'this: '"):
        text_blocks(["this: \ud83d"], TOKENIZER, 4, split=split)
    with pytest.raises(PlasticityError, match="half a surrogate pair, which is not a character, after 'this: '"):
        text_blocks(["this: \ud83d"], train_tokenizer(iter(["some text"] * 9), 258), 4, split=split)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_blocks_are_those_of_a_study_on_the_same_documents(tmp_path, split):
    documents = numbered()
    study = byte_blocks(tmp_path, ListedSource(a=documents), split=split).prepare(10**6)
    blocks = text_blocks(documents, TOKENIZER, 16, split=split, validation_fraction=FRACTION)
    assert np.array_equal(blocks, study[range(len(study))]) and len(blocks) > 10


def test_the_splits_share_no_document_even_if_the_texts_repeat():
    documents = [f"<{number}>" for number in range(300)] * 2
    texts = {}
    for split in ("train", "validation"):
        tokens = text_blocks(documents, TOKENIZER, 4, split=split, validation_fraction=0.2).ravel().tolist()
        texts[split] = set(bytes(token if token < END else 0 for token in tokens).split(b"\0")[:-1])
    assert not texts["train"] & texts["validation"] and len(texts["train"]) > 200 and len(texts["validation"]) > 30


def test_datasets_are_read_by_their_column():
    rows = {"id": list(range(50)), "body": numbered(count=50)}
    expected = text_blocks(rows["body"], TOKENIZER, 8)
    dataset = datasets.Dataset.from_dict(rows)
    for texts in (dataset, dataset.to_iterable_dataset(), dataset["body"], dataset.to_list()):
        assert np.array_equal(text_blocks(texts, TOKENIZER, 8, text_column="body"), expected)


def test_endless_texts_are_read_only_as_far_as_required():
    read = []
    endless = (read.append(number) or f"document {number} " * 1000 for number in count())
    assert text_blocks(endless, TOKENIZER, 32, max_blocks=5).shape == (5, 32)
    assert len(read) < 200


def test_more_text_than_a_batch_is_one_row_of_tokens():
    long, short = "x" * 1_500_000, "y" * 9
    tokens = [*long.encode(), END, *short.encode(), END]
    blocks = text_blocks([long, short], TOKENIZER, 1000)
    assert blocks.ravel().tolist() == tokens[:1_500_000] and len(blocks) == 1500


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("ab" * 99, {}, "texts: a single string; give an iterable of documents"),
        ({"train": ["ab"], "test": ["cd"]}, {}, "texts: a mapping of train, test; give one of its values"),
        ([{"body": "ab", "id": 1}], {}, "text_column: the texts have no column 'text'; their columns are body, id"),
        (["ab", 3], {}, "texts: number 1 is of type int, not a string"),
        (["ab"], {}, "texts: the text has 3 tokens, which do not fill a block of 16;"),
        (
            ["ab" * 99],
            {"split": "validation", "validation_fraction": 1e-9},
            "texts: the validation split has 0 tokens",
        ),
        (["ab" * 99], {"split": "test"}, "split: 'test' is unknown; choose one of train, validation"),
        (["ab" * 99], {"max_blocks": 0}, "max_blocks: 0 is not a positive number"),
        (["ab" * 99], {"context_length": 1}, "context_length: 1 leaves no token to predict"),
        (["ab" * 99], {"validation_fraction": 1}, "validation_fraction: 1 is not between 0 and 1"),
    ],
)
def test_mistakes_are_one_line_errors(texts, options, message):
    with pytest.raises(PlasticityError) as caught:
        text_blocks(texts, TOKENIZER, **({"context_length": 16} | options))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_of_text_token_is_refused():
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    with pytest.raises(PlasticityError, match=r"^tokenizer: '.*' has no end-of-text token \(eos_token\)"):
        text_blocks(["ab"], PreTrainedTokenizerFast(tokenizer_object=backend), 2)
    with pytest.raises(PlasticityError, match=r"^tokenizer: Tokenizer is not a tokenizer of Transformers; load one"):
        text_blocks(["ab"], backend, 2)
