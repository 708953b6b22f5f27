"""With `load_best_model_at_end`, the last records are those of the last step, not of the best model."""

import pytest
import torch
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

from hf_plasticity.diagnostics import DiagnosticsCallback
from hf_plasticity.probing import PlasticityProbeCallback, ProbeConfig
from hf_plasticity.records import read_run
from support.tiny import random_blocks, tiny_model


STEPS = 12


def train(folder, **settings):
    """Train on text that the evaluation contradicts: the best model is not the last one."""
    train_set = TensorDataset(torch.from_numpy(random_blocks(40, seed=3)))
    eval_set = TensorDataset(torch.from_numpy(random_blocks(8, seed=4).copy()[:, ::-1].copy()))

    def collate(rows):
        batch = torch.stack([row for (row,) in rows])
        return {"input_ids": batch, "labels": batch}

    args = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=3e-2, report_to="none",
        disable_tqdm=True, remove_unused_columns=False, use_cpu=True, eval_strategy="steps", eval_steps=3,
        save_steps=3, **settings,
    )  # fmt: skip
    trainer = Trainer(
        tiny_model(dropout=0.0), args, train_dataset=train_set, eval_dataset=eval_set, data_collator=collate
    )
    config = ProbeConfig(steps=2, eval_every=1, eval_sequences=6, batch_size=4, learning_rate=1e-3)
    trainer.add_callback(PlasticityProbeCallback(random_blocks(20, seed=1), random_blocks(6, seed=2), config, every=3))
    trainer.add_callback(DiagnosticsCallback(random_blocks(6, seed=2), every=3))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    return folder, train(folder, load_best_model_at_end=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train(folder)
    return read_run(folder)


def number_of_best(best):
    """Which of the records is that of the model that the Trainer loads at the end."""
    step = int(best[1].state.best_model_checkpoint.rsplit("-", 1)[1])
    assert step < STEPS
    return step // 3


def test_the_last_probe_is_of_the_last_step(best, plain):
    probes = read_run(best[0]).probes
    assert [probe["step"] for probe in probes] == [0, 3, 6, 9, 12]
    assert [probe["start_loss"] for probe in probes] == [probe["start_loss"] for probe in plain.probes]
    assert probes[-1]["start_loss"] != probes[number_of_best(best)]["start_loss"]


def test_the_last_diagnosis_is_of_the_last_step(best, plain):
    diagnoses = read_run(best[0]).diagnostics
    assert [diagnosis["step"] for diagnosis in diagnoses] == [0, 3, 6, 9, 12]
    measured = [diagnosis["measures"]["parameter_magnitude"]["overall"] for diagnosis in diagnoses]
    assert measured == [diagnosis["measures"]["parameter_magnitude"]["overall"] for diagnosis in plain.diagnostics]
    assert measured[-1] != measured[number_of_best(best)]
