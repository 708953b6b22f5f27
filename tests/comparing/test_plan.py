"""The runs of a comparison, and the errors that are reported before any of them starts."""

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from hf_plasticity import PlasticityError, cli
from hf_plasticity.comparing.plan import PLAN_FILE, Comparison
from hf_plasticity.comparing.trials import Trial
from hf_plasticity.experiment import parse_experiment
from support.launch import TINY


ARGUMENTS = [*TINY, "--use_cpu"]


def comparison(folder, methods=("none", "redo"), settings=ARGUMENTS, **changes):
    values = {"seeds": [1, 2], "tune_seeds": [3], "trials": 2, "tune_probe_language": "syn8", "cycle": None} | changes
    return Comparison(folder, list(methods), settings=settings, **values)


def test_all_methods_have_the_same_number_of_runs(tmp_path):
    plan = comparison(tmp_path, methods=["none", "redo", "l2_init"], tune_seeds=[3, 4], trials=3)
    counts = {}
    for run in plan.tuning_runs():
        counts[run.trial.method] = counts.get(run.trial.method, 0) + 1
    assert counts == {"none": 6, "redo": 6, "l2_init": 6}
    assert len({run.folder for run in plan.tuning_runs()}) == 18
    assert [run.folder.name for run in plan.final_runs([Trial("redo", 2, 1e-3, 0.1)])] == [
        "redo-trial2-seed1",
        "redo-trial2-seed2",
    ]


def test_a_control_is_not_tuned_if_its_method_is_compared(tmp_path):
    with_redo = comparison(tmp_path, methods=["none", "redo", "random_reset"])
    assert with_redo.tuned_methods() == ["none", "redo"] and with_redo.method_of("random_reset") == "redo"
    assert comparison(tmp_path, methods=["none", "random_reset"]).tuned_methods() == ["none", "random_reset"]


def test_trials_change_the_training_and_never_the_probe(tmp_path):
    plan = comparison(tmp_path, settings=[*ARGUMENTS, "--evaluate_forgetting", "--diagnose"])
    runs = [*plan.tuning_runs(), *plan.final_runs(plan.trials_of("redo"))]
    configs = [parse_experiment(run.settings) for run in runs]
    assert len({config.training.learning_rate for config in configs}) == 2
    assert len({config.training.weight_decay for config in configs}) == 2
    probes = {str(config.training.probe_config(4)) for config in configs}
    assert probes == {str(plan.base.training.probe_config(4))}
    assert [config.training.mitigation for config in configs[:4]] == [None, None, ["redo"], ["redo"]]
    assert configs[3].training.mitigation_args["redo"]["threshold"] == plan.trials_of("redo")[1].arguments["threshold"]


def test_trials_are_scored_on_another_language_with_other_seeds_at_the_same_step(tmp_path):
    plan = comparison(tmp_path, settings=[*ARGUMENTS, "--cycles=4", "--evaluate_forgetting"], cycle=3)
    tuning, final = plan.tuning_runs()[0], plan.final_runs(plan.trials_of("none"))[0]
    tuned, reported = parse_experiment(tuning.settings), parse_experiment(final.settings)
    assert (tuned.data.probe_language, reported.data.probe_language) == ("syn8", "syn9")
    assert tuned.data.languages == reported.data.languages == ["syn1", "syn2"]
    assert (tuned.training.seed, reported.training.seed) == (3, 1)
    # A trial stops at the cycle, and is probed there alone.
    assert (tuned.training.cycles, tuned.training.probe_period) == (3, (3, "cycles"))
    assert (reported.training.cycles, reported.training.probe_period) == (4, (1, "cycles"))
    assert plan.last_step == 3 * 2 * 4
    assert reported.training.evaluate_forgetting and not tuned.training.evaluate_forgetting


def test_a_probe_every_few_tasks_is_kept(tmp_path):
    plan = comparison(tmp_path, settings=[*ARGUMENTS, "--probe_every_tasks=1"])
    assert parse_experiment(plan.tuning_runs()[0].settings).training.probe_period == (4, "tasks")


BAD = [
    (["--mitigations", "none"], "mitigations: 'none' must have none, the baseline, and at least one method"),
    (["--mitigations", "redo"], "mitigations: 'redo' must have none"),
    (["--mitigations", "none", "reduce"], "mitigations: 'reduce' is unknown; choose from none, weight_decay"),
    (["--mitigations", "none", "redo", "redo"], "mitigations: 'none redo redo' has a duplicate"),
    (["--seeds", "1", "1"], "seeds: '1 1' has a duplicate"),
    (["--seeds", *map(str, range(21))], "seeds: 21 are more than 20"),
    (["--tune_seeds", "2"], "tune_seeds: 2 is also a seed of the final runs"),
    (["--trials", "0"], "trials: 0 is not a positive number"),
    (["--jobs", "0"], "jobs: 0 is not a positive number"),
    (["--cycle", "3"], "cycle: 3 is not between 1 and the 2 cycles"),
    (["--cycle", "1", "--probe_every_cycles", "2"], "cycle: no probe is due after cycle 1"),
    (["--tune_probe_language", "syn9"], "tune_probe_language: 'syn9' is the reported probe language"),
    (["--tune_probe_language", "syn1"], "tune_probe_language: 'syn1' is a training language"),
    (["--seed", "3"], "seed: the comparison decides it for each run; use --seeds"),
    (["--mitigation=redo"], "mitigation: the comparison decides it for each run; use --mitigations"),
    (["--no_probe"], "no_probe: the comparison decides it for each run; a comparison requires probes"),
    (["--probe=deferred"], "probe: a comparison requires inline probes"),
    (["--hub_model_id=org/x"], "hub_model_id: all runs would be uploaded to 'org/x'; leave it out"),
    (["--diagnostics_measures", "nonsense"], "diagnostics_measures: 'nonsense' is not a measure; choose from"),
    (["--learning_rte=1"], "argument '--learning_rte=1' is unknown; did you mean 'learning_rate'?"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_mistakes_are_reported_before_any_run_starts(tmp_path, arguments, message, capsys):
    folder = tmp_path / "comparison"
    words = ["--mitigations", "none", "redo", "--seeds", "1", "2", "--tune_probe_language", "syn8"]
    assert cli.main(["compare", *words, f"--output_dir={folder}", *ARGUMENTS, *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"error: {message}" in line
    assert not folder.exists()


def test_missing_text_of_the_final_runs_is_reported_before_the_trials(tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for language in ("syn1", "syn2", "syn8"):
        (corpus / f"{language}.txt").write_text("\n".join(f"{language} {number:05d}" for number in range(3000)))
    monkeypatch.setattr("hf_plasticity.comparing.stages.tune", lambda *arguments: pytest.fail("a trial has started"))
    words = ["--mitigations", "none", "redo", "--seeds", "1", "2", "--tune_probe_language", "syn8"]
    local = ["--source=local", f"--data_dir={corpus}", "--languages", "syn1", "syn2", "--probe_language=syn9"]
    folder = f"--output_dir={tmp_path / 'comparison'}"
    assert cli.main(["compare", *words, folder, *ARGUMENTS, *local]) == 2
    assert f"data_dir: '{corpus}' has no 'syn9'" in capsys.readouterr().err


def test_a_configuration_with_a_mitigation_is_refused(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("mitigation: [redo]\n")
    with pytest.raises(PlasticityError, match="mitigation: the configuration has redo; remove it"):
        comparison(tmp_path, settings=[*ARGUMENTS, f"--config={config}"])


def test_the_folder_of_another_comparison_is_refused(tmp_path):
    comparison(tmp_path).take_folder()
    comparison(tmp_path).take_folder()
    with pytest.raises(
        PlasticityError, match=r"belongs to another comparison \(seeds is \[1, 2\] there and \[1, 4\] here\)"
    ):
        comparison(tmp_path, seeds=[1, 4]).take_folder()
    with pytest.raises(PlasticityError, match="task_steps is 4 there and 8 here"):
        comparison(tmp_path, settings=[*ARGUMENTS, "--task_steps=8"]).take_folder()


def test_methods_can_be_added_to_a_comparison_but_not_removed(tmp_path):
    comparison(tmp_path, methods=["none", "redo"]).take_folder()
    comparison(tmp_path, methods=["none", "redo", "cbp"]).take_folder()
    assert json.loads((tmp_path / PLAN_FILE).read_text())["mitigations"] == ["none", "redo", "cbp"]
    with pytest.raises(PlasticityError, match="mitigations must include redo"):
        comparison(tmp_path, methods=["none", "cbp"]).take_folder()


def test_the_default_tuning_seed_is_not_a_final_seed(tmp_path, monkeypatch):
    from hf_plasticity.comparing import command

    seen = []
    monkeypatch.setattr(Comparison, "take_folder", lambda self: seen.append(self.tune_seeds) or exit(0))
    parser = ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["--mitigations", "none", "redo", "--tune_probe_language", "syn8"])
    options.settings, options.output_dir = ARGUMENTS, Path(tmp_path)
    with pytest.raises(SystemExit):
        command.run_comparison(options)
    assert seen == [[7]]
