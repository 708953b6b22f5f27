import json
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import TrainerCallback

from hf_plasticity import PlasticityError
from hf_plasticity.diagnostics import MEASURES, DiagnosticsCallback, DiagnosticsConfig, diagnose
from hf_plasticity.records import read_records
from support.diagnosed_training import BLOCKS, outcome, same, train
from support.launch import ROOT, SUPPORT
from support.own_script import EVALUATION, own_training
from support.tiny import random_blocks, tiny_model
from support.trainers import assert_same, final_state


UNITS = DiagnosticsConfig(measures=["dormant_units", "distance_from_initialization"])


def records(folder) -> list[dict]:
    """The records of a run without what differs from one machine to another."""
    return [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in read_records(folder / "diagnostics.jsonl")
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}],
    ids=["plain", "bf16", "compiled"],
)
def test_training_is_bit_identical_with_every_measure(tmp_path, settings):
    plain = outcome(train(tmp_path / "plain", diagnosed=False, **settings))
    diagnosed = train(tmp_path / "diagnosed", diagnosed=True, **settings)
    assert len(plain["log"]) == 6
    assert same(plain, outcome(diagnosed))
    assert [record["step"] for record in records(tmp_path / "diagnosed")] == [0, 2, 4, 6]


def test_scalars_are_logged_and_details_recorded(tmp_path):
    trainer = train(tmp_path, diagnosed=True)
    logged = [entry for entry in trainer.state.log_history if "diagnostics/dormant_units" in entry]
    written = records(tmp_path)
    assert [entry["step"] for entry in logged] == [0, 2, 4, 6]
    for entry, record in zip(logged, written):
        assert set(record["measures"]) == set(MEASURES)
        for name, measure in record["measures"].items():
            assert entry[f"diagnostics/{name}"] == pytest.approx(measure["overall"], rel=1e-6)
    distances = [record["measures"]["distance_from_initialization"]["overall"] for record in written]
    assert distances[0] == 0 and distances[1:] == sorted(distances[1:]) and distances[1] > 0
    # Each line is small enough to keep one for every cycle.
    assert all(len(json.dumps(record)) < 20_000 for record in written)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every": 4}, [0, 4, 6]),
        ({"every": 6}, [0, 6]),
        ({"every": 100}, [0, 6]),
        ({"every": 4, "diagnose_at_end": False}, [0, 4]),
        ({"every": 0.5}, [0, 3, 6]),
        ({"every": 1, "unit": "tasks", "task_steps": 5}, [0, 5, 6]),
    ],
)
def test_it_runs_at_step_zero_when_due_and_at_the_end(tmp_path, settings, expected):
    train(tmp_path, diagnosed=True, config=UNITS, callback=settings)
    assert [record["step"] for record in records(tmp_path)] == expected


def test_position_counts_what_is_completed(tmp_path):
    position = {"task_steps": 2, "tasks_per_cycle": 2, "tokens_per_step": 64, "every": 2}
    train(tmp_path, diagnosed=True, config=UNITS, callback=position)
    assert [(r["cycle"], r["task"], r["step"], r["tokens"]) for r in records(tmp_path)] == [
        (0, 0, 0, 0),
        (0, 1, 2, 128),
        (1, 2, 4, 256),
        (1, 3, 6, 384),
    ]


def test_without_positions_records_have_none_and_values_are_logged(tmp_path):
    trainer = train(tmp_path, diagnosed=True, config=UNITS)
    logged = [entry for entry in trainer.state.log_history if "diagnostics/dormant_units" in entry]
    assert {(r["cycle"], r["task"], r["tokens"]) for r in records(tmp_path)} == {(None, None, None)}
    assert len(records(tmp_path)) == len(logged) == 4


def test_a_new_training_in_a_used_folder_is_refused(tmp_path):
    train(tmp_path, diagnosed=True, config=UNITS)
    before = records(tmp_path)
    with pytest.raises(PlasticityError, match=r"^output_dir: '.*' has diagnostics.jsonl of another training; resume"):
        train(tmp_path, diagnosed=True, config=UNITS)
    assert records(tmp_path) == before


def test_a_resumed_run_has_the_same_records_without_duplicates(tmp_path):
    class Crash(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    whole = outcome(train(tmp_path / "whole", diagnosed=True, save_strategy="steps", save_steps=2))
    with (
        mock.patch("support.diagnosed_training.Randomness.on_step_begin", Crash.on_step_begin),
        pytest.raises(KeyboardInterrupt),
    ):
        train(tmp_path / "resumed", diagnosed=True, save_strategy="steps", save_steps=2)
    resumed = train(
        tmp_path / "resumed",
        diagnosed=True,
        save_strategy="steps",
        save_steps=2,
        resume=str(tmp_path / "resumed" / "checkpoint-4"),
    )
    assert records(tmp_path / "resumed") == records(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole["weights"], outcome(resumed)["weights"]))
    (tmp_path / "resumed" / "initial_weights.safetensors").unlink()
    with pytest.raises(PlasticityError, match=r"diagnose: .* resumes at step 4"):
        train(tmp_path / "resumed", diagnosed=True, resume=str(tmp_path / "resumed" / "checkpoint-4"))


def test_initial_weights_are_saved_only_if_requested(tmp_path):
    train(tmp_path, diagnosed=True, config=None, callback={"every": 6, "track_initialization": False})
    assert not (tmp_path / "initial_weights.safetensors").exists()
    assert "distance_from_initialization" not in records(tmp_path)[-1]["measures"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every: 0 is not a whole number of steps"),
        ({"task_steps": -1}, "task_steps: -1 is not a positive number"),
        ({"tasks_per_cycle": 8}, "tasks_per_cycle: 8 without task_steps"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(PlasticityError, match=message):
        DiagnosticsCallback(BLOCKS, **settings)


def test_adapters_of_peft_are_part_of_the_model_and_training_does_not_change(tmp_path):
    def trained(folder, *callbacks):
        model = get_peft_model(
            tiny_model("llama"), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
        )
        return own_training(tmp_path / folder, *callbacks, model=model)

    diagnosed = trained("with", DiagnosticsCallback(EVALUATION, every=9))
    assert_same(final_state(diagnosed), final_state(trained("without")))
    first, last = records(tmp_path / "with")
    moved = [record["measures"]["distance_from_initialization"]["overall"] for record in (first, last)]
    assert moved[0] == 0 and moved[1] > 0
    assert "adapter" in last["not_measured"]["dormant_units"] and "attention_entropy" in last["measures"]


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["q_proj", "embed_tokens"]}, {"trainable_token_indices": {"embed_tokens": [1, 2]}}],
)
def test_a_model_with_adapters_of_the_embedding_is_diagnosed(settings):
    model = get_peft_model(tiny_model("llama"), LoraConfig(task_type="CAUSAL_LM", r=2, **settings))
    diagnosis = diagnose(model, random_blocks(4))
    assert diagnosis["dormant_units"].overall is not None
    assert diagnosis.not_measured["embedding_norm"] == "its token embedding has adapters"


def test_virtual_tokens_of_peft_are_refused_before_training(tmp_path):
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(PlasticityError, match="its PROMPT_TUNING adapter adds virtual tokens"):
        own_training(tmp_path, DiagnosticsCallback(EVALUATION), model=model)
    assert not (tmp_path / "diagnostics.jsonl").exists()


@pytest.mark.parametrize(
    "convert", [np.ndarray.tolist, lambda blocks: Dataset.from_dict({"input_ids": blocks.tolist()})]
)
def test_lists_and_datasets_are_the_same_text(tmp_path, convert):
    for folder, blocks in (("array", EVALUATION), ("other", convert(EVALUATION))):
        own_training(tmp_path / folder, DiagnosticsCallback(blocks, UNITS, every=9))
    assert records(tmp_path / "array") == records(tmp_path / "other")
    with pytest.raises(PlasticityError, match="blocks: 'list' does not hold token sequences of one length"):
        DiagnosticsCallback([[1, 2], [1]])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("script", ["diagnosed_training.py", "diagnosed_training.py fsdp", "diagnosed_fsdp.py"])
def test_two_processes(script, tmp_path):
    """The Trainer under DDP and FSDP2: identical training, agreeing ranks. FSDP2: the numbers of the whole model."""
    name, *arguments = script.split()
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
    ]
    done = subprocess.run(
        [sys.executable, *launch, str(SUPPORT / name), str(tmp_path), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    if name == "diagnosed_training.py":
        assert [record["step"] for record in records(tmp_path / "diagnosed")] == [0, 2, 4, 6]
