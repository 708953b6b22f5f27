import re

from hf_plasticity.diagnostics import MEASURES
from support.launch import ROOT


PAGE = ROOT / "docs" / "diagnostics.md"


def test_every_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 8
    namespace: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), namespace)
    records = namespace["read_records"]("runs/example/diagnostics.jsonl")
    assert [(record["step"], record["task"], record["tokens"]) for record in records] == [
        (0, 0, 0),
        (2, 1, 1024),
        (4, 2, 2048),
    ]


def test_the_table_has_every_measure():
    table = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == set(MEASURES)
