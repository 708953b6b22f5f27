"""Blocks and the training stream: their content, and its reproducibility."""

import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hf_plasticity import PlasticityError
from hf_plasticity.data import blocks as blocks_module
from hf_plasticity.data.blocks import Blocks
from hf_plasticity.data.schedule import make_schedule
from hf_plasticity.data.sources.base import split_of
from hf_plasticity.data.stream import TrainingStream, collate_batch
from hf_plasticity.data.tokenizers import byte_tokenizer, num_token_ids, train_tokenizer
from support.tiny import ListedSource


END = 256
FRACTION = 0.3


def make_blocks(folder, source=None, language="a", split="train", context_length=16, tokenizer=None):
    tokenizer = tokenizer or byte_tokenizer()
    return Blocks(source or ListedSource(), language, split, tokenizer, context_length, folder, FRACTION, False)


def expected_tokens(source, language, split):
    tokens = []
    for text in source.texts(language):
        if split_of(text, FRACTION) == split:
            tokens += [*text.encode(), END]
    return tokens


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(blocks_module, "FIRST_SHARD_TOKENS", 64)
    monkeypatch.setattr(blocks_module, "LARGEST_SHARD_TOKENS", 256)


def test_blocks_are_the_documents_joined_by_end_of_text_and_cut(tmp_path):
    source = ListedSource()
    blocks = make_blocks(tmp_path, source).prepare(10**6)
    tokens = expected_tokens(source, "a", "train")
    assert blocks.exhausted and len(blocks) == len(tokens) // 16
    assert blocks[np.arange(len(blocks))].ravel().tolist() == tokens[: len(blocks) * 16]


def test_ids_above_65535_are_kept_also_by_a_small_vocabulary_with_gaps(tmp_path):
    vocabulary = {"<end>": 0, "<unknown>": 1} | {f"a{number}": 70_000 + number for number in range(60)}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", unk_token="<unknown>")
    assert len(tokenizer) == 62 and num_token_ids(tokenizer) == 70_060
    blocks = make_blocks(tmp_path, tokenizer=tokenizer, context_length=4).prepare(1000)
    ids = {id for id in blocks[np.arange(len(blocks))].ravel().tolist() if id != 0}
    assert ids and min(ids) >= 70_000


def test_shards_cut_nothing_and_continue_where_the_last_ended(tmp_path, small_shards):
    source = ListedSource()
    for wanted in (1, 5, 9, 1000):
        blocks = make_blocks(tmp_path, source).prepare(wanted)
    tokens = expected_tokens(source, "a", "train")
    assert len(list(blocks.folder.glob("shard-*.bin"))) == 4
    assert blocks[np.arange(len(blocks))].ravel().tolist() == tokens[: len(blocks) * 16]
    assert source.read[-1] == 57 and source.read.count(0) == 1, "what was consumed is not read again"


def test_train_and_validation_never_share_a_document(tmp_path):
    source = ListedSource()
    train, validation = (expected_tokens(source, "a", split) for split in ("train", "validation"))
    assert train and validation and len(train) + len(validation) == sum(len(t) + 1 for t in source.texts("a"))
    blocks = make_blocks(tmp_path, source, split="validation").prepare(10**6)
    assert blocks[np.arange(len(blocks))].ravel().tolist() == validation[: len(blocks) * 16]


def test_bytes_per_token_counts_the_end_of_text(tmp_path):
    source = ListedSource()
    texts = [text for text in source.texts("a") if split_of(text, FRACTION) == "train"]
    size = sum(len(text) for text in texts)
    assert make_blocks(tmp_path, source).bytes_per_token(10**6) == size / (size + len(texts))


def test_bytes_per_token_does_not_depend_on_what_else_has_been_prepared(tmp_path, small_shards):
    fresh = make_blocks(tmp_path / "one", ListedSource()).bytes_per_token(1)
    prepared = make_blocks(tmp_path / "two", ListedSource()).prepare(10**6)
    assert len(prepared) > 1 and prepared.bytes_per_token(1) == fresh != prepared.bytes_per_token(len(prepared))


def test_an_interrupted_preparation_resumes(tmp_path, small_shards):
    with pytest.raises(OSError, match="unplugged"):
        make_blocks(tmp_path, ListedSource(fails_at=30)).prepare(10**6)
    source = ListedSource()
    blocks = make_blocks(tmp_path, source).prepare(10**6)
    assert source.read[0] > 0
    assert blocks[np.arange(len(blocks))].ravel().tolist() == expected_tokens(source, "a", "train")[: len(blocks) * 16]


def test_prepared_blocks_are_reused_only_for_equal_inputs(tmp_path):
    first = make_blocks(tmp_path).prepare(5)
    again = make_blocks(tmp_path, source := ListedSource()).prepare(5)
    assert again.folder == first.folder and source.read == []
    others = [
        make_blocks(tmp_path, language="b"),
        make_blocks(tmp_path, split="validation"),
        make_blocks(tmp_path, context_length=8),
        make_blocks(tmp_path, ListedSource(documents=61)),
        make_blocks(tmp_path, tokenizer=train_tokenizer(iter(["some text to learn from " * 9]), 270)),
    ]
    assert len({blocks.folder for blocks in [first, *others]}) == 6


def test_deleted_shards_are_prepared_again_identically(tmp_path, small_shards):
    blocks = make_blocks(tmp_path).prepare(10**6)
    before = blocks[np.arange(len(blocks))]
    blocks.release(0, 12)
    assert not blocks._shard_path(0).exists() and blocks._shard_path(len(blocks._ends) - 2).exists()
    assert (blocks[np.arange(len(blocks))] == before).all()


def test_a_damaged_shard_is_an_error_that_names_it(tmp_path):
    blocks = make_blocks(tmp_path).prepare(5)
    path = blocks._shard_path(0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PlasticityError, match=r"shard-00000\.bin' is damaged"):
        make_blocks(tmp_path)[0]


def make_stream(folder, name="rotation", tasks=6, seed=0, documents=400, **options):
    source = ListedSource(documents)
    languages = ("a", "b", "c")
    blocks = {language: make_blocks(folder, source, language) for language in languages}
    return TrainingStream(blocks, make_schedule(name, languages, task_slots=12, seed=seed), tasks, seed, **options)


def digest(stream, batch_size):
    loader = DataLoader(stream, batch_size=batch_size, collate_fn=collate_batch)
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest() for batch in loader for row in batch["input_ids"]]


@pytest.mark.parametrize("name", ["rotation", "stationary", "gradual", "c,a,c"])
def test_the_sequences_of_a_run_depend_only_on_configuration_and_seed(tmp_path, name):
    canonical = digest(make_stream(tmp_path, name), batch_size=4)
    assert digest(make_stream(tmp_path, name), batch_size=12) == canonical
    assert digest(make_stream(tmp_path, name, tasks=9), batch_size=1)[:60] == canonical[:60]
    assert digest(make_stream(tmp_path, name, seed=1), batch_size=4) != canonical
    stream = make_stream(tmp_path, name)
    assert [hashlib.sha256(stream[slot]["input_ids"].numpy().tobytes()).hexdigest() for slot in (50, 3)] == [
        canonical[50],
        canonical[3],
    ]


def test_a_task_instance_has_the_same_text_for_every_seed_in_another_order(tmp_path):
    one, two = digest(make_stream(tmp_path, seed=1), 12)[:12], digest(make_stream(tmp_path, seed=2), 12)[:12]
    assert sorted(one) == sorted(two) and one != two


def test_no_sequence_is_used_twice_in_a_run(tmp_path):
    languages, numbers = make_stream(tmp_path, "stationary").locate(range(72))
    assert len(set(zip(languages, numbers))) == 72


def test_a_corpus_too_small_is_an_error_with_both_numbers(tmp_path):
    have = len(make_blocks(tmp_path, ListedSource(50)).prepare(10**6)) * 16
    with pytest.raises(PlasticityError, match=rf"'a' has {have} training tokens and the run requires 1,920"):
        make_stream(tmp_path, tasks=30, documents=50)


def test_repeats_go_through_the_text_in_whole_epochs_and_are_counted(tmp_path):
    stream = make_stream(tmp_path, tasks=30, documents=50, allow_repeats=True)
    have = len(stream.blocks["a"])
    languages, numbers = stream.locate(range(360))
    counts = np.bincount(numbers[languages == 0], minlength=have)
    assert counts.min() == 120 // have and counts.max() == counts.min() + 1
    assert stream.epochs(360)["a"] == round(120 / have, 3)
    assert stream.epochs(12) == {}, "fresh so far"


def test_streaming_gives_the_same_sequences_and_leaves_little_on_disk(tmp_path, small_shards):
    canonical = digest(make_stream(tmp_path / "all", tasks=18), batch_size=4)
    stream = make_stream(tmp_path / "some", tasks=18, streaming=True)
    assert len(stream.blocks["a"]) == 0, "nothing is prepared before it is required"
    assert digest(stream, batch_size=4) == canonical
    kept = {size: sum(1 for _ in (tmp_path / size).rglob("shard-*.bin")) for size in ("all", "some")}
    assert kept["some"] < kept["all"]


def test_streaming_raises_an_error_when_the_text_ends(tmp_path):
    stream = make_stream(tmp_path, tasks=30, documents=50, streaming=True)
    with pytest.raises(PlasticityError, match="'a' has no fresh train text after"):
        digest(stream, batch_size=4)
