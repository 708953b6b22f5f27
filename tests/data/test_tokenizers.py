import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_plasticity.data.sources.local import LocalSource
from hf_plasticity.data.tokenizers import (
    byte_tokenizer,
    encode_documents,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from hf_plasticity.errors import PlasticityError


TEXT = "Grüße, 世界! 🎉 naïve café\r\n\ttabs  and   spaces ' s\x00\x7f<|endoftext|>"


@pytest.fixture(scope="module")
def bpe():
    texts = (f"the {i} quick brown foxes jump über {i * i} lazy dogs, and they don't stop" for i in range(2000))
    return train_tokenizer(texts, 400)


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request):
    return byte_tokenizer() if request.param == "byte" else request.getfixturevalue("bpe")


def test_documents_are_whole_whatever_the_last_call_of_the_tokenizer_was(bpe, tmp_path):
    documents = ["the quick brown foxes jump over lazy dogs", "foxes"]
    tokens, lengths = encode_documents(bpe, documents)
    bpe.save_pretrained(tmp_path / "clean")
    truncated = AutoTokenizer.from_pretrained(tmp_path / "clean")
    truncated.pad_token = truncated.eos_token
    ids = truncated(documents, truncation=True, max_length=4, padding="max_length").input_ids
    truncated.save_pretrained(tmp_path / "saved")
    for tokenizer in (truncated, load_tokenizer(str(tmp_path / "saved"))):
        found = encode_documents(tokenizer, documents)
        assert found[0].tolist() == tokens.tolist() and found[1].tolist() == lengths.tolist()
    assert truncated.backend_tokenizer.encode(documents[0]).ids == ids[0], "the tokenizer has changed for its user"


class TestByteTokenizer:
    def test_ids_are_the_bytes(self):
        tokenizer = byte_tokenizer()
        assert len(tokenizer) == 257
        assert (
            tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>") == 256
        )
        assert tokenizer("aé\n").input_ids == [0x61, 0xC3, 0xA9, 0x0A]
        every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000), 0x10FFFF]))
        assert tokenizer(every_character).input_ids == list(every_character.encode())

    @given(st.text())
    @settings(max_examples=100, deadline=None)
    def test_any_text_is_decoded_exactly(self, text):
        tokenizer = byte_tokenizer()
        assert tokenizer.decode(encode_documents(tokenizer, [text])[0]) == text

    def test_the_fast_route_is_the_slow_one(self):
        tokenizer = byte_tokenizer()
        documents = [TEXT, "", "x", "日本語" * 1000]
        slow = [tokenizer(text, split_special_tokens=True).input_ids for text in documents]
        tokens, lengths = encode_documents(tokenizer, documents)
        assert tokens.tolist() == [token for ids in slow for token in ids]
        assert lengths.tolist() == [len(ids) for ids in slow]


def test_saved_and_loaded_by_transformers_alone(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert loaded.decode(loaded(TEXT).input_ids) == TEXT
    assert loaded.eos_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert encode_documents(loaded, [TEXT])[0].tolist() == encode_documents(tokenizer, [TEXT])[0].tolist()


def test_fingerprint_follows_every_part(bpe):
    fingerprint = tokenizer_fingerprint(bpe)
    content = json.loads(bpe.backend_tokenizer.to_str())
    assert fingerprint != tokenizer_fingerprint(byte_tokenizer())

    def changed(change):
        other = json.loads(json.dumps(content))
        change(other)
        return tokenizer_fingerprint(
            PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(other)), eos_token="<|endoftext|>")
        )

    same = changed(lambda other: None)
    changes = [
        lambda other: other["model"].update(merges=other["model"]["merges"][::-1]),
        lambda other: other["model"]["vocab"].update({"!": 1, '"': 0}),
        lambda other: other.update(normalizer={"type": "NFC"}),
        lambda other: other["pre_tokenizer"].update(add_prefix_space=True),
        lambda other: other["added_tokens"][0].update(content="<eos>"),
    ]
    fingerprints = [same, *(changed(change) for change in changes)]
    assert len(set(fingerprints)) == len(fingerprints)


def test_fingerprint_does_not_change_with_use(bpe):
    before = tokenizer_fingerprint(bpe)
    bpe.pad_token = bpe.eos_token
    bpe(["some words", "more"], truncation=True, max_length=2, padding=True)
    assert tokenizer_fingerprint(bpe) == before


class TestTrainedTokenizer:
    def test_size_includes_the_end_of_text(self, bpe):
        assert len(bpe) == 400 and bpe.eos_token_id == 399
        assert bpe("over the lazy dogs").input_ids != list(b"over the lazy dogs")

    def test_training_is_repeatable(self):
        texts = ["a rose is a rose is a rose", "nothing rhymes with orange"] * 50
        fingerprints = {tokenizer_fingerprint(train_tokenizer(iter(texts), 280)) for _ in range(2)}
        assert len(fingerprints) == 1

    def test_too_few_tokens_or_too_little_text(self):
        with pytest.raises(PlasticityError, match=r"^train_tokenizer: 257 leaves no token to train"):
            train_tokenizer(iter(["text"]), 257)
        with pytest.raises(
            PlasticityError, match=r"^train_tokenizer: 1000 tokens cannot be trained on so little text, only 2"
        ):
            train_tokenizer(iter(["hello hello"]), 1000)


class TestEncodeDocuments:
    def test_the_fast_route_is_the_slow_one(self, bpe):
        documents = [TEXT, "", "the quick fox", "日本語" * 1000]
        slow = [bpe(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in documents]
        tokens, lengths = encode_documents(bpe, documents)
        assert tokens.dtype == np.int32 and lengths.dtype == np.int64
        assert tokens.tolist() == [token for ids in slow for token in ids]
        assert lengths.tolist() == [len(ids) for ids in slow]

    def test_no_document_can_spell_the_end_of_text(self, tokenizer):
        tokens, _ = encode_documents(tokenizer, ["<|endoftext|>"])
        assert tokenizer.eos_token_id not in tokens
        assert tokenizer("<|endoftext|>").input_ids == [tokenizer.eos_token_id]

    def test_no_documents(self, tokenizer):
        tokens, lengths = encode_documents(tokenizer, [])
        assert tokens.shape == lengths.shape == (0,)

    def test_no_special_tokens_are_added_nor_length_warned_of(self, bpe, tmp_path, capfd):
        bpe.save_pretrained(tmp_path)
        loaded = load_tokenizer(str(tmp_path))
        loaded.model_max_length = 8
        loaded.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 399)]
        )
        assert loaded("fox").input_ids[0] == 399
        assert 399 not in encode_documents(loaded, ["the quick fox " * 100])[0]
        assert capfd.readouterr().err == ""

    def test_the_corpus_is_decoded_exactly(self, tokenizer, corpus_dir):
        documents, _ = next(LocalSource(corpus_dir).batches("ja"))
        tokens, lengths = encode_documents(tokenizer, documents[:100])
        parts = np.split(tokens, np.cumsum(lengths)[:-1])
        assert [tokenizer.decode(part) for part in parts] == documents[:100]


class TestLoadTokenizer:
    def test_by_name_and_folder(self, bpe, tmp_path):
        assert tokenizer_fingerprint(load_tokenizer("byte")) == tokenizer_fingerprint(byte_tokenizer())
        bpe.save_pretrained(tmp_path)
        assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == tokenizer_fingerprint(bpe)

    def test_the_end_of_text_must_be_there(self, bpe, tmp_path):
        PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer).save_pretrained(tmp_path)
        with pytest.raises(PlasticityError, match=r"^tokenizer: '.*' has no end-of-text token \(eos_token\)"):
            load_tokenizer(str(tmp_path))

    def test_code_is_never_executed(self, tmp_path):
        code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        (tmp_path / "custom.py").write_text(code + "from transformers import PreTrainedTokenizer as Custom\n")
        config = {"auto_map": {"AutoTokenizer": ["custom.Custom", None]}, "tokenizer_class": "Custom"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(PlasticityError, match=r"^tokenizer: '.*' requires custom code, which is never executed"):
            load_tokenizer(str(tmp_path))
        assert not (tmp_path / "ran").exists()

    def test_a_folder_without_tokenizer(self, tmp_path):
        with pytest.raises(PlasticityError, match=r"^tokenizer: '.*' has no tokenizer that can be loaded") as caught:
            load_tokenizer(str(tmp_path))
        assert "\n" not in str(caught.value)

    def test_neither_folder_nor_repository(self):
        with pytest.raises(
            PlasticityError, match=r"^tokenizer: './no/where' is neither a folder nor the name of a repository"
        ):
            load_tokenizer("./no/where")
