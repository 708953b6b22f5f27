"""The tables of docs/experiments.md are those of the records in results/."""

import importlib.util

from support.launch import ROOT


def test_the_tables_follow_from_the_records(capsys):
    spec = importlib.util.spec_from_file_location("experiments", ROOT / "recipes" / "experiments.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.print_tables(recipe.read_arms())
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == 17
    for line in lines:
        assert line in page
