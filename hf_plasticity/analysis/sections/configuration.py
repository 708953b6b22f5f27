"""The configuration of a run and of its probes."""

from ...records import PROVENANCE, RunRecord
from ..page import Section, Table
from ..text import setting


SECRETS = ("hub_token", "push_to_hub_token")


def configuration_section(run: RunRecord) -> Section:
    """All settings, the recorded software and machine, and the settings of the probes."""
    section = Section("Configuration")
    if not run.config:
        section.notes.append("No config.yaml: the model and its training are not known.")
    settings = {name: value for name, value in run.config.items() if name not in (*SECRETS, PROVENANCE)}
    provenance = dict(run.config.get(PROVENANCE) or {})
    tables = {"settings": settings, "versions": provenance.pop("versions", None), "provenance": provenance}
    tables |= {f"settings of probe {name}": protocol for name, protocol in run.protocols.items()}
    columns = {"Name": str, "Value": setting}
    section.tables = [
        Table(columns, [*map(list, values.items())], caption, folded=True)
        for caption, values in tables.items()
        if values
    ]
    return section
