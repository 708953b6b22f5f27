"""A plan as text."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.filesize import decimal

from ..analysis.text import plural
from ..experiment.config import ExperimentConfig
from ..trainer.config import DEFERRED
from .arithmetic import FSDP2
from .text import Text


Row = tuple[str, str, str]
# Where the name of a value is not its label.
LABELS = {"forgetting": "evaluate_forgetting", "adam": "Adam state", "probe_adam": "probe's Adam state"}


def plan_table(study: ExperimentConfig, planned: dict[str, Any]) -> str:
    """The plan of [`plan_study`] as sections of aligned lines with a name, a figure and a note."""
    plan = planned["plan"]
    sections = {
        "model and run": _run(study, planned),
        "text": [_text(text, study.training.allow_repeats) for text in planned["text"]],
        "compute": _compute(plan["compute"]),
        "time": _time(study, planned),
        "memory on each device": _memory(study, planned),
        "disk": _disk(study, planned),
        "onset by the paper's law": _onset(plan),
        "not counted": [(name, "", missing) for name, missing in planned["not_counted"].items()],
    }
    rows = [row for section in sections.values() for row in section]
    width, figures = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n\n".join(
        "\n".join(
            [title, *(f"  {name:<{width}}  {figure:>{figures}}  {note}".rstrip() for name, figure, note in rows)]
        )
        for title, rows in sections.items()
        if rows
    )


def _rows(
    values: Mapping[str, Any], form: Callable[[Any], str], notes: Mapping[str, str], label: str = ""
) -> list[Row]:
    """A row for each value that has a note and is not zero."""
    return [
        (label + LABELS.get(name, name.replace("_", " ")), form(values[name]), note)
        for name, note in notes.items()
        if values[name]
    ]


def _run(study: ExperimentConfig, planned: dict[str, Any]) -> list[Row]:
    training, length, plan = study.training, study.data.context_length, planned["plan"]
    processes = "1 process" if plan["num_processes"] == 1 else f"{plan['num_processes']} processes"
    micro_batch, accumulated = plan["micro_batch_size"], plan["gradient_accumulation_steps"]
    split = f"{processes} × {micro_batch} in a micro-batch × {accumulated} accumulated"
    rows = [
        ("parameters", f"{plan['non_embedding_parameters']:,}", f"non-embedding (size {planned['size']})"),
        ("", f"{plan['parameters']:,}", f"with {planned['vocab_size']:,} token and {length:,} position embeddings"),
        ("task instances", f"{plan['tasks']:,}", f"{training.cycles} cycles, schedule {training.schedule}"),
        ("optimizer steps", f"{plan['steps']:,}", f"{training.task_steps:,} per task instance"),
        ("tokens", f"{plan['tokens']:,}", f"{training.global_batch_tokens:,} per step"),
        ("batch", f"{training.global_batch_tokens // length:,}", f"sequences of {length:,} = {split}"),
    ]
    if plan["probes"]:
        repeats = "" if plan["probe_repeats"] == 1 else f", {plan['probe_repeats']} times each"
        note = f"{training.probe_steps:,} steps each, cycle 0 included{repeats}"
        rows.append(("probed points", f"{plan['probes']:,}", note))
    if planned["no_tokenizer"] is not None:
        rows.append(("tokenizer", "not available", planned["no_tokenizer"]))
    return rows


def _text(text: Text, allow_repeats: bool) -> Row:
    needed, available = text["tokens"], text["available"]
    if available is None:
        note = f"; in the source: {text['how']}"
    elif text["how"] == "prepared":
        note = "; prepared"
    else:
        enough = "enough"
        if needed > available:
            repeated = text["split"] == "train" and allow_repeats and available
            enough = f"repeated {needed / available:.1f} times" if repeated else "too few"
        note = f"; in the source: {available:,} ({text['how']}), {enough}"
    name = text["use"] if text["split"] == "train" else "validation"
    return f"{text['language']} {name}", f"{needed:,}", f"tokens{note}"


def _compute(compute: dict[str, Any]) -> list[Row]:
    head, attention = f"{compute['head_share']:.1%} in the head", f"{compute['attention_share']:.1%} in attention"
    total = compute["training"] + compute["probes"] + compute["forgetting"]
    notes = {"training": "", "probes": f"{compute['probe_share']:.1%} of the total", "forgetting": ""}
    return [
        (
            "FLOPs per token",
            f"{compute['per_token']:.3e}",
            f"forward and backward: {head} over the vocabulary, {attention} scores",
        ),
        *_rows(compute, "{:.3e}".format, notes, label="FLOPs of "),
        ("FLOPs in total", f"{total:.3e}", ""),
    ]


def _time(study: ExperimentConfig, planned: dict[str, Any]) -> list[Row]:
    seconds, processes = planned["plan"]["seconds"], planned["plan"]["num_processes"]
    if seconds is None:
        return [("tokens per second", "unknown", "give --tokens_per_second, or --measure it on this machine")]
    note = "training, over all devices, as given"
    if planned["measured"] is not None:
        note = f"training, measured here ({planned['measured']})"
        note += f", times {processes}: without communication" if processes > 1 else ""
    run = seconds["training"] + seconds["forgetting"]
    total = run + seconds["probes"]
    deferred = study.training.probe == DEFERRED
    beside = f"; deferred, so that the run takes {_duration(run)}" if deferred else ""
    notes = {"training": "", "probes": f"by their FLOPs{beside}", "forgetting": "by its FLOPs"}
    return [
        ("tokens per second", f"{seconds['tokens_per_second']:,.0f}", note),
        *_rows(seconds, _duration, notes),
        ("total", _duration(total), f"{total / 3600 * processes:,.1f} device hours"),
    ]


def _memory(study: ExperimentConfig, planned: dict[str, Any]) -> list[Row]:
    memory, processes = planned["plan"]["memory"], planned["plan"]["num_processes"]
    kind = "FSDP2" if planned["sharding"] == FSDP2 else "DDP"
    micro_batch = f"estimate: micro-batch of {planned['plan']['micro_batch_size']}"
    notes = {
        "parameters": f"float32; {processes} × {kind}" if processes > 1 else "float32",
        "gradients": "float32",
        "adam": "two moments, float32",
        "buckets": "DDP's second copy of the gradients",
        "gathered": "estimate: embeddings and two gathered blocks",
        "weight_copies": "bfloat16, kept by autocast",
        "activations": f"{micro_batch}, {'bfloat16' if study.training.bf16 else 'float32'}",
        "logits": f"{micro_batch}, {planned['head_loss']} loss over {planned['vocab_size']:,} tokens",
        "in_training": "sum",
        "probe_snapshot": "a probe's copy of the parameters",
        "probe_adam": "a probe's two moments",
        "in_a_probe": "sum, in a probe",
    }
    sums = {"in_training": memory["training"], "in_a_probe": memory["probe"]}
    return _rows(memory | sums, decimal, notes)


def _disk(study: ExperimentConfig, planned: dict[str, Any]) -> list[Row]:
    disk = planned["plan"]["disk"]
    streamed = ", as many as streaming keeps" if study.data.streaming else ""
    unknown = any(text["how"].startswith("unknown") for text in planned["text"])
    notes = {
        "checkpoints": "for resuming, with the one being written",
        "probed_checkpoints": "cycle-000, cycle-001, …",
        "blocks": f"prepared text{streamed}" + (", if the source has enough" if unknown else ""),
    }
    return [
        *_rows(disk, decimal, notes),
        ("total", decimal(sum(disk[name] for name in notes)), ""),
        ("on the Hub", decimal(disk["hub"]), "if pushed: one branch for each probed model, and the final model"),
    ]


def _onset(plan: dict[str, Any]) -> list[Row]:
    onset = plan["onset"]

    def compared(length: str, reached: bool) -> str:
        return f"this run has {length}: {'long enough' if reached else 'too short'}"

    by_tasks = compared(f"{plan['tasks']:,}", onset["reached_by_tasks"])
    by_tokens = compared(f"{plan['tokens']:.3g}", onset["reached_by_tokens"])
    rows = [
        ("task instance", f"{onset['task']:.1f}", by_tasks),
        ("cycle", f"{onset['cycle']:.1f}", f"of {plural(plan['tasks_per_cycle'], 'task instance')}"),
        ("tokens", f"{onset['tokens']:.3g}", f"{by_tokens}; the law's task instance is 5e9"),
    ]
    if onset["extrapolated"]:
        rows.append(("", "extrapolated", "the law was fitted from 5M to 314M"))
    return rows


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
