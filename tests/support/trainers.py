"""A tiny `ContinualTrainer`, its final state, and a way to interrupt it."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hf_plasticity.data.blocks import Blocks
from hf_plasticity.data.schedule import make_schedule
from hf_plasticity.data.stream import TrainingStream
from hf_plasticity.data.tokenizers import byte_tokenizer
from hf_plasticity.trainer import ContinualConfig, ContinualTrainer
from support.runs import UNREPEATABLE
from support.tiny import ListedSource


LANGUAGES = ("a", "b", "c")
TASK_STEPS = 4
BATCH = 6
CONTEXT_LENGTH = 16


def make_trainer(folder, cache, model=None, dropout=0.1, batch=BATCH, **settings):
    """Two cycles of three languages; 24 steps of 6 sequences."""
    settings = {
        "output_dir": str(folder),
        "cycles": 2,
        "task_steps": TASK_STEPS,
        "global_batch_tokens": batch * CONTEXT_LENGTH,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "logging_steps": 1,
        "probe_steps": 3,
        "probe_eval_sequences": 5,
        "disable_tqdm": True,
        "seed": 7,
    } | settings
    args = ContinualConfig(**settings)
    source, tokenizer = ListedSource(800), byte_tokenizer()

    def blocks(language, split):
        return Blocks(source, language, split, tokenizer, CONTEXT_LENGTH, cache, 0.3, show_progress=False)

    schedule = make_schedule(args.schedule, LANGUAGES, task_slots=args.task_steps * batch)
    tasks = schedule.tasks_per_cycle * args.cycles
    stream = TrainingStream(
        {language: blocks(language, "train") for language in LANGUAGES}, schedule, tasks, seed=args.seed
    )
    if model is None:
        set_seed(args.seed)
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT_LENGTH, "vocab_size": 257}
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=256, eos_token_id=256, **shape, **rates))
    return ContinualTrainer(
        model,
        args,
        stream,
        probe_blocks=(blocks("p", "train"), blocks("p", "validation")),
        eval_blocks={language: blocks(language, "validation") for language in LANGUAGES},
        processing_class=tokenizer,
    )


def final_state(trainer):
    """Weights, optimizer, scheduler, random states and log at the end of a run."""
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": {name: value.detach().clone() for name, value in trainer.model.named_parameters()},
        "optimizer": {n: dict(s) for n, s in enumerate(trainer.optimizer.state_dict()["state"].values())},
        "scheduler": trainer.lr_scheduler.last_epoch,
        "rng": torch.get_rng_state(),
        "log": [{name: value for name, value in entry.items() if name not in UNREPEATABLE} for entry in log],
    }


def assert_same(one, other):
    assert one.pop("log") == other.pop("log")
    torch.testing.assert_close(one, other, rtol=0, atol=0)


class StopAt(Exception):
    pass


def stop_at(trainer, step):
    """Stop a run after `step` steps without further writes, like a kill."""
    training_step = trainer.training_step

    def dying(*arguments, **options):
        if trainer.state.global_step == step:
            raise StopAt
        return training_step(*arguments, **options)

    trainer.training_step = dying
