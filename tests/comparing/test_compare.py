"""`hf-plasticity compare`: interrupted, resumed and complete, and its leaderboard against the records of its runs."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.analysis.paired import percent_change
from hf_plasticity.comparing.results import divergence, read_result
from hf_plasticity.records import read_run
from support.launch import ROOT, TINY
from support.reports import make_run, text_of, write_lines


@pytest.fixture(scope="module")
def compared(compare, tmp_path_factory):
    """A comparison that was interrupted after three runs and started again."""
    folder = tmp_path_factory.mktemp("comparison")
    compare.runs.stop_after = 3
    assert compare(folder) == 130 and len(compare.runs.started) == 3
    assert not (folder / "leaderboard.json").exists()
    first, compare.runs.stop_after = list(compare.runs.started), None
    assert compare(folder) == 0
    assert not set(first) & set(compare.runs.started)  # what is complete is not run again
    return folder


def board_of(folder):
    return json.loads((folder / "leaderboard.json").read_text(encoding="utf-8"))


def auc(folder, cycle=2):
    [probe] = [probe for probe in read_run(folder).probes if probe["cycle"] == cycle]
    return probe["auc"]


def change(folder, method, own, other):
    """By hand: the change of the AUC of a trial of a method against a trial of the baseline, over the seeds."""
    pairs = [
        [
            auc(folder / "final" / f"{name}-trial{number}-seed{seed}")
            for name, number in ((method, own), ("none", other))
        ]
        for seed in (1, 2)
    ]
    return pytest.approx(percent_change([math.log(one / another) for one, another in pairs]))


def test_the_trial_with_the_lowest_auc_on_the_tuning_language_is_chosen(compared):
    rows = {row["method"]: row for row in board_of(compared)["rows"]}
    assert rows.keys() == {"none", "redo", "random_reset"}
    for method in ("redo", "none"):
        scores = [auc(compared / "tuning" / f"{method}-trial{number}-seed3") for number in (0, 1)]
        assert rows[method]["chosen"]["number"] == scores.index(min(scores)) and rows[method]["trials"] == 2
    control = rows["random_reset"]
    assert control["chosen"] == rows["redo"]["chosen"] | {"method": "random_reset"}
    assert (control["control_of"], control["trials"]) == ("redo", 0)


def test_the_leaderboard_follows_from_the_records_of_the_runs(compared):
    board = board_of(compared)
    rows = {row["method"]: row for row in board["rows"]}
    baseline = rows["none"]["chosen"]["number"]
    for method in ("redo", "random_reset"):
        row = rows[method]
        assert tuple(row["change"].values()) == change(compared, method, row["chosen"]["number"], baseline)
        assert tuple(row["with_defaults"].values()) == change(compared, method, 0, 0)
        assert row["forgetting_gap"] is not None and row["ms_per_step"] > 0 and row["state_bytes"] > 0
    assert board["smallest_corrected_p"] == 1.0
    assert len(board["entries"]) == 3


def test_final_runs_share_the_probe_on_the_reported_language_and_trials_another(compared):
    probes = [probe for run in (compared / "final").iterdir() for probe in read_run(run).probes]
    assert {probe["language"] for probe in probes} == {"syn9"} and {probe["cycle"] for probe in probes} == {0, 1, 2}
    assert len({probe["probe_config_hash"] for probe in probes}) == 1
    tuned = [probe for run in (compared / "tuning").iterdir() for probe in read_run(run).probes]
    assert {probe["language"] for probe in tuned} == {"syn8"} and {probe["cycle"] for probe in tuned} == {0, 2}


def test_the_page_and_the_terminal_show_the_same_numbers(compared, compare, capsys):
    assert compare(compared) == 0 and compare.runs.started == []
    shown, page = capsys.readouterr().out, text_of((compared / "leaderboard.html").read_text(encoding="utf-8"))
    for row in board_of(compared)["rows"]:
        assert f"{row['auc']:.2f}" in page
        assert re.search(rf"^{row['method']} .*{row['auc']:.2f}", shown, flags=re.MULTILINE)
    for sentence in (
        "No method differs significantly from the baseline.",
        "With 2 seeds and 2 methods, none can: the smallest corrected p-value is 1. At least 7 seeds are required.",
    ):
        assert sentence in page and sentence in shown
    assert "with 2 seeds, the smallest corrected p-value of 2 comparisons is 1; 7 seeds can show" in shown


def test_only_the_runs_of_an_added_method_are_made(compared, compare):
    added = ["--mitigations", "none", "redo", "random_reset", "full_reset"]
    assert compare(compared, *added) == 0
    assert compare.runs.started and all("/full_reset-" in name for name in compare.runs.started)
    assert {row["method"] for row in board_of(compared)["rows"]} == {*added[1:]}


def test_a_diverged_trial_is_not_chosen_and_other_failures_stop_the_comparison(tmp_path, compare, capsys):
    # The default learning rate of the baseline diverges, and so does trial 0 of every method.
    extreme = ["--mitigations", "none", "full_reset", "--learning_rate=1e30", "--max_grad_norm=0", "--trials", "1"]
    assert compare(tmp_path / "diverged", *extreme) == 2
    assert "mitigations: every trial of none diverged" in capsys.readouterr().err
    assert divergence(tmp_path / "diverged" / "tuning" / "none-trial0-seed3") is not None
    compare(tmp_path / "diverged", *extreme)
    assert compare.runs.started == []  # it would diverge again

    short = ["--source=local", f"--data_dir={tmp_path}", "--languages", "a", "b", "--probe_language", "c"]
    for language, lines in zip("abcd", (2000, 2000, 2000, 4)):  # too little of the language of the trials
        (tmp_path / f"{language}.txt").write_text("".join(f"{language} words {line}\n" for line in range(lines)))
    assert compare(tmp_path / "failed", *short, "--tune_probe_language", "d") == 1
    assert re.search(r"failed: .*none-trial0-seed3: hf-plasticity: error: ", capsys.readouterr().err)
    assert all(name.startswith("tuning/") for name in compare.runs.started)


def test_a_run_without_the_probe_of_the_comparison_is_an_error(tmp_path):
    folder = make_run(tmp_path / "run", parameters=10, task_steps=10)
    with pytest.raises(PlasticityError, match="has 0 probes after step 81 instead of one"):
        read_result(folder, 81)


def test_the_training_loss_is_the_mean_over_steps(tmp_path):
    # Entries of 30, 20 and 10 steps; the cycle of the comparison begins after step 30.
    folder = make_run(
        tmp_path / "run", {0: 90.0, 1: 60.0}, parameters=10, task_steps=30, provenance={"tasks_per_cycle": 1}
    )
    log = [{"step": 30, "loss": 9.0}, {"step": 50, "loss": 2.0}, {"step": 60, "loss": 5.0}]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 60, "log_history": log}))
    untrained, probe = read_run(folder).probes
    write_lines(folder / "probes.jsonl", untrained, probe | {"step": 60})
    result = read_result(folder, 60)
    assert result.training_loss == pytest.approx((20 * 2 + 10 * 5) / 30)
    assert (result.auc, result.untrained_auc) == (60.0, 90.0)


@pytest.mark.slow
def test_the_command_is_stopped_by_ctrl_c_and_resumes(tmp_path):
    command = [
        sys.executable, "-m", "hf_plasticity", "compare", f"--output_dir={tmp_path}", "--mitigations", "none", "redo",
        "--seeds", "1", "2", "--trials", "1", "--tune_probe_language", "syn8", "--jobs", "2",
        *(setting for setting in TINY if not setting.startswith("--cpu_threads")),
    ]  # fmt: skip
    how = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    deadline = time.monotonic() + 200
    while not (tmp_path / "tuning" / "none-trial0-seed3" / "probes.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command resumes" in errors
    again = subprocess.run(command, capture_output=True, timeout=400, **how)
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(list((tmp_path / "final").iterdir())) == 4 and len(board_of(tmp_path)["rows"]) == 2
