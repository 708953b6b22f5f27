import pytest
import torch
from transformers import AutoModelForCausalLM

from support.diagnosed_families import CONFIGS, SLIDING_LAYERS, WINDOW


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=list(CONFIGS))
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family):
    return AutoModelForCausalLM.from_config(CONFIGS[family]).eval()


@pytest.fixture
def gpt2():
    return AutoModelForCausalLM.from_config(CONFIGS["gpt2"]).eval()


@pytest.fixture
def windows(family) -> list[int | None]:
    """For each layer its sliding window."""
    return [WINDOW if layer in SLIDING_LAYERS.get(family, ()) else None for layer in range(2)]
