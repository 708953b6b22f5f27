"""`MitigationCallback` beside the plain Trainer: models with adapters of PEFT, and TRL's SFTTrainer."""

import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from hf_plasticity import MitigationCallback, PlasticityError, byte_tokenizer, gpt2_config
from hf_plasticity.mitigations import MITIGATIONS, SWR, L2Init, Redo, ShrinkPerturb, WeightDecay, make_mitigations
from hf_plasticity.mitigations.callback import STATE_FILE
from hf_plasticity.records import MITIGATIONS_FILE, read_records
from support.mitigations import CASES
from support.tiny import random_blocks, tiny_model


TASK_STEPS = 2
SETTINGS = {
    "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True,
    "disable_tqdm": True,
}  # fmt: skip


def callback(name):
    return MitigationCallback(name, task_steps=TASK_STEPS, **CASES[name])


def wrapped(model):
    return get_peft_model(model, LoraConfig(r=2))


def with_adapter(model):
    """As `PreTrainedModel` does it, which remains the class of the model."""
    model.add_adapter(LoraConfig(r=2))
    return model


@pytest.mark.parametrize("adapt", [wrapped, with_adapter])
@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_model_with_adapters_is_refused_on_one_line_before_training(tmp_path, adapt, name):
    model = adapt(tiny_model())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rows = [{"input_ids": row, "labels": row} for row in random_blocks(24).tolist()]
    trainer = Trainer(model, TrainingArguments(tmp_path, **SETTINGS), train_dataset=rows)
    trainer.add_callback(callback(name))
    with pytest.raises(PlasticityError, match=f"^model: {name} .*adapters") as error:
        trainer.train()
    assert "\n" not in str(error.value)
    assert trainer.state.global_step == 0 and not (tmp_path / MITIGATIONS_FILE).exists()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def plain_trainer(folder, *mitigations, **settings):
    rows = [{"input_ids": row, "labels": row} for row in random_blocks(24).tolist()]
    trainer = Trainer(tiny_model(), TrainingArguments(folder, **SETTINGS | settings), train_dataset=rows)
    trainer.add_callback(MitigationCallback(list(mitigations)))
    return trainer


def test_a_training_that_a_mitigation_refuses_goes_on_without_the_callback(tmp_path):
    trainer = plain_trainer(tmp_path, L2Init(), ShrinkPerturb(), weight_decay=0.1)
    callback = trainer.callback_handler.callbacks[-1]
    with pytest.raises(PlasticityError, match="task_steps: required by shrink_perturb"):
        trainer.train()
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.1, 0.0}
    assert not trainer.model._forward_pre_hooks and not callback._batch_loss._batches


def test_two_methods_with_exact_moments_are_refused():
    with pytest.raises(PlasticityError, match="exact_moments of redo and swr would correct the same updates twice"):
        MitigationCallback([Redo(exact_moments=True), SWR(exact_moments=True)])
    MitigationCallback([Redo(exact_moments=True), SWR()])


def test_two_methods_that_replace_the_weight_decay_are_refused():
    with pytest.raises(PlasticityError, match="weight_decay and l2_init both replace the weight decay; use one"):
        MitigationCallback([WeightDecay(), L2Init()])
    with pytest.raises(PlasticityError, match="weight_decay and l2_init both replace the weight decay; use one"):
        make_mitigations(["weight_decay", "l2_init"])


def test_a_callback_that_is_used_again_saves_its_state_again(tmp_path):
    trainer = plain_trainer(tmp_path / "run", L2Init(), save_steps=2, max_steps=2)
    trainer.train()
    shutil.rmtree(tmp_path / "run")
    trainer.train()
    assert (tmp_path / "run" / "checkpoint-2" / STATE_FILE).exists()


@pytest.mark.parametrize("name", ["redo", "l2_init", "shrink_perturb"])
def test_trls_sft_trainer_takes_the_callback_and_resumes(tmp_path, name):
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

    def trainer(folder, **settings):
        torch.manual_seed(0)
        tokenizer = byte_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        model = GPT2LMHeadModel(gpt2_config("25K", vocab_size=len(tokenizer), context_length=32))
        args = trl.SFTConfig(str(tmp_path / folder), max_length=32, **SETTINGS, **settings)
        text = Dataset.from_dict({"text": [f"{number} and {number * 7} make {number * 8}." for number in range(24)]})
        made = trl.SFTTrainer(model, args, train_dataset=text, processing_class=tokenizer)
        made.add_callback(callback(name))
        return made

    whole = trainer("whole", save_steps=3)
    whole.train()
    events = read_records(tmp_path / "whole" / MITIGATIONS_FILE)
    assert [event["event"] for event in events][-1] == "end" and events[-1]["total"] > 0
    assert all("loss_before" in event for event in events if event["event"] not in ("summary", "end"))

    (tmp_path / "whole").rename(tmp_path / "cut")
    (tmp_path / "cut" / MITIGATIONS_FILE).write_text("")
    resumed = trainer("cut", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    late = [event for event in events if event["step"] > 3]
    assert read_records(tmp_path / "cut" / MITIGATIONS_FILE) == late
    torch.testing.assert_close(
        dict(resumed.model.named_parameters()), dict(whole.model.named_parameters()), rtol=0, atol=0
    )
