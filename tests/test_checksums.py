"""A probed model whose bytes have changed is never probed, loaded or uploaded."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_plasticity import PlasticityError, load_probe_checkpoint
from hf_plasticity.cli import main
from hf_plasticity.records import COMPLETE_FILE
from support.following import FOLLOW, follow, train
from support.runs import weights


def zero_bytes(path):
    """Some weights in the middle of the file, which stays a valid one of the same size."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    assert any(data[middle : middle + 64])
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    load_file(path)


@pytest.fixture
def damaged(deferred):
    """A finished run of which nothing is probed yet, with zeroed weights in its second checkpoint."""
    zero_bytes(deferred / "cycle-001" / "model.safetensors")
    return deferred


def test_a_deferred_probe_of_it_is_an_error_on_one_line(damaged, capsys):
    with pytest.raises(PlasticityError) as caught:
        follow(damaged)
    assert str(caught.value) == (
        f"model: '{damaged / 'cycle-001'}' is damaged: model.safetensors has another checksum; restore it from a "
        "backup, or delete it"
    )
    assert main(["probe", "--model", str(damaged), *FOLLOW]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(str(caught.value))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_probe_of_it_as_a_published_checkpoint_is_an_error(deferred, tmp_path, capsys, name):
    path = deferred / "cycle-001" / name
    if name == "config.json":
        path.write_text(path.read_text().replace('"layer_norm_epsilon": 1e-05', '"layer_norm_epsilon": 1e-01'))
    else:
        zero_bytes(path)
    arguments = [
        f"--model={deferred}", "--revisions=cycle-001", f"--output_dir={tmp_path / 'probes'}", "--source=synthetic",
        f"--data_cache_dir={tmp_path / 'blocks'}", "--probe_steps=2", "--probe_eval_sequences=2",
        "--context_length=32", "--use_cpu", "--disable_tqdm=true", "--probe_batch_size=2",
    ]  # fmt: skip
    assert main(["probe", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert f"cycle-001' is damaged: {name} has another checksum" in error[-1]
    assert not (tmp_path / "probes" / "probes.jsonl").exists()


def test_an_upload_of_it_is_an_error_on_one_line(damaged, hub, repo_id, capsys):
    assert main(["push", str(damaged), f"--hub_model_id={repo_id}"]) == 2
    error = capsys.readouterr().err.strip()
    assert f"'{damaged / 'cycle-001'}' is damaged: model.safetensors has another checksum" in error
    assert len(error.splitlines()) == 1
    assert "cycle-001" not in hub.repositories[repo_id].branches
    shutil.rmtree(damaged / "cycle-001")
    zero_bytes(damaged / "cycle-002" / "model.safetensors")
    assert main(["push", str(damaged), f"--hub_model_id={repo_id}"]) == 2
    assert "model.safetensors" not in hub.files(repo_id), "the final model"


def test_it_cannot_be_loaded_as_a_model(damaged):
    with pytest.raises(PlasticityError, match=r"cycle-001' is damaged: model\.safetensors has another checksum"):
        load_probe_checkpoint(damaged, 1)
    load_probe_checkpoint(damaged, 2)


def test_a_run_that_resumes_at_its_step_saves_it_again(inline, tmp_path):
    folder = tmp_path / "run"
    train(folder, "--cycles=1")
    zero_bytes(folder / "cycle-001" / "model.safetensors")
    train(folder)
    assert_close(weights(folder), weights(inline), rtol=0, atol=0)
    record = json.loads((folder / "cycle-001" / "probe.json").read_text())
    assert record["cycle"] == 1


def test_models_of_earlier_versions_have_no_checksums_and_load(deferred):
    (deferred / "cycle-001" / COMPLETE_FILE).unlink()
    load_probe_checkpoint(deferred, 1)
    follow(deferred)
