"""
The contenders: training loops, a probe, a diagnosis, all on the same models, data and optimizer. Each trains
`case.steps` steps and calls `watch.step()` after each, or makes its call once inside each `watch.call()`.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..allocation import keep_freed_memory
from ..data.stream import collate_batch
from ..diagnostics import diagnose
from ..probing import ProbeConfig, run_probe
from ..probing.evaluation import validation_loss
from ..trainer import ContinualConfig, ContinualTrainer
from .case import Case
from .long_runs import cycle_seconds, resume_seconds
from .shared import (
    BETAS,
    LEARNING_RATE,
    MAX_NORM,
    WEIGHT_DECAY,
    RandomBlocks,
    build_model,
    build_stream,
    common_arguments,
    continual_settings,
)


if TYPE_CHECKING:
    from .worker import Watch


def build_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and embeddings, as in the Trainer."""
    decaying = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)


def autocast(case: Case) -> torch.autocast:
    """The mixed precision of the case."""
    return torch.autocast(case.device, torch.bfloat16, enabled=case.bf16)


def bare_loop(case: Case, watch: "Watch") -> None:
    """A minimal training loop, with which the others are compared."""
    model, stream = build_model(case), build_stream(case)
    optimizer = build_optimizer(model)
    for step in range(case.steps):
        ids = stream.__getitems__(range(step * case.batch_size, (step + 1) * case.batch_size))["input_ids"]
        training_step(model, ids.to(case.device, non_blocking=True), case, optimizer, model)
        watch.step()


def training_step(
    forward: Callable[..., Any], ids: torch.Tensor, case: Case, optimizer: torch.optim.Optimizer, model: nn.Module
) -> None:
    """Forward, backward, clipping, AdamW."""
    with autocast(case):
        loss = forward(input_ids=ids, labels=ids).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def compiled_loop(case: Case, watch: "Watch") -> None:
    """Train as nanoGPT does: compiled, and with the next batch fetched from pinned memory during the step."""
    model, stream = build_model(case), build_stream(case)
    optimizer = build_optimizer(model)
    forward = torch.compile(model, backend=case.backend)

    def fetch(step: int) -> torch.Tensor:
        first = step % case.steps * case.batch_size
        ids = stream.__getitems__(range(first, first + case.batch_size))["input_ids"]
        return ids.pin_memory().to(case.device, non_blocking=True) if case.device == "cuda" else ids

    ids = fetch(0)
    for step in range(case.steps):
        with autocast(case):
            loss = forward(input_ids=ids, labels=ids).loss
        ids = fetch(step + 1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.step()


class Ticking(TrainerCallback):
    """Report every optimizer step of a Trainer to the watch, after all other callbacks."""

    def __init__(self, watch: "Watch"):
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.step()


def stock_trainer(case: Case, watch: "Watch") -> None:
    """The Trainer of Transformers on the same stream."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            **common_arguments(case, folder), per_device_train_batch_size=case.batch_size, max_steps=case.steps,
            remove_unused_columns=False, train_sampling_strategy="sequential", lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = Trainer(build_model(case), args, train_dataset=build_stream(case), data_collator=collate_batch)
        trainer.add_callback(Ticking(watch))
        trainer.train()


def continual_trainer(case: Case, watch: "Watch") -> None:
    """[`ContinualTrainer`] without probes, with the memory setting of a run."""
    if case.device == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        args = ContinualConfig(**continual_settings(case, folder))
        trainer = ContinualTrainer(build_model(case), args, build_stream(case))
        trainer.add_callback(Ticking(watch))
        trainer.train()


def first_batches(case: Case, count: int) -> np.ndarray:
    """`count` blocks of random tokens."""
    return RandomBlocks(count, case.context_length, case.vocab_size)[np.arange(count)]


def probe(case: Case, watch: "Watch") -> None:
    """[`run_probe`] as a whole: the copy of the model, its training, evaluations, and the restoration."""
    model = build_model(case)
    forward = torch.compile(model, backend=case.backend) if case.compiled else model
    config = ProbeConfig(
        steps=case.option("steps"),
        eval_every=case.option("eval_every"),
        eval_sequences=case.option("eval_sequences"),
        batch_size=case.batch_size,
        warmup_steps=0,
    )
    blocks = first_batches(case, config.steps * case.batch_size)
    for _ in range(1 + case.windows):
        with watch.call(), autocast(case):
            run_probe(forward, blocks, blocks, config, micro_batch_size=case.batch_size, show_progress=False)


def plain_steps(case: Case, watch: "Watch") -> None:
    """The steps and evaluations of a probe in a bare loop."""
    model = build_model(case)
    forward = torch.compile(model, backend=case.backend) if case.compiled else model
    steps, sequences = case.option("steps"), case.option("eval_sequences")
    evaluations = {*range(0, steps, case.option("eval_every")), steps}
    blocks = first_batches(case, steps * case.batch_size)
    optimizer = build_optimizer(model)
    for _ in range(1 + case.windows):
        with watch.call():
            for step in range(steps + 1):
                if step in evaluations:
                    with autocast(case):
                        validation_loss(forward, blocks, sequences, case.batch_size)
                    model.train()
                if step < steps:
                    ids = torch.as_tensor(blocks[step * case.batch_size : (step + 1) * case.batch_size])
                    training_step(forward, ids.to(case.device, non_blocking=True), case, optimizer, model)


def diagnosis(case: Case, watch: "Watch") -> None:
    """[`diagnose`] with the default measures of a run."""
    model = build_model(case)
    blocks = torch.as_tensor(first_batches(case, case.option("sequences")))
    for _ in range(1 + case.windows):
        with watch.call(), autocast(case):
            diagnose(model, blocks)


def resume(case: Case, watch: "Watch") -> None:
    """From a checkpoint late in a run over ten billion prepared tokens to the first training step."""
    with tempfile.TemporaryDirectory() as folder:
        watch.results |= resume_seconds(case, folder)


def cycles(case: Case, watch: "Watch") -> None:
    """The seconds of each cycle of a run with probes and checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        watch.results |= {"cycles": cycle_seconds(case, folder)}


CONTENDERS: dict[str, Callable[[Case, "Watch"], None]] = {
    "bare loop": bare_loop,
    "compiled loop": compiled_loop,
    "Trainer": stock_trainer,
    "ContinualTrainer": continual_trainer,
    "probe": probe,
    "plain steps": plain_steps,
    "diagnosis": diagnosis,
    "resume": resume,
    "cycles": cycles,
}


@contextlib.contextmanager
def timed(device: str) -> Iterator[list[float]]:
    """A list that receives the duration of the block in seconds."""
    seconds: list[float] = []
    synchronize(device)
    started = time.perf_counter()
    yield seconds
    synchronize(device)
    seconds.append(time.perf_counter() - started)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
