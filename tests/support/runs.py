"""Finished runs and how to compare them."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_plasticity.records import read_run


UNREPEATABLE = ("seconds", "tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")


def recorded(folder):
    """Every record of a run without times."""
    run = read_run(folder)
    kinds = (run.probes, run.forgetting, run.training_log, run.diagnostics, run.mitigations)
    return [
        [{name: value for name, value in record.items() if name not in UNREPEATABLE} for record in records]
        for records in kinds
    ]


def weights(folder):
    return {path.parent.name: load_file(path) for path in sorted(Path(folder).glob("cycle-*/model.safetensors"))}


def assert_same_run(one, other):
    assert recorded(one) == recorded(other)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)
