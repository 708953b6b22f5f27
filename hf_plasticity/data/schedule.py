"""
The schedule: the language of each task instance, and the sequence of each slot of the run.

A run consists of *slots*, one for each training sequence. Step s of a run with B sequences in a global batch has the
slots `s·B … (s+1)·B − 1`, and task instance k has the slots `k·W … (k+1)·W − 1`, where W is its number of steps times
B. Each slot is mapped to a language and an *ordinal*, the number of the sequence within its language. Any slot can be
computed without the earlier ones, on any process and after any restart.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from ..errors import PlasticityError


LANGUAGES = ("en", "zh", "fr", "ja", "es", "de", "pt", "ru")
PROBE_LANGUAGE = "vi"

SCHEDULES = ("rotation", "stationary", "gradual")
MIXTURE = "mixture"


class Schedule(ABC):
    """
    Args:
        languages (`Sequence[str]`): The task instances of one cycle, in order. A language may occur more than once.
        task_slots (`int`): Sequences in a task instance (W).
        fresh_languages (`bool`, *optional*, defaults to `False`): Whether every cycle has new languages: cycle n ≥ 2
            replaces `"<language>"` with `"<language>.<n>"`.
    """

    def __init__(self, languages: Sequence[str], task_slots: int, fresh_languages: bool = False):
        self.cycle = tuple(languages)
        self.languages = tuple(dict.fromkeys(self.cycle))  # of the first cycle if the languages are fresh
        self.task_slots = task_slots
        self.fresh_languages = fresh_languages
        self._language_of_task = np.array([self.languages.index(language) for language in self.cycle])
        # for each task of a cycle, how many task instances of its language precede it in the cycle
        self._visit_of_task = np.array([self.cycle[:k].count(language) for k, language in enumerate(self.cycle)])
        self._visits_per_cycle = np.array([self.cycle.count(language) for language in self.cycle])

    @property
    def tasks_per_cycle(self) -> int:
        return len(self.cycle)

    def language(self, index: int) -> str:
        """The name of a language by its index, as returned by `locate`."""
        cycle, position = divmod(index, len(self.languages))
        return self._language_of(cycle, self.cycle.index(self.languages[position]))

    def task_language(self, task: int) -> str:
        """The language of task instance `task` (from 0)."""
        return self._language_of(*divmod(task, self.tasks_per_cycle))

    def task_of(self, slots: np.ndarray) -> np.ndarray:
        """The task instance (from 0) to which the sequence of each slot belongs: `(n,)`."""
        return np.asarray(slots) // self.task_slots

    @abstractmethod
    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            slots (`np.ndarray` of shape `(n,)`): Slots of the run, from 0.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: For each slot the index of its language, whose name is `language(index)`,
            and its ordinal within that language; both of shape `(n,)`. No two slots of a run share both.
        """

    def sequences_used(self, tasks: int) -> dict[str, int]:
        """For each language, the sequences in the first `tasks` task instances."""
        counts = dict.fromkeys(self.languages, 0)
        for task in range(tasks):
            language = self._language_of(*divmod(task, self.tasks_per_cycle))
            counts[language] = counts.get(language, 0) + self.task_slots
        return counts

    def sequences_needed(self, tasks: int) -> dict[str, int]:
        """For each language, the sequences required for a run of `tasks` task instances."""
        return self.sequences_used(tasks)

    def _language_of(self, cycle: int, position: int) -> str:
        language = self.cycle[position]
        return f"{language}.{cycle + 1}" if self.fresh_languages and cycle else language

    def _of_cycle(self, cycle: np.ndarray, position: np.ndarray, ordinal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Language and ordinal of a sequence, from its ordinal among those of its language in its cycle."""
        language = self._language_of_task[position]
        if self.fresh_languages:
            return language + cycle * len(self.languages), ordinal
        return language, cycle * self._visits_per_cycle[position] * self.task_slots + ordinal

    def _of_task(self, task: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Language and ordinal of sequence number `offset` of task instance `task`."""
        cycle, position = np.divmod(task, self.tasks_per_cycle)
        return self._of_cycle(cycle, position, self._visit_of_task[position] * self.task_slots + offset)


class RotationSchedule(Schedule):
    """One language per task instance, with hard boundaries: the continual run of the study."""

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._of_task(*np.divmod(slots, self.task_slots))


class StationarySchedule(Schedule):
    """
    All task instances of a cycle mixed. The slots iterate over the languages of the cycle, so every batch is as even a
    mixture as possible, and each cycle uses the same data as in a rotation.
    """

    def task_language(self, task: int) -> str:
        return MIXTURE

    def sequences_used(self, tasks: int) -> dict[str, int]:
        cycles, tasks = divmod(tasks, self.tasks_per_cycle)
        counts = dict.fromkeys(self.languages, 0)
        for cycle in range(cycles + (tasks > 0)):
            slots = (self.tasks_per_cycle if cycle < cycles else tasks) * self.task_slots
            turns, extra = divmod(slots, self.tasks_per_cycle)
            for position in range(self.tasks_per_cycle):
                language = self._language_of(cycle, position)
                counts[language] = counts.get(language, 0) + turns + (position < extra)
        return counts

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turn, position = np.divmod(slots, self.tasks_per_cycle)
        cycle, turn = np.divmod(turn, self.task_slots)
        return self._of_cycle(cycle, position, turn * self._visits_per_cycle[position] + self._visit_of_task[position])


class GradualSchedule(Schedule):
    """
    A rotation with blended boundaries: around each boundary, over `blend` of a task instance, the share of the next
    language rises linearly from 0 to 1. Every task instance uses the same data as in a rotation.

    Args:
        blend (`float`): Length of a boundary in task instances, above 0 and at most 1.
        seed (`int`): Chooses the slots of a boundary that change early.
    """

    def __init__(
        self, languages: Sequence[str], task_slots: int, blend: float, seed: int, fresh_languages: bool = False
    ):
        super().__init__(languages, task_slots, fresh_languages)
        if not 0 < blend <= 1:
            raise PlasticityError(f"blend: {blend} is not above 0 and at most 1 task instance")
        self.half = int(blend * task_slots / 2)
        self.seed = seed

    def task_of(self, slots: np.ndarray) -> np.ndarray:
        return self._sequence_of(slots)[0]

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._of_task(*self._sequence_of(slots))

    def sequences_needed(self, tasks: int) -> dict[str, int]:
        """The last boundary of the run uses sequences of the next task instance, in any order."""
        counts = self.sequences_used(tasks)
        if self.half:
            language = self.task_language(tasks)
            counts[language] = counts.get(language, 0) + self.task_slots
        return counts

    def _sequence_of(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Task instance of each slot, and the number of its sequence within that task instance."""
        slots = np.asarray(slots)
        task, offset = np.divmod(slots, self.task_slots)
        number = offset.copy()
        # The boundary after task instance k has the last `half` slots of k and the first `half` of k + 1.
        near_start = (offset < self.half) & (task > 0)
        near_end = offset >= self.task_slots - self.half
        boundary = np.where(near_start, task - 1, np.where(near_end, task, -1))
        for k in np.unique(boundary[boundary >= 0]):
            inside = boundary == k
            position = slots[inside] - ((k + 1) * self.task_slots - self.half)
            coming = self._next_task_slots(int(k))
            rank = np.where(coming, np.cumsum(coming), np.cumsum(~coming)) - 1
            task[inside] = k + coming[position]
            number[inside] = np.where(coming[position], 0, self.task_slots - self.half) + rank[position]
        return task, number

    def _next_task_slots(self, boundary: int) -> np.ndarray:
        """The slots of a boundary that belong to the next task instance: half of them, mostly the later ones."""
        length = 2 * self.half
        noise = np.random.default_rng([self.seed, boundary]).random(length) - 0.5
        order = np.argsort((np.arange(length) + 0.5) / length + noise, kind="stable")
        coming = np.zeros(length, dtype=bool)
        coming[order[self.half :]] = True
        return coming


def make_schedule(
    schedule: str,
    languages: Sequence[str],
    task_slots: int,
    blend: float = 0.5,
    seed: int = 0,
    fresh_languages: bool = False,
) -> Schedule:
    """
    Make a schedule from a name or a list of languages.

    Args:
        schedule (`str`): `"rotation"`, `"stationary"`, `"gradual"`, or the task instances of a cycle separated by
            commas (`"en,zh,en,fr"`), which are trained on in that order.
        languages (`Sequence[str]`): The training languages, in the order of a cycle.
        task_slots (`int`): Sequences in a task instance.
        blend (`float`, *optional*, defaults to 0.5): Length of a boundary of `"gradual"`, in task instances.
        seed (`int`, *optional*, defaults to 0): Seed of the boundaries of `"gradual"`.
        fresh_languages (`bool`, *optional*, defaults to `False`): Whether every cycle has new languages, see
            [`Schedule`].

    Raises:
        [`PlasticityError`]: An unknown name, a duplicate language, or one that is not in `languages`.
    """
    if not languages:
        raise PlasticityError("languages: none given; name at least one")
    if len(set(languages)) < len(languages):
        raise PlasticityError(
            f"languages: '{' '.join(languages)}' has a duplicate; to train on a language twice in a cycle, "
            f"give the order as schedule: {','.join(languages)}"
        )
    if schedule == "rotation":
        return RotationSchedule(languages, task_slots, fresh_languages)
    if schedule == "stationary":
        return StationarySchedule(languages, task_slots, fresh_languages)
    if schedule == "gradual":
        return GradualSchedule(languages, task_slots, blend, seed, fresh_languages)
    order = [language.strip() for language in schedule.split(",")]
    unknown = [language for language in order if language not in languages]
    if unknown:
        raise PlasticityError(
            f"schedule: '{schedule}' is neither one of {', '.join(SCHEDULES)} nor a list of the languages "
            f"{', '.join(languages)}"
        )
    return RotationSchedule(order, task_slots, fresh_languages)
