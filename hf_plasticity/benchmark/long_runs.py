"""Measurements of long runs: how fast they resume, and whether the last cycle is as fast as the first."""

import functools
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..checksums import mark_complete
from ..data.blocks import Blocks, blocks_on_disk
from ..data.schedule import LANGUAGES, make_schedule
from ..data.sources import Source
from ..data.stream import TrainingStream
from ..data.tokenizers import byte_tokenizer
from ..records import TRAINER_STATE_FILE
from ..trainer import ContinualConfig, ContinualTrainer
from .case import Case
from .shared import RandomBlocks, build_model, continual_settings


RESUMED_AT = 0.9  # of the run
CHUNK = bytes(2**24)


class NoDocuments(Source):
    """A source whose blocks are already prepared."""

    def fingerprint(self, language: str) -> str:
        return f"benchmark-{language}"

    def batches(self, language: str, state: dict[str, Any] | None = None) -> Iterator[Any]:
        return iter(())


def sparse_blocks(language: str, num_blocks: int, context_length: int, folder: str | Path) -> Blocks:
    """Prepared blocks of zeros, in files that take no space on disk."""

    def blocks() -> Blocks:
        return Blocks(NoDocuments(), language, "train", byte_tokenizer(), context_length, folder, 0.05, False)

    empty, there = blocks(), 0
    shards: list[dict[str, Any]] = []
    empty.folder.mkdir(parents=True)
    while there < num_blocks:
        count = blocks_on_disk(there + 1, context_length) - there
        size = count * context_length * empty.dtype.itemsize
        with open(empty.folder / f"shard-{len(shards):05d}.bin", "wb") as file:
            file.truncate(size)
        entry = {"blocks": count, "start": None, "bytes_encoded": size // 2, "tokens_encoded": size // 2}
        shards.append(entry | {"checksum": checksum_of_zeros(size)})
        there += count
    index = {"made_from": empty.made_from, "shards": shards, "next": None, "exhausted": True}
    (empty.folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return blocks()


@functools.cache
def checksum_of_zeros(size: int) -> int:
    """The CRC-32 of so many zeros."""
    value = 0
    for start in range(0, size, len(CHUNK)):
        value = zlib.crc32(CHUNK[: size - start], value)
    return value


class Reached(Exception):
    """Raised at the step that ends the measurement."""


class UntilStep(ContinualTrainer):
    """Record when the first step begins, and stop after it."""

    first_step: float | None = None

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        if self.first_step is not None:
            raise Reached
        self.first_step = time.perf_counter()
        return super().training_step(*arguments, **options)


def resume_seconds(case: Case, folder: str) -> dict[str, Any]:
    """
    Seconds from the creation of the stream and the trainer to the first step, for a new run and for a run that resumes
    after nine tenths of the tokens.
    """
    tokens, cycles = case.option("corpus_tokens"), case.option("cycles")
    task_steps = tokens // (cycles * len(LANGUAGES) * case.tokens)
    sequences = cycles * task_steps * case.batch_size
    corpus, run = Path(folder) / "corpus", Path(folder) / "run"
    for language in LANGUAGES:
        sparse_blocks(language, sequences, case.context_length, corpus)

    def first_step() -> float:
        model = build_model(case)
        started = time.perf_counter()
        blocks = {
            language: Blocks(
                NoDocuments(), language, "train", byte_tokenizer(), case.context_length, corpus, 0.05, False
            )
            for language in LANGUAGES
        }
        schedule = make_schedule("rotation", LANGUAGES, task_steps * case.batch_size)
        stream = TrainingStream(blocks, schedule, tasks=cycles * len(LANGUAGES), seed=0)
        trainer = UntilStep(model, arguments(case, run, cycles, task_steps, no_probe=True, save_steps=1), stream)
        try:
            trainer.train(resume_from_checkpoint=True)
        except Reached:
            return trainer.first_step - started
        raise RuntimeError("the run ended before its second step")

    fresh = first_step()
    [made] = run.glob("checkpoint-*")
    steps = cycles * len(LANGUAGES) * task_steps
    step = int(RESUMED_AT * steps)
    checkpoint = made.rename(run / f"checkpoint-{step}")
    state = json.loads((checkpoint / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
    state |= {"global_step": step, "epoch": step / steps}
    (checkpoint / TRAINER_STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    mark_complete(checkpoint)
    return {"fresh": fresh, "resumed": first_step(), "step": step, "tokens": steps * case.tokens}


def arguments(case: Case, folder: Path, cycles: int, task_steps: int, **settings: Any) -> ContinualConfig:
    """The settings of a run in `folder`."""
    common = continual_settings(case, str(folder))
    return ContinualConfig(
        **common | {"save_strategy": "steps", "cycles": cycles, "task_steps": task_steps} | settings
    )


class CycleClock(TrainerCallback):
    """Record the end of each cycle, including its probe. Must be the last callback."""

    def __init__(self, cycle_steps: int):
        self.cycle_steps = cycle_steps
        self.ticks: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.cycle_steps == 0:
            self.ticks.append(time.perf_counter())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ticks.append(time.perf_counter())


def cycle_seconds(case: Case, folder: str) -> list[float]:
    """The seconds of each cycle of a run of two languages, with its checkpoints, logs and probe."""
    cycles, task_steps, probe_steps = (case.option(name) for name in ("cycles", "task_steps", "probe_steps"))
    languages = LANGUAGES[:2]
    count = cycles * task_steps * case.batch_size
    blocks: Any = {name: RandomBlocks(count, case.context_length, case.vocab_size, name) for name in languages}
    stream = TrainingStream(
        blocks, make_schedule("rotation", languages, task_steps * case.batch_size), cycles * len(languages), seed=0
    )
    held_out: Any = RandomBlocks(probe_steps * case.batch_size + 64, case.context_length, case.vocab_size, "held-out")
    settings = {"no_probe": False, "probe_steps": probe_steps, "probe_eval_every": max(1, probe_steps // 4)}
    trainer = ContinualTrainer(
        build_model(case),
        arguments(case, Path(folder), cycles, task_steps, **settings, probe_eval_sequences=16),
        stream,
        probe_blocks=(held_out, held_out),
    )
    clock = CycleClock(task_steps * len(languages))
    trainer.add_callback(clock)
    trainer.train()
    return [later - earlier for earlier, later in zip(clock.ticks, clock.ticks[1:])]
