"""The list of mitigations that `hf-plasticity mitigations` prints."""

import dataclasses
import json

from . import MITIGATIONS


def list_mitigations() -> str:
    """One line for each mitigation, and one for each of its arguments: default, meaning and source."""
    lines = []
    for name, kind in MITIGATIONS.items():
        lines += [f"{name}: {kind.summary()}", f"    {kind.reference}"]
        for one in dataclasses.fields(kind):
            meaning, source = one.metadata["help"], one.metadata["source"]
            search = "" if one.metadata["search"] is None else f"; compared: {one.metadata['search']}"
            lines.append(f"    {one.name} = {json.dumps(one.default)}: {meaning} [{source}{search}]")
        lines.append("")
    lines.append("""train with them: --mitigation NAME --mitigation_args '{"NAME": {"ARGUMENT": VALUE}}'""")
    return "\n".join(lines)
