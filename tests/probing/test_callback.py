"""The probe in the training script of a user: records, logs, errors, and the unchanged training."""

import copy
import json
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)
from transformers.modeling_outputs import CausalLMOutput

from hf_plasticity import PlasticityError, ProbeConfig, diagnose
from hf_plasticity.analysis.series import label
from hf_plasticity.data.token_blocks import as_blocks
from hf_plasticity.network import supported
from hf_plasticity.probing import ProbeDivergedError, run_probe
from hf_plasticity.probing.checks import unwrapped
from hf_plasticity.probing.recorder import probe_conditions
from hf_plasticity.records import read_records, read_run
from support.own_script import EVALUATION, ROWS, TRAIN, KillAt, Killed, own_trainer, own_training, probes, short_probe
from support.tiny import VOCABULARY, random_blocks, tiny_model
from support.trainers import assert_same, final_state


TINY = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0}


def recorded(folder):
    return read_records(folder / "probes.jsonl")


def steps(folder):
    return [record["step"] for record in recorded(folder)]


def with_adapters(model=None, **settings):
    return get_peft_model(
        tiny_model("llama") if model is None else model,
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", **settings),
    )


@pytest.mark.parametrize(
    ("column", "message"), [("attention_mask", "attention_mask has 0"), ("labels", "labels has -100")]
)
def test_padding_is_refused_because_every_token_of_a_block_counts(column, message):
    rows = {"input_ids": [[1, 2, 3, 0]] * 8, column: [[1, 1, 1, 0] if column != "labels" else [1, 2, 3, -100]] * 8}
    with pytest.raises(PlasticityError, match=f"^blocks: {message}, but every token of a block counts"):
        as_blocks(Dataset.from_dict(rows))
    assert as_blocks(Dataset.from_dict({"input_ids": rows["input_ids"], column: [[1, 1, 1, 1]] * 8})).shape == (8, 4)


def test_a_probe_in_fp16_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(supported, "AcceleratorState", Mock(return_value=Mock(mixed_precision="fp16")))
    with pytest.raises(PlasticityError, match=r"^mixed_precision: fp16 is not supported, .*; use bf16 or no"):
        own_training(tmp_path, probes())


def test_an_optimizer_that_steps_in_the_backward_pass_is_refused(tmp_path):
    model = tiny_model()
    next(model.parameters()).register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(PlasticityError, match=r"^optimizer: it updates a parameter in the backward pass"):
        own_training(tmp_path, probes(), model=model)


def test_sharding_other_than_fsdp2_is_refused(monkeypatch):
    monkeypatch.setattr(supported, "FullyShardedDataParallel", torch.nn.Embedding)
    with pytest.raises(PlasticityError, match=r"^model: FSDP1 is not supported; use FSDP2"):
        run_probe(tiny_model(), TRAIN, EVALUATION, short_probe())
    with pytest.raises(PlasticityError, match=r"^model: FSDP1 is not supported; use FSDP2"):
        diagnose(tiny_model(), TRAIN[:4])


def test_deepspeed_and_tensor_parallelism_are_refused(monkeypatch):
    model = tiny_model()
    next(model.parameters()).ds_id = 0
    with pytest.raises(PlasticityError, match=r"^model: ZeRO-3 of DeepSpeed is not supported; use FSDP2 or DDP"):
        run_probe(model, TRAIN, EVALUATION, short_probe())
    monkeypatch.setattr(supported, "DTensor", torch.nn.Parameter)
    with pytest.raises(PlasticityError, match=r"^model: tensor parallelism is not supported; use FSDP2 or DDP"):
        run_probe(tiny_model(), TRAIN, EVALUATION, short_probe())


def test_the_loss_of_a_router_is_not_in_the_curve():
    config = MixtralConfig(**TINY, num_key_value_heads=1, num_local_experts=2, router_aux_loss_coef=0.5)
    torch.manual_seed(0)
    plain = MixtralForCausalLM(config)
    trained_with = copy.deepcopy(plain)
    trained_with.config.output_router_logits = True
    with_loss, without = (run_probe(model, TRAIN, EVALUATION, short_probe()) for model in (trained_with, plain))
    assert with_loss.losses[0] == without.losses[0] and trained_with.config.output_router_logits
    assert with_loss.losses[1:] != without.losses[1:], "the probe trains as the training does"
    assert probe_conditions(trained_with)["router_aux_loss_coef"] == 0.5


class AveragingTrainer(Trainer):
    """Logs the number of steps since its last entry, as TRL's trainers log averages since then."""

    counted = 0

    def training_step(self, *arguments, **options):
        self.counted += 1
        return super().training_step(*arguments, **options)

    def log(self, logs, *arguments, **options):
        logs["counted"], self.counted = self.counted, 0
        super().log(logs, *arguments, **options)


def test_the_metrics_of_a_subclass_are_logged_as_without_probes(tmp_path):
    trainers = [
        own_training(tmp_path / name, *callbacks, trainer_class=AveragingTrainer, logging_steps=3)
        for name, callbacks in (("without", []), ("with", [probes()]))
    ]
    counted = [[entry["counted"] for entry in one.state.log_history if "loss" in entry] for one in trainers]
    assert counted[0] == counted[1] == [3, 3, 3]


def test_a_model_with_copies_on_several_gpus_is_probed_on_one(tmp_path):
    model, probe = tiny_model(), probes()
    probe.trainer = SimpleNamespace(model_wrapped=torch.nn.DataParallel(model))
    assert probe._wrapped(model) is model and unwrapped(probe.trainer.model_wrapped) is model


# A record belongs to one training.


@pytest.mark.parametrize("changed", ["nothing", "learning rate", "architecture"])
def test_a_new_training_in_a_used_folder_is_refused_and_the_records_stay(tmp_path, changed):
    own_training(tmp_path, probes())
    before = (tmp_path / "probes.jsonl").read_bytes()
    settings = {"learning rate": {"learning_rate": 1e-2}, "architecture": {"model": tiny_model("gpt2")}}.get(changed)
    with pytest.raises(PlasticityError, match=r"^output_dir: '.*' has probes.jsonl of another training; resume"):
        own_training(tmp_path, probes(), **(settings or {}))
    assert (tmp_path / "probes.jsonl").read_bytes() == before


def test_a_callback_that_is_used_again_probes_the_model_of_the_new_training(tmp_path):
    callback = probes()
    own_training(tmp_path / "first", callback)
    own_training(tmp_path / "second", callback, learning_rate=1e-2)
    own_training(tmp_path / "alone", probes(), learning_rate=1e-2)
    curves = [[record["losses"] for record in recorded(tmp_path / name)] for name in ("first", "second", "alone")]
    assert curves[1] == curves[2] != curves[0]


def test_probed_models_of_another_training_are_never_kept_as_those_of_a_new_one(tmp_path):
    settings = {"task_steps": 3, "tasks_per_cycle": 1, "every": 1, "unit": "cycles", "save_checkpoints": True}
    own_training(tmp_path, probes(**settings))
    (tmp_path / "probes.jsonl").unlink()
    with pytest.raises(PlasticityError, match=r"^output_dir: .* has probed models of another training \(cycle-000, "):
        own_training(tmp_path, probes(**settings))


def test_a_killed_training_resumes_with_the_records_of_an_uninterrupted_one(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    own_training(tmp_path / "whole", probes(), **saving)
    with pytest.raises(Killed):
        own_training(tmp_path / "killed", probes(), KillAt(7), **saving)
    assert steps(tmp_path / "killed") == [0, 3, 6]
    own_trainer(tmp_path / "killed", probes(), **saving).train(resume_from_checkpoint=True)
    for record, other in zip(recorded(tmp_path / "whole"), recorded(tmp_path / "killed"), strict=True):
        assert record | {"seconds": 0} == other | {"seconds": 0}


def test_the_protocol_is_saved_with_the_records(tmp_path):
    own_training(tmp_path, probes(config=short_probe(weight_decay=0.3), language="vi"))
    protocols = json.loads((tmp_path / "probe_protocols.json").read_text())
    [(name, protocol)] = protocols.items()
    assert {record["probe_config_hash"] for record in recorded(tmp_path)} == {name}
    assert (protocol["weight_decay"], protocol["steps"], protocol["language"]) == (0.3, 4, "vi")
    assert (protocol["trained"], protocol["precision"]) == ("all", "float32")


def test_the_end_within_a_task_instance_is_probed_but_does_not_replace_a_checkpoint(tmp_path):
    tasks = {"unit": "tasks", "every": 1, "task_steps": 4, "tasks_per_cycle": 2, "save_checkpoints": True}
    own_training(tmp_path, probes(**tasks), max_steps=6)
    assert steps(tmp_path) == [0, 4, 6]
    assert sorted(path.name for path in tmp_path.glob("*-0*")) == ["cycle-000", "task-001"]
    assert json.loads((tmp_path / "task-001" / "probe.json").read_text())["step"] == 4


def test_probes_are_named_after_the_task_instances_and_cycles_of_the_training(tmp_path):
    own_training(tmp_path, probes(unit="steps", every=2, task_steps=4, tasks_per_cycle=2), max_steps=10)
    run = read_run(tmp_path)
    names = [label(run, record) for record in run.probes]
    assert names == ["cycle 0", "step 2", "task 1", "step 6", "cycle 1", "step 10"]


# The trained parameters are recorded.


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_probe_of_adapters_trains_them_and_records_it_without_changing_the_training(tmp_path, dropout):
    def trained(folder, *callbacks):
        return own_training(tmp_path / folder, *callbacks, model=with_adapters(lora_dropout=dropout))

    assert_same(final_state(trained("with", probes())), final_state(trained("without")))
    protocol = json.loads((tmp_path / "with" / "probe_protocols.json").read_text())
    model = with_adapters()
    adapters, total = model.get_nb_trainable_parameters()
    assert [protocol["trained"] for protocol in protocol.values()] == [f"{adapters} of {total} parameters"]
    assert {record["adaptation"] for record in recorded(tmp_path / "with")} == {"partial"}


def test_full_partial_bf16_and_neftune_probes_are_never_compared(tmp_path):
    frozen = tiny_model("llama")
    frozen.get_input_embeddings().requires_grad_(False)
    trainings = {
        "full": {},
        "frozen": {"model": frozen},
        "adapters": {"model": with_adapters()},
        "bf16": {"bf16": True},
        "bf16 weights": {"model": tiny_model("llama").to(torch.bfloat16)},
        "neftune": {"neftune_noise_alpha": 5},
        "more neftune": {"neftune_noise_alpha": 15},
    }
    hashes = {}
    for name, settings in trainings.items():
        own_training(tmp_path / name, probes(every=9), **settings)
        hashes[name] = {record["probe_config_hash"] for record in recorded(tmp_path / name)}
    assert all(len(found) == 1 for found in hashes.values())
    assert len(set.union(*hashes.values())) == len(trainings)


def test_a_lora_probe_is_the_same_whichever_parameters_are_trained(tmp_path):
    frozen = tiny_model("llama")
    frozen.get_input_embeddings().requires_grad_(False)
    for name, model in (("all", tiny_model("llama")), ("some", frozen)):
        own_training(tmp_path / name, probes(every=9, config=short_probe(adaptation="lora")), model=model)
    found = [
        {(one["adaptation"], one["probe_config_hash"]) for one in recorded(tmp_path / name)}
        for name in ("all", "some")
    ]
    assert found[0] == found[1] and {adaptation for adaptation, _ in found[0]} == {"lora"}


def test_numbers_of_numpy_are_numbers(tmp_path):
    own_training(tmp_path / "own", probes(every=9, config=short_probe()))
    config = ProbeConfig(**{
        name: np.int64(value) if type(value) is int else value for name, value in vars(short_probe()).items()
    })  # fmt: skip
    own_training(tmp_path / "numpy", probes(every=9, config=config))
    assert recorded(tmp_path / "own")[0]["auc"] == recorded(tmp_path / "numpy")[0]["auc"]
    assert recorded(tmp_path / "own")[0]["probe_config_hash"] == recorded(tmp_path / "numpy")[0]["probe_config_hash"]


# Models without support are refused before the first step.


class WithoutLoss(torch.nn.Module):
    def __init__(self, loss=False):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(VOCABULARY, 4), torch.nn.Linear(4, VOCABULARY)
        self.loss = loss

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embedding(input_ids))
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits) if self.loss else {"loss": loss, "logits": logits}


def bert(**settings):
    return BertConfig(**TINY, **settings)


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )


def adapted_in_place():
    model = tiny_model("llama")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return model


REFUSED = {
    "masked": (lambda: BertForMaskedLM(bert()), {}, "model: 'BertForMaskedLM' is a masked language model"),
    "encoder-decoder": (t5, {}, "model: 'T5ForConditionalGeneration' is an encoder-decoder model"),
    "not causal": (
        lambda: BertLMHeadModel(bert()),
        {},
        "model: 'BertLMHeadModel' predicts a token from the tokens aft",
    ),
    "classifier": (
        lambda: LlamaForSequenceClassification(LlamaConfig(**TINY)),
        {},
        "model: 'LlamaForSequenceClassification' cannot be called with input_ids and labels alone",
    ),
    "without head": (lambda: LlamaModel(LlamaConfig(**TINY)), {}, "model: 'LlamaModel' does not return the mean loss"),
    "without loss": (WithoutLoss, {}, "model: 'WithoutLoss' does not return the mean loss"),
    "nothing trained": (
        lambda: tiny_model("llama").requires_grad_(False),
        {},
        "model: no parameter of 'LlamaForCausalLM' is trained",
    ),
    "adapters twice": (
        with_adapters,
        {"config": short_probe(adaptation="lora")},
        "probe_adaptation: 'lora' adds adapters, but the model already has adapters",
    ),
    "adapters in place twice": (
        adapted_in_place,
        {"config": short_probe(adaptation="lora")},
        "probe_adaptation: 'lora' adds adapters, but the model already has adapters",
    ),
    "adapters of no module": (
        None,
        {"config": short_probe(adaptation="lora", lora_target_modules=["c_attn"])},
        "lora_target_modules: ['c_attn'] matches no module of 'LlamaForCausalLM'; choose others, or 'all-linear'",
    ),
    "adapters for a module": (
        lambda: WithoutLoss(loss=True),
        {"config": short_probe(adaptation="lora")},
        "probe_adaptation: 'lora' requires a model of Transformers, not 'WithoutLoss'",
    ),
    "too little text": (
        None,
        {"train": TRAIN[:5]},
        "probe_steps: 4 steps require 32 training sequences and there are",
    ),
    "too little validation": (None, {"evaluation": EVALUATION[:5]}, "probe_eval_sequences: 6 are requested"),
    "batch": (None, {"micro_batch_size": 3}, "micro_batch_size: 3 does not divide the 8 sequences"),
    "no batch": (None, {"micro_batch_size": 0}, "micro_batch_size: 0 is not a positive number"),
    "negative batch": (None, {"micro_batch_size": -2}, "micro_batch_size: -2 is not a positive number"),
    "vocabulary": (None, {"train": TRAIN + VOCABULARY}, f"blocks: token ids from {VOCABULARY} to "),
    "context": (
        None,
        {"evaluation": random_blocks(8, context=20)},
        "blocks: sequences of 20 tokens; the context of 'LlamaForCausalLM' is 12",
    ),
    "one token": (
        None,
        {"train": TRAIN[:, :1], "evaluation": EVALUATION[:, :1]},
        "blocks: sequences of 1 token have nothing to predict",
    ),
}


@pytest.mark.parametrize(("model", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_probed_is_refused_before_the_first_step(tmp_path, model, settings, message):
    class FirstStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            pytest.fail("the training began")

    model = None if model is None else model()
    with pytest.raises(PlasticityError) as caught:
        own_training(tmp_path, probes(probe_untrained=False, **settings), FirstStep(), model=model)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert not (tmp_path / "probes.jsonl").exists()


@pytest.mark.parametrize("model", [lambda: BertLMHeadModel(bert()), t5], ids=["encoder", "encoder-decoder"])
def test_a_single_probe_requires_a_causal_model(model):
    with pytest.raises(PlasticityError, match="the probe requires a causal language model"):
        run_probe(model(), TRAIN, EVALUATION, short_probe(), show_progress=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "decoder", "module", "bf16", "prompt"])
def test_causal_models_of_every_kind_are_probed(tmp_path, family):
    model = {
        "decoder": lambda: BertLMHeadModel(bert(is_decoder=True)),
        "module": lambda: WithoutLoss(loss=True),
        "bf16": lambda: tiny_model("llama").to(torch.bfloat16),
        "prompt": lambda: get_peft_model(
            tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        ),
    }.get(family, lambda: tiny_model(family))()
    own_training(tmp_path, probes(every=9), model=model)
    assert steps(tmp_path) == [0, 9]


WRONG_BLOCKS = {
    "texts": ["some text", "more text!"],
    "ragged": [[1, 2, 3], [1, 2]],
    "nothing": None,
    "a dataset of texts": Dataset.from_dict({"text": ["a"]}),
    "a ragged dataset": Dataset.from_dict({"input_ids": [[1, 2], [1]]}),
    "one row": np.arange(12),
    "fractions": TRAIN / 2,
    "a tensor of fractions": torch.rand(40, 12),
}


@pytest.mark.parametrize("blocks", WRONG_BLOCKS.values(), ids=WRONG_BLOCKS)
def test_objects_without_token_blocks_are_refused(blocks):
    with pytest.raises(PlasticityError, match=r"^blocks: ") as caught:
        probes(train=blocks)
    assert "\n" not in str(caught.value)


def as_dataset(blocks, form=None):
    return Dataset.from_dict({"input_ids": blocks.tolist(), "id": list(range(len(blocks)))}).with_format(form)


@pytest.mark.parametrize(
    "convert",
    [
        np.ndarray.tolist, list, torch.from_numpy, as_dataset, lambda blocks: as_dataset(blocks, "torch"),
        lambda blocks: torch.from_numpy(blocks.astype(np.uint16)),
    ],
)  # fmt: skip
def test_lists_tensors_and_datasets_are_the_same_text(tmp_path, convert):
    own_training(tmp_path / "arrays", probes(every=9))
    own_training(tmp_path / "others", probes(convert(TRAIN), convert(EVALUATION), every=9))
    for one, other in zip(recorded(tmp_path / "arrays"), recorded(tmp_path / "others"), strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


# When it probes.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every": 4}, [0, 4, 8, 9]),
        ({"every": 4, "probe_at_end": False}, [0, 4, 8]),
        ({"every": 4, "probe_untrained": False}, [4, 8, 9]),
        ({"every": 0.5}, [0, 5, 9]),  # rounded up, as eval_steps are
        ({}, list(range(10))),
        ({"every": 1, "unit": "tasks", "task_steps": 5}, [0, 5, 9]),
        ({"every": 1, "unit": "cycles", "task_steps": 2, "tasks_per_cycle": 3}, [0, 6, 9]),
    ],
)
def test_points_of_the_training(tmp_path, settings, expected):
    own_training(tmp_path, probes(config=short_probe(steps=1), **({"every": 0.1} | settings)))
    assert steps(tmp_path) == expected


def test_probes_after_epochs(tmp_path):
    own_training(tmp_path, probes(every=1, unit="epochs"), max_steps=-1, num_train_epochs=3, rows=ROWS[:8])
    assert steps(tmp_path) == [0, 2, 4, 6]


@pytest.mark.parametrize("length", [{"num_train_epochs": 2.5, "max_steps": -1}, {"max_steps": 20}])
def test_an_epoch_has_its_own_number_of_steps(tmp_path, length):
    # 32 rows in batches of 4: an epoch has eight steps.
    own_training(tmp_path, probes(every=1, unit="epochs"), **length)
    assert steps(tmp_path) == [0, 8, 16, 20]


def test_epochs_of_a_dataset_without_a_length_are_refused(tmp_path):
    rows = Dataset.from_list([{name: row[name].tolist() for name in row} for row in ROWS]).to_iterable_dataset()
    with pytest.raises(PlasticityError, match=r"^unit: 'epochs' requires a dataset with a length; use steps"):
        own_training(tmp_path, probes(every=1, unit="epochs"), rows=rows)


@pytest.mark.parametrize("best", [False, True])
def test_a_training_that_stops_early_after_an_epoch_has_a_last_probe(tmp_path, best):
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 5, "max_steps": -1}
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
    settings |= {"metric_for_best_model": "eval_loss", "load_best_model_at_end": best}
    trainer = own_training(tmp_path, probes(every=1, unit="epochs"), stop, learning_rate=0.1, **settings)
    assert trainer.state.global_step == 16 and steps(tmp_path) == [0, 8, 16]


def test_a_training_that_stops_early_has_a_last_probe(tmp_path):
    own_training(
        tmp_path, EarlyStoppingCallback(1, 10.0), probes(every=5), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True,
    )  # fmt: skip
    assert steps(tmp_path) == [0, 2]


@pytest.mark.parametrize(
    ("every", "unit"),
    [(2.5, "steps"), (0, "steps"), (-1, "steps"), ("5", "steps"), (None, "steps"), (True, "steps"),
     (float("nan"), "steps"), (float("inf"), "steps"), (1.5, "epochs"), (0.5, "cycles"), (1, "years")],
)  # fmt: skip
def test_fractional_steps_are_refused_and_not_rounded(every, unit):
    with pytest.raises(PlasticityError, match=r"^every: .* is not a whole number of|^unit: 'years' is unknown"):
        probes(every=every, unit=unit, task_steps=2, tasks_per_cycle=2)


# Where the scores go.


class Tracker(TrainerCallback):
    """Receives what every tracker receives."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(dict(logs))


@pytest.mark.parametrize("how", ["in the constructor", "added"])
def test_scores_their_errors_and_curves_reach_trackers_without_naming_the_trainer(tmp_path, how):
    tracker, callback = Tracker(), probes(config=short_probe(repeats=2))
    trainer = own_trainer(tmp_path, *([callback] if how != "added" else []), tracker)
    if how == "added":
        trainer.add_callback(callback)
    trainer.train()
    entries = [entry for entry in tracker.logs if "probe/auc" in entry]
    assert [entry["probe/auc"] for entry in entries] == [record["auc"] for record in recorded(tmp_path)]
    for entry, record in zip(entries, recorded(tmp_path)):
        assert entry["probe/auc_stderr"] == record["auc_stderr"] > 0
        curve = [entry[f"probe/loss_at_{step}"] for step in (0, 2, 4)]
        assert curve == record["losses"]
    assert len([entry for entry in tracker.logs if "loss" in entry]) == 9, "no loss entry is lost"


def test_probes_in_two_languages_share_a_run_folder_and_log_under_their_own_prefix(tmp_path):
    tracker = Tracker()
    other = probes(random_blocks(40, seed=7), EVALUATION, language="sw", metric_key_prefix="probe_sw")
    own_training(tmp_path, probes(language="vi"), other, tracker)
    assert [record["language"] for record in recorded(tmp_path)] == ["vi", "sw"] * 4
    for language, prefix in (("vi", "probe"), ("sw", "probe_sw")):
        logged = [entry[f"{prefix}/auc"] for entry in tracker.logs if f"{prefix}/auc" in entry]
        assert logged == [record["auc"] for record in recorded(tmp_path) if record["language"] == language]


def test_a_probe_that_diverges_ends_the_training_or_is_left_out(tmp_path, caplog):
    wild = short_probe(learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0)
    with pytest.raises(ProbeDivergedError, match=r"probe on 'vi' \(step 0\): the probe's validation loss is"):
        own_training(tmp_path / "raise", probes(config=wild, language="vi"))
    trainer = own_training(tmp_path / "warn", probes(config=wild, on_error="warn"))
    assert trainer.state.global_step == 9 and steps(tmp_path / "warn") == []
    with pytest.raises(PlasticityError, match="on_error: 'ignore' is unknown; choose raise or warn"):
        probes(on_error="ignore")


# The training does not change.


def test_evaluations_and_the_best_model_are_those_without_probes(tmp_path):
    def trained(folder, *callbacks):
        trainer = own_trainer(
            tmp_path / folder, *callbacks, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3,
            load_best_model_at_end=True, learning_rate=1e-2,
        )  # fmt: skip
        trainer.train()
        return trainer

    one, other = trained("with", probes()), trained("without")
    assert one.state.best_metric == other.state.best_metric
    assert_same(final_state(one), final_state(other))
    assert steps(tmp_path / "with") == [0, 3, 6, 9]


@pytest.mark.parametrize(
    "settings", [{"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}, {"neftune_noise_alpha": 5}]
)
def test_the_options_of_the_trainer_do_not_change(tmp_path, settings):
    one = own_training(tmp_path / "with", probes(), **settings)
    assert_same(final_state(one), final_state(own_training(tmp_path / "without", **settings)))


def test_a_configuration_of_the_wrong_type_is_refused():
    with pytest.raises(PlasticityError, match=r"config: \{'steps': 4\} is not a ProbeConfig"):
        probes(config={"steps": 4})
