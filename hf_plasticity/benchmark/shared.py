"""What the contenders share: models, random tokens and settings."""

from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel, set_seed

from ..data.schedule import make_schedule
from ..data.stream import TrainingStream
from ..models import gpt2_config
from ..network.head_loss import use_head_loss
from .case import Case


LEARNING_RATE, WEIGHT_DECAY, BETAS, MAX_NORM = 1e-3, 0.1, (0.9, 0.95), 1.0
LANGUAGE = "a"


class RandomBlocks:
    """Blocks of random tokens in memory. Nothing is read from disk, so that only the training is timed."""

    exhausted = False
    stored = 512

    def __init__(self, count: int, context_length: int, vocab_size: int, language: str = LANGUAGE):
        self.language, self.count, self.context_length = language, count, context_length
        self.fingerprint = f"random-{language}-{count}-{context_length}-{vocab_size}"
        rows = min(count, self.stored)
        self.tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, context_length), dtype=np.uint32)

    def __len__(self) -> int:
        return self.count

    @property
    def num_tokens(self) -> int:
        return self.count * self.context_length

    def prepare(self, num_blocks: int) -> "RandomBlocks":
        return self

    def bytes_per_token(self, num_blocks: int) -> float:
        return 1.0

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        numbers = np.asarray(numbers)
        if numbers.max() >= self.count:
            raise IndexError(f"there are {self.count} blocks")
        return self.tokens[numbers % len(self.tokens)].astype(np.int64)


def build_model(case: Case) -> GPT2LMHeadModel:
    """The model of a case, fresh, on its device."""
    set_seed(0)
    with torch.device(case.device):
        model = GPT2LMHeadModel(gpt2_config(case.size, case.vocab_size, case.context_length))
    use_head_loss(model, case.head_loss)
    return model.train()


def build_stream(case: Case) -> TrainingStream:
    """The sequences of `case.steps` steps."""
    count = case.steps * case.batch_size
    blocks: Any = RandomBlocks(count, case.context_length, case.vocab_size)
    return TrainingStream({LANGUAGE: blocks}, make_schedule("rotation", [LANGUAGE], count), tasks=1, seed=0)


def common_arguments(case: Case, folder: str) -> dict[str, Any]:
    """The settings that both trainers share."""
    return {
        "output_dir": folder,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "adam_beta2": BETAS[1],
        "bf16": case.bf16,
        "use_cpu": case.device == "cpu",
        "torch_compile": case.compiled,
        "torch_compile_backend": case.backend if case.compiled else None,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        "save_strategy": "no",
    }


def continual_settings(case: Case, folder: str) -> dict[str, Any]:
    """The settings of a run of one task instance without a probe."""
    return common_arguments(case, folder) | {
        "cycles": 1,
        "task_steps": case.steps,
        "no_probe": True,
        "warmup_steps": 0,
        "global_batch_tokens": case.tokens,
        "head_loss": case.head_loss,
    }
