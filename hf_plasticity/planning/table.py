"""A plan as text."""

from ..trainer.config import DEFERRED
from .plan import Plan
from .study import StudyPlan
from .text import Text


def plan_table(planned: StudyPlan) -> str:
    """The plan as sections of aligned lines with a name, a figure and a note."""
    sections = {
        "model and run": _run(planned),
        "text": [_text(text, planned.study.training.allow_repeats) for text in planned.text],
        "compute": _compute(planned.plan),
        "time": _time(planned),
        "memory on each device": _memory(planned),
        "disk": _disk(planned),
        "onset by the paper's law": _onset(planned.plan),
    }
    width = max(len(row[0]) for rows in sections.values() for row in rows)
    figures = max(len(row[1]) for rows in sections.values() for row in rows)
    lines = []
    for title, rows in sections.items():
        lines += [
            "",
            title,
            *(f"  {name:<{width}}  {figure:>{figures}}  {note}".rstrip() for name, figure, note in rows),
        ]
    return "\n".join(lines[1:])


def _run(planned: StudyPlan) -> list[tuple[str, str, str]]:
    study, plan = planned.study, planned.plan
    training, length = study.training, study.data.context_length
    processes = "1 process" if plan.num_processes == 1 else f"{plan.num_processes} processes"
    split = f"{processes} × {plan.micro_batch_size} in a micro-batch × {plan.gradient_accumulation_steps} accumulated"
    rows = [
        ("parameters", f"{plan.non_embedding_parameters:,}", f"non-embedding (size {study.model.size})"),
        ("", f"{plan.parameters:,}", f"with {planned.vocab_size:,} token and {length:,} position embeddings"),
        ("task instances", f"{plan.tasks:,}", f"{training.cycles} cycles, schedule {training.schedule}"),
        ("optimizer steps", f"{plan.steps:,}", f"{training.task_steps:,} per task instance"),
        ("tokens", f"{plan.tokens:,}", f"{training.global_batch_tokens:,} per step"),
        ("batch", f"{training.global_batch_tokens // length:,}", f"sequences of {length:,} = {split}"),
    ]
    if plan.probes:
        repeats = "" if plan.probe_repeats == 1 else f", {plan.probe_repeats} times each"
        note = f"{training.probe_steps:,} steps each, cycle 0 included{repeats}"
        rows.append(("probed points", f"{plan.probes:,}", note))
    if planned.no_tokenizer is not None:
        rows.append(("tokenizer", "not available", planned.no_tokenizer))
    return rows


def _text(text: Text, allow_repeats: bool) -> tuple[str, str, str]:
    name = f"{text.language} {text.use}" if text.split == "train" else f"{text.language} validation"
    if text.available is None:
        return name, f"{text.tokens:,}", f"tokens; in the source: {text.how}"
    if text.passes is None:
        return name, f"{text.tokens:,}", "tokens; prepared"
    if text.passes <= 1:
        enough = "enough"
    elif text.split == "train" and allow_repeats:
        enough = f"repeated {text.passes:.1f} times"
    else:
        enough = "too few"
    return name, f"{text.tokens:,}", f"tokens; in the source: {text.available:,} ({text.how}), {enough}"


def _compute(plan: Plan) -> list[tuple[str, str, str]]:
    compute = plan.compute
    shares = (
        f"{compute.head_share:.1%} in the head over the vocabulary, {compute.attention_share:.1%} in attention scores"
    )
    rows = [
        ("FLOPs per token", f"{compute.per_token:.3e}", f"forward and backward: {shares}"),
        ("FLOPs of training", f"{compute.training:.3e}", ""),
    ]
    if plan.probes:
        rows.append(("FLOPs of probes", f"{compute.probes:.3e}", f"{compute.probe_share:.1%} of the total"))
    if compute.forgetting:
        rows.append(("FLOPs of evaluate_forgetting", f"{compute.forgetting:.3e}", ""))
    return [*rows, ("FLOPs in total", f"{compute.total:.3e}", "")]


def _time(planned: StudyPlan) -> list[tuple[str, str, str]]:
    seconds, processes = planned.plan.seconds, planned.plan.num_processes
    if seconds is None:
        return [("tokens per second", "unknown", "give --tokens_per_second, or --measure it on this machine")]
    note = "training, over all devices, as given"
    if planned.measured is not None:
        note = f"training, measured here ({planned.measured})"
        note += f", times {processes}: without communication" if processes > 1 else ""
    rows = [
        ("tokens per second", f"{seconds.tokens_per_second:,.0f}", note),
        ("training", _duration(seconds.training), ""),
    ]
    if planned.plan.probes:
        beside = f"; deferred, so that the run takes {_duration(seconds.total - seconds.probes)}"
        deferred = planned.study.training.probe == DEFERRED
        rows.append(("probes", _duration(seconds.probes), "by their FLOPs" + (beside if deferred else "")))
    if seconds.forgetting:
        rows.append(("evaluate_forgetting", _duration(seconds.forgetting), "by its FLOPs"))
    return [*rows, ("total", _duration(seconds.total), f"{seconds.total / 3600 * processes:,.1f} device hours")]


def _memory(planned: StudyPlan) -> list[tuple[str, str, str]]:
    plan, memory = planned.plan, planned.plan.memory
    kind = "FSDP2" if planned.sharding == "fsdp2" else "DDP" if plan.num_processes > 1 else "one process"
    precision = "bfloat16" if planned.study.training.bf16 else "float32"
    micro_batch = f"micro-batch of {plan.micro_batch_size}"
    notes = {
        "parameters": f"float32; {plan.num_processes} × {kind}" if plan.num_processes > 1 else "float32",
        "gradients": "float32",
        "adam": "two moments, float32",
        "buckets": "DDP's second copy of the gradients",
        "gathered": "estimate: embeddings and two gathered blocks",
        "weight_copies": "bfloat16, kept by autocast",
        "activations": f"estimate: {micro_batch}, {precision}",
        "logits": f"estimate: {micro_batch}, {planned.head_loss} loss over {planned.vocab_size:,} tokens",
        "training": "sum",
    }
    if plan.probes:
        notes |= {
            "probe_snapshot": "a probe's copy of the parameters",
            "probe_adam": "a probe's two moments",
            "probe": "sum, in a probe",
        }
    labels = {
        "adam": "Adam state",
        "probe_adam": "probe's Adam state",
        "training": "in training",
        "probe": "in a probe",
    }
    return [
        (labels.get(name, name.replace("_", " ")), _bytes(getattr(memory, name)), note)
        for name, note in notes.items()
        if getattr(memory, name)
    ]


def _disk(planned: StudyPlan) -> list[tuple[str, str, str]]:
    disk = planned.plan.disk
    rows = []
    if disk.checkpoints:
        rows.append(("checkpoints", _bytes(disk.checkpoints), "for resuming, with the one being written"))
    if disk.probed_checkpoints:
        rows.append(("probed checkpoints", _bytes(disk.probed_checkpoints), "cycle-000, cycle-001, …"))
    streamed = ", as many as streaming keeps" if planned.study.data.streaming else ""
    unknown = any(text.how.startswith("unknown") for text in planned.text)
    note = f"prepared text{streamed}" + (", if the source has enough" if unknown else "")
    rows += [("blocks", _bytes(disk.blocks), note), ("total", _bytes(disk.total), "")]
    return [
        *rows,
        ("on the Hub", _bytes(disk.hub), "if pushed: one branch for each probed model, and the final model"),
    ]


def _onset(plan: Plan) -> list[tuple[str, str, str]]:
    onset = plan.onset
    rows = [
        ("task instance", f"{onset.task:.1f}", _reached(onset.reached_by_tasks, f"this run has {plan.tasks:,}")),
        ("cycle", f"{onset.cycle:.1f}", f"of {plan.tasks_per_cycle} task instances"),
        (
            "tokens",
            f"{onset.tokens:.3g}",
            _reached(onset.reached_by_tokens, f"this run has {plan.tokens:.3g}") + "; the law's task instance is 5e9",
        ),
    ]
    if onset.extrapolated:
        rows.append(("", "extrapolated", "the law was fitted from 5M to 314M"))
    return rows


def _reached(reached: bool, length: str) -> str:
    return f"{length}: {'long enough' if reached else 'too short'}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
