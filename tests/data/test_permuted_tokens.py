"""`permute_tokens`: each task instance has its own permutation of the vocabulary."""

from itertools import pairwise

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_plasticity import PlasticityError
from hf_plasticity.data.schedule import make_schedule
from hf_plasticity.data.stream import TrainingStream
from hf_plasticity.data.tokenizers import vocabulary_of
from support.listed_source import ListedSource, byte_blocks, numbered


SLOTS, TASKS, END = 12, 6, 256


def make_stream(folder, name="rotation", seed=3, tasks=TASKS, **options):
    source = ListedSource(**{language: numbered(language, 400) for language in ("a", "b")})
    blocks = {language: byte_blocks(folder, source, language) for language in ("a", "b")}
    return TrainingStream(blocks, make_schedule(name, ("a", "b"), SLOTS, seed=5), tasks, seed, **options)


def read(stream, slots):
    return stream.__getitems__(slots)["input_ids"].numpy()


def mapping(before, after):
    """The map of token ids from one to the other, which must be one-to-one."""
    pairs = set(zip(before.ravel().tolist(), after.ravel().tolist()))
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    return dict(pairs)


@pytest.mark.parametrize("name", ["rotation", "stationary"])
def test_each_task_instance_has_its_own_permutation(tmp_path, name):
    plain, permuted = make_stream(tmp_path, name), make_stream(tmp_path, name, permute_tokens=True)
    maps = []
    for task in range(TASKS):
        slots = range(task * SLOTS, (task + 1) * SLOTS)
        before, after = read(plain, slots), read(permuted, slots)
        assert np.array_equal(before == END, after == END) and (before == END).any()
        maps.append(mapping(before, after))
    for one, other in pairwise(maps):
        shared = one.keys() & other.keys() - {END}
        assert len(shared) > 5 and sum(one[token] == other[token] for token in shared) < len(shared) / 2
    assert all(sum(old == new for old, new in one.items() if old != END) < len(one) / 2 for one in maps)


def test_in_gradual_a_sequence_has_the_permutation_of_its_task_instance(tmp_path):
    plain, permuted = make_stream(tmp_path, "gradual"), make_stream(tmp_path, "gradual", permute_tokens=True)
    slots = np.arange(SLOTS * TASKS)
    tasks = permuted.schedule.task_of(slots)
    assert sorted(set(tasks)) == list(range(TASKS + 1)) and not np.array_equal(tasks, slots // SLOTS)
    languages, _ = permuted.schedule.locate(slots)
    assert np.array_equal(tasks % 2, languages)
    for task in range(TASKS):
        chosen = slots[tasks == task]
        mapping(read(plain, chosen), read(permuted, chosen))


def test_a_permutation_depends_only_on_seed_and_task(tmp_path):
    stream = make_stream(tmp_path, permute_tokens=True)
    everything = read(stream, range(SLOTS * TASKS))
    longer = make_stream(tmp_path, tasks=2 * TASKS, permute_tokens=True)
    for slots in ([50], [3, 40, 17], list(range(30, 60))):
        assert np.array_equal(read(longer, slots), everything[slots])
    table = stream._permutation(2)
    assert sorted(table) == list(range(257)) and table[END] == END
    assert np.array_equal(make_stream(tmp_path, "stationary", permute_tokens=True)._permutation(2), table)
    assert not np.array_equal(make_stream(tmp_path, seed=4, permute_tokens=True)._permutation(2), table)
    # A run that is resumed with another version of NumPy continues with the same permutations.
    assert table[:8].tolist() == [88, 83, 184, 189, 175, 135, 136, 155]


def test_without_permutation_the_text_does_not_change(tmp_path):
    stream = make_stream(tmp_path)
    languages, numbers = stream.locate(range(24))
    expected = [stream.blocks["ab"[language]][int(number)] for language, number in zip(languages, numbers)]
    assert np.array_equal(read(stream, range(24)), expected)


def tokenizer_of(words, special):
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    backend.add_special_tokens([AddedToken(word, special=True) for word in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[-1])


def test_special_tokens_are_not_permuted():
    vocabulary = vocabulary_of(tokenizer_of(["a", "b", "c"], ["<chat>", "<end>"]))
    assert (vocabulary.size, vocabulary.text_ids.tolist()) == (5, [0, 1, 2])


def test_a_vocabulary_that_cannot_be_permuted_is_an_error():
    with pytest.raises(
        PlasticityError, match=r"^permute_tokens: the tokenizer has 1 tokens besides its special tokens"
    ):
        vocabulary_of(tokenizer_of(["a"], ["<end>"]))
