"""The commands of the documentation."""

import shlex

from support.launch import ROOT


def documented_commands(program):
    """The commands of docs/planning.md that begin with `program`, each as its words."""
    text = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```bash\n")[1:]]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(program)]
