"""The configuration of a run and of its probes."""

import json

from ...records import PROTOCOLS_FILE, PROVENANCE, RunRecord
from ..page import Section, Table
from ..text import setting


SECRETS = ("hub_token", "push_to_hub_token")
MAIN = (
    "size", "model", "schedule", "languages", "probe_language", "source", "dataset", "tokenizer", "context_length",
    "seed", "cycles", "task_steps", "reset_optimizer", "global_batch_tokens", "learning_rate", "warmup_steps",
    "weight_decay", "bf16", "probe_steps", "probe_eval_every", "probe_learning_rate", "probe_repeats",
)  # fmt: skip


def configuration_section(run: RunRecord) -> Section:
    """The main settings, then all settings, the software and the settings of the probes on request."""
    section, columns = Section("Configuration"), {"Setting": str, "Value": setting}
    if run.config:
        config = {name: value for name, value in run.config.items() if name not in (*SECRETS, PROVENANCE)}
        provenance = dict(run.config.get(PROVENANCE) or {})
        every = config | {name: value for name, value in provenance.items() if name != "versions"}
        every |= provenance.get("versions") or {}
        main = {name: config[name] for name in MAIN if config.get(name) is not None}
        section.tables.append(Table(columns, [*map(list, main.items())]))
        section.tables.append(Table(columns, [*map(list, every.items())], f"all {len(every)} settings", folded=True))
    else:
        section.notes.append("No config.yaml: the model and its training are not known.")
    path = run.folder / PROTOCOLS_FILE
    for name, protocol in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}).items():
        section.tables.append(Table(columns, [*map(list, protocol.items())], f"settings of probe {name}", folded=True))
    return section
