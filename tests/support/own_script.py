"""A training script of a user: a stock Trainer on a tiny model, with callbacks of this package."""

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_plasticity.probing import PlasticityProbeCallback, ProbeConfig
from support.tiny import random_blocks, tiny_model


TRAIN, EVALUATION = random_blocks(40, seed=1), random_blocks(8, seed=2)
ROWS = [{"input_ids": row, "labels": row} for row in torch.from_numpy(random_blocks(32, seed=3))]


def short_probe(**changes):
    settings = {"steps": 4, "eval_every": 2, "eval_sequences": 6, "batch_size": 8, "learning_rate": 1e-2}
    return ProbeConfig(**(settings | changes))


def probes(train=TRAIN, evaluation=EVALUATION, config=None, **settings):
    """The probe of the user, every three of nine steps."""
    return PlasticityProbeCallback(train, evaluation, config or short_probe(), **({"every": 3} | settings))


def own_trainer(folder, *callbacks, model=None, rows=ROWS, trainer_class=Trainer, **settings):
    """Nine steps of four sequences, log entries at each."""
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 9,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "use_cpu": True,
        }
        | settings
    )
    model = tiny_model("llama") if model is None else model
    return trainer_class(model, args, train_dataset=rows, eval_dataset=ROWS[:8], callbacks=list(callbacks))


def own_training(*arguments, **settings):
    """The same, trained."""
    trainer = own_trainer(*arguments, **settings)
    trainer.train()
    return trainer


class Killed(Exception):
    """Ends a training without further writes, like a kill."""


class KillAt(TrainerCallback):
    """Ends the training after a number of steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed
