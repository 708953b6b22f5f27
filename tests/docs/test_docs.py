"""Every command and every snippet of the documentation is one that works."""

import re
import shlex

import pytest
import torch
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

from hf_plasticity import cli
from hf_plasticity.experiment import parse_experiment
from hf_plasticity.suite import parse_suite
from support.launch import ROOT
from support.tiny import random_blocks, tiny_model


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands():
    for page in PAGES:
        for block in fenced(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split("&&"):
                    if command.strip() and not command.strip().startswith("#"):
                        yield pytest.param(command.strip(), id=f"{page.name}: {command.strip()[:60]}")


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documentation_is_one_that_exists(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    if "recipes/continual.py" in words:
        parse_experiment([*words[words.index("recipes/continual.py") + 1 :], "--use_cpu"])
    elif "recipes/probe.py" in words:
        parse_suite(words[words.index("recipes/probe.py") + 1 :])
    elif words[0] == "hf-plasticity":
        with pytest.raises(SystemExit) as caught:
            cli.main([words[1], "--help"])
        assert caught.value.code == 0
    elif "recipes" in command:
        [script] = [word for word in words if word.startswith("recipes/") and word.endswith(".py")]
        known = (ROOT / script).read_text(encoding="utf-8")
        flags = [word.split("=")[0] for word in words[words.index(script) + 1 :] if word.startswith("--")]
        assert all(f'"{flag}"' in known for flag in flags) or "parse_" in known, flags
    else:
        # Setting up: `.ci/run` does what these lines say.
        setup = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        assert words[0] in ("git", "cd", ".") or words[0] in setup, command


@pytest.fixture
def names(tmp_path):
    """What the snippets take as given."""
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
    return {"model": model, "trainer": trainer, "run_folder": str(tmp_path), **blocks}


@pytest.mark.parametrize("page", [ROOT / "docs" / "probe.md", ROOT / "README.md"], ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(page, names, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    snippets = fenced(page, "python")
    assert snippets
    for snippet in sorted(snippets, key=lambda snippet: "load_run" in snippet):
        exec(snippet, names)
    assert (tmp_path / "probes.jsonl").read_text().count("\n") == 2


def test_the_table_of_sizes_is_the_code():
    from hf_plasticity.models import MODEL_SIZES, peak_learning_rate

    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for name, size in MODEL_SIZES.items():
        shape = f"| {name} | {size.d_model} | {size.layers} | {size.heads} | {size.num_non_embedding_parameters:,} |"
        rate = f"{peak_learning_rate(name):.2e}".replace("e-0", "e-")
        assert f"{shape} {rate} |" in text


def test_every_value_of_the_papers_configuration_says_where_it_comes_from():
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
