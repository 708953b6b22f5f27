"""User errors: one line with the setting, its value and a valid alternative. Nothing is written."""

import errno

import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.cli import errors_on_one_line
from hf_plasticity.experiment import parse_experiment, run_experiment
from support.launch import TINY


FLAGS = [*TINY, "--disable_tqdm=true", "--use_cpu"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sizes 5M", "argument '--sizes' is unknown; did you mean 'size'?"),
        ("--size 6M", "size: '6M' is not a model size; choose one of 1.8K, 3.8K, 6.6K"),
        ("--cycles three", "argument --cycles: invalid int value: 'three'"),
        ("--cycles 0", "cycles: 0 is not a positive number"),
        ("--task_steps -5", "task_steps: -5 is not a positive number"),
        ("--schedule rotate", "schedule: 'rotate' is neither one of rotation, stationary, gradual nor a list"),
        ("--schedule syn1,xx", "schedule: 'syn1,xx' is neither"),
        (
            "--languages syn1 syn9",
            "probe_language: 'syn9' is also a training language; the probe language must be held out",
        ),
        ("--languages syn1 syn1", "languages: 'syn1 syn1' has a duplicate"),
        (
            "--fresh_languages --languages syn1 syn2 --probe_language syn1.2",
            "probe_language: with fresh_languages, cycle 2 trains on 'syn1.2'; the probe language must be held out",
        ),
        ("--fresh_languages --languages syn1 syn1.2", "languages: 'syn1.2' has a number after a dot"),
        ("--diagnostics_measures nonsense", "diagnostics_measures: 'nonsense' is not a measure; choose from"),
        ("--lr_scheduler_type waves", "lr_scheduler_type: 'waves' is unknown; choose one of linear"),
        ("--warmup_steps 99", "warmup_steps: 99 is not between 0 and the 80 steps"),
        ("--context_length 0", "context_length: 0 leaves no token to predict; use 2 or more"),
        ("--learning_rate -1", "learning_rate: -1.0 is not a positive number"),
        (
            "--config missing.yaml",
            "config: 'missing.yaml' is neither a file nor an installed configuration (micro, paper, permuted, "
            "quickstart, scaled)",
        ),
    ],
)
def test_an_invalid_command_line_is_refused_at_startup(flags, message):
    with pytest.raises(PlasticityError) as caught:
        parse_experiment(flags.split())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cycle: 3", "setting 'cycle' is unknown; did you mean 'cycles'?"),
        ("size: [", "is not valid YAML"),
        ("max_grad_norm: null", "max_grad_norm has no value; leave it out for its default"),
        ("- size", "is not a mapping of settings"),
        ("cycles: many", "argument --cycles: invalid int value: 'many'"),
        ("probe_adaptation: prefix", "probe_adaptation: 'prefix' is unknown"),
    ],
)
def test_an_invalid_configuration_file_is_refused_at_startup(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(PlasticityError, match=r".") as caught:
        run_experiment(parse_experiment(["--config", str(path), f"--output_dir={tmp_path / 'run'}", *FLAGS]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_lists_and_mappings_can_be_written_as_in_yaml(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "learning_rate: 1e-3\nlanguages: [en, 'no']\nlr_scheduler_type: warmup_stable_decay\nno_probe: true\n"
        "lr_scheduler_kwargs: {num_decay_steps: 5}\nsource: local\ndata_dir: text\nbf16: false\nrun_name:\n"
    )
    study = parse_experiment(["--config", str(path), "--languages", "de"])
    assert study.training.learning_rate == 1e-3 and study.training.no_probe and not study.training.bf16
    assert study.data.languages == ["de"], "a flag overrides the file"
    assert study.training.lr_scheduler_kwargs == {"num_decay_steps": 5}
    assert study.data.probe_language == "vi"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--source tape", "source: 'tape'"),
        ("--source local", "data_dir"),
        ("--source hub", "dataset"),
        ("--source local --data_dir nowhere", "data_dir: "),
        ("--vocab_size 200", "vocab_size: 200 is less than the tokenizer's 257 tokens"),
        ("--global_batch_tokens 100", "global_batch_tokens: 100 is not a multiple of context_length 32"),
        ("--tokenizer no/such", "tokenizer: "),
        ("--languages syn1 xx", "xx"),
        ("--context_length 1 --global_batch_tokens 64", "context_length: 1 leaves no token to predict"),
        ("--schedule gradual --blend 0.01", "blend: 0.01 of a task instance is less than two of its 16 sequences"),
        ("--validation_fraction 1.5", "validation_fraction: 1.5 is not between 0 and 1"),
        ("--train_tokenizer 100", "100"),
    ],
)
def test_an_invalid_study_is_refused_before_training(tmp_path, flags, message, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as caught, errors_on_one_line("continual.py"):
        run_experiment(
            parse_experiment([*FLAGS, f"--output_dir={folder}", f"--data_cache_dir={tmp_path}", *flags.split()])
        )
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and message in error
    assert error.startswith("continual.py: error: ") and "\n" not in error
    assert not list(folder.glob("c*")), "no configuration, checkpoint or cycle"


def test_a_corpus_too_small_for_the_run_is_an_error_with_both_numbers(tmp_path, capsys):
    for language, lines in (("en", 200), ("vi", 2000)):
        (tmp_path / f"{language}.txt").write_text("".join(f"{language} line {n}\n" for n in range(lines)))
    with pytest.raises(SystemExit), errors_on_one_line("continual.py"):
        run_experiment(
            parse_experiment(
                [*FLAGS, "--source=local", f"--data_dir={tmp_path}", "--languages", "en", "--cycles=1",
                 "--task_steps=99", "--global_batch_tokens=64",
                 f"--output_dir={tmp_path / 'run'}", f"--data_cache_dir={tmp_path}"]
            )
        )  # fmt: skip
    assert "languages: 'en' has " in (error := capsys.readouterr().err)
    assert "training tokens and the run requires 6,336; give it more text, shorten the run" in error


@pytest.mark.parametrize("probe", ["inline", "deferred"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe_steps=5000"], "probe_steps: 5000 steps require 20,000 training sequences and there are "),
        (["--diagnose", "--diagnostics_sequences=9999"], "diagnostics_sequences: 9999 are requested and "),
    ],
)
def test_too_little_text_of_the_probe_is_an_error_before_the_training_text_is_prepared(
    tmp_path, probe, flags, message, capsys
):
    for language in ("en", "vi"):
        (tmp_path / f"{language}.txt").write_text("".join(f"{language} line {n}\n" for n in range(3000)))
    text = ["--source=local", f"--data_dir={tmp_path}", "--languages", "en", f"--data_cache_dir={tmp_path / 'blocks'}"]
    run = [*FLAGS, *text, f"--output_dir={tmp_path / 'run'}", f"--probe={probe}", *flags]
    with pytest.raises(SystemExit), errors_on_one_line("continual.py"):
        run_experiment(parse_experiment(run))
    assert message in capsys.readouterr().err
    assert list((tmp_path / "blocks").glob("vi-*/*.bin")) and not list((tmp_path / "blocks").glob("en-*/*.bin"))


def test_a_full_disk_is_reported_on_one_line(capsys):
    with pytest.raises(SystemExit) as caught, errors_on_one_line("continual.py"):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/checkpoint-8")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "\ncontinual.py: error: runs/x/checkpoint-8: No space left on device\n"
