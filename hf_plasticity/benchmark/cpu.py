"""The suite for a CPU."""

from ..threads import available_cores
from .case import Case
from .report import Report
from .sections import diagnosing, late_cycles, probing, resuming, training, two_processes


TRAINERS = ("bare loop", "Trainer", "ContinualTrainer", "compiled loop")


def cpu_suite(report: Report, dry: bool) -> None:
    """
    Run the suite for a CPU.

    Args:
        report ([`Report`]): Receives the sections.
        dry (`bool`): Whether to run with minimal work; the numbers are meaningless.
    """
    threads = available_cores()
    base = Case("bare loop", "25K", threads=threads)
    wide = base.but(size="2.5M", context_length=512, batch_size=4)
    models = [(base.but(window=20), 15), (base.but(size="100K"), 15), (wide.but(window=5, warmup=5), 7)]
    if dry:
        base = base.but(context_length=32, batch_size=2, warmup=2, window=2, backend="aot_eager")
        models, wide = [(base, 2)], base
    training(report, [(contenders(model), rounds) for model, rounds in models])
    length = {"steps": 80, "eval_every": 8, "eval_sequences": 64}
    short = {"steps": 20, "eval_every": 4, "eval_sequences": 16}
    probes = [(base, length, 5), (base.but(size="100K"), length, 5), (wide, short, 5)]
    if dry:
        probes = [(base, {"steps": 4, "eval_every": 2, "eval_sequences": 4}, 2)]
    probing(
        report,
        [(model.but(contender="probe", options=tuple(options.items())), rounds) for model, options, rounds in probes],
    )
    sequences = (("sequences", 4 if dry else 64),)
    diagnosing(
        report, [(model.but(contender="diagnosis", options=sequences), min(rounds, 5)) for model, rounds in models]
    )
    two_processes(report, [(model.but(contender="ContinualTrainer"), rounds) for model, rounds in models[-2:]])
    long_runs(report, base, dry)


def contenders(model: Case) -> list[Case]:
    """All contenders on one model."""
    ours = model.but(contender="ContinualTrainer")
    return [
        *(model.but(contender=name, compiled=name == "compiled loop") for name in TRAINERS),
        ours.but(compiled=True),
        ours.but(bf16=True),
    ]


def long_runs(report: Report, base: Case, dry: bool) -> None:
    """Resuming, and the last of 48 cycles."""
    corpus = (("corpus_tokens", 10**7 if dry else 10**10), ("cycles", 3 if dry else 48))
    resuming(report, base.but(contender="resume", options=corpus))
    cycles = (("cycles", 3 if dry else 48), ("task_steps", 2 if dry else 20), ("probe_steps", 4 if dry else 20))
    late_cycles(report, base.but(contender="cycles", options=cycles))
