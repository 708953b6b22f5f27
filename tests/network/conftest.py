import pytest
import torch

from support.families import CONFIGS, VOCABULARY, make_model


@pytest.fixture(params=list(CONFIGS))
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family):
    return make_model(family)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
