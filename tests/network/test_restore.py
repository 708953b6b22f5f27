"""Restoring a model exactly: cases that other tests do not cover."""

import contextlib

import pytest
import torch

from hf_plasticity.network import evaluation_mode, preserve_model, preserve_with
from support.families import make_model


def test_registered_state_is_preserved_with_the_model():
    model, accumulator, entered = make_model("gpt2"), torch.zeros(3), []

    @contextlib.contextmanager
    def paused():
        saved = accumulator.clone()
        entered.append("in")
        try:
            yield
        finally:
            accumulator.copy_(saved)
            entered.append("out")

    undo = preserve_with(model.transformer.h[0].mlp, paused)
    with pytest.raises(KeyboardInterrupt), preserve_model(torch.nn.Sequential(model)):
        accumulator += 1
        raise KeyboardInterrupt
    assert not accumulator.any() and entered == ["in", "out"]
    with evaluation_mode(model):
        accumulator += 1
    assert not accumulator.any()
    undo()
    with preserve_model(model):
        accumulator += 1
    assert accumulator.all() and entered == ["in", "out"] * 2


def test_parameters_that_are_not_kept_are_not_restored():
    model = make_model("gpt2")
    weight = model.transformer.wte.weight
    with preserve_model(model, parameters=False), torch.no_grad():
        weight.zero_()
        weight.requires_grad_(False)
    assert not weight.any() and weight.requires_grad


def test_evaluation_mode_restores_modes_and_the_attention_implementation():
    model = make_model("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        model.set_attn_implementation("eager")
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"
