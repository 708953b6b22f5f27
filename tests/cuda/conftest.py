import os

import pytest
import torch


# CUDA's matrix products are deterministic with a workspace of this kind, which is read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# On a machine without a GPU, `HF_PLASTICITY_CUDA_TESTS=cpu` runs these tests on the CPU.
DEVICE = os.environ.get("HF_PLASTICITY_CUDA_TESTS", "cuda")


def pytest_collection_modifyitems(items):
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.cuda)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and `pytest tests/cuda`"))


@pytest.fixture
def device():
    """The device of these tests."""
    return DEVICE


@pytest.fixture(autouse=True)
def nondeterministic_afterwards():
    """`full_determinism` holds for the rest of a process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Prepared blocks."""
    return tmp_path_factory.mktemp("blocks")
