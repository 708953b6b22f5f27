"""`hf-plasticity prepare`: what it prepares is what the run reads, and what it refuses the run would refuse."""

import json

import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.cli import main
from hf_plasticity.experiment import parse_experiment, run_experiment
from hf_plasticity.planning.prepare import prepare_study


@pytest.fixture
def corpus(tmp_path):
    """Enough text in two training languages and a probe language for the run below, by little."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for language in ("aa", "bb", "pp"):
        lines = [f"{language} {number:04d} {'abcdefgh' * 2}" for number in range(200)]  # 25 bytes with the end of text
        (folder / f"{language}.txt").write_text("\n".join(lines))
    return folder


def settings(tmp_path, corpus, *more):
    # Training: 2 cycles of one task instance in each language, 4 steps of 16 sequences of 16 tokens.
    # fmt: off
    return [
        "--size=25K", "--cycles=2", "--task_steps=4", "--warmup_steps=1", "--context_length=16",
        "--global_batch_tokens=256", "--source=local", f"--data_dir={corpus}", "--languages", "aa", "bb",
        "--probe_language=pp", "--probe_steps=3", "--probe_eval_sequences=8", "--validation_fraction=0.2",
        f"--data_cache_dir={tmp_path / 'blocks'}", f"--output_dir={tmp_path / 'run'}", "--use_cpu", *more,
    ]
    # fmt: on


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock" and path.is_file()}


def test_a_run_finds_all_of_its_text_prepared(tmp_path, corpus, capsys):
    arguments = settings(tmp_path, corpus, "--evaluate_forgetting=true")
    assert main(["prepare", *arguments]) == 0
    shown = capsys.readouterr()
    header, *rows = [line.split() for line in shown.out.split("\n\n")[0].splitlines()]
    assert header == ["language", "split", "use", "blocks", "tokens", "folder"]
    assert [row[:3] for row in rows] == [
        ["aa", "train", "training"],
        ["bb", "train", "training"],
        ["aa", "validation", "evaluation"],
        ["bb", "validation", "evaluation"],
        ["pp", "train", "probe"],
        ["pp", "validation", "evaluation"],
    ]
    for _, _, use, blocks, tokens, folder in rows:
        blocks, tokens = (int(number.replace(",", "")) for number in (blocks, tokens))
        assert blocks >= {"training": 2 * 4 * 16, "probe": 3 * 16, "evaluation": 8}[use]
        assert tokens == 16 * blocks
        [shard] = [path for path in (tmp_path / "blocks").glob("*/shard-00000.bin") if str(path.parent) == folder]
        assert shard.stat().st_size == 2 * tokens  # bytes: two of them hold a token
    assert "no prepared validation document of 'pp' has 50 characters" in shown.out
    assert not (tmp_path / "run").exists()

    before = written(tmp_path / "blocks")
    run_experiment(parse_experiment([*arguments, "--disable_tqdm=true"]))
    assert written(tmp_path / "blocks") == before and (tmp_path / "run" / "report.html").exists()


def test_preparing_again_has_nothing_to_do(tmp_path, corpus, capsys):
    arguments = settings(tmp_path, corpus)
    assert main(["prepare", *arguments]) == 0
    first, before = capsys.readouterr().out, written(tmp_path / "blocks")
    assert main(["prepare", *arguments]) == 0
    assert capsys.readouterr().out == first and written(tmp_path / "blocks") == before


def test_a_plan_says_what_is_prepared_of_a_source_that_has_more(tmp_path, corpus, capsys):
    with open(corpus / "aa.txt", "a") as file:
        file.write("".join(f"\nmore {number} " + "text " * 40 for number in range(8_000)))  # beyond the first shard
    arguments = settings(tmp_path, corpus)
    assert main(["prepare", *arguments, "--disable_tqdm=true"]) == 0
    capsys.readouterr()
    assert main(["plan", *arguments, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert [(one["language"], one["how"]) for one in text[:2]] == [("aa", "prepared"), ("bb", "counted")]
    assert text[0]["available"] == 2**20


def test_what_the_run_does_not_read_is_not_prepared(tmp_path, corpus):
    study = parse_experiment(settings(tmp_path, corpus, "--no_probe=true", "--disable_tqdm=true"))
    prepared = [(blocks.language, blocks.split) for blocks, _ in prepare_study(study)]
    assert prepared == [("aa", "train"), ("bb", "train")]


def test_a_tokenizer_that_is_to_be_trained_is_the_one_of_the_run(tmp_path, corpus):
    arguments = settings(tmp_path, corpus, "--train_tokenizer=270", "--cycles=1", "--disable_tqdm=true")
    prepare_study(parse_experiment(arguments))
    before = written(tmp_path / "run" / "tokenizer") | written(tmp_path / "blocks")
    run_experiment(parse_experiment(arguments))
    assert written(tmp_path / "run" / "tokenizer") | written(tmp_path / "blocks") == before


@pytest.mark.parametrize(
    ("wrong", "begins"),
    [
        ("--cycles=9", "languages: 'aa' has"),
        ("--probe_steps=99", "probe_steps: 99 steps require"),
        ("--probe_eval_sequences=999", "probe_eval_sequences: 999 are requested and the validation split of"),
        ("--probe_language=xx", "data_dir:"),
        ("--vocab_size=100", "vocab_size: 100 is less than"),
        ("--global_batch_tokens=100", "global_batch_tokens: 100 is not a multiple"),
        ("--data_dir=nowhere", "data_dir: folder 'nowhere' does not exist"),
        ("--evaluate_forgetting --probe_eval_sequences=60 --no_probe", "probe_eval_sequences: 60 are requested"),
    ],
)
def test_it_reports_the_errors_of_the_run(tmp_path, corpus, wrong, begins):
    if "forgetting" in wrong:
        (corpus / "bb.txt").write_text((corpus / "bb.txt").read_text()[:4300])
        wrong += " --cycles=1"
    said = []
    for start in (prepare_study, run_experiment):
        with pytest.raises(PlasticityError) as caught:
            start(parse_experiment(settings(tmp_path, corpus, *wrong.split(), "--disable_tqdm=true")))
        said.append(str(caught.value))
    assert said[0] == said[1] and said[0].startswith(begins)


def test_blocks_that_are_streamed_cannot_be_prepared(tmp_path, corpus, capsys):
    assert main(["prepare", *settings(tmp_path, corpus, "--streaming=true")]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .startswith("hf-plasticity: error: streaming: blocks are prepared during the run")
    )
