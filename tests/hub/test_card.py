"""The model card of a run: its complete text, and the metadata that the Hub reads."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import hf_plasticity.hub
from hf_plasticity.hub.card import render_card
from hf_plasticity.hub.contents import public
from hf_plasticity.records import RunRecord
from support.launch import ROOT
from support.study_config import CONFIG


def probe(cycle, auc, **changes):
    return {
        "cycle": cycle,
        "task": 2 * cycle,
        "step": 19074 * cycle,
        "tokens": 19074 * cycle * 524288,
        "language": "vi",
        "adaptation": "full",
        "probe_steps": [0, 9537],
        "losses": [11.5, 3.25],
        "auc": auc,
        "start_loss": 11.5,
        "final_loss": 3.25,
        "bits_per_byte": 1.234567,
        "probe_config_hash": "abc",
    } | changes


def make_run(probes, **settings):
    return RunRecord("plasticity-5m", Path("nowhere"), CONFIG | settings, probes, task_steps=9537, tasks_per_cycle=2)


# ΔAUC by hand: 34,300 is 2% below the 35,000 of cycle 1, 35,875 is 2.5% above.
PROBES = [probe(0, 40000.0), probe(1, 35000.0), probe(2, 34300.0), probe(3, 35875.0)]
GOLDEN = """\
---
datasets:
- uonlp/CulturaX
language:
- en
- zh
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
tags:
- hf-plasticity
- plasticity
- continual-learning
- research
- arxiv:2606.24752
model-index:
- name: plasticity-5m
  results:
  - task:
      type: text-generation
      name: Adaptation to Vietnamese after cycle 3
    dataset:
      name: Vietnamese, held out
      type: uonlp/CulturaX
    metrics:
    - type: probe_auc
      value: 35875.0
      name: Area under the probe's loss curve
    - type: delta_auc
      value: 2.5
      name: ΔAUC (%)
    - type: bits_per_byte
      value: 1.2346
      name: Bits per byte at the end of the probe
---

# plasticity-5m

5M model with 4,932,480 non-embedding parameters, trained on 2 languages in rotation. Probed 4 times on Vietnamese, last after cycle 3 (30B tokens). After cycle 3, the AUC on Vietnamese is 10.3% below that of the untrained model and 2.5% above that after cycle 1 (with fewer than 8 probes, the noise is not known). No onset of plasticity loss can be stated: 3 probes of 1 seed are too few: the test for a rise requires 8 probes of one seed, or 3 of each of several. Of the probes of the trained model, the AUC was lowest after cycle 2 (34,300).

This repository has one run of a study of **loss of plasticity**: does a language model that has been trained for a long
time learn a new language more slowly than it once did? The model was trained from random weights.
At fixed points, a copy of the model is trained on a held-out language, and then discarded. The measurement is how fast
its validation loss falls.

## How to load it

The final model is on `main`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("org/plasticity-5m")
tokenizer = AutoTokenizer.from_pretrained("org/plasticity-5m")
```

Each probed model has its own branch (`cycle-000` is the untrained model):

```python
model = AutoModelForCausalLM.from_pretrained("org/plasticity-5m", revision="cycle-003")
```

Revisions (also in `revisions.txt`): `cycle-000`, `cycle-001`, `cycle-002`, `cycle-003`.

The records of the run load with [`hf-plasticity`](https://github.com/hf-plasticity/hf-plasticity) or with `datasets`:

```python
from hf_plasticity import load_run

run = load_run("org/plasticity-5m")
run.probes_frame()
```

```python
from datasets import load_dataset

load_dataset("parquet", data_files="hf://org/plasticity-5m/records/probes.parquet")
```

## Results

Probes on Vietnamese (full adaptation). AUC is the area under the probe's validation-loss
curve over its steps, in nats × steps. Lower is faster learning. ΔAUC is the change relative to the first probe of a
trained model. It rises when plasticity is lost.

| After | Tokens | Start loss | Final loss | AUC | ΔAUC | Bits per byte |
|---|---|---|---|---|---|---|
| cycle 0 (untrained) | 0 | 11.500 | 3.250 | 40,000 | – | 1.235 |
| cycle 1 | 10B | 11.500 | 3.250 | 35,000 | reference | 1.235 |
| cycle 2 | 20B | 11.500 | 3.250 | 34,300 | −2.00% | 1.235 |
| cycle 3 | 30B | 11.500 | 3.250 | 35,875 | +2.50% | 1.235 |

![ΔAUC over training](delta_auc.png)

## How it was trained

| | |
|---|---|
| Model | GPT-2-style decoder, 5M: 4,932,480 non-embedding parameters, context 2,048 tokens |
| Text | [uonlp/CulturaX](https://huggingface.co/datasets/uonlp/CulturaX) |
| Training languages, in order | English, Chinese |
| Probe language, held out | Vietnamese |
| Tokenizer | `Qwen/Qwen3-0.6B` |
| Schedule | rotation, 3 cycles of 2 task instances |
| Task instance | 9,537 steps of 524,288 tokens, starting with a fresh optimizer state |
| Optimizer | AdamW with β = (0.9, 0.95), peak learning rate 0.003, weight decay 0.1 |
| Learning rate | `cosine` with 100 warmup steps, in every task instance |
| Probe | 9,537 steps, peak learning rate 0.003, loss on 1,280 validation sequences every 95 steps |
| Repeated text | none: every task instance has fresh text |
| Seed | 1 |
| Hardware | 8 x NVIDIA H100 80GB HBM3, bf16 |
| Software | hf-plasticity 0.1.0, torch 2.13.0 |

`config.yaml` has every setting. `hf-plasticity train --config config.yaml` repeats the run.

## Limitations

These checkpoints are for research on how networks learn. They are not models for use: they are small, not instruction
tuned and not aligned, and their output can be wrong, biased or offensive. Learning curves depend on the settings of the
probe, so compare AUCs only between probes with equal settings.

## Citation

This run was made with [hf-plasticity](https://github.com/hf-plasticity/hf-plasticity) (cite it as in its `CITATION.cff`).
It follows this study:

```bibtex
@article{hernandezgarcia2026plasticity,
  title   = {Can Scale Save Us From Plasticity Loss in Large Language Models?},
  author  = {Hernandez-Garcia and Figliolia and Millidge},
  journal = {arXiv preprint arXiv:2606.24752},
  year    = {2026},
  url     = {https://arxiv.org/abs/2606.24752}
}
```

## License

Apache 2.0.
"""  # noqa: E501


def test_the_card_of_a_finished_run():
    branches = ["cycle-000", "cycle-001", "cycle-002", "cycle-003"]
    assert (
        render_card(make_run(PROBES), "org/plasticity-5m", branches, finished=True, has_model=True, figure=True)
        == GOLDEN
    )


def test_the_hub_reads_the_results_from_the_card():
    data = ModelCard(GOLDEN).data
    assert (data.language, data.license, data.library_name) == (["en", "zh"], "apache-2.0", "transformers")
    assert (data.pipeline_tag, data.datasets, data.base_model) == ("text-generation", ["uonlp/CulturaX"], None)
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "probe_auc": 35875.0,
        "delta_auc": 2.5,
        "bits_per_byte": 1.2346,
    }
    assert {result.dataset_type for result in results.values()} == {"uonlp/CulturaX"}
    assert data.model_name == "plasticity-5m"


def test_the_card_of_an_unfinished_run_states_its_progress():
    card = render_card(make_run([]), "org/name", [], finished=False, has_model=False, figure=False)
    assert "The run is in progress. `main` will have its final model." in card
    assert "No probe has been recorded yet." in card
    for absent in ("None", "model-index", "revision=", "delta_auc.png", "NaN"):
        assert absent not in card


def test_the_card_states_which_model_is_on_main():
    def card(finished, has_model):
        return render_card(make_run([]), "org/name", [], finished=finished, has_model=has_model, figure=False)

    assert "The final model is on `main`:" in card(True, True)
    extended = card(False, True)
    assert "The run was extended and is in progress." in extended and "is on `main`:" not in extended
    assert 'from_pretrained("org/name")' in extended
    sharded = card(True, False)
    assert "`main` has no model" in sharded and "in progress" not in sharded and "from_pretrained" not in sharded


def test_the_card_of_a_run_without_probes_does_not_mention_a_copy():
    card = render_card(make_run([], no_probe=True), "org/name", [], finished=True, has_model=True, figure=False)
    assert "The run has no probes." in card and "No probe has been recorded." in card
    assert "| Probe |" not in card and "copy" not in card


def test_synthetic_languages_are_never_called_natural():
    run = make_run([probe(1, 1.0, language="vi")], source="synthetic", languages=["en"], tokenizer="byte")
    card = render_card(run, "org/name", [], finished=True, has_model=True, figure=False)
    assert ModelCard(card).data.language is None and ModelCard(card).data.datasets is None
    assert "Vietnamese" not in card and "English" not in card
    assert "| Text | procedurally generated languages, not natural ones" in card


def test_the_card_names_the_optimizer_permutation_and_mitigation_of_the_run():
    run = make_run([], optim="sgd", permute_tokens=True, mitigation=["redo", "l2_init"])
    card = render_card(run, "org/name", [], finished=True, has_model=True, figure=False)
    assert "| Optimizer | `sgd`, peak learning rate 0.003, weight decay 0.1 |" in card
    assert "| Permutation | a separate random permutation" in card and "| Mitigation | redo, l2_init |" in card


def test_probes_within_a_cycle_are_named_by_their_task():
    run = make_run([probe(0, 1.0), probe(0, 1.0, task=1, step=9537), probe(1, 1.0)])
    card = render_card(run, "org/name", [], finished=True, has_model=True, figure=False)
    assert [name in card for name in ("| cycle 0 (untrained) |", "| task 1 |", "| cycle 1 |")] == [True] * 3


@pytest.mark.parametrize(
    ("dataset", "datasets"),
    [("org/corpus@v1", ["org/corpus"]), ("wikipedia", ["wikimedia/wikipedia"]), ("texts", None)],
)
def test_the_datasets_of_a_run_are_named(dataset, datasets):
    card = render_card(make_run([], dataset=dataset), "org/name", [], finished=True, has_model=True, figure=False)
    assert ModelCard(card).data.datasets == datasets


def test_the_folder_of_cards_links_to_the_one_template():
    template = Path(hf_plasticity.hub.__file__).with_name("card.md.jinja")
    assert (ROOT / "model_cards" / "run.md.jinja").resolve() == template.resolve()


@pytest.mark.parametrize(("restarts", "words"), [(True, "in every task instance |"), (False, "once |")])
def test_the_card_says_how_often_the_learning_rate_warms_up(restarts, words):
    card = render_card(
        make_run(PROBES, restart_warmup=restarts), "org/plasticity-5m", [], finished=True, has_model=True, figure=False
    )
    [row] = [line for line in str(card).splitlines() if line.startswith("| Learning rate |")]
    assert row.endswith(words)


def test_the_metadata_has_only_what_the_hub_accepts(tmp_path, monkeypatch):
    run = make_run([], dataset="org/corpus", languages=["en", "fra_Latn", "zh-CN", "english"])
    card = render_card(run, "org/name", [], finished=True, has_model=True, figure=False)
    assert ModelCard(card).data.language == ["en"]
    (tmp_path / "corpora" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for folder in ("corpora/mine", "./corpora/mine", str(tmp_path / "corpora" / "mine")):
        card = render_card(make_run([], dataset=folder), "org/name", [], finished=True, has_model=True, figure=False)
        assert ModelCard(card).data.datasets is None and "huggingface.co/datasets" not in card
        assert public({"dataset": folder, "tokenizer": folder}) == {"dataset": "mine", "tokenizer": "mine"}
    assert public({"dataset": "org/corpus", "tokenizer": "byte"}) == {"dataset": "org/corpus", "tokenizer": "byte"}
