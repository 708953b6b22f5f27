"""The command line: what its help shows, and how flags are spelled."""

import subprocess
import sys

import pytest

from hf_plasticity import __version__
from hf_plasticity.cli import main
from hf_plasticity.deferred import parse_deferred
from hf_plasticity.experiment import parse_experiment
from hf_plasticity.experiment.config import ExperimentConfig
from hf_plasticity.published import parse_suite
from hf_plasticity.trainer.training_arguments import REFUSED


def flags_in(text):
    """The flags that begin a line of a help text, in order."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("  --")]


def test_help_shows_the_settings_of_this_package_by_group_and_those_of_transformers_on_request(capsys):
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["train", "--help_all"]) == 0
    full = capsys.readouterr().out
    groups = [line.rstrip(":") for line in full.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups[-1] == "settings of Transformers" and "the probe" in groups and len(groups) > 4
    assert f"\n{groups[-1]}:" not in short and len(short.splitlines()) < 150
    ours, all_of_them = flags_in(short), flags_in(full)
    assert all_of_them[: len(ours)] == ours and {"--size", "--schedule", "--probe_steps"} <= set(ours)
    assert {"--seed", "--output_dir"} <= set(ours), "settings of Transformers that every run needs"
    assert "Run folder; runs/<size>-<schedule>-<source>-seed<seed> by default." in short
    assert short.startswith("usage: hf-plasticity train ")
    assert "Length of the run in cycles. (default: 3)" in short
    of_transformers = set(all_of_them) - set(ours)
    assert {"--adam_epsilon", "--dataloader_num_workers", "--ddp_timeout"} <= of_transformers
    assert not {f"--{name}" for name in REFUSED} & set(all_of_them), "what is refused is not offered"


def test_the_version_is_told_and_the_package_is_a_command(capsys):
    assert main(["--version"]) == 0
    told = capsys.readouterr().out
    assert told.strip() == f"hf-plasticity {__version__}"
    process = subprocess.run([sys.executable, "-m", "hf_plasticity", "--version"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, told)


def disable_tqdm_of(parsed):
    return parsed.training.disable_tqdm if isinstance(parsed, ExperimentConfig) else parsed.disable_tqdm


@pytest.mark.parametrize(
    "parse",
    [
        parse_experiment,
        lambda flags: parse_suite(["--model=org/name", *flags])[0],
        lambda flags: parse_deferred(["--model=run", "--follow", *flags]),
    ],
)
def test_a_flag_without_a_value_is_true(parse):
    assert disable_tqdm_of(parse(["--disable_tqdm"])) is True
    assert disable_tqdm_of(parse(["--disable_tqdm=false"])) is False
    assert disable_tqdm_of(parse(["--disable_tqdm", "true"])) is True
