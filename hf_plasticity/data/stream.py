"""The training stream: the sequences of a whole run as one map-style dataset."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import PlasticityError
from .blocks import Blocks
from .schedule import Schedule
from .sources.base import shuffled_range
from .tokenizers import vocabulary_of


class TrainingStream(Dataset):
    """
    Every sequence of a run, in the order of training: item `slot` is the sequence of that slot of the schedule.

    The sequences of a language are divided into windows of the length of a task instance, and the order within each
    window is shuffled by `(seed, language, window)`. Neighboring blocks of a document are therefore rarely in one
    batch, and the text of a task instance is the same for every seed. The stream does not depend on the number of
    processes, on earlier reads, or on the length of the run.

    Args:
        blocks (`Mapping[str, Blocks]`): The training blocks of each language of the run.
        schedule ([`Schedule`]): Maps slots to languages.
        tasks (`int`): Length of the run in task instances.
        seed (`int`): The seed of the order within a task instance, and of the permutations of `permute_tokens`.
        allow_repeats (`bool`, *optional*, defaults to `False`): Whether text may be used again if a language has too
        little.
        streaming (`bool`, *optional*, defaults to `False`): Whether blocks are prepared when they are required and
            deleted one task instance later, instead of preparing all blocks at the start.
        permute_tokens (`bool`, *optional*, defaults to `False`): Whether each task instance has its own random
            permutation of the vocabulary, which depends on `(seed, task instance)`. Special tokens, including the
            end-of-text token, are not permuted.

    Raises:
        [`PlasticityError`]: A language has fewer tokens than the run requires (with `streaming`: raised when the
            text ends), or the vocabulary cannot be permuted.
    """

    def __init__(
        self,
        blocks: Mapping[str, Blocks],
        schedule: Schedule,
        tasks: int,
        seed: int,
        allow_repeats: bool = False,
        streaming: bool = False,
        permute_tokens: bool = False,
    ):
        self.blocks = blocks
        self.schedule, self.tasks, self.seed = schedule, tasks, seed
        self.allow_repeats, self.streaming, self.permute_tokens = allow_repeats, streaming, permute_tokens
        first = blocks[schedule.languages[0]]
        self.context_length = first.context_length
        self._order = lru_cache(maxsize=2 * len(schedule.languages))(self._order_of_window)
        if permute_tokens:
            self._tokens = vocabulary_of(first.tokenizer)
            self._permutation = lru_cache(maxsize=4)(self._permutation_of_task)
        if not streaming:
            self._prepare()

    def _prepare(self) -> None:
        for language, needed in self.schedule.sequences_needed(self.tasks).items():
            blocks = self.blocks[language].prepare(needed)
            self._check_not_empty(blocks)
            have, need = blocks.num_tokens, needed * self.context_length
            if have < need and not self.allow_repeats:
                raise PlasticityError(
                    f"languages: '{language}' has {have:,} training tokens and the run requires {need:,}; "
                    "give it more text, shorten the run (cycles, task_steps), or set allow_repeats"
                )

    def _check_not_empty(self, blocks: Blocks) -> None:
        if len(blocks) == 0:
            raise PlasticityError(
                f"languages: '{blocks.language}' has no complete block of {self.context_length} training tokens"
            )

    def __len__(self) -> int:
        return self.tasks * self.schedule.task_slots

    def epochs(self, slot: int) -> dict[str, float]:
        """
        For each language that repeats, the number of passes over its text before the task instance of `slot`; empty
        while all tokens are fresh.
        """
        passes = {}
        for language, used in self.schedule.sequences_used(slot // self.schedule.task_slots).items():
            blocks = self.blocks[language]
            if used > len(blocks) and not blocks.exhausted:
                blocks.refresh()
            if blocks.exhausted and used > len(blocks):
                passes[language] = round(used / len(blocks), 3)
        return passes

    def locate(self, slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """For each slot the index of its language, as in [`Schedule.locate`], and the number of its block."""
        languages, ordinals = self.schedule.locate(np.asarray(slots, dtype=np.int64))
        numbers = np.empty_like(ordinals)
        length = self.schedule.task_slots
        for language in np.unique(languages):
            chosen = languages == language
            blocks = self.blocks[self.schedule.language(int(language))]
            windows, places = np.divmod(ordinals[chosen], length)
            shuffled = [self._order(int(language), int(window))[place] for window, place in zip(windows, places)]
            wanted = windows * length + np.array(shuffled)
            if self.allow_repeats:
                self._check_not_empty(blocks.prepare(int(wanted.max()) + 1))
                if blocks.exhausted:
                    wanted %= len(blocks)
            numbers[chosen] = wanted
            if self.streaming:
                self._release(int(language), blocks, int(windows.min()), int(windows.max()))
        return languages, numbers

    def _release(self, language: int, blocks: Blocks, first_window: int, last_window: int) -> None:
        """Delete the blocks of a language that are not used from the window before `first_window` to `last_window`."""
        length, count = self.schedule.task_slots, len(blocks)
        start, stop = max(first_window - 1, 0) * length, (last_window + 1) * length
        # The blocks to keep. If the text repeats, the interval wraps around.
        passes = start // count if blocks.exhausted else 0
        start, stop = start - passes * count, stop - passes * count
        blocks.release(max(stop - count, 0) if blocks.exhausted else 0, start)
        if passes:
            blocks.release(stop, count)
        before = language - 2 * len(self.schedule.languages)
        if self.schedule.fresh_languages and before >= 0:
            finished = self.blocks[self.schedule.language(before)]
            finished.release(0, len(finished))

    def delete(self) -> None:
        """Delete the blocks that `streaming` has kept, at the end of the run. They can be prepared again."""
        for language in self.schedule.sequences_needed(self.tasks):
            blocks = self.blocks[language]
            blocks.refresh()
            blocks.release(0, len(blocks))

    def __getitems__(self, slots: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `labels`, the same tensor of shape `(len(slots), context_length)`."""
        languages, numbers = self.locate(slots)
        batch = np.empty((len(slots), self.context_length), dtype=np.int64)
        for language in np.unique(languages):
            chosen = languages == language
            batch[chosen] = self.blocks[self.schedule.language(int(language))][numbers[chosen]]
        if self.permute_tokens:
            tasks = self.schedule.task_of(np.asarray(slots, dtype=np.int64))
            for task in np.unique(tasks):
                batch[tasks == task] = self._permutation(int(task))[batch[tasks == task]]
        input_ids = torch.from_numpy(batch)
        return {"input_ids": input_ids, "labels": input_ids}

    def __getitem__(self, slot: int) -> dict[str, torch.Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([slot]).items()}

    def _order_of_window(self, language: int, window: int) -> np.ndarray:
        name = self.schedule.language(language).encode()
        return np.random.default_rng([self.seed, window, *name]).permutation(self.schedule.task_slots).astype(np.int32)

    def _permutation_of_task(self, task: int) -> np.ndarray:
        """The id that replaces each token id in a task instance: `(highest id + 1,)`."""
        table, text_ids = np.arange(self._tokens.size), self._tokens.text_ids
        table[text_ids] = text_ids[shuffled_range(len(text_ids), self.seed, task, *b"permute_tokens")]
        return table


def collate_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stream returns whole batches, so there is nothing to collate."""
    return batch
