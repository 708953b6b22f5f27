"""The continual trainer in one process: its results, invisible probes, and exact resumes."""

import copy
import dataclasses
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from hf_plasticity import PlasticityError
from hf_plasticity.errors import TrainingInterrupted
from hf_plasticity.probing import PlasticityProbeCallback, ProbeConfig
from hf_plasticity.records import DIAGNOSTICS_FILE, FORGETTING_FILE, PROBES_FILE, read_records, read_run
from hf_plasticity.trainer import ContinualConfig, ContinualTrainer, TrainingDivergedError
from support.tiny import CONTEXT, random_blocks, tiny_model
from support.trainers import BATCH, TASK_STEPS, StopAt, assert_same, final_state, make_trainer, stop_at


PROBE_FIELDS = (
    "cycle",
    "task",
    "step",
    "tokens",
    "language",
    "adaptation",
    "probe_steps",
    "losses",
    "auc",
    "mean_loss",
    "start_loss",
    "final_loss",
    "bits_per_byte",
    "delta_auc",
    "seed",
    "probe_config_hash",
    "seconds",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


def run(folder, cache, **settings):
    trainer = make_trainer(folder, cache, **settings)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def probed(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("probed")
    return run(folder, cache, evaluate_forgetting=True, diagnose=True, diagnostics_sequences=4)


@pytest.mark.parametrize("settings", [{"no_probe": True}, {"probe_adaptation": "lora"}, {"probe_repeats": 2}])
def test_probes_are_invisible_to_the_run(tmp_path, cache, probed, settings):
    assert_same(final_state(run(tmp_path, cache, **settings)), final_state(probed))


def test_probes_are_invisible_to_a_run_in_bfloat16(tmp_path, cache):
    runs = [run(tmp_path / str(off), cache, bf16=True, use_cpu=True, no_probe=off) for off in (False, True)]
    assert_same(final_state(runs[0]), final_state(runs[1]))


def test_the_precision_that_accelerate_sets_is_recorded_in_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert ContinualConfig(output_dir=str(tmp_path), use_cpu=True).bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(PlasticityError, match="mixed_precision: 'fp8' is not supported; use bf16 or no"):
        ContinualConfig(output_dir=str(tmp_path), use_cpu=True)


def test_a_run_is_identical_to_a_bare_loop_with_a_new_optimizer_for_each_task(tmp_path, cache):
    # A large epsilon, because Adam amplifies rounding where a gradient is zero by design (the bias of the keys).
    trainer = make_trainer(tmp_path, cache, dropout=0.0, lr_scheduler_type="cosine", adam_epsilon=1e-3, no_probe=True)
    model = GPT2LMHeadModel(trainer.model.config)
    model.load_state_dict(trainer.model.state_dict())
    trainer.train()
    losses = []
    for step in range(24):
        if step % TASK_STEPS == 0:
            groups = [
                {"params": [p for n, p in model.named_parameters() if p.ndim == 2], "weight_decay": 0.1},
                {"params": [p for n, p in model.named_parameters() if p.ndim == 1], "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-3)
        place = step % TASK_STEPS
        shape = [0.5, 1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 2))][place]
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * shape
        ids = trainer.train_dataset.__getitems__(range(step * BATCH, (step + 1) * BATCH))["input_ids"]
        logits = model(input_ids=ids).logits[:, :-1].reshape(-1, 257)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(trainer.model.state_dict(), model.state_dict(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "logged", "cycle_steps"),
    [("stationary", ["mixture"], 12), ("gradual", ["a", "b", "c"], 12), ("c,a", ["c", "a"], 8)],
)
def test_every_schedule_is_probed_after_its_cycles(tmp_path, cache, schedule, logged, cycle_steps):
    trainer = run(tmp_path, cache, schedule=schedule)
    assert [probe["step"] for probe in read_run(tmp_path).probes] == [0, cycle_steps, 2 * cycle_steps]
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert list(dict.fromkeys(entry["language"] for entry in log)) == logged


def test_without_reset_the_optimizer_state_is_kept(tmp_path, cache, probed):
    trainer = run(tmp_path, cache, reset_optimizer=False, no_probe=True)
    steps = {float(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {24.0}
    assert {float(state["step"]) for state in probed.optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_accumulation_changes_only_memory(tmp_path, cache, micro_batch_size):
    settings = {"dropout": 0.0, "no_probe": True, "adam_epsilon": 1e-3}
    whole = run(tmp_path / "whole", cache, **settings)
    cut = run(tmp_path / "cut", cache, per_device_train_batch_size=micro_batch_size, **settings)
    assert cut.args.gradient_accumulation_steps == BATCH // micro_batch_size
    for one, other in zip(final_state(whole)["log"], final_state(cut)["log"]):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_log_entries_have_their_position_in_the_run(probed):
    log = [entry for entry in probed.state.log_history if "loss" in entry]
    assert [entry["language"] for entry in log] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["a"] * 4 + ["b"] * 4 + [
        "c"
    ] * 4
    assert [entry["task"] for entry in log] == [1 + step // 4 for step in range(24)]
    assert [entry["cycle"] for entry in log] == [1] * 12 + [2] * 12
    assert [entry["tokens"] for entry in log] == [96 * step for step in range(1, 25)]
    assert [entry["learning_rate"] for entry in log[:8]] == [0.005, 0.01, 0.01, 0.01] * 2


def test_a_log_entry_never_spans_two_task_instances(tmp_path, cache):
    trainer = run(tmp_path, cache, logging_steps=3, no_probe=True)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [
        3, 4, 6, 8, 9, 12, 15, 16, 18, 20, 21, 24,
    ]  # fmt: skip


def test_a_probe_is_recorded_before_training_and_after_every_cycle(probed):
    records = read_records(Path(probed.args.output_dir) / PROBES_FILE)
    assert [(r["cycle"], r["task"], r["step"], r["tokens"]) for r in records] == [
        (0, 0, 0, 0), (1, 3, 12, 1152), (2, 6, 24, 2304),
    ]  # fmt: skip
    assert all(tuple(record) == PROBE_FIELDS for record in records)
    assert [record["delta_auc"] for record in records[:2]] == [None, 0.0]
    assert records[2]["delta_auc"] == pytest.approx(100 * (records[2]["auc"] / records[1]["auc"] - 1))
    logged = [entry["probe/auc"] for entry in probed.state.log_history if "probe/auc" in entry]
    assert logged == [record["auc"] for record in records]


def test_every_probed_model_is_kept_loadable_with_its_record(probed):
    folder = Path(probed.args.output_dir)
    last = GPT2LMHeadModel.from_pretrained(folder / "cycle-002")
    torch.testing.assert_close(last.state_dict(), probed.model.state_dict(), rtol=0, atol=0)
    assert sorted(path.name for path in folder.glob("cycle-*")) == ["cycle-000", "cycle-001", "cycle-002"]
    record = json.loads((folder / "cycle-001" / "probe.json").read_text())
    assert record == read_records(folder / PROBES_FILE)[1]


def test_the_model_is_diagnosed_at_every_probe(probed):
    records = read_records(Path(probed.args.output_dir) / DIAGNOSTICS_FILE)
    assert [(r["cycle"], r["task"], r["step"], r["tokens"]) for r in records] == [
        (0, 0, 0, 0), (1, 3, 12, 1152), (2, 6, 24, 2304),
    ]  # fmt: skip
    weights = [p.detach().abs().mean() for n, p in probed.model.named_parameters() if n.endswith("mlp.c_fc.weight")]
    measured = records[2]["measures"]["parameter_magnitude"]
    assert measured["overall"] > records[0]["measures"]["parameter_magnitude"]["overall"]
    assert len(measured["per_layer"]) == len(weights) == 2


def test_a_run_that_is_stopped_within_a_task_instance_is_not_diagnosed_there(tmp_path, cache, probed):
    settings = {"evaluate_forgetting": True, "diagnose": True, "diagnostics_sequences": 4}
    trainer = make_trainer(tmp_path, cache, **settings)
    training_step = trainer.training_step

    def interrupted(*arguments, **options):
        if trainer.state.global_step == 9:
            trainer.signals._receive(signal.SIGTERM, None)
        return training_step(*arguments, **options)

    trainer.training_step = interrupted
    with pytest.raises(TrainingInterrupted, match="after step 10 of 24"):
        trainer.train()
    trainer = make_trainer(tmp_path, cache, **settings)
    trainer.train(resume_from_checkpoint=True)
    records, whole = (
        [record | {"seconds": 0} for record in read_records(Path(folder) / DIAGNOSTICS_FILE)]
        for folder in (tmp_path, probed.args.output_dir)
    )
    assert records == whole


def test_forgetting_is_measured_on_every_language_after_each_cycle(probed):
    records = read_records(Path(probed.args.output_dir) / FORGETTING_FILE)
    assert [record["cycle"] for record in records] == [1, 2]
    ids = torch.from_numpy(probed.callback_handler.callbacks[-3].eval_blocks["b"][range(5)])
    probed.model.eval()
    with torch.no_grad():
        logits = probed.model(input_ids=ids).logits[:, :-1].reshape(-1, 257)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1)).item()
    assert records[1]["losses"]["b"] == pytest.approx(expected, abs=1e-6)


def test_a_trainer_outside_a_run_pushes_its_model_as_usual(tmp_path, cache, hub, repo_id):
    trainer = make_trainer(tmp_path, cache, push_to_hub=True, hub_model_id=repo_id, no_probe=True)
    trainer.train()
    trainer.push_to_hub()
    assert hub.files(repo_id)["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("step", "settings"), [(17, {}), (17, {"save_steps": 5, "logging_steps": 4})])
def test_a_resumed_run_is_bit_identical(tmp_path, cache, step, settings):
    whole = run(tmp_path / "whole", cache, **settings)
    dying = make_trainer(tmp_path / "cut", cache, **settings)
    stop_at(dying, step)
    with pytest.raises(StopAt):
        dying.train()
    resumed = make_trainer(tmp_path / "cut", cache, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._resumed_from is not None
    assert_same(final_state(resumed), final_state(whole))
    assert resumed.state.log_history[-1]["train_loss"] == whole.state.log_history[-1]["train_loss"]
    one, other = (read_run_probes(tmp_path / name) for name in ("whole", "cut"))
    assert one == other


def read_run_probes(folder):
    return without_seconds(folder / PROBES_FILE)


def without_seconds(path):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_records(path)]


def test_a_finished_run_is_extended_by_more_cycles(tmp_path, cache, probed):
    short = run(tmp_path, cache, cycles=1)
    assert short.state.global_step == 12
    longer = make_trainer(tmp_path, cache)
    longer.train(resume_from_checkpoint=True)
    one, other = final_state(longer), final_state(probed)
    for state in (one, other):
        for entry in state["log"]:
            del entry["epoch"]
    assert_same(one, other)


def test_an_incomplete_checkpoint_is_skipped(tmp_path, cache, caplog):
    trainer = run(tmp_path, cache, no_probe=True, save_total_limit=3)
    last, before = tmp_path / "checkpoint-24", tmp_path / "checkpoint-20"
    (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:-1])
    (before / "complete.json").unlink()
    resumed = make_trainer(tmp_path, cache, no_probe=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._resumed_from == str(tmp_path / "checkpoint-16")
    assert_same(final_state(resumed), final_state(trainer))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, cache):
    trainer = make_trainer(tmp_path, cache, no_probe=True)
    training_step = trainer.training_step

    def poisoned(*arguments, **options):
        loss = training_step(*arguments, **options)
        return loss * math.nan if trainer.state.global_step == 17 else loss

    trainer.training_step = poisoned
    with pytest.raises(TrainingDivergedError, match=r"loss is nan at step 18, in task 5 \(b\) of cycle 2"):
        trainer.train()
    assert read_run_state(tmp_path) == 16


def test_weights_that_are_not_finite_are_not_saved(tmp_path, cache):
    trainer = make_trainer(tmp_path, cache, no_probe=True)
    step = trainer.create_optimizer().step

    def ruining(*arguments, **options):
        step(*arguments, **options)
        if trainer.state.global_step == 19:
            next(trainer.model.parameters()).data[0, 0] = math.inf

    trainer.optimizer.step = ruining
    with pytest.raises(TrainingDivergedError, match=r"weights are not finite at step 20, in task 5 \(b\) of cycle 2"):
        trainer.train()
    assert read_run_state(tmp_path) == 16


def test_a_damaged_checkpoint_does_not_replace_a_complete_one(tmp_path, cache):
    """With a limit of one, a run that resumed before a newer damaged checkpoint keeps the one it has just written."""
    run(tmp_path, cache, no_probe=True, save_total_limit=None)
    for step in (20, 24):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").unlink()
    resumed = make_trainer(tmp_path, cache, no_probe=True, save_total_limit=1, save_steps=1)
    stop_at(resumed, 18)
    with pytest.raises(StopAt):
        resumed.train(resume_from_checkpoint=True)
    assert read_run_state(tmp_path) == 18


def read_run_state(folder):
    from hf_plasticity.trainer import last_complete_checkpoint

    return int(last_complete_checkpoint(folder).rsplit("-", 1)[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_batch_tokens": 100}, "global_batch_tokens: 100 is not a multiple of context_length 16"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size: 4 does not divide the 6 sequences"),
        ({"cycles": 0}, "cycles: 0 is not a positive number"),
        ({"probe_eval_sequences": -1}, "probe_eval_sequences: -1 is not a positive number"),
        ({"warmup_steps": 5}, "warmup_steps: 5 is not between 0 and the 4 steps"),
        ({"learning_rate": None}, "learning_rate: missing"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not a positive number"),
        ({"max_steps": 9}, "max_steps: 9 is not supported, leave it out; cycles and task_steps decide the length"),
        ({"resume_from_checkpoint": "x"}, "resume_from_checkpoint: x is not supported, leave it out"),
        ({"fp16": True}, "fp16: True is not supported, leave it out; .* use bf16"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: 4 is not the 1 that follow"),
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy: random is not supported"),
    ],
)
def test_an_invalid_configuration_is_an_error(tmp_path, cache, settings, message):
    with pytest.raises(PlasticityError, match=message):
        make_trainer(tmp_path, cache, **settings)


def test_missing_blocks_are_an_error(tmp_path, cache):
    trainer = make_trainer(tmp_path, cache, evaluate_forgetting=True)
    given = {"model": trainer.model, "train_dataset": trainer.train_dataset}
    with pytest.raises(PlasticityError, match="eval_blocks: missing; evaluate_forgetting requires them"):
        ContinualTrainer(args=trainer.args, **given)
    args = dataclasses.replace(trainer.args, evaluate_forgetting=False, max_steps=-1)
    with pytest.raises(PlasticityError, match="probe_blocks: missing; no_probe false requires the training"):
        ContinualTrainer(args=args, **given)
    args = dataclasses.replace(args, no_probe=True, max_steps=-1)
    ContinualTrainer(args=args, **given)


def test_a_copy_of_a_configuration_has_no_micro_batch_that_was_not_requested():
    config = ContinualConfig(output_dir="x", learning_rate=1e-3, global_batch_tokens=64)
    copied = dataclasses.replace(config, seed=2)
    assert copied.set_batch(16) == 4 and copied.per_device_train_batch_size == 4
    assert copied.gradient_accumulation_steps == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_callback_is_invisible_in_a_plain_trainer_script(tmp_path, family):
    ids = torch.from_numpy(random_blocks(40, seed=3))

    def collate(rows):
        batch = torch.stack([row for (row,) in rows])
        return {"input_ids": batch, "labels": batch}

    def plain(folder, *callbacks):
        args = TrainingArguments(
            output_dir=str(folder), max_steps=9, per_device_train_batch_size=4, logging_steps=1, report_to="none",
            disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(tiny_model(family), args, train_dataset=TensorDataset(ids), data_collator=collate)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        return trainer

    callback = PlasticityProbeCallback(
        random_blocks(40, seed=1),
        random_blocks(6, seed=2),
        ProbeConfig(steps=4, eval_every=2, eval_sequences=6, batch_size=8, learning_rate=1e-2),
        language="zz",
        every=3,
    )
    assert_same(final_state(plain(tmp_path / "with", callback)), final_state(plain(tmp_path / "without")))
    records = read_run(tmp_path / "with").probes
    assert [record["step"] for record in records] == [0, 3, 6, 9]
    assert [record["cycle"] for record in records] == [None] * 4
    assert records[1]["delta_auc"] == 0 and CONTEXT == 12
    assert records[3]["delta_auc"] == pytest.approx(100 * (records[3]["auc"] / records[1]["auc"] - 1))


def test_a_start_without_a_checkpoint_repeats_the_measurements_of_the_untrained_model(tmp_path, cache):
    dying = make_trainer(tmp_path / "cut", cache, diagnose=True, diagnostics_sequences=4)
    stop_at(dying, 2)
    with pytest.raises(StopAt):
        dying.train()
    assert [record["step"] for record in read_run_probes(tmp_path / "cut")] == [0]
    other = make_trainer(tmp_path / "other", cache, seed=8).model
    for name, model in (("cut", copy.deepcopy(other)), ("whole", other)):
        trainer = make_trainer(tmp_path / name, cache, diagnose=True, diagnostics_sequences=4, model=model)
        trainer.train(resume_from_checkpoint=True)
    one, whole = (tmp_path / name for name in ("cut", "whole"))
    for file in (PROBES_FILE, DIAGNOSTICS_FILE):
        assert without_seconds(one / file) == without_seconds(whole / file)
    weights = [load_file(folder / "cycle-000" / "model.safetensors") for folder in (one, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_start_without_a_checkpoint_does_not_continue_the_records_of_another_training(tmp_path, cache):
    run(tmp_path, cache, save_strategy="no")
    with pytest.raises(PlasticityError, match=r"^output_dir: .* of another training"):
        make_trainer(tmp_path, cache, save_strategy="no").train(resume_from_checkpoint=True)


def test_every_probe_begins_with_a_checkpoint_which_the_message_of_an_interruption_names(tmp_path, cache):
    trainer = make_trainer(tmp_path, cache, probe_every_tasks=1, save_steps=100, save_total_limit=10)
    with pytest.raises(TrainingInterrupted, match=r"after step 8 of 24; .* resumes from checkpoint-8$"):
        interrupt_probe(trainer, 3)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    trainer = make_trainer(tmp_path / "unsaved", cache, save_strategy="no")
    with pytest.raises(TrainingInterrupted, match=r"after step 12 of 24; .* resumes from the beginning$"):
        interrupt_probe(trainer, 2)


def interrupt_probe(trainer, number):
    """Train, and receive SIGTERM before the steps of a probe."""
    [callback] = [one for one in trainer.callback_handler.callbacks if isinstance(one, PlasticityProbeCallback)]
    act, count = callback.act, iter(range(1, 100))

    def interrupted(*arguments, **options):
        if next(count) == number:
            trainer.signals._receive(signal.SIGTERM, None)
        act(*arguments, **options)

    callback.act = interrupted
    trainer.train()
