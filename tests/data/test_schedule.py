"""Schedules: the mapping from slots to languages and ordinals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plasticity import PlasticityError
from hf_plasticity.data.schedule import MIXTURE, make_schedule


NAMES = ("a", "b", "c")


def pairs(schedule, slots):
    languages, ordinals = schedule.locate(np.asarray(slots))
    return [(schedule.languages[language], int(ordinal)) for language, ordinal in zip(languages, ordinals)]


def test_rotation_uses_the_languages_in_turn_with_fresh_sequences():
    schedule = make_schedule("rotation", NAMES, task_slots=2)
    expected = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1), ("a", 2), ("a", 3), ("b", 2), ("b", 3)]
    assert pairs(schedule, range(10)) == expected
    assert [schedule.task_language(task) for task in range(5)] == ["a", "b", "c", "a", "b"]
    assert schedule.sequences_needed(4) == {"a": 4, "b": 2, "c": 2}


def test_a_list_may_repeat_a_language_within_a_cycle():
    schedule = make_schedule("a,b,a", NAMES, task_slots=2)
    assert schedule.tasks_per_cycle == 3
    assert pairs(schedule, [0, 1, 2, 4, 5, 6, 8, 10]) == [
        ("a", 0), ("a", 1), ("b", 0), ("a", 2), ("a", 3), ("a", 4), ("b", 2), ("a", 6),
    ]  # fmt: skip
    assert schedule.sequences_needed(3) == {"a": 4, "b": 2}


def test_stationary_deals_the_languages_evenly_into_every_batch():
    schedule = make_schedule("stationary", NAMES, task_slots=4)
    assert pairs(schedule, range(7)) == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 2)]
    assert schedule.task_language(0) == MIXTURE
    assert schedule.sequences_needed(2) == {"a": 3, "b": 3, "c": 2}


def test_stationary_and_rotation_have_consumed_the_same_data_after_each_cycle():
    rotation = make_schedule("rotation", NAMES, task_slots=5)
    stationary = make_schedule("stationary", NAMES, task_slots=5)
    for cycle in (1, 2, 3):
        slots = range(cycle * 15)
        assert set(pairs(rotation, slots)) == set(pairs(stationary, slots))


def test_gradual_keeps_the_data_of_every_task_instance_and_does_not_change_its_middle():
    schedule = make_schedule("gradual", NAMES, task_slots=40, blend=0.5, seed=3)
    rotation = make_schedule("rotation", NAMES, task_slots=40)
    blended = pairs(schedule, range(40 * 6))
    assert len(set(blended)) == len(blended)
    # Up to the middle of the last boundary the two have used the same sequences except for later ones.
    pure = [slot for slot in range(200) if 10 <= slot % 40 < 30]
    assert pairs(schedule, pure) == pairs(rotation, pure)
    assert set(pairs(rotation, range(200))) <= set(blended) | {("b", n) for n in range(70, 80)}
    boundary = [language for language, _ in blended[30:50]]
    assert boundary.count("a") == boundary.count("b") == 10
    assert blended[30:50] != pairs(rotation, range(30, 50))


def test_gradual_share_of_the_coming_language_rises_in_a_straight_line():
    share = np.zeros(200)
    for seed in range(400):
        schedule = make_schedule("gradual", ("a", "b"), task_slots=200, blend=1.0, seed=seed)
        share += schedule.locate(np.arange(100, 300))[0]
    line = (np.arange(200) + 0.5) / 200
    assert np.abs((share / 400).reshape(10, 20).mean(1) - line.reshape(10, 20).mean(1)).max() < 0.03


@given(
    st.sampled_from(["rotation", "stationary", "gradual", "a,b,a,c"]),
    st.integers(2, 30),
    st.integers(0, 5),
    st.data(),
)
def test_a_slot_is_located_without_other_slots(name, task_slots, seed, data):
    schedule = make_schedule(name, NAMES, task_slots=task_slots, blend=0.6, seed=seed)
    everything = pairs(schedule, range(task_slots * 9))
    assert len(set(everything)) == len(everything)
    slots = data.draw(st.lists(st.integers(0, len(everything) - 1), min_size=1, max_size=8))
    assert pairs(schedule, slots) == [everything[slot] for slot in slots]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "rotating"}, "schedule: 'rotating' is neither one of rotation, stationary, gradual nor"),
        ({"schedule": "a,x"}, "schedule: 'a,x'"),
        ({"languages": ("a", "a")}, "languages: 'a a' has a duplicate"),
        ({"languages": ()}, "languages: none given"),
        ({"schedule": "gradual", "blend": 1.5}, "blend: 1.5 is not above 0"),
    ],
)
def test_an_unknown_schedule_is_refused(arguments, message):
    with pytest.raises(PlasticityError, match=message):
        make_schedule(**({"schedule": "rotation", "languages": NAMES, "task_slots": 4} | arguments))
