"""`fresh_languages`: new generated languages in every cycle."""

import numpy as np
import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.data.blocks import Blocks
from hf_plasticity.data.schedule import MIXTURE, make_schedule
from hf_plasticity.data.sources import SyntheticSource
from hf_plasticity.data.stream import TrainingStream
from hf_plasticity.data.tokenizers import byte_tokenizer


def pairs(schedule, slots):
    languages, ordinals = schedule.locate(np.asarray(slots))
    return [(schedule.language(int(language)), int(ordinal)) for language, ordinal in zip(languages, ordinals)]


def words(language):
    documents, _ = next(SyntheticSource().batches(language))
    return set(" ".join(documents).translate(str.maketrans(dict.fromkeys(".,;!?-", " "))).lower().split())


def test_a_rotation_takes_new_languages_in_every_cycle():
    schedule = make_schedule("rotation", ("a", "b"), task_slots=2, fresh_languages=True)
    expected = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a.2", 0), ("a.2", 1), ("b.2", 0), ("b.2", 1), ("a.3", 0)]
    assert pairs(schedule, range(9)) == expected
    assert [schedule.task_language(task) for task in range(5)] == ["a", "b", "a.2", "b.2", "a.3"]
    assert schedule.sequences_needed(3) == {"a": 2, "b": 2, "a.2": 2}


def test_a_language_that_a_cycle_revisits_is_the_same_within_it():
    schedule = make_schedule("a,b,a", ("a", "b"), task_slots=1, fresh_languages=True)
    assert pairs(schedule, range(5)) == [("a", 0), ("b", 0), ("a", 1), ("a.2", 0), ("b.2", 0)]
    assert schedule.sequences_needed(6) == {"a": 2, "b": 1, "a.2": 2, "b.2": 1}


def test_stationary_has_consumed_the_same_data_as_the_rotation_after_each_cycle():
    rotation, stationary = (
        make_schedule(name, ("a", "b", "c"), task_slots=4, fresh_languages=True) for name in ("rotation", "stationary")
    )
    assert stationary.task_language(7) == MIXTURE
    for cycle in (1, 2, 3):
        assert set(pairs(rotation, range(12 * cycle))) == set(pairs(stationary, range(12 * cycle)))
        assert rotation.sequences_needed(3 * cycle) == stationary.sequences_needed(3 * cycle)
    assert pairs(stationary, range(11, 15)) == [("c", 3), ("a.2", 0), ("b.2", 0), ("c.2", 0)]


def test_gradual_blends_into_the_new_language():
    schedule = make_schedule("gradual", ("a",), task_slots=40, blend=0.5, fresh_languages=True)
    boundary = [language for language, _ in pairs(schedule, range(30, 50))]
    assert boundary.count("a") == boundary.count("a.2") == 10
    assert schedule.sequences_needed(2) == {"a": 40, "a.2": 40, "a.3": 40}


def test_every_number_is_a_different_language():
    lexicons = {name: words(name) for name in ("syn1", "syn1.2", "syn1.3", "syn1.1000000", "syn2.2")}
    for one in lexicons:
        for other in lexicons.keys() - {one}:
            assert len(lexicons[one] & lexicons[other]) < 0.3 * len(lexicons[one]), (one, other)
    letters = {name: set("".join(lexicon)) for name, lexicon in lexicons.items()}
    assert letters["syn1"] == letters["syn1.2"] == letters["syn1.1000000"]
    source = SyntheticSource()
    fingerprints = [source.fingerprint(name) for name in ("syn1", "syn1.2", "syn1.3", "syn1.20", "syn2.2")]
    assert len({*fingerprints, SyntheticSource(seed=1).fingerprint("syn1.2")}) == 6
    # A run that is resumed with another version of NumPy continues with the same languages.
    assert fingerprints[1] == "da89de8c062466ef7e9e9b00f758fa9e"


@pytest.mark.parametrize("name", ["syn1.1", "syn1.0", "syn1.02", "syn1.", "syn1.2.2", "syn10", "syn1.x", "syn1.-2"])
def test_a_name_has_one_spelling(name):
    with pytest.raises(PlasticityError, match=f"^languages: '{name}' is not a synthetic language; choose from syn1, "):
        SyntheticSource().fingerprint(name)


def stream_of(folder, tasks, **options):
    schedule = make_schedule("rotation", ("syn1", "syn2"), task_slots=8, fresh_languages=True)
    source, tokenizer = SyntheticSource(), byte_tokenizer()
    blocks = {
        language: Blocks(source, language, "train", tokenizer, 32, folder, 0.05, show_progress=False)
        for language in schedule.sequences_needed(tasks)
    }
    return TrainingStream(blocks, schedule, tasks, seed=1, **options)


def test_each_task_instance_trains_on_its_language(tmp_path):
    stream = stream_of(tmp_path, tasks=6)
    tokens = stream.__getitems__(range(48))["input_ids"].numpy()
    for task, language in enumerate(["syn1", "syn2", "syn1.2", "syn2.2", "syn1.3", "syn2.3"]):
        own = stream.blocks[language][range(8)]
        assert sorted(map(tuple, tokens[task * 8 : task * 8 + 8])) == sorted(map(tuple, own))
    assert np.array_equal(stream_of(tmp_path, tasks=4).__getitems__([17, 30])["input_ids"], tokens[[17, 30]])
    assert stream.epochs(48) == {}


def test_streaming_deletes_the_languages_of_past_cycles(tmp_path):
    kept = stream_of(tmp_path / "kept", tasks=8)
    stream = stream_of(tmp_path / "streamed", tasks=8, streaming=True)
    for start in range(0, 64, 4):
        slots = range(start, start + 4)
        assert np.array_equal(stream.__getitems__(slots)["input_ids"], kept.__getitems__(slots)["input_ids"])
    there = sorted(path.parent.name.split("-")[0] for path in (tmp_path / "streamed").glob("*/shard-*.bin"))
    assert there == ["syn1.3", "syn1.4", "syn2.3", "syn2.4"]
    stream.delete()
    assert not list((tmp_path / "streamed").glob("*/shard-*.bin"))
