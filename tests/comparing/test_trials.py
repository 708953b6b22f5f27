"""The trials of a comparison: the same number for every method, within the search space of the method."""

import dataclasses

import numpy as np
import pytest

from hf_plasticity.comparing.trials import BASELINE, Trial, trials_of, with_chosen_arguments
from hf_plasticity.mitigations import MITIGATIONS, make_mitigation
from hf_plasticity.mitigations.search import Choice, LogUniform, Steps, Uniform


def trials(method, count=5, task_steps=300):
    return trials_of(method, count, learning_rate=3e-3, weight_decay=0.1, task_steps=task_steps)


@pytest.mark.parametrize("method", [BASELINE, *MITIGATIONS])
def test_the_first_trial_is_the_configuration_with_the_defaults(method):
    assert trials(method)[0] == Trial(method, 0, 3e-3, 0.1, {})


def test_every_method_tries_the_same_learning_rates_and_weight_decays():
    pairs = {method: [(one.learning_rate, one.weight_decay) for one in trials(method)] for method in MITIGATIONS}
    pairs[BASELINE] = [(one.learning_rate, one.weight_decay) for one in trials(BASELINE)]
    assert len({str(one) for one in pairs.values()}) == 1
    rates, decays = zip(*pairs[BASELINE])
    assert len(set(rates)) == len(set(decays)) == 5
    assert all(1e-3 <= rate <= 9e-3 for rate in rates) and all(0.01 <= decay <= 1 for decay in decays)


def test_a_trial_does_not_depend_on_the_number_of_trials():
    assert trials("redo", 2) == trials("redo", 5)[:2]
    assert trials("redo")[1].arguments != trials("redo")[2].arguments != trials("grama")[2].arguments


@pytest.mark.parametrize("task_steps", [4, 300, 9537])
@pytest.mark.parametrize("method", MITIGATIONS)
def test_every_trial_is_valid(method, task_steps):
    searched = {one.name for one in dataclasses.fields(MITIGATIONS[method]) if one.metadata["search"] is not None}
    for trial in trials(method, 50, task_steps)[1:]:
        assert trial.arguments.keys() == searched
        make_mitigation(method, trial.arguments)


@pytest.mark.parametrize("method", MITIGATIONS)
def test_every_method_with_arguments_has_a_search_space(method):
    fields = dataclasses.fields(MITIGATIONS[method])
    assert not fields or any(one.metadata["search"] is not None for one in fields)


def test_draws_fill_their_ranges():
    generator = np.random.default_rng(0)

    def draws(search, task_steps=1000):
        return [search.draw(generator, task_steps) for _ in range(2000)]

    log = draws(LogUniform(0.01, 1))
    assert min(log) >= 0.01 and max(log) <= 1 and np.median(log) == pytest.approx(0.1, rel=0.2)
    even = draws(Uniform(0.2, 0.6))
    assert min(even) >= 0.2 and max(even) <= 0.6 and np.mean(even) == pytest.approx(0.4, rel=0.05)
    steps = draws(Steps(0.01, 1))
    assert min(steps) >= 10 and max(steps) <= 1000 and np.median(steps) == pytest.approx(100, rel=0.2)
    assert set(draws(Steps(0.01, 0.1, least=10), task_steps=50)) == {10}
    assert set(draws(Choice((5, 10)))) == {5, 10}


def test_a_control_shares_the_choice_of_its_method():
    chosen = trials("redo")[3]
    control = with_chosen_arguments("random_reset", chosen)
    assert control == dataclasses.replace(chosen, method="random_reset")
    assert control.name == "random_reset-trial3"
    # Compared alone, it draws the same arguments, so that its method can be added to the comparison.
    assert trials("random_reset")[3].arguments == control.arguments
