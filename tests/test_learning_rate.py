"""The learning rate within a task instance or a probe."""

import pytest
import torch
from transformers import get_scheduler

from hf_plasticity.errors import PlasticityError
from hf_plasticity.learning_rate import learning_rate_shape


PEAK, STEPS, WARMUP = 3e-3, 100, 10


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("constant_with_warmup", {}),
        ("linear", {}),
        ("cosine", {"num_cycles": 1}),
        ("polynomial", {"lr_end": 3e-4, "power": 2}),
        ("cosine_with_min_lr", {"min_lr": 3e-4}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_warmup_with_min_lr", {"min_lr": 3e-4}),
        ("warmup_stable_decay", {"num_decay_steps": 20, "min_lr_ratio": 0.1}),
        ("inverse_sqrt", {}),
    ],
)
def test_after_the_warmup_the_rates_are_those_of_transformers(name, arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, WARMUP, STEPS, scheduler_specific_kwargs=dict(arguments) or None)
    shape = learning_rate_shape(name, PEAK, STEPS, WARMUP, arguments)
    for step in range(STEPS):
        if step >= WARMUP:
            assert PEAK * shape(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_warmup_is_linear_and_starts_above_zero():
    shape = learning_rate_shape("cosine", PEAK, STEPS, WARMUP)
    assert [shape(step) for step in range(WARMUP)] == pytest.approx([(step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("polynomial", {"lr_end": 1e-2}, "must be smaller than initial lr"),
        ("constant", {"num_cycles": 1}, "'constant' takes none"),
        ("warmup_stable_decay", {"num_decay_steps": 5, "warmup_type": "cosine"}, "warmup_type is not supported"),
        ("cosine_warmup_with_min_lr", {"min_lr": 1e-4, "warmup_lr_rate": 0.5}, "warmup_lr_rate is not supported"),
    ],
)
def test_invalid_arguments_are_errors(name, arguments, message):
    with pytest.raises(PlasticityError, match=message):
        learning_rate_shape(name, PEAK, STEPS, WARMUP, arguments)
