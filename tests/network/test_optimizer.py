"""The state of an optimizer for a parameter."""

import pytest
import torch
from accelerate import Accelerator
from transformers.optimization import Adafactor

from hf_plasticity import PlasticityError
from hf_plasticity.network import find_structure, optimizer_moments
from support.families import make_model


def stepped(model, tokens, optimizer):
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("accelerated", [False, True])
def test_the_moments_of_some_units_are_zeroed_and_the_step_count_is_not(tokens, accelerated):
    model = make_model("llama")
    optimizer = torch.optim.AdamW(model.parameters())
    if accelerated:
        model, optimizer = Accelerator(cpu=True).prepare(model, optimizer)
    units = find_structure(model).layers[0].units
    (weight,) = units.outgoing.slices([3, 4])
    assert optimizer_moments(optimizer, weight.parameter) == {} and weight.parameter not in optimizer.state
    stepped(model, tokens, optimizer)
    moments = optimizer_moments(optimizer, weight.parameter)
    assert moments.keys() == {"exp_avg", "exp_avg_sq"}
    for moment in moments.values():
        before = moment.clone()
        weight.zero_(moment)
        before[:, [3, 4]] = 0
        assert torch.equal(moment, before) and moment.count_nonzero() > 0
    state = optimizer.state[weight.parameter]
    assert state["step"] == 1 and all(state[name] is moment for name, moment in moments.items())


def test_a_parameter_that_is_not_updated_is_an_error(tokens):
    model = make_model("gpt2")
    optimizer = torch.optim.AdamW([model.transformer.wte.weight])
    with pytest.raises(PlasticityError, match="it does not update a parameter of shape"):
        optimizer_moments(optimizer, model.transformer.h[0].mlp.c_fc.weight)


def test_factored_state_is_an_error(tokens):
    model = make_model("gpt2").float()
    optimizer = stepped(model, tokens, Adafactor(model.parameters()))
    with pytest.raises(PlasticityError, match="'exp_avg_sq_row' has shape"):
        optimizer_moments(optimizer, model.transformer.h[0].mlp.c_fc.weight)


def test_plain_gradient_descent_has_no_state(tokens):
    model = make_model("gpt2")
    optimizer = stepped(model, tokens, torch.optim.SGD(model.parameters(), lr=0.1))
    assert optimizer_moments(optimizer, model.transformer.h[0].mlp.c_fc.weight) == {}
