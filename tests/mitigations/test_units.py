"""Mitigations that reset hidden units: the chosen units, and the state after a reset."""

import copy
import itertools

import pytest
import torch
from transformers import Adafactor, BloomConfig, BloomForCausalLM

from hf_plasticity import PlasticityError
from hf_plasticity.mitigations import (
    CBP,
    SNR,
    SWR,
    ActiveForgetting,
    FullReset,
    Grama,
    HeadReset,
    RandomReset,
    Redo,
)
from hf_plasticity.mitigations.adam import EntrySteps
from hf_plasticity.mitigations.batch_loss import BatchLoss
from hf_plasticity.mitigations.snr import gap_bin, longest_gap
from hf_plasticity.network import InitialDistribution, find_structure, preserve_model
from support.mitigated import copy_of, logits_of, make_optimizer, train
from support.tiny import tiny_model


DEAD = [2, 5]
HIDDEN = {"gpt2": 64, "llama": 24}


def kill(model, layer, units):
    """Make units permanently silent: a large negative bias in a plain MLP, neither gate nor input in a gated one."""
    for partition in find_structure(model).layers[layer].units.incoming:
        for slices in partition.slices(units):
            slices.zero_()
            if slices.name.endswith("bias"):
                slices.write_(torch.full((len(units),), -1e4))


def attached(mitigation, model, seed=3, **settings):
    optimizer = make_optimizer(model, **settings)
    mitigation.attach(model, optimizer, seed=seed)
    return optimizer


def test_redo_resets_the_dead_units_and_keeps_the_logits_bit_identical(model, tokens):
    kill(model, 1, DEAD)
    mitigation = Redo(threshold=0.0, every=2, window=1)
    optimizer = attached(mitigation, model, lr=0.0)
    logits = logits_of(model, tokens)
    train(model, optimizer, mitigation, tokens, steps=1)
    assert mitigation.take_events(1, summarize=False) == []
    train(model, optimizer, mitigation, tokens, steps=1, first=2)
    assert mitigation.take_events(2, summarize=False) == [
        {"step": 2, "mitigation": "redo", "event": "reset", "touched": {"1": DEAD}}
    ]
    assert torch.equal(logits_of(model, tokens), logits)


def test_a_reset_draws_inputs_zeroes_outputs_and_moments_and_changes_nothing_else(model, tokens):
    kill(model, 0, DEAD)
    mitigation = Redo(threshold=0.0, every=3, window=2)
    optimizer = attached(mitigation, model)
    train(model, optimizer, mitigation, tokens, steps=2)
    before = copy_of(model)
    other = copy.deepcopy(model)
    other_optimizer = make_optimizer(other)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other(input_ids=tokens, labels=tokens).loss.backward()
    other_optimizer.step()
    train(model, optimizer, mitigation, tokens, steps=1, first=3)

    distribution, reset = InitialDistribution(model), {}
    units = find_structure(model).layers[0].units
    for partition in units.incoming:
        for slices in partition.slices(DEAD):
            reset[slices.name] = (slices, slices.of(distribution.draw(slices.name, seed=3, step=3)))
    for slices in units.outgoing.slices(DEAD):
        reset[slices.name] = (slices, torch.zeros_like(slices.read()))
    assert len(reset) == 3
    for (name, parameter), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        expected = expected.detach().clone()
        state, moments = (
            optimizer.state[parameter],
            copy.deepcopy(other_optimizer.state[dict(other.named_parameters())[name]]),
        )
        if name in reset:
            slices, values = reset[name]
            slices.write_(values, expected)
            for kind in ("exp_avg", "exp_avg_sq"):
                slices.zero_(moments[kind])
        assert torch.equal(parameter, expected), name
        for kind, moment in moments.items():
            assert torch.equal(state[kind], moment), (name, kind)
    assert state["step"] == 3
    assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_redo_takes_the_score_of_the_last_steps_only(model, tokens):
    mitigation = Redo(threshold=0.0, every=4, window=2)
    optimizer = attached(mitigation, model, lr=0.0)
    kill(model, 1, DEAD)
    train(model, optimizer, mitigation, tokens, steps=2)
    assert mitigation.sums is None  # steps 1 and 2 are outside the window
    train(model, optimizer, mitigation, tokens, steps=2, first=3)
    assert mitigation.take_events(4, summarize=False)[0]["touched"] == {"1": DEAD}


def test_the_score_is_that_of_the_definition(model, tokens):
    mitigation = Redo(every=1, window=1)
    attached(mitigation, model)
    hidden = {}
    for layer in mitigation.layers:
        layer.units.outgoing.module.register_forward_pre_hook(
            lambda module, args, index=layer.index: hidden.update({index: args[0].detach().double()})
        )
    model(input_ids=tokens, labels=tokens).loss.backward()
    mitigation.before_step(1)
    for layer, sums in zip(mitigation.layers, mitigation.sums):
        rows = hidden[layer.index].reshape(-1, layer.units.count)
        torch.testing.assert_close(sums, rows.abs().sum(0) / len(rows), rtol=1e-6, atol=1e-9)


def test_random_reset_resets_as_many_units_chosen_by_the_seed(model, tokens):
    chosen = []
    for seed in (3, 3, 4):
        one = copy.deepcopy(model)
        kill(one, 1, [0, 1, 2])
        mitigation = RandomReset(threshold=0.0, every=1, window=1)
        optimizer = attached(mitigation, one, seed=seed)
        train(one, optimizer, mitigation, tokens, steps=1)
        [event] = mitigation.take_events(1, summarize=False)
        chosen.append(event["touched"]["1"])
    assert all(len(set(units)) == 3 for units in chosen)
    assert chosen[0] == chosen[1] != chosen[2]


def test_mitigations_are_inactive_in_probes(model, tokens):
    mitigation = CBP(replacement_rate=0.01, rate_per="step", maturity=0)
    optimizer = attached(mitigation, model)
    train(model, optimizer, mitigation, tokens, steps=1)
    with preserve_model(model):
        for _ in range(3):
            model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(one["tokens"] == 0 for one in mitigation.activity.take())
    assert mitigation.activity.watching


def test_evaluation_is_not_observed(model, tokens):
    mitigation = CBP(rate_per="step")
    attached(mitigation, model)
    logits_of(model, tokens)
    assert all(one["tokens"] == 0 for one in mitigation.activity.take())


def test_detaching_removes_every_hook(model, tokens):
    for mitigation in (Redo(), CBP(rate_per="step"), Grama(), SNR()):
        attached(mitigation, model)
        mitigation.detach()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_cbp_with_half_a_unit_due_replaces_one_every_second_step(model, tokens):
    count = HIDDEN[model.config.model_type]
    mitigation = CBP(replacement_rate=0.5 / count, rate_per="step", maturity=0)
    optimizer = attached(mitigation, model)
    replaced = []
    for step in range(1, 7):
        # New units are eligible after one more step, so the number of eligible units stays near the whole.
        mitigation.rho = 0.5 / (mitigation.age[0] + 1 > mitigation.maturity).sum().item()
        train(model, optimizer, mitigation, tokens, steps=1, first=step)
        events = mitigation.take_events(step, summarize=True)
        replaced.append(events[0]["touched"] if events else {})
    assert replaced == [{}, {"0": 1, "1": 1}] * 3


def test_cbp_replaces_the_lowest_utility_of_the_definition(model, tokens):
    mitigation = CBP(replacement_rate=1e-9, rate_per="step", maturity=1, utility_decay=0.9)
    optimizer = attached(mitigation, model, lr=0.0)
    hidden = []
    module = mitigation.layers[1].units.outgoing.module
    module.register_forward_pre_hook(lambda module, args: hidden.append(args[0].detach().double().flatten(0, 1)))
    train(model, optimizer, mitigation, tokens, steps=2)
    weight = module.weight.double() if model.config.model_type == "gpt2" else module.weight.double().T
    contribution = weight.abs().mean(1) * hidden[0].abs().mean(0)
    expected = 0.9 * 0.1 * contribution + 0.1 * contribution
    torch.testing.assert_close(mitigation.utility[1], expected.detach(), rtol=1e-5, atol=1e-12)
    mitigation.due = [0.0, 1.0]
    train(model, optimizer, mitigation, tokens, steps=1, first=3)
    lowest = int(expected.argmin())
    assert mitigation.age[1][lowest] == 0 and (mitigation.age[1] == 0).sum() == 1
    [outgoing] = mitigation.layers[1].units.outgoing.slices([lowest])
    assert (outgoing.read() == 0).all()


def test_cbp_does_not_replace_immature_units(model, tokens):
    mitigation = CBP(replacement_rate=1.0, rate_per="step", maturity=2)
    optimizer = attached(mitigation, model)
    train(model, optimizer, mitigation, tokens, steps=2)
    assert mitigation.take_events(2, summarize=True) == []
    train(model, optimizer, mitigation, tokens, steps=1, first=3)
    count = HIDDEN[model.config.model_type]
    assert mitigation.take_events(3, summarize=True)[0]["touched"] == {"0": count, "1": count}


def test_cbp_keeps_the_mean_output_if_there_is_a_bias(tokens):
    model = tiny_model("gpt2", dropout=0.0).train()
    mitigation = CBP(replacement_rate=1e-9, rate_per="step", maturity=0)
    optimizer = attached(mitigation, model, lr=0.0)
    outputs = []
    module = mitigation.layers[0].units.outgoing.module
    module.register_forward_hook(lambda module, args, output: outputs.append(output.detach().double().mean((0, 1))))
    train(model, optimizer, mitigation, tokens, steps=1)
    mitigation.due = [10.0, 0.0]
    train(model, optimizer, mitigation, tokens, steps=1, first=2)
    logits_of(model, tokens)
    assert (mitigation.age[0] == 0).sum() == 10
    torch.testing.assert_close(outputs[-1], outputs[0], rtol=0, atol=1e-8)
    with torch.no_grad():
        module.bias.zero_()
    logits_of(model, tokens)
    assert (outputs[-1] - outputs[0]).abs().max() > 1e-6


def test_cbp_refuses_to_compensate_without_a_bias():
    model = tiny_model("llama")
    with pytest.raises(PlasticityError, match="compensate of cbp requires a bias of the down projection"):
        CBP(compensate=True, rate_per="step").attach(model, make_optimizer(model))


def test_grama_scores_are_mean_absolute_gradients(model, tokens):
    mitigation = Grama(every=1, window=1)
    attached(mitigation, model)
    gradients = {}
    for layer in mitigation.layers:

        def keep(module, args, index=layer.index):
            args[0].register_hook(lambda gradient: gradients.update({index: gradient.double()}))

        layer.units.outgoing.module.register_forward_pre_hook(keep)
    model(input_ids=tokens, labels=tokens).loss.backward()
    mitigation.before_step(1)
    for layer, sums in zip(mitigation.layers, mitigation.sums):
        rows = gradients[layer.index].reshape(-1, layer.units.count)
        torch.testing.assert_close(sums, rows.abs().mean(0), rtol=1e-5, atol=1e-12)


def test_grama_resets_units_without_gradient_once_within_the_grace(model, tokens):
    mitigation = Grama(threshold=0.0, every=1, window=1, grace=2)
    optimizer = attached(mitigation, model, lr=0.0)
    for slices in mitigation.layers[1].units.outgoing.slices(DEAD):
        slices.zero_()
    train(model, optimizer, mitigation, tokens, steps=4)
    # Outgoing weights stay 0 with a learning rate of 0, and so does the gradient.
    events = mitigation.take_events(4, summarize=False)
    assert [(event["step"], event["touched"]) for event in events] == [(1, {"1": DEAD}), (4, {"1": DEAD})]


def test_snr_resets_a_unit_that_is_silent_for_unusually_long(model, tokens):
    mitigation = SNR(rejection=0.1, max_gap=1000, patience=1)
    attached(mitigation, model)
    generator = torch.Generator().manual_seed(0)
    counts = [layer.units.count for layer in mitigation.layers]
    # Every unit fires with probability 0.5: gaps are geometric, and P(gap > 3) = 0.125, P(gap > 4) = 0.0625.
    for step in range(2000):
        fired = [(torch.rand(count, generator=generator) < 0.5).double() for count in counts]
        mitigation.observe(step, [{"fired": one, "tokens": 1} for one in fired])
    assert all((mitigation.limits(number) == 4).all() for number in range(2))
    mitigation.gap = [torch.full((count,), 4) for count in counts]
    mitigation.gap[1][DEAD] = 5
    mitigation.step_end(1)
    [event] = mitigation.take_events(1, summarize=False)
    assert event["touched"] == {"1": DEAD}
    assert (mitigation.histogram[1][DEAD] == 0).all() and (mitigation.gap[1][DEAD] == 0).all()


def test_snr_waits_for_max_gap_if_a_unit_never_fired(model):
    mitigation = SNR(max_gap=50, patience=2)
    attached(mitigation, model)
    assert (mitigation.limits(0) == 50).all()


def test_snr_distinguishes_dead_units_from_active_ones(model, tokens):
    kill(model, 0, DEAD)
    mitigation = SNR(max_gap=3, patience=1)
    optimizer = attached(mitigation, model, lr=0.0)
    train(model, optimizer, mitigation, tokens, steps=4)
    [event] = mitigation.take_events(4, summarize=False)
    assert set(DEAD) <= set(event["touched"]["0"])


def test_bins_of_gaps_are_consecutive_and_have_the_stated_ends():
    bins = [gap_bin(gap) for gap in range(1, 5000)]
    assert bins[:18] == [*range(16), 16, 16]
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(bins))
    for number in range(bins[-1]):
        assert gap_bin(longest_gap(number)) == number and gap_bin(longest_gap(number) + 1) == number + 1


def test_a_model_with_unknown_units_is_refused():
    model = BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(PlasticityError, match="redo requires the hidden units of every MLP of 'BloomForCausalLM'"):
        Redo().attach(model, make_optimizer(model))


def test_a_model_that_is_not_trained_is_refused(model):
    structure = find_structure(model)
    structure.layers[0].units.outgoing.module.weight.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with pytest.raises(PlasticityError, match="optimizer: it does not update a parameter"):
        Redo().attach(model, torch.optim.AdamW(trained))


def test_the_loss_of_a_batch_leaves_out_passes_without_a_label(model, tokens):
    nothing = torch.full_like(tokens, -100)
    measured = []
    for labels in ([tokens], [tokens, nothing], [nothing]):
        batch = BatchLoss(model)
        model.train()
        for one in labels:
            model(input_ids=tokens, labels=one)
        measured.append(batch.measure())
        batch.remove()
    assert measured[0] == measured[1] > 0 and measured[2] is None


def test_a_refused_model_keeps_no_hook():
    model = BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(PlasticityError):
        Redo().attach(model, make_optimizer(model))
    with preserve_model(model):
        pass
    assert not model._forward_pre_hooks


OTHERS = {
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters),
    "AdamW with amsgrad": lambda parameters: torch.optim.AdamW(parameters, amsgrad=True),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", [Redo, SWR])
def test_exact_moments_require_adam(model, kind, name):
    with pytest.raises(PlasticityError, match=f"exact_moments of {kind.name} requires Adam or AdamW, not {name}"):
        kind(exact_moments=True).attach(model, OTHERS[name](model.parameters()))


@pytest.mark.parametrize("kind", [Redo, SWR, FullReset, ActiveForgetting, HeadReset])
def test_an_optimizer_without_a_number_for_each_weight_is_refused_before_training(model, kind):
    with pytest.raises(PlasticityError, match=f"optim: Adafactor has no number for each weight, and {kind.name}"):
        kind().attach(model, Adafactor(model.parameters(), lr=1e-3, relative_step=False), task_steps=4)


def test_exact_moments_of_bfloat16_weights_are_finite(tokens):
    model = tiny_model("llama", dropout=0.0).train().bfloat16()
    mitigation = Redo(threshold=1.0, every=3, window=1, exact_moments=True)
    optimizer = attached(mitigation, model, lr=1e-3, betas=(0.9, 0.999))
    train(model, optimizer, mitigation, tokens, steps=5)
    assert mitigation.total > 0 and mitigation.entry_steps.tensors()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_skipped_update_does_not_end_the_correction():
    """A GradScaler skips the update after an overflow."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)

    def update():
        weight.grad = torch.ones(2)
        optimizer.step()

    for _ in range(5):
        update()
    steps = EntrySteps(optimizer)
    steps.add("weight", weight, torch.tensor([True, False]))
    steps.correct({"weight": weight})  # of no update
    assert len(steps.tensors()) == 1
    update()
    before = weight.detach().clone()
    steps.correct({"weight": weight})
    assert weight[0] != before[0] and weight[1] == before[1]


def adam_of_an_entry(gradients, lr, betas, eps):
    """The weight of one entry after AdamW without decay, in float64, with its own step count."""
    m = v = w = 0.0
    for k, g in enumerate(gradients, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        w -= lr * (m / (1 - betas[0] ** k)) / ((v / (1 - betas[1] ** k)) ** 0.5 + eps)
    return w


@pytest.mark.parametrize("exact", [False, True])
def test_with_exact_moments_reset_entries_are_updated_as_by_a_new_optimizer(model, tokens, exact):
    model.double()
    mitigation = Redo(threshold=0.0, every=30, window=1, exact_moments=exact)
    optimizer = attached(mitigation, model, lr=1e-3, betas=(0.9, 0.999))
    kill(model, 0, DEAD)
    train(model, optimizer, mitigation, tokens, steps=30)
    [slices] = mitigation.layers[0].units.outgoing.slices(DEAD)
    assert (slices.read() == 0).all()
    gradients = []
    slices.parameter.register_post_accumulate_grad_hook(lambda one: gradients.append(slices.of(one.grad).clone()))
    train(model, optimizer, mitigation, tokens, steps=3, first=31)
    found, series = slices.read(), torch.stack(gradients)
    expected = torch.zeros_like(found)
    for place in range(found.numel()):
        one = series.reshape(3, -1)[:, place].tolist()
        expected.view(-1)[place] = adam_of_an_entry(one, 1e-3, (0.9, 0.999), 1e-8)
    difference = (found - expected).abs().max().item()
    assert difference < 1e-15 if exact else difference > 1e-4
    survivors = optimizer.state[slices.parameter]["step"]
    assert survivors == 33
