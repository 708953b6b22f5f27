"""`accelerate launch recipes/continual.py`."""

import re

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_plasticity.experiment import parse_experiment, run_experiment
from hf_plasticity.records import read_records, read_run
from support.launch import TINY, error_line, launch, launch_killed
from support.runs import assert_same_run


def test_a_run_ends_with_a_table_and_the_path_of_its_report(finished):
    folder, process = finished
    lines = process.stdout.rstrip().split("\n")
    [start] = [number for number, line in enumerate(lines) if line.split()[:2] == ["cycle", "tokens"]]
    header, untrained, first, second = lines[start : start + 4]
    *_, place, report, following = lines
    words = " ".join(lines[start + 4 : -3])
    assert "No onset of plasticity loss can be stated: 2 probes of 1 seed are too few" in words
    assert re.search(r"After cycle 2, the AUC on syn\d is [\d.]+% (below|above) that of the untrained model", words)
    assert re.search(r"the AUC was lowest (after cycle \d|at the last probe) \(", words)
    assert following.startswith("next        hf-plasticity train --config micro --source local")
    assert header.split() == ["cycle", "tokens", "start", "loss", "final", "loss", "AUC", "ΔAUC"]
    records = read_records(folder / "probes.jsonl")
    for line, record in zip((untrained, first, second), records):
        cycle, tokens, start, final, auc, *delta = line.split()
        assert (int(cycle), int(tokens.replace(",", ""))) == (record["cycle"], record["tokens"])
        assert (float(start), float(final)) == (round(record["start_loss"], 4), round(record["final_loss"], 4))
        assert float(auc) == round(record["auc"], 2)
        assert delta == ([] if record["delta_auc"] is None else [f"{record['delta_auc']:+.2f}%"])
    assert place.split() == ["run", "folder", str(folder)]
    assert report.split() == ["report", str(folder / "report.html")]
    assert (folder / "report.html").read_text().startswith("<!")


def test_bars_show_the_run_the_task_with_its_language_and_the_probe_with_its_loss(tmp_path, capfd):
    run_experiment(parse_experiment([*TINY, "--use_cpu", "--disable_tqdm=false", f"--output_dir={tmp_path}"]))
    shown = capfd.readouterr().err
    assert re.search(r"run: +\d+%", shown)
    assert re.search(r"cycle 1, task 2: syn2", shown)
    assert re.search(r"probe syn9 \(cycle 2\): .*loss=\d\.\d+", shown)


def test_progress_is_printed_as_lines_without_a_terminal(finished):
    folder, process = finished
    first, *lines = process.stdout.split("\n")
    assert first == f"'{folder}' starts (1 process on cpu, 1 thread each)"
    assert re.fullmatch(r"step 0/16  probe: AUC \d+\.\d\d", lines[0])
    assert re.fullmatch(r"step 3/16  cycle 1, task 1 \(syn1\)  loss \d\.\d{4}  left \d:\d\d:\d\d", lines[1])
    assert "%|" not in process.stderr


def test_synthetic_languages_never_have_the_name_of_a_real_language(finished):
    assert {record["language"] for record in read_records(finished[0] / "probes.jsonl")} == {"syn9"}


def test_the_same_command_on_a_complete_run_reports_it_and_writes_nothing(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    process = launch(*TINY, f"--output_dir={folder}")
    assert process.returncode == 0 and "is complete. To extend the run, increase --cycles." in process.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_the_resolved_configuration_gives_the_same_run(finished, tmp_path):
    folder, _ = finished
    process = launch("--config", folder / "config.yaml", f"--output_dir={tmp_path / 'again'}")
    assert process.returncode == 0, process.stderr[-3000:]
    assert_same_run(folder, tmp_path / "again")
    one, other = (yaml.safe_load((path / "config.yaml").read_text()) for path in (folder, tmp_path / "again"))
    assert one.pop("output_dir") != other.pop("output_dir") and one == other


def test_a_probed_checkpoint_loads_without_this_package(finished):
    folder = finished[0] / "cycle-002"
    assert AutoModelForCausalLM.from_pretrained(folder).config.n_embd == 32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("xin chào")["input_ids"]) == "xin chào"


def test_a_killed_run_resumes_with_the_same_command_and_the_same_results(finished, tmp_path):
    launch_killed("task:11", *TINY, f"--output_dir={tmp_path}")
    process = launch(*TINY, f"--output_dir={tmp_path}")
    assert process.returncode == 0, process.stderr[-3000:]
    first, *_ = process.stdout.split("\n")
    assert first == f"'{tmp_path}' resumes from checkpoint-8 (1 process on cpu, 1 thread each)"
    # A checkpoint has the tied output head as the embedding, and Transformers calls it missing.
    assert "missing" not in process.stdout + process.stderr and "lm_head" not in process.stdout + process.stderr
    assert_same_run(finished[0], tmp_path)


def test_a_folder_of_another_run_is_refused_and_not_changed(finished):
    folder, _ = finished
    before = (folder / "config.yaml").read_bytes()
    process = launch(*TINY, f"--output_dir={folder}", "--seed=1", "--probe_steps=5", options=["-q"])
    assert process.returncode != 0 and (folder / "config.yaml").read_bytes() == before
    assert error_line(process) == (
        f"output_dir: '{folder}' belongs to another run (seed is 42 there and 1 here; probe_steps is 4 there and 5 "
        "here); choose another folder"
    )
    assert "Traceback" not in process.stderr


def test_real_text_with_a_trained_tokenizer(corpus_dir, tmp_path):
    process = launch(
        "--config", "micro", "--data_dir", corpus_dir, "--output_dir", tmp_path,
        "--train_tokenizer=1024", "--probe_repeats=1", "--evaluate_forgetting=false", "--size=25K", "--cycles=1",
        "--task_steps=2", "--warmup_steps=1", "--global_batch_tokens=512", "--probe_steps=2",
        "--probe_eval_sequences=4",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    run = read_run(tmp_path)
    assert [record["language"] for record in run.probes] == ["vi", "vi"]
    languages = [entry["language"] for entry in run.training_log if "loss" in entry]
    assert list(dict.fromkeys(languages)) == ["en", "zh", "fr", "ja", "es", "de", "pt", "ru"]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "cycle-001")) == 1024
    # An untrained model predicts uniformly: ln 1024 nats a token.
    assert run.probes[0]["start_loss"] == pytest.approx(6.93, abs=0.05)
