"""The tables of docs/experiments.md are those of the records in results/."""

import importlib.util

from support.launch import ROOT


def test_the_tables_follow_from_the_records(capsys):
    spec = importlib.util.spec_from_file_location("experiments", ROOT / "recipes" / "experiments.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.print_tables()
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("experiments.md", "mitigations.md")]
    tables = [table for table in capsys.readouterr().out.split("\n\n") if table.strip()]
    assert len(tables) == 12
    for table in tables:
        assert any(table.strip() in page for page in pages), f"not in the documentation:\n{table}"
