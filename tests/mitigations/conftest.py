import pytest
import torch

from support.tiny import random_blocks, tiny_model


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    """A plain model, and a gated one with grouped-query attention; without dropout, in training mode."""
    return tiny_model(request.param, dropout=0.0).train()


@pytest.fixture
def tokens():
    return torch.from_numpy(random_blocks(4, seed=5))
