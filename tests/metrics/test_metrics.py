"""The evaluate modules: their definitions, their call shapes, and that they load and run without a network."""

import doctest
import importlib
import math
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import yaml

from hf_plasticity.errors import PlasticityError
from hf_plasticity.metrics import METRICS, load
from hf_plasticity.metrics.bits_per_byte.definition import bits_per_byte
from hf_plasticity.metrics.delta_auc.definition import delta_auc
from hf_plasticity.metrics.plasticity_onset.definition import plasticity_onset
from hf_plasticity.metrics.probe_auc.definition import probe_auc
from support.launch import ROOT


FOLDER = ROOT / "hf_plasticity" / "metrics"


@pytest.fixture(scope="module")
def modules():
    return {name: load(name) for name in METRICS}


@pytest.mark.parametrize("name", METRICS)
def test_the_examples_of_every_module_definition_and_card_are_true(name, monkeypatch):
    monkeypatch.chdir(FOLDER)
    definition = vars(importlib.import_module(f"hf_plasticity.metrics.{name}.definition"))
    failed = 0
    for file, names in ((f"{name}.py", {}), ("definition.py", dict(definition)), ("README.md", {})):
        # What closes a fence or a docstring would pass for expected output.
        text = (FOLDER / name / file).read_text(encoding="utf-8").replace("```", "").replace('"""', "")
        test = doctest.DocTestParser().get_doctest(text, names, f"{name}/{file}", file, 0)
        assert test.examples
        failed += doctest.DocTestRunner().run(test).failed
    assert failed == 0


@pytest.mark.parametrize("name", METRICS)
def test_every_module_is_laid_out_as_a_space(name):
    folder = FOLDER / name
    parts = {"plasticity_onset": {"rise.py"}, "onset_law": {"line.py"}}.get(name, set())
    assert {path.name for path in folder.iterdir() if path.is_file()} - parts == {
        "__init__.py",
        "README.md",
        "app.py",
        "definition.py",
        "requirements.txt",
        f"{name}.py",
    }
    _, front, card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and "evaluate" in front["tags"]
    headings = [line.lstrip("# ") for line in card.splitlines() if line.startswith("#")]
    for heading in (
        "Metric Description",
        "How to Use",
        "Inputs",
        "Output Values",
        "Values from Popular Papers",
        "Examples",
        "Limitations and Bias",
        "Citation",
    ):
        assert heading in headings
    for file in ("definition.py", f"{name}.py", *parts):
        assert "hf_plasticity" not in (folder / file).read_text(encoding="utf-8")


def test_probe_auc_is_the_trapezoid_area_worked_out_by_hand():
    # (6 + 4) / 2 · 2 + (4 + 1) / 2 · 4 = 10 + 10, over 6 steps.
    assert probe_auc([5, 7, 11], [6, 4, 1]) == {
        "probe_auc": 20.0,
        "mean_loss": 20 / 6,
        "start_loss": 6.0,
        "final_loss": 1.0,
    }


def test_probe_auc_takes_a_curve_a_batch_a_ragged_batch_and_points(modules):
    metric = modules["probe_auc"]
    assert metric.compute(steps=[0, 10], losses=[4, 2])["probe_auc"] == 30.0
    assert metric.compute(steps=np.array([0, 10]), losses=np.array([4.0, 2.0]))["probe_auc"] == 30.0
    assert metric.compute(steps=[[0, 10]], losses=[[4, 2]])["probe_auc"] == [30.0]
    assert metric.compute(steps=[0, 10], losses=[[4, 2], [4, 3]])["probe_auc"] == [30.0, 35.0]
    assert metric.compute(steps=[[0, 10], [0, 1, 2]], losses=[[4, 2], [1, 1, 1]])["probe_auc"] == [30.0, 2.0]
    metric.add(steps=[0, 10], losses=[4, 2])
    metric.add_batch(steps=[[0, 20]], losses=[[4, 2]])
    assert metric.compute()["probe_auc"] == [30.0, 60.0]


def test_probe_auc_from_a_step_leaves_out_the_descent_before_it(modules):
    # From step 7 on: (4 + 1) / 2 · 4 = 10 over 4 steps.
    late = {"probe_auc": 10.0, "mean_loss": 2.5, "start_loss": 4.0, "final_loss": 1.0}
    assert probe_auc([5, 7, 11], [6, 4, 1], from_step=6) == late
    assert modules["probe_auc"].compute(steps=[5, 7, 11], losses=[6, 4, 1], from_step=7) == late
    with pytest.raises(ValueError, match="from_step: 8 leaves 1 of 3 points"):
        probe_auc([5, 7, 11], [6, 4, 1], from_step=8)


def test_modules_compute_in_double_precision(modules):
    losses = [3.123456789012, 2.123456789012]
    assert modules["probe_auc"].compute(steps=[0, 9537], losses=losses) == probe_auc([0, 9537], losses)
    assert modules["delta_auc"].compute(aucs=[1.0 + 1e-12], reference=1.0)["delta_auc"][0] == pytest.approx(
        1e-10, 1e-3
    )


@pytest.mark.parametrize(
    "steps, losses, message",
    [
        ([0], [1.0], "steps: .*two points"),
        ([], [], "steps: "),
        ([0, 10, 5], [3, 2, 1], "steps: 5 comes after 10"),
        ([0, 10, 10], [3, 2, 1], "steps: 10 comes after 10"),
        ([0, 10], [3, math.nan], "losses: nan at position 1"),
        ([0, math.inf], [3, 2], "steps: inf at position 1"),
        ([0, 10, 20], [3, 2], "losses: 2 .*steps has 3"),
        ([[0, 1], [0, 1]], [[1, 2]], "losses: 1 .*steps has 2"),
    ],
)
def test_an_invalid_curve_is_reported_and_does_not_affect_the_next_call(steps, losses, message, modules):
    with pytest.raises(ValueError, match=message):
        probe_auc(steps, losses)
    with pytest.raises(ValueError, match=message):
        modules["probe_auc"].compute(steps=steps, losses=losses)
    with pytest.raises(ValueError, match=message.replace("steps", "tasks").replace("losses", "aucs").split(".*")[0]):
        modules["plasticity_onset"].compute(tasks=steps, aucs=losses)
    assert modules["probe_auc"].compute(steps=[[0, 10]], losses=[[4, 2]])["probe_auc"] == [30.0]
    assert modules["probe_auc"].compute(steps=[0, 10], losses=[4, 2])["probe_auc"] == 30.0


def test_delta_auc_is_per_cent_of_the_reference(modules):
    assert delta_auc(1100.0, 1000.0) == 10.0
    assert delta_auc([950, 1900], [1000, 2000]) == [-5.0, -5.0]
    assert modules["delta_auc"].compute(aucs=1100.0, reference=1000.0) == {"delta_auc": 10.0}
    assert modules["delta_auc"].compute(aucs=[1100.0, 950.0], reference=1000.0) == {"delta_auc": [10.0, -5.0]}
    for aucs, reference, message in (
        (1.0, 0.0, "reference: 0"),
        ([1.0, math.nan], 1.0, "aucs: nan"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "reference: 3 values"),
    ):
        with pytest.raises(ValueError, match=message):
            delta_auc(aucs, reference)


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight(modules):
    # A tokenizer of four bytes a token, each token one of 256^4: 32 bits a token.
    assert bits_per_byte(4 * math.log(256), num_tokens=10, num_bytes=40) == pytest.approx(8.0, rel=1e-15)
    result = modules["bits_per_byte"].compute(losses=[math.log(2), 0.0], num_tokens=[2, 3], num_bytes=4)
    assert result == {"bits_per_byte": [0.5, 0.0]}
    for arguments, message in (
        ((-1.0, 1, 1), "losses: -1"),
        ((1.0, 0, 1), "num_tokens: 0"),
        ((1.0, 1, -2), "num_bytes: -2"),
        ((math.inf, 1, 1), "losses: inf"),
        (([1.0, 2.0], [1, 2, 3], 1), "lengths differ"),
    ):
        with pytest.raises(ValueError, match=message):
            bits_per_byte(*arguments)


def test_plasticity_onset_takes_a_batch_with_a_reference_and_errors_for_each_curve(modules):
    tasks, aucs = [8, 16, 24], [[100.0, 90.0, 110.0], [100.0, 90.0, 110.0]]
    metric = modules["plasticity_onset"]
    crossing = metric.compute(tasks=tasks, aucs=aucs, rule="zero_crossing", reference=[100.0, 105.0])
    assert crossing["plasticity_onset"] == [20.0, 22.0]
    noisy = metric.compute(tasks=tasks, aucs=aucs, rule="statistical", stderrs=[[1.0] * 3, [10.0] * 3])
    assert noisy["plasticity_onset"] == [24.0, 24.0] and noisy["censored"] == [False, True]
    with pytest.raises(ValueError, match="is not one number"):
        plasticity_onset(tasks, aucs[0], rule="zero_crossing", reference=[100.0, 90.0, 110.0])
    for stderrs, message in (([[1.0] * 3], "1 entries"), ([1.0] * 3, "3 entries"), (1.0, "no entries")):
        with pytest.raises(ValueError, match=f"stderrs: {message}, but aucs has 2 curves"):
            plasticity_onset(tasks, aucs, rule="statistical", together=True, stderrs=stderrs)
    with pytest.raises(ValueError, match="not one standard error, zero or more, for each area"):
        plasticity_onset(tasks, aucs[0], rule="statistical", stderrs=1.0)
    with pytest.raises(ValueError, match="stderrs: missing"):
        plasticity_onset(tasks, aucs[0], rule="statistical")
    with pytest.raises(ValueError, match="rule: 'minimum' is not a rule"):
        metric.compute(tasks=tasks, aucs=aucs[0], rule="minimum")


def test_modules_load_by_path_and_combine():
    path = str(FOLDER / "delta_auc")
    assert evaluate.load(path, keep_in_memory=True).compute(aucs=[110.0], reference=100.0)["delta_auc"] == [10.0]
    combined = evaluate.combine([load("delta_auc"), load("plasticity_onset")])
    result = combined.compute(tasks=[8, 16, 24], aucs=[100.0, 90.0, 110.0], reference=100.0, rule="turning_point")
    assert result["delta_auc"] == [0.0, -10.0, 10.0] and result["plasticity_onset"] == 16.0
    combined = evaluate.combine([load("probe_auc"), load("bits_per_byte")])
    result = combined.compute(steps=[0, 10], losses=[math.log(4), math.log(2)], num_tokens=1, num_bytes=1)
    assert result["probe_auc"] == pytest.approx(15 * math.log(2)) and result["bits_per_byte"] == [2.0, 1.0]
    assert evaluate.combine([str(FOLDER / "probe_auc")]).compute(steps=[0, 1], losses=[2, 2])["probe_auc"] == 2.0


def test_an_unknown_metric_is_an_error_that_lists_the_metrics():
    with pytest.raises(PlasticityError, match=r"'auc' .*probe_auc, delta_auc, bits_per_byte, plasticity_onset"):
        load("auc")


def test_processes_compute_at_once_with_an_empty_cache_and_no_network(tmp_path):
    script = (
        "import socket\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from hf_plasticity.metrics import load\n"
        "metric = load('delta_auc')\n"
        "metric.add_batch(aucs=[110.0])\n"
        "assert metric.compute(reference=100.0) == {'delta_auc': [10.0]}\n"
    )
    environment = {"HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(FOLDER.parents[1])}
    processes = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert not list(tmp_path.rglob("*.arrow*"))


def test_definitions_do_not_require_torch_or_evaluate():
    imports = [f"import hf_plasticity.metrics.{name}.definition" for name in METRICS]
    script = "; ".join(["import sys", *imports, "assert not {'torch', 'evaluate', 'datasets'} & set(sys.modules)"])
    subprocess.run([sys.executable, "-c", script], check=True, cwd=FOLDER.parents[1])
