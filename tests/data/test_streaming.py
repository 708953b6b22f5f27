"""Blocks that are prepared when they are required and deleted afterwards, also with repeated text."""

import numpy as np
import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.data import blocks as blocks_module
from hf_plasticity.data.blocks import Blocks
from hf_plasticity.data.schedule import make_schedule
from hf_plasticity.data.stream import TrainingStream
from support.listed_source import ListedSource, byte_blocks, numbered


BATCH = 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(blocks_module, "FIRST_SHARD_TOKENS", 64)
    monkeypatch.setattr(blocks_module, "LARGEST_SHARD_TOKENS", 128)


def make_stream(folder, name="rotation", tasks=60, task_slots=12, documents=150, **options):
    source = ListedSource(**{language: numbered(language, documents) for language in ("a", "b")})
    blocks = {language: byte_blocks(folder, source, language) for language in ("a", "b")}
    return TrainingStream(blocks, make_schedule(name, ("a", "b"), task_slots), tasks, seed=3, **options)


def batches(stream):
    for start in range(0, len(stream), BATCH):
        yield stream.__getitems__(range(start, start + BATCH))["input_ids"].numpy()


@pytest.fixture
def made(monkeypatch):
    """The shards that were written, in order: (language, number)."""
    numbers = []

    def make_shard(self, shard, start, bar, inner=Blocks._make_shard):
        numbers.append((self.language, shard))
        return inner(self, shard, start, bar)

    monkeypatch.setattr(Blocks, "_make_shard", make_shard)
    return numbers


@pytest.mark.parametrize("name", ["rotation", "stationary", "gradual"])
@pytest.mark.parametrize("task_slots", [12, 20])
def test_streaming_repeats_the_text_as_a_run_that_keeps_everything(tmp_path, made, name, task_slots):
    kept = make_stream(tmp_path / "kept", name, task_slots=task_slots, allow_repeats=True)
    expected = np.concatenate(list(batches(kept)))
    count, shards = len(kept.blocks["a"]), len(kept.blocks["a"]._index["shards"])
    passes = 30 * task_slots / count
    assert passes > 2.5 and 2 * task_slots < count and shards > 6, "the case that is tested"

    made.clear()
    stream = make_stream(tmp_path / "streamed", name, task_slots=task_slots, allow_repeats=True, streaming=True)
    blocks = stream.blocks["a"]
    for number, batch in enumerate(batches(stream)):
        slots = np.arange(number * BATCH, (number + 1) * BATCH)
        assert np.array_equal(batch, expected[slots])
        languages, ordinals = stream.schedule.locate(slots)
        if blocks.exhausted and (windows := ordinals[languages == 0] // task_slots).size:
            # Only the blocks in the windows of the batch and in the window before remain.
            own = np.arange((windows.min() - 1) * task_slots, (windows.max() + 1) * task_slots) % count
            for path in blocks.folder.glob("shard-*.bin"):
                shard = int(path.stem.split("-")[1])
                assert np.isin(own, np.arange(blocks._ends[shard], blocks._ends[shard + 1])).any()
    # A pass over the text writes each shard once. The first one also finds that the text ends.
    assert sum(language == "a" for language, _ in made) <= (passes + 1) * shards + 1


def test_text_shared_by_two_task_instances_is_prepared_once(tmp_path, made):
    stream = make_stream(tmp_path, tasks=30, documents=30, allow_repeats=True, streaming=True)
    assert sum(map(len, batches(stream))) == 360
    assert len(stream.blocks["a"]) <= 24, "the case that is tested"
    assert len(made) == len(set(made)), made


def test_the_last_boundary_of_a_gradual_run_is_prepared_with_it(tmp_path):
    schedule = make_schedule("gradual", ("a", "b"), task_slots=12, blend=0.5)
    assert schedule.sequences_used(4) == {"a": 24, "b": 24}
    assert schedule.sequences_needed(4) == {"a": 36, "b": 24}, "the boundary blends into the next task instance of a"
    # Enough for four task instances of a and b, but not for more.
    documents = 1
    while len(byte_blocks(tmp_path, ListedSource(a=numbered("a", documents))).prepare(99)) < 24:
        documents += 1
    with pytest.raises(PlasticityError, match=r"'a' has \d+ training tokens and the run requires 576"):
        make_stream(tmp_path, "gradual", tasks=4, documents=documents)
    assert len(make_stream(tmp_path, "rotation", tasks=4, documents=documents)) == 48


def test_passes_over_text_that_another_process_has_prepared_are_counted(tmp_path):
    one, other = (make_stream(tmp_path, tasks=30, documents=30, allow_repeats=True, streaming=True) for _ in range(2))
    for _ in batches(other):  # as the workers of a DataLoader
        pass
    assert one.epochs(len(one)) == other.epochs(len(other)) and set(one.epochs(len(one))) == {"a", "b"}


def test_a_finished_run_leaves_no_streamed_blocks(tmp_path):
    stream = make_stream(tmp_path, streaming=True)
    first = stream.__getitems__(range(BATCH))["input_ids"]
    assert list(tmp_path.rglob("*.bin"))
    stream.delete()
    assert not list(tmp_path.rglob("*.bin"))
    assert stream.__getitems__(range(BATCH))["input_ids"].equal(first), "a longer run prepares them again"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_language_without_a_block_is_an_error(tmp_path, streaming):
    source = ListedSource(a=["x"])
    blocks = {"a": byte_blocks(tmp_path, source)}
    with pytest.raises(PlasticityError, match=r"^languages: 'a' has no complete block of 16 training tokens$"):
        stream = TrainingStream(
            blocks, make_schedule("rotation", ("a",), 4), 2, seed=0, allow_repeats=True, streaming=streaming
        )
        stream[0]
