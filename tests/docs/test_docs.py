"""Every documented command and snippet works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

from hf_plasticity import cli, load_run
from hf_plasticity.data.schedule import LANGUAGES, PROBE_LANGUAGE
from hf_plasticity.deferred import parse_deferred
from hf_plasticity.experiment import parse_experiment
from hf_plasticity.ladder.command import ladder_commands, ladder_runs
from hf_plasticity.planning.study import parse_planned_study
from hf_plasticity.published import parse_suite
from hf_plasticity.trainer.training_arguments import REFUSED
from support.launch import ROOT
from support.tiny import random_blocks, tiny_model


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Commands that tests run, and which: those of this file run the command as printed, trainings with fewer steps.
RUN = {
    r"hf-plasticity (train|plan|prepare)\b": "tests/docs/test_docs.py",
    r"accelerate launch recipes/continual.py$": ".ci/run",
    r"hf-plasticity ladder --sizes": "tests/ladder/test_ladder.py",
    r"hf-plasticity report runs/mine": "tests/docs/test_docs.py",
    r"python3 -m venv|\. |pip install|ruff|mypy|pytest": ".ci/run",
}
# Commands of which only the settings are checked, and why.
NOT_RUN = {
    r"--num_processes 8|torchrun|multi_node": "needs eight processes, or several machines",
    r"--source hub|EleutherAI": "downloads text or models",
    r"\borg/": "needs an account on the Hub; tests/hub and tests/deferred do the same on loopback",
    r"probe --model runs/mine --follow|push runs/mine": "needs a run of the reader; see tests/deferred and tests/hub",
    r"report runs/(100K|ladder)": "needs runs that take hours; see tests/analysis/test_report.py",
    r"ladder --config (permuted|scaled)|hf-plasticity compare": "takes an hour; see tests/ladder and tests/comparing",
    r"recipes/(benchmark|simulate|experiments|mitigation_cost)\.py": "takes minutes to an hour, or draws figures",
    r"git worktree|tests/support/": "makes runs of two checkouts; see tests/support",
}
# fmt: off
SHORT = [
    "--size=25K", "--cycles=1", "--task_steps=2", "--warmup_steps=1", "--probe_steps=2", "--probe_eval_every=1",
    "--probe_eval_sequences=4", "--diagnostics_sequences=4", "--disable_tqdm=true", "--use_cpu",
    "--data_cache_dir=blocks",
]
# fmt: on
COMMANDS = {"continual.py": "train", "probe.py": "probe", "ladder.py": "ladder"}


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands():
    for page in PAGES:
        for block in fenced(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split("&&"):
                    if command.strip() and not command.strip().startswith("#"):
                        yield pytest.param(command.strip(), id=f"{page.name}: {command.strip()[:60]}")


@pytest.fixture
def checked(monkeypatch):
    """`hf-plasticity` with every command reduced to the check of its settings."""

    def probe(arguments):
        (parse_deferred if "--follow" in arguments else parse_suite)(arguments)

    def launch(words):
        config = Path(words[words.index("--config_file") + 1])
        assert config.is_file()
        raise SystemExit(cli.main(words[words.index("hf_plasticity") + 1 :]))

    def ladder(options):
        assert all(cli.main(words[3:]) == 0 for words in ladder_commands(ladder_runs(options), options).values())

    monkeypatch.setitem(cli.LAUNCHED, "train", lambda arguments: parse_experiment([*arguments, "--use_cpu"]))
    monkeypatch.setitem(cli.LAUNCHED, "probe", probe)
    monkeypatch.setattr(cli.os, "execv", lambda program, words: launch(words))
    monkeypatch.setattr(cli, "_ladder", ladder)
    for name in ("_plan", "_prepare"):
        monkeypatch.setattr(cli, name, lambda options: parse_planned_study(options.settings) and None)
    for name in ("_report", "_push", "_compare"):
        monkeypatch.setattr(cli, name, lambda options: None)
    return cli.main


@pytest.mark.parametrize("command", list(commands()))
def test_every_documented_command_exists(command, checked, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    scripts = [word for word in words if re.fullmatch(r"recipes/\w+\.py", word)]
    if words[0] == "hf-plasticity":
        assert checked(words[1:]) == 0, capsys.readouterr().err
    elif scripts:
        [script] = scripts
        launcher, arguments = words[: words.index(script)], words[words.index(script) + 1 :]
        assert (ROOT / script).is_file() and launcher[0] in ("python", "accelerate", "torchrun")
        if "--config_file" in launcher:
            assert (ROOT / launcher[launcher.index("--config_file") + 1]).is_file()
        if Path(script).name in COMMANDS:
            assert checked([COMMANDS[Path(script).name], *arguments]) == 0, capsys.readouterr().err
        else:
            files = [ROOT / script, ROOT / "hf_plasticity" / "benchmark" / "command.py"]
            known = "".join(file.read_text(encoding="utf-8") for file in files)
            flags = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
            assert all(f'"{flag}"' in known for flag in flags)
    elif words[0] == "python" and words[1].startswith("tests/"):
        assert (ROOT / words[1]).is_file()
    else:
        # Setup commands must be those of `.ci/run`.
        setup = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        tools = ("ruff", "mypy", "pytest", "git")
        assert words[0] in tools or set(words) <= {*shlex.split(setup, comments=True), "."}


def test_every_command_is_run_by_a_test_or_has_a_reason():
    matching = dict.fromkeys([*RUN, *NOT_RUN], 0)
    for [command] in (parameter.values for parameter in commands()):
        reasons = [pattern for pattern in NOT_RUN if re.search(pattern, command)]
        found = reasons or [pattern for pattern in RUN if re.match(pattern, command)]
        assert found, f"'{command}' is run by no test"
        for pattern in found:
            matching[pattern] += 1
    assert all(matching.values()), f"patterns without a command: {[one for one in matching if not matching[one]]}"
    assert all((ROOT / path).is_file() for path in RUN.values())


def commands_run_here():
    """Each once, without those of docs/planning.md, whose figures tests/planning checks."""
    seen = set()
    for parameter in commands():
        [command] = parameter.values
        here = re.match(next(iter(RUN)), command) and not any(re.search(pattern, command) for pattern in NOT_RUN)
        if here and command not in seen and not parameter.id.startswith("planning.md"):
            seen.add(command)
            slow = [pytest.mark.slow] if command.startswith("hf-plasticity train") else []
            yield pytest.param(command, id=parameter.id, marks=slow)


@pytest.mark.parametrize("command", list(commands_run_here()))
def test_a_command_of_the_documentation_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    for language in [*LANGUAGES, PROBE_LANGUAGE]:
        lines = [f"{language} line {number} " + "word " * (number % 20) for number in range(10_000)]
        Path("FOLDER", f"{language}.txt").write_text("\n".join(lines))
    _, *words = shlex.split(command, comments=True)
    assert cli.main([*words, *(SHORT if words[0] == "train" else [])]) == 0, capsys.readouterr().err
    if words[0] == "train":
        [report] = Path("runs").rglob("report.html")
        assert load_run(str(report.parent)).probes or "deferred" in words


def test_the_script_of_the_readme_runs_as_printed_and_its_run_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load, script = fenced(ROOT / "README.md", "python")
    assert len([line for line in script.splitlines() if line.strip()]) <= 25
    exec(compile(script, "README.md", "exec"), {})
    assert [probe["step"] for probe in load_run("runs/mine").probes] == [0, 25, 50, 75, 100]
    exec(compile(load.replace("runs/quickstart", "runs/mine"), "README.md", "exec"), {})
    assert cli.main(["report", "runs/mine"]) == 0
    assert "syn9" in Path("runs/mine/report.html").read_text(encoding="utf-8")


def test_a_custom_model_trains_on_the_schedule_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, _ = fenced(ROOT / "docs" / "study.md", "python")
    exec(compile(script, "study.md", "exec"), {})
    run = load_run("runs/llama")
    assert [probe["cycle"] for probe in run.probes] == [0, 1, 2]
    assert {entry["language"] for entry in run.training_log if "language" in entry} == {"syn1", "syn2"}
    assert "Llama" in Path("runs/llama/cycle-002/config.json").read_text(encoding="utf-8")


def test_the_snippet_about_onsets_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    _, snippet = fenced(ROOT / "docs" / "study.md", "python")
    exec(compile(snippet, "study.md", "exec"), {})
    assert capsys.readouterr().out.startswith("1.0 (0.0, 3.0) 0.001")


def test_the_snippet_about_text_runs():
    [snippet] = fenced(ROOT / "docs" / "data.md", "python")
    exec(compile(snippet, "data.md", "exec"), {})


@pytest.fixture
def names(tmp_path):
    """The names that the snippets of docs/probe.md use."""
    ids = torch.from_numpy(random_blocks(60))

    def collate(rows):
        batch = torch.stack([row for (row,) in rows])
        return {"input_ids": batch, "labels": batch}

    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=4, report_to="none", save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    model = tiny_model("llama")
    trainer = Trainer(model, args, train_dataset=TensorDataset(ids), data_collator=collate)
    blocks = {"train_blocks": random_blocks(80, seed=1), "eval_blocks": random_blocks(8, seed=2)}
    return {"model": model, "trainer": trainer, **blocks}


def test_the_snippets_about_the_probe_run(names, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    snippets = fenced(ROOT / "docs" / "probe.md", "python")
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "probe.md", "exec"), names)
    assert (tmp_path / "probes.jsonl").read_text().count("\n") == 2


def test_the_table_of_sizes_matches_the_code():
    from hf_plasticity.models import MODEL_SIZES, peak_learning_rate

    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for name, size in MODEL_SIZES.items():
        shape = f"| {name} | {size.d_model} | {size.layers} | {size.heads} | {size.num_non_embedding_parameters:,} |"
        rate = f"{peak_learning_rate(name):.2e}".replace("e-0", "e-")
        assert f"{shape} {rate} |" in text


def test_the_table_of_refused_flags_matches_the_code():
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| `(.*)` \| (.*) \|$", text, flags=re.MULTILINE)
    assert table == [(name, str(value), reason) for name, (value, reason) in REFUSED.items()]


def test_no_page_has_a_placeholder():
    for page in PAGES:
        assert not re.search(r"@[A-Z]+@|TODO|FIXME", page.read_text(encoding="utf-8")), page


def test_every_link_between_pages_has_a_target():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for path, anchor in re.findall(r"\]\(((?!\w+://)[^)#\s]*)(?:#([^)\s]*))?\)", text):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {path}"
            if anchor:
                assert anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_value_of_the_papers_configuration_has_a_source():
    study = parse_experiment(["--config", str(ROOT / "hf_plasticity" / "configs" / "paper.yaml"), "--use_cpu"])
    assert (study.training.task_steps, study.training.global_batch_tokens) == (9537, 256 * 2048)
    assert (study.training.probe_steps, study.training.probe_eval_every) == (9537, 95)
    assert study.training.probe_config(256).eval_sequences == 1280
    assert (study.data.context_length, study.model.vocab_size) == (2048, 151_680)
    assert (study.data.dataset, study.training.cycles, study.training.learning_rate) == ("culturax", 48, 3e-3)
    assert (study.training.adam_beta1, study.training.adam_beta2, study.training.weight_decay) == (0.9, 0.95, 0.1)
    text = (ROOT / "hf_plasticity" / "configs" / "paper.yaml").read_text(encoding="utf-8")
    run, machine = text.split("# Machine\n")
    own = ("source:", "streaming:")
    for line in run.splitlines():
        if re.match(r"\w+:", line) and not line.startswith(own):
            assert re.search(r"\[(paper|reconstructed|open)\]", line), line
    assert machine
