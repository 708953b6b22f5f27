import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from support.hub_server import OWNER_TOKEN, HubServer
from support.launch import TINY, launch


pytest.register_assert_rewrite("support.following", "support.runs", "support.trainers")

# Set before any test imports a Hugging Face library: the Hub is a local server, and the caches are deleted after the
# session.
HOME = tempfile.mkdtemp(prefix="hf-plasticity-tests-")
HUB = HubServer()
os.environ |= {"HF_HOME": HOME, "HF_ENDPOINT": HUB.url, "HF_TOKEN": OWNER_TOKEN, "HF_HUB_DISABLE_XET": "1"}
os.environ |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "true"}
os.environ.pop("HF_HUB_OFFLINE", None)
# For models this small, a second thread is slower.
os.environ["OMP_NUM_THREADS"] = "1"
CUDA_TESTS = Path(__file__).parent / "cuda"


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from the tests, which compare with numbers of a CPU, except from `pytest tests/cuda`."""
    selected = [(config.invocation_params.dir / str(argument).split("::")[0]).resolve() for argument in config.args]
    if not all(path.is_relative_to(CUDA_TESTS) for path in selected):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure() -> None:
    HUB.stop()
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """A folder with real text in the nine languages, one Parquet file each."""
    default = Path(__file__).parents[1].parent / "shared" / "corpus"
    folder = Path(os.environ.get("HF_PLASTICITY_CORPUS", default))
    if not folder.is_dir():
        pytest.skip(f"no corpus at {folder}: set HF_PLASTICITY_CORPUS to a folder with <language>.parquet files")
    return folder


@pytest.fixture
def hub():
    """The local Hub server of this session, without faults."""
    HUB.heal()
    yield HUB
    HUB.heal()


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """The name of a repository that no other test uses, because the client keeps its caches for the session."""
    return "org/" + re.sub(r"\W+", "-", request.node.name).strip("-")[-80:].lstrip("-")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A complete tiny run without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    process = launch(*TINY, f"--output_dir={folder}")
    assert process.returncode == 0, process.stderr[-3000:]
    return folder, process


@pytest.fixture(scope="session")
def inline(tmp_path_factory):
    """A tiny run with inline probes and diagnoses."""
    from support.following import train

    return train(tmp_path_factory.mktemp("runs") / "inline")


@pytest.fixture(scope="session")
def finished_deferred(tmp_path_factory):
    """The same run with deferred probes, complete."""
    from support.following import train

    return train(tmp_path_factory.mktemp("runs") / "deferred", "--probe=deferred")


@pytest.fixture
def deferred(finished_deferred, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished_deferred, tmp_path / "deferred"))
