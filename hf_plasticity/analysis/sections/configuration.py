"""The configuration of a run."""

from ...records import RunRecord
from ..page import Section, Table
from ..text import setting


SECRETS = ("hub_token", "push_to_hub_token")
MAIN = (
    "size", "model", "schedule", "languages", "probe_language", "source", "dataset", "tokenizer", "context_length",
    "seed", "cycles", "task_steps", "reset_optimizer", "global_batch_tokens", "learning_rate", "warmup_steps",
    "weight_decay", "bf16", "probe_steps", "probe_eval_every", "probe_learning_rate", "probe_repeats",
)  # fmt: skip


def configuration_section(run: RunRecord) -> Section:
    """The main settings, then all settings and the software on request."""
    if not run.config:
        return Section("Configuration", notes=["No config.yaml: the model and its training are not known."])
    config = {name: value for name, value in run.config.items() if name not in (*SECRETS, "provenance")}
    provenance = dict(run.config.get("provenance") or {})
    versions = provenance.pop("versions", None) or {}
    columns = {"Setting": str, "Value": setting}
    main = [[name, config[name]] for name in MAIN if config.get(name) is not None]
    rows = [[name, value] for name, value in (config | provenance | versions).items()]
    tables = [Table(columns, main), Table(columns, rows, f"All {len(rows)} settings and versions", folded=True)]
    return Section("Configuration", tables=tables)
