"""The suite for a CPU."""

import contextlib
import statistics

from ..threads import available_cores
from .case import PAPER_CONTEXT, PAPER_VOCABULARY, Case
from .processes import Worker, WorkerFailed, median_and_range
from .report import Report
from .sections import (
    GB,
    diagnosing,
    late_cycles,
    model_label,
    probing,
    records_failure,
    resuming,
    training,
    two_processes,
)


TRAINERS = ("bare loop", "Trainer", "ContinualTrainer", "compiled loop")
SIDE_BY_SIDE_ROUNDS = 5


def cpu_suite(report: Report, dry: bool, parts: list[str] | None = None) -> None:
    """
    Run the suite for a CPU.

    Args:
        report ([`Report`]): Receives the sections.
        dry (`bool`): Whether to run with minimal work; the numbers are meaningless.
        parts (`list[str]`, *optional*): Only these, of `CPU_PARTS`.
    """
    threads = available_cores()
    base = Case("bare loop", "25K", threads=threads)
    wide = base.but(size="2.5M", context_length=512, batch_size=4)
    paper = base.but(vocab_size=PAPER_VOCABULARY, context_length=PAPER_CONTEXT, batch_size=1, window=1, warmup=1)
    # A model, how often its contenders start, and the rounds of each start.
    models = [
        (base, 12, 3),
        (base.but(size="100K"), 12, 3),
        (wide.but(window=3, warmup=2), 6, 2),
    ]
    small, heads = (
        [base.but(window=40), base.but(size="400K", window=5)],
        [paper.but(size="5M"), paper.but(size="83M")],
    )
    length = {"steps": 80, "eval_every": 8, "eval_sequences": 64}
    short = {"steps": 20, "eval_every": 4, "eval_sequences": 16}
    probes = [(base, length, 6), (base.but(size="100K"), length, 6), (wide, short, 3)]
    if dry:
        base = base.but(context_length=32, batch_size=2, warmup=2, window=2, backend="aot_eager")
        models, small, heads = [(base, 2, 1)], [base], [base.but(vocab_size=512)]
        probes = [(base, {"steps": 4, "eval_every": 2, "eval_sequences": 4}, 2)]
    sequences = (("sequences", 4 if dry else 64),)
    everything = {
        "training": lambda: training(
            report,
            [(contenders(model), starts, rounds) for model, starts, rounds in models]
            + [(in_bf16(model), 1, rounds) for model, _, rounds in models[:2]],
        ),
        "probe": lambda: probing(
            report,
            [
                (model.but(contender="probe", options=tuple(options.items())), rounds)
                for model, options, rounds in probes
            ],
        ),
        "diagnosis": lambda: diagnosing(
            report, [(model.but(contender="diagnosis", options=sequences), 5) for model, _, _ in models]
        ),
        "processes": lambda: two_processes(
            report, [(model.but(contender="ContinualTrainer"), 7) for model, _, _ in models[-2:]]
        ),
        "side": lambda: side_by_side(report, small, threads),
        "head": lambda: head_losses(report, heads),
        "long": lambda: long_runs(report, base, dry),
    }
    for part in parts or everything:
        everything[part]()


CPU_PARTS = ("training", "probe", "diagnosis", "processes", "side", "head", "long")


def contenders(model: Case) -> list[Case]:
    """All contenders on one model in fp32."""
    plain = [model.but(contender=name, compiled=name == "compiled loop") for name in TRAINERS]
    return [*plain, model.but(contender="ContinualTrainer", compiled=True)]


def in_bf16(model: Case) -> list[Case]:
    """bf16 compared with the bare loop in fp32."""
    return [model.but(window=3), model.but(contender="ContinualTrainer", bf16=True, window=3, warmup=2)]


@records_failure
def side_by_side(report: Report, cases: list[Case], cores: int) -> None:
    """The runs of a ladder that share the cores of this machine."""
    report.section(
        "Runs side by side",
        ("model, context × batch", "runs × threads", "tokens/s of all", "times one run"),
        f"`ContinualTrainer`: each run is a process, and the {cores} cores are divided among the runs, as `ladder "
        f"--jobs` does. Median and range of {SIDE_BY_SIDE_ROUNDS} windows, in which all runs train at the same time.",
    )
    for case in cases:
        alone = None
        for count in sorted({1, cores, 2 * cores}):
            if report.left() <= 0:
                report.add(model_label(case), str(count), "not measured: time limit")
                continue
            each = case.but(
                contender="ContinualTrainer", threads=max(1, cores // count), windows=SIDE_BY_SIDE_ROUNDS + 1
            )
            rates = shared_rates(report, each, count)
            alone = alone or statistics.median(rates)
            report.add(
                model_label(case),
                f"{count} × {each.threads}",
                f"{statistics.median(rates):,.0f}",
                median_and_range([rate / alone for rate in rates], 2),
            )


def shared_rates(report: Report, case: Case, count: int) -> list[float]:
    """Tokens a second of so many runs together, in each window."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(case)) for _ in range(count)]
        for worker in workers:
            worker.started(report.left() + 120)
        rates = []
        for _ in range(SIDE_BY_SIDE_ROUNDS + 1):
            for worker in workers:
                worker.go()
            messages = [worker.hear(report.left() + 120) for worker in workers]
            rates.append(sum(case.tokens / message["seconds"] for message in messages if "seconds" in message))
        return rates[1:]  # the first message says that the warmup is done


@records_failure
def head_losses(report: Report, cases: list[Case]) -> None:
    """A step with both head losses."""
    report.section(
        "The loss over the vocabulary",
        ("model", "head loss", "seconds a step", "times `logits`", "peak memory, GB"),
        f"`ContinualTrainer`, fp32, vocabulary {cases[0].vocab_size:,}, one sequence of {cases[0].context_length:,} "
        "tokens a step; the memory is that of the process.",
    )
    for case in cases:
        plain = None
        for head_loss in ("logits", "fused"):
            if report.left() <= 0:
                report.add(case.size, head_loss, "not measured: time limit")
                continue
            try:
                with Worker(case.but(contender="ContinualTrainer", head_loss=head_loss, windows=2)) as worker:
                    result = worker.started().result(timeout=report.left() + 600)
            except WorkerFailed as failure:
                report.add(case.size, head_loss, f"failed: {failure}")
                continue
            seconds = statistics.median(result["seconds"])
            plain = plain or seconds
            report.add(
                case.size,
                head_loss,
                median_and_range(result["seconds"], 2),
                f"{seconds / plain:.2f}",
                f"{result['memory'] / GB:.2f}",
            )


def long_runs(report: Report, base: Case, dry: bool) -> None:
    """Resuming, and the last of 48 cycles."""
    corpus = (("corpus_tokens", 10**7 if dry else 10**10), ("cycles", 3 if dry else 48))
    resuming(report, base.but(contender="resume", options=corpus))
    cycles = (("cycles", 3 if dry else 48), ("task_steps", 2 if dry else 20), ("probe_steps", 4 if dry else 20))
    late_cycles(report, base.but(contender="cycles", options=cycles))
