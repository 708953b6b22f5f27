"""`recipes/probe.py`: the same probe for every checkpoint of a published suite."""

import gc
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

from hf_plasticity import PlasticityError, ProbeConfig, diagnose, load_run, run_probe
from hf_plasticity.cli import main
from hf_plasticity.data.blocks import Blocks
from hf_plasticity.data.sources import SyntheticSource
from hf_plasticity.data.tokenizers import byte_tokenizer, train_tokenizer
from hf_plasticity.published import parse_suite, probe_suite
from hf_plasticity.published import suite as suite_module
from hf_plasticity.published.checkpoints import find_checkpoints, training_step
from hf_plasticity.records import DamagedRecordWarning
from support.launch import FSDP2_ON_CPU, PROBE, launch
from support.suites import FAMILIES, PROBE_FLAGS, publish, save_suite


def probe(model, output, *flags):
    probe_suite(*parse_suite(["--model", str(model), f"--output_dir={output}", *PROBE_FLAGS, *flags]))
    return load_run(output)


def aucs(run):
    return {record["step"]: record["auc"] for record in run.probes}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_suite_on_the_hub_gets_the_probe_of_the_callback(hub, repo_id, tmp_path, family):
    publish(hub, repo_id, save_suite(tmp_path / "suite", family))
    run = probe(repo_id, tmp_path / "run", "--tokens_per_step=100")
    assert [(record["step"], record["tokens"]) for record in run.probes] == [(0, 0), (4, 400), (16, 1600)]
    blocks = [
        Blocks(SyntheticSource(), "syn9", split, byte_tokenizer(), 32, tmp_path / "blocks", 0.05, False)
        for split in ("train", "validation")
    ]
    config = ProbeConfig(steps=4, eval_every=2, eval_sequences=4, batch_size=4, learning_rate=1e-3)
    for step in (0, 16):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "suite" / f"step{step}")
        assert aucs(run)[step] == run_probe(model, *blocks, config, micro_batch_size=4).auc
    first, last = run.probes[1]["auc"], run.probes[2]["auc"]
    assert [record["delta_auc"] for record in run.probes] == [None, 0.0, pytest.approx(100 * (last / first - 1))]
    assert "step 16" in (tmp_path / "run" / "report.html").read_text()
    assert probe(tmp_path / "suite", tmp_path / "local").probes_frame()["losses"].tolist() == [
        record["losses"] for record in run.probes
    ], "a folder of checkpoints gives the same"


def test_recorded_checkpoints_are_not_probed_again_and_more_revisions_are_added(
    hub, repo_id, tmp_path, monkeypatch, capsys
):
    publish(hub, repo_id, save_suite(tmp_path / "suite", "gpt2"))
    loaded, load = [], suite_module.load_model
    monkeypatch.setattr(suite_module, "load_model", lambda model, name: loaded.append(name) or load(model, name))
    before = probe(repo_id, tmp_path / "run", "--revisions", "step0", "step4")
    after = probe(repo_id, tmp_path / "run", "--revisions", "step*")
    assert after.probes[:2] == before.probes and [record["step"] for record in after.probes] == [0, 4, 16]
    assert probe(repo_id, tmp_path / "run", "--revisions", "step*").probes == after.probes
    assert loaded == ["step0", "step4", "step16"]
    assert main(["push", str(tmp_path / "run")]) == 2
    assert (
        "has probes of published checkpoints; only runs of `hf-plasticity train` can be uploaded"
        in capsys.readouterr().err
    )
    with pytest.raises(PlasticityError, match=r"belongs to other probes \(probe_steps is 4 there and 5 here\)"):
        probe(repo_id, tmp_path / "run", "--probe_steps=5")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [0, 4, 16, 128]),
        (["--revisions", "step1*"], [16, 128]),
        (["--revisions", "step16", "step4", "step*4"], [4, 16]),
        (["--every=2"], [0, 16]),
        (["--every=3"], [0, 128]),
    ],
)
def test_names_patterns_and_every_choose_checkpoints(tmp_path, flags, expected):
    for step in (0, 4, 16, 128):
        (tmp_path / f"step{step}").mkdir()
        (tmp_path / f"step{step}" / "config.json").touch()
    (tmp_path / "notes-3").mkdir()
    suite, _ = parse_suite(["--model", str(tmp_path), *flags])
    assert find_checkpoints(suite) == {step: f"step{step}" for step in expected}


PLACES = {
    "step143000": 143_000, "stage1-step1000-tokens4B": 1000, "cycle-003": 3, "step_5": 5, "step-50K": 50_000,
    "1000": 1000, "main": None, "v1.0": None, "v2": None, "1.0": None,
}  # fmt: skip


@pytest.mark.parametrize(("name", "step"), PLACES.items())
def test_the_training_step_is_read_from_the_name(name, step):
    assert training_step(name) == step


def test_versions_and_main_are_no_checkpoints_by_default(hub, repo_id, tmp_path):
    publish(hub, repo_id, save_suite(tmp_path / "suite", "gpt2"))
    for name in ("v1.0", "final"):
        hub.repositories[repo_id].branches[name] = hub.repositories[repo_id].branches["main"]
    assert list(find_checkpoints(parse_suite(["--model", repo_id])[0])) == [0, 4, 16]


def test_mistakes_are_errors_on_one_line(hub, repo_id, tmp_path):
    folder = save_suite(tmp_path / "suite", "gpt2", steps=(1,))
    publish(hub, repo_id, folder)
    shutil.copytree(folder / "step1", folder / "again-1")
    shutil.copytree(folder / "step1", folder / "bin-2")
    (folder / "bin-2" / "model.safetensors").unlink()
    torch.save({}, folder / "bin-2" / "pytorch_model.bin")
    for model, flags, message in (
        (repo_id, ["--revisions", "step7"], "has no 'step7'; it has main, step1"),
        (repo_id, ["--revisions", "main"], "'main' has no number in its name; give its training step with --step"),
        ("org/none-such", [], "there is no 'org/none-such' on the Hub"),
        (folder, ["--revisions", "*1"], "'again-1' and 'step1' both have step 1; choose one of them"),
        (
            folder,
            ["--revisions", "bin-2"],
            "'bin-2' of '.*' has no safetensors, only pytorch_model.bin, which may contain code",
        ),
        (folder, ["--revisions", "step1", "--every=0"], "every: 0 is not a positive number"),
    ):
        with pytest.raises(PlasticityError, match=message) as caught:
            probe(model, tmp_path / "run", *flags)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "probes.jsonl").exists()
    with pytest.raises(PlasticityError, match=r"^model: missing; name a repository on the Hub"):
        parse_suite([])


@pytest.mark.parametrize(
    "flags",
    [["--languages", "en"], ["--streaming"], ["--train_tokenizer=300"], ["--permute_tokens"], ["--fresh_languages"]],
)
def test_settings_of_training_are_refused_and_not_offered(capsys, flags):
    name = flags[0].removeprefix("--").split("=")[0]
    with pytest.raises(PlasticityError, match=f"^{name}: it applies to training; leave it out"):
        parse_suite(["--model=org/name", *flags])
    with pytest.raises(SystemExit):
        parse_suite(["--help"])
    assert f"--{name} " not in capsys.readouterr().out


def test_missing_weights_are_an_error(tmp_path):
    folder = save_suite(tmp_path / "suite", "llama", steps=(1, 2))
    path = folder / "step2" / "model.safetensors"
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "lm_head" not in name}, path, {"format": "pt"})
    with pytest.raises(PlasticityError, match=r"step2' lacks weights that its config.* requires \(lm_head"):
        probe(folder, tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PlasticityError, match=r"step2' cannot be loaded: "):
        probe(folder, tmp_path / "run")
    assert [record["step"] for record in load_run(tmp_path / "run").probes] == [1]


def test_damaged_checkpoints_are_left_out_if_requested(tmp_path, caplog):
    folder = save_suite(tmp_path / "suite", "gpt2", steps=(1, 2, 4))
    (folder / "step1" / "model.safetensors").write_bytes(b"torn")
    with caplog.at_level("WARNING"):
        run = probe(folder, tmp_path / "run", "--skip_damaged")
    assert "'step1' was left out: model: " in caplog.text
    assert [record["step"] for record in run.probes] == [2, 4]
    assert run.probes[0]["delta_auc"] == 0 and run.probes[1]["delta_auc"] != 0, "of the first that is left"
    for name in ("step2", "step4"):
        (folder / name / "model.safetensors").write_text(name)
    with pytest.raises(PlasticityError, match=r"none of the 3 checkpoints of '.*' can be loaded"):
        probe(folder, tmp_path / "another", "--skip_damaged")


def test_checkpoints_without_a_tokenizer_or_with_different_ones_are_refused(tmp_path):
    folder = save_suite(tmp_path / "suite", "gpt2", steps=(1, 2))
    other = train_tokenizer(["another one " * 50], 260)
    other.save_pretrained(folder / "step2")
    with pytest.raises(PlasticityError, match=r"have different tokenizers \(step1, step2\); choose one with"):
        probe(folder, tmp_path / "run")
    for path in folder.glob("*/tokenizer*"):
        path.unlink()
    with pytest.raises(PlasticityError, match=r"^tokenizer: '.*step2' has no tokenizer"):
        probe(folder, tmp_path / "run")
    assert len(probe(folder, tmp_path / "run", "--tokenizer=byte").probes) == 2
    with pytest.raises(PlasticityError, match=r"output_dir: '.*' is the suite itself; choose another folder"):
        probe(folder, folder, "--tokenizer=byte")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "config.yaml").write_text("schedule: rotation\n")
    with pytest.raises(PlasticityError, match=r"output_dir: '.*' belongs to a training run"):
        probe(folder, tmp_path / "training", "--tokenizer=byte")


def test_a_context_that_a_model_does_not_have_and_text_that_has_changed_are_refused(tmp_path, monkeypatch):
    folder = save_suite(tmp_path / "suite", "gpt2", steps=(1,))
    with pytest.raises(PlasticityError, match="context_length: 64 is more than the 32 tokens of 'step1'"):
        probe(folder, tmp_path / "run", "--context_length=64")
    text = tmp_path / "text"
    text.mkdir()
    (text / "vi.txt").write_text("".join(f"dòng chữ thứ {number}\n" for number in range(4000)))
    flags = ["--source=local", f"--data_dir={text}", "--probe_language=vi"]
    probe(folder, tmp_path / "run", *flags)
    with (text / "vi.txt").open("a") as file:
        file.write("thêm\n")
    with pytest.raises(
        PlasticityError, match="was started with other text; that of 'vi', or the tokenizer, has changed"
    ):
        probe(folder, tmp_path / "run", *flags)


@pytest.mark.parametrize(
    ("launched", "message"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "mixed_precision: Accelerate was launched with bf16, and the probes are in 'no'",
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp: it requires more than one process"),
    ],
)
def test_a_launch_that_the_probes_cannot_be_computed_with_is_refused(tmp_path, monkeypatch, launched, message):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlasticityError, match=message):
        probe(save_suite(tmp_path / "suite", "gpt2", steps=(1,)), tmp_path / "run")


@pytest.mark.distributed
def test_sharding_that_accelerate_cannot_do_is_refused(tmp_path):
    suite = save_suite(tmp_path / "suite", "gpt2", steps=(1, 2))
    process = launch_probe(suite, tmp_path / "run", processes=2, ACCELERATE_USE_FSDP="true")
    assert "fsdp: not supported on MULTI_CPU; launch with" in process.stderr


def test_a_model_is_released_before_the_next_is_loaded(tmp_path, monkeypatch):
    alive, load = [], suite_module.load_model

    def watched(path):
        alive.append(
            sum(isinstance(thing, torch.nn.Module) and hasattr(thing, "lm_head") for thing in gc.get_objects())
        )
        return load(path)

    monkeypatch.setattr(suite_module, "load_model", watched)
    suite = save_suite(tmp_path / "suite", "gpt2")
    AcceleratorState._reset_state()  # it supports only one precision
    gc.collect()
    gc.disable()
    try:
        probe(suite, tmp_path / "run", "--bf16")
    finally:
        gc.enable()
        AcceleratorState._reset_state()
    assert len(alive) == 3 and len(set(alive)) == 1


def test_an_earlier_revision_that_is_added_becomes_the_reference(tmp_path):
    suite = save_suite(tmp_path / "suite", "gpt2")
    late = probe(suite, tmp_path / "run", "--revisions", "step0", "step16")
    assert [record["delta_auc"] for record in late.probes] == [None, 0.0]
    damaged = (tmp_path / "run" / "probes.jsonl").read_bytes() + b'{"step": 7\n'
    (tmp_path / "run" / "probes.jsonl").write_bytes(damaged)
    with pytest.warns(DamagedRecordWarning):
        run = probe(suite, tmp_path / "run", "--revisions", "step*")
        assert run.probes == load_run(tmp_path / "run").probes
    first, last = (aucs(run)[step] for step in (4, 16))
    assert [record["delta_auc"] for record in run.probes] == [None, 0.0, pytest.approx(100 * (last / first - 1))]
    assert [
        line for line in (tmp_path / "run" / "probes.jsonl").read_bytes().splitlines() if b'"auc"' not in line
    ] == [b'{"step": 7']


def test_a_checkpoint_never_takes_the_place_of_a_recorded_one(tmp_path):
    suite = save_suite(tmp_path / "suite", "gpt2")
    for name, new in (("step0", "stage1-step0"), ("step4", "stage1-step4"), ("step16", "stage2-step4")):
        (suite / name).rename(suite / new)
    before = probe(suite, tmp_path / "run", "--revisions", "stage1*").probes
    with pytest.raises(PlasticityError, match=r"'stage2-step4' has the step 4, as which '.*' has 'stage1-step4'"):
        probe(suite, tmp_path / "run", "--revisions", "stage2*")
    probe(suite / "stage2-step4", tmp_path / "single", "--step=4")
    with pytest.raises(PlasticityError, match=r"^step: 'stage2-step4' has the step 8 now, and 4 in"):
        probe(suite / "stage2-step4", tmp_path / "single", "--step=8")
    assert load_run(tmp_path / "run").probes == before and len(load_run(tmp_path / "single").probes) == 1


def test_checkpoints_are_diagnosed_if_requested(tmp_path):
    suite = save_suite(tmp_path / "suite", "neox")
    flags = ["--diagnose", "--diagnostics_sequences=4"]
    before = probe(suite, tmp_path / "run", "--revisions", "step0", "step4")
    assert before.diagnostics == []
    run = probe(suite, tmp_path / "run", *flags)
    assert run.probes[:2] == before.probes, "and are not probed again"
    blocks = Blocks(SyntheticSource(), "syn9", "validation", byte_tokenizer(), 32, tmp_path / "b", 0.05, False)
    untrained, model = (AutoModelForCausalLM.from_pretrained(suite / f"step{step}") for step in (0, 16))
    expected = diagnose(model, blocks[range(4)], reference=dict(untrained.named_parameters()))
    assert [record["step"] for record in run.diagnostics] == [0, 4, 16]
    assert run.diagnostics[2]["measures"] == expected.record(16)["measures"]
    assert run.diagnostics[0]["measures"]["distance_from_initialization"]["overall"] == 0
    assert run.diagnostics[2]["measures"]["distance_from_initialization"]["overall"] > 0
    assert probe(suite, tmp_path / "run", *flags).diagnostics == run.diagnostics
    alone = probe(suite, tmp_path / "alone", *flags, "--revisions", "step16")
    assert "distance_from_initialization" not in alone.diagnostics[0]["measures"], "no untrained model, no distance"


def test_checkpoints_with_each_others_weights_are_refused_before_anything_is_probed(hub, repo_id, tmp_path):
    suite = save_suite(tmp_path / "suite", "gpt2", steps=(0, 4, 16))
    shutil.copyfile(suite / "step16" / "model.safetensors", suite / "step0" / "model.safetensors")
    publish(hub, repo_id, suite)
    hub.requests.clear()
    for model in (suite, repo_id):
        with pytest.raises(PlasticityError, match=r"2 checkpoints of .* have the same weights \(step0, step16\)"):
            probe(model, tmp_path / "run")
    assert not any("/resolve/" in request for request in hub.requests), "nothing is downloaded for it"
    for number, model in enumerate((suite, repo_id)):  # also one after the other
        probe(model, tmp_path / f"one{number}", "--revisions", "step0")
        with pytest.raises(PlasticityError, match=r"2 checkpoints of .* have the same weights \(step0, step16\)"):
            probe(model, tmp_path / f"one{number}", "--revisions", "step16")
    suite_with_a_name = save_suite(tmp_path / "named", "gpt2", steps=(0, 4))
    shutil.copytree(suite_with_a_name / "step4", suite_with_a_name / "final")
    probe(suite_with_a_name, tmp_path / "named-run", "--revisions", "step4")
    with pytest.raises(PlasticityError, match=r"2 checkpoints of .* have the same weights \(step4, final\)"):
        probe(suite_with_a_name, tmp_path / "named-run", "--revisions", "final", "--step", "8")
    run = probe(repo_id, tmp_path / "run", "--allow_duplicates")
    assert aucs(run)[0] == aucs(run)[16] != aucs(run)[4]
    assert len(probe(suite, tmp_path / "other", "--revisions", "step4", "step16").probes) == 2


@pytest.mark.parametrize("flags", [["--probe_adaptation=lora", "--probe_lora_rank=2"], ["--bf16"]])
def test_the_probe_may_be_a_lora_or_in_mixed_precision(tmp_path, flags):
    suite = save_suite(tmp_path / "suite", "llama", steps=(0, 4))
    results = []
    for name in ("one", "two"):
        process = launch_probe(suite, tmp_path / name, *flags, direct=True)
        assert process.returncode == 0, process.stderr[-3000:]
        results.append(aucs(load_run(tmp_path / name)))
    assert results[0] == results[1]
    full = probe(suite, tmp_path / "full")
    assert all(results[0][step] != auc for step, auc in aucs(full).items())
    assert np.allclose(list(results[0].values()), list(aucs(full).values()), rtol=0.2)


def launch_probe(suite, output, *flags, script=PROBE, before=(), **how):
    return launch(*before, "--model", suite, f"--output_dir={output}", *PROBE_FLAGS, *flags, script=script, **how)


@pytest.mark.distributed
def test_processes_that_share_the_checkpoints_have_the_results_of_one(tmp_path):
    suite = save_suite(tmp_path / "suite", "llama")
    flags = ["--diagnose", "--diagnostics_sequences=4"]
    alone = probe(suite, tmp_path / "alone", *flags)
    process = launch_probe(suite, tmp_path / "two", *flags, processes=2)
    assert process.returncode == 0, process.stderr[-3000:]
    two = load_run(tmp_path / "two")
    for mine, its in zip([*two.probes, *two.diagnostics], [*alone.probes, *alone.diagnostics], strict=True):
        assert mine | {"seconds": 0} == its | {"seconds": 0}
    assert process.stdout.count("ΔAUC") == 1, "one table"


@pytest.mark.distributed
def test_an_error_of_one_process_ends_all_with_one_line(tmp_path):
    suite = save_suite(tmp_path / "suite", "llama")
    (suite / "step4" / "config.json").write_text('{"model_type": "none-such"}')
    process = launch_probe(suite, tmp_path / "two", processes=2)
    assert process.returncode != 0
    [line] = set(re.findall(r"^probe\.py: (.*)$", process.stderr, flags=re.MULTILINE))
    assert re.match(r"error: model: '.*step4' cannot be loaded: ", line)
    assert [record["step"] for record in load_run(tmp_path / "two").probes] == [0], "the results of the other are kept"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["share the batch", "shard the model"])
def test_processes_that_share_a_batch_have_nearly_the_same_results(tmp_path, how):
    suite = save_suite(tmp_path / "suite", "llama", steps=(0, 4))
    flags = ["--diagnose", "--diagnostics_sequences=4"]
    alone = probe(suite, tmp_path / "alone", *flags)
    if how == "share the batch":
        process = launch_probe(suite, tmp_path / "two", *flags, "--share=batch", processes=2)
    else:
        wrapper = {"script": FSDP2_ON_CPU, "before": [PROBE]}
        process = launch_probe(suite, tmp_path / "two", *flags, processes=2, **wrapper)
    assert process.returncode == 0, process.stderr[-3000:]
    two = load_run(tmp_path / "two")
    assert np.allclose(list(aucs(two).values()), list(aucs(alone).values()), rtol=1e-5)
    for mine, its in zip(two.diagnostics, alone.diagnostics, strict=True):
        for name, measure in its["measures"].items():
            assert mine["measures"][name]["overall"] == pytest.approx(measure["overall"], rel=1e-4, abs=1e-6), name
    if how == "shard the model":
        refused = launch_probe(suite, tmp_path / "three", "--share=checkpoints", processes=2, **wrapper)
        assert "share: 'checkpoints' is not supported with FSDP; choose 'batch'" in refused.stderr
