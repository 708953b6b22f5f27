"""The suite for one GPU."""

import contextlib
import math
import statistics
from collections.abc import Iterator

from ..models import PAPER_SIZES
from .case import PAPER_CONTEXT, PAPER_VOCABULARY, Case
from .cpu import TRAINERS, long_runs
from .processes import Worker, WorkerFailed, median_and_range
from .report import Report
from .sections import GB, diagnosing, label, probing, records_failure, training


PEAK_FLOPS = 989e12  # dense bf16 of an H100 or H200 (SXM), from NVIDIA's data sheets
USUAL_FLOPS = 350e12  # estimated real speed, for the lengths of windows
WINDOW_SECONDS = 0.35
LARGEST_BATCH = 32
LARGEST_LOGITS_BATCH = 16  # 32 sequences of 2,048 tokens have more than 120 GB of logits and their gradients
GLOBAL_BATCH = 256  # sequences in the study's
LIMITS_GB = (24, 140)
COMPILED_ORDER = ("83M", "5M", "314M", "27M", "106M", "12M", "53M", "39M")
SIDE_BY_SIDE = (1, 2, 4, 8, 12, 16, 24)


def gpu_suite(report: Report, dry: bool, device: str = "cuda", parts: list[str] | None = None) -> None:
    """
    Run the suite for one GPU, the most important parts first.

    Args:
        report ([`Report`]): Receives the sections.
        dry (`bool`): Whether to run with minimal work; the numbers are meaningless.
        device (`str`, *optional*, defaults to `"cuda"`): `"cpu"` for a dry run without a GPU.
        parts (`list[str]`, *optional*): Only these, of `GPU_PARTS`.
    """
    paper = paper_case(dry, device)
    micro = Case("bare loop", "100K", device=device, threads=1, window=50, warmup=20)
    if dry:
        micro = micro.but(size="25K", context_length=32, batch_size=2, window=2, warmup=2, backend="aot_eager")
    sizes = ("25K", "100K") if dry else PAPER_SIZES
    order = ("25K",) if dry else COMPILED_ORDER
    heads = ("25K",) if dry else ("5M", "83M")
    probe = micro.but(contender="probe", options=options(4 if dry else 80, 2 if dry else 8, 4 if dry else 64))
    large = paper.but(
        contender="probe",
        size=heads[0],
        batch_size=2 if dry else 8,
        options=options(4 if dry else 20, 2 if dry else 5, 4),
    )
    look = (("sequences", 4 if dry else 64),)
    everything = {
        "mfu": lambda: utilization(report, paper, sizes, dry),
        "head": lambda: head_losses(report, paper, heads, dry),
        "compiled": lambda: compiled_utilization(report, paper, order, dry),
        "side": lambda: parallel_runs(report, micro, (1, 2) if dry else SIDE_BY_SIDE, dry),
        "micro": lambda: training(
            report,
            [([micro.but(contender=name, compiled=name == "compiled loop") for name in TRAINERS], 1, 2 if dry else 7)],
        ),
        "probe": lambda: probing(report, [(probe, 2 if dry else 3), (large, 2 if dry else 3)]),
        "diagnosis": lambda: diagnosing(
            report,
            [
                (micro.but(contender="diagnosis", options=look), 2),
                (large.but(contender="diagnosis", options=look, window=1, warmup=3), 2),
            ],
        ),
        "long": lambda: long_runs(report, micro.but(size="25K"), dry),
    }
    for part in parts or everything:
        everything[part]()


GPU_PARTS = ("mfu", "head", "compiled", "side", "micro", "probe", "diagnosis", "long")


def paper_case(dry: bool, device: str) -> Case:
    """The study's vocabulary, context and precision."""
    case = Case(
        "ContinualTrainer", "5M", PAPER_VOCABULARY, PAPER_CONTEXT, LARGEST_BATCH, bf16=True, device=device,
        warmup=3, windows=3, shrinks=True,
    )  # fmt: skip
    if dry:
        return case.but(vocab_size=512, context_length=32, batch_size=4, warmup=1, backend="aot_eager", threads=1)
    return case


def options(steps: int, eval_every: int, eval_sequences: int) -> tuple[tuple[str, int], ...]:
    """The options of a probe."""
    return (("steps", steps), ("eval_every", eval_every), ("eval_sequences", eval_sequences))


def sized(case: Case, dry: bool) -> Case:
    """The case with windows of about a third of a second."""
    if dry:
        return case.but(window=1)
    if case.head_loss == "logits":
        case = case.but(batch_size=min(case.batch_size, LARGEST_LOGITS_BATCH))
    seconds = case.tokens * case.flops_per_token / USUAL_FLOPS
    return case.but(window=max(1, round(WINDOW_SECONDS / seconds)))


def utilization_section(report: Report, title: str) -> None:
    report.section(
        title,
        ("model", "contender", "micro-batch", "tokens/s", "MFU, %", "speed", "peak memory, GB"),
        f"bf16, vocabulary {PAPER_VOCABULARY:,}, context {PAPER_CONTEXT:,}. The micro-batch is the largest power of "
        f"two that fits, at most {LARGEST_BATCH}. The FLOPs of a token are 72·L·d² + 12·L·d·T + 6·d·V, as in "
        "`hf-plasticity plan`: they include all keys of causal attention, but not embeddings, norms, the optimizer "
        f"and recomputation. The peak is {PEAK_FLOPS / 1e12:.0f} TFLOP/s, that of an H100 or H200 (SXM) in dense "
        "bf16. Speed is tokens per second divided by those of the bare loop, which is not compiled. Utilization in %: "
        "median and range of three windows.",
    )


def utilization_rows(report: Report, worker: Worker, base: float | None, dry: bool) -> float | None:
    """One row for each case of a worker; the tokens a second of the bare loop."""
    for case in worker.cases:
        if report.left() <= 0:
            report.add(case.size, label(case), "not measured: time limit")
            continue
        try:
            result = worker.result(timeout=report.left() + 60)
        except WorkerFailed as failure:
            report.add(case.size, label(case), f"failed: {failure}")
            continue
        measured = case.but(batch_size=result["batch_size"])
        rates = [measured.tokens / seconds for seconds in result["seconds"]]
        rate = statistics.median(rates)
        if case.contender == "bare loop":
            base = rate
        report.add(
            case.size,
            label(case),
            str(measured.batch_size),
            f"{rate:,.0f}",
            median_and_range([100 * rate * case.flops_per_token / PEAK_FLOPS for rate in rates], 1),
            "" if base is None else f"{rate / base:.3f}",
            f"{result['memory'] / GB:.1f}",
        )
    return base


@contextlib.contextmanager
def workers(groups: list[list[Case]], environment: dict[str, str] | None = None) -> Iterator[list[Worker]]:
    """Workers that import their libraries in the background."""
    started = [Worker(*cases, environment=environment) for cases in groups]
    try:
        yield started
    finally:
        for worker in started:
            worker.close()


@records_failure
def utilization(report: Report, paper: Case, sizes: tuple[str, ...], dry: bool) -> None:
    """Every size, not compiled."""
    utilization_section(report, "Model FLOPs utilization")
    groups = []
    for size in sizes:
        ours = paper.but(size=size)
        cases = [ours.but(contender="bare loop"), ours.but(contender="Trainer"), ours, ours.but(head_loss="fused")]
        groups.append([sized(case, dry) for case in cases])
    with workers(groups) as each:
        for worker in each:
            started(report, worker)
            utilization_rows(report, worker, None, dry)
            worker.close()


def started(report: Report, worker: Worker) -> None:
    """Wait for a worker; one that fails to start also fails in its rows."""
    with contextlib.suppress(WorkerFailed):
        worker.started(timeout=max(report.left(), 60))


def compiled_cases(paper: Case, size: str, dry: bool) -> list[Case]:
    """The contenders that compile."""
    ours = paper.but(size=size, compiled=True)
    cases = [ours, ours.but(head_loss="fused"), ours.but(contender="compiled loop")]
    return [sized(case, dry) for case in cases]


@records_failure
def compiled_utilization(report: Report, paper: Case, order: tuple[str, ...], dry: bool) -> None:
    """Compiled models, for as many sizes as the time allows."""
    utilization_section(report, "Model FLOPs utilization, compiled")
    bases = {
        row[0]: float(row[3].replace(",", ""))
        for section in report.sections
        for row in section.rows
        if section.title == "Model FLOPs utilization" and row[1].startswith("bare loop") and row[4]
    }
    with workers([compiled_cases(paper, size, dry) for size in order]) as each:
        for size, worker in zip(order, each):
            started(report, worker)
            utilization_rows(report, worker, bases.get(size), dry)
            worker.close()


def fill_compile_cache(dry: bool, device: str) -> None:
    """Compile what `compiled_utilization` measures, for all sizes at the same time, into torch's cache on disk."""
    paper = paper_case(dry, device)
    order = ("25K",) if dry else COMPILED_ORDER
    groups = [
        [case.but(compile_only=True, memory_gb=8.0) for case in compiled_cases(paper, size, dry)] for size in order
    ]
    with workers(groups, environment={"TORCHINDUCTOR_COMPILE_THREADS": "2"}) as each:
        for worker in each:
            with contextlib.suppress(WorkerFailed):
                worker.started()
            with contextlib.suppress(WorkerFailed):
                worker.go()
        for worker in each:
            for number in range(len(worker.cases)):
                with contextlib.suppress(WorkerFailed):
                    worker.hear()
                    if number + 1 < len(worker.cases):
                        worker.go()


@records_failure
def head_losses(report: Report, paper: Case, sizes: tuple[str, ...], dry: bool) -> None:
    """Time and memory of a step with both head losses, and the largest batch that fits."""
    small, large = (2, 4) if dry else (4, 12)
    header = tuple(f"fit in {limit} GB" for limit in LIMITS_GB)
    report.section(
        "The loss over the vocabulary",
        ("model", "head loss", f"ms a step of {small} sequences", "peak memory, GB", *header),
        f"`ContinualTrainer`, bf16, vocabulary {PAPER_VOCABULARY:,}, context {PAPER_CONTEXT:,}. The largest "
        f"micro-batch (at most {GLOBAL_BATCH} sequences, the study's global batch) is estimated from the peak memory "
        f"of {small} and of {large} sequences and then trained with the memory of torch limited to that many GB (10⁹ "
        "bytes, without the CUDA context).",
    )
    for size in sizes:
        for head_loss in ("logits", "fused"):
            if report.left() <= 0:
                report.add(size, head_loss, "not measured: time limit")
                continue
            case = paper.but(size=size, head_loss=head_loss, windows=2, warmup=2, window=1, shrinks=False)
            try:
                row = head_loss_row(report, case, small, large, dry)
            except WorkerFailed as failure:
                row = [f"failed: {failure}"]
            report.add(size, head_loss, *row)


def head_loss_row(report: Report, case: Case, small: int, large: int, dry: bool) -> list[str]:
    """The cells of one model and head loss."""
    with Worker(case.but(batch_size=small, window=1 if dry else 10), case.but(batch_size=large)) as worker:
        worker.started(report.left() + 60)
        first, second = worker.result(report.left() + 60), worker.result(report.left() + 60)
    a_sequence = (second["memory"] - first["memory"]) / (large - small)
    row = [f"{1000 * statistics.median(first['seconds']):.1f}", f"{first['memory'] / GB:.2f}"]
    for limit in LIMITS_GB:
        room = limit * GB - first["memory"]
        estimate = min(GLOBAL_BATCH, math.floor(small + room / a_sequence)) if a_sequence > 0 else GLOBAL_BATCH
        if dry:
            estimate = min(estimate, 8)
        tries = list(dict.fromkeys(max(1, math.floor(estimate * part)) for part in (1.0, 0.97, 0.93, 0.87, 0.8)))
        row.append(largest_that_fits(report, case.but(memory_gb=float(limit), windows=1, warmup=2), tries))
    return row


def largest_that_fits(report: Report, case: Case, tries: list[int]) -> str:
    """The first of some batch sizes that can be trained."""
    with Worker(*(case.but(batch_size=batch_size) for batch_size in tries)) as worker:
        worker.started(report.left() + 60)
        for batch_size in tries:
            try:
                worker.result(report.left() + 60)
                return str(batch_size)
            except WorkerFailed as failure:
                if "memory" not in str(failure):
                    return f"failed: {failure}"
    return f"fewer than {tries[-1]}"


@records_failure
def parallel_runs(report: Report, case: Case, counts: tuple[int, ...], dry: bool) -> None:
    """Several runs on one device."""
    report.section(
        "Runs side by side",
        ("runs", "tokens/s of all", "times one run", "of one run's speed each"),
        f"`ContinualTrainer`, {case.size}, context {case.context_length} × {case.batch_size}, fp32: each run is a "
        "process with one CPU thread, all on one device.",
    )
    if report.left() <= 0:
        report.add("not measured: time limit")
        return
    each_case = case.but(contender="ContinualTrainer", windows=len(counts), window=2 if dry else 300)
    alone = None
    with workers([[each_case] for _ in range(max(counts))]) as each:
        for worker in each:
            worker.started(report.left() + 120)
        for worker in each:
            worker.go()
        for worker in each:
            worker.hear(report.left() + 120)
        for count in counts:
            if report.left() <= 0:
                report.add(str(count), "not measured: time limit")
                continue
            for worker in each[:count]:
                worker.go()
            rates = [case.tokens / worker.hear(report.left() + 120)["seconds"] for worker in each[:count]]
            alone = alone or sum(rates)
            report.add(
                str(count), f"{sum(rates):,.0f}", f"{sum(rates) / alone:.2f}", f"{sum(rates) / count / alone:.2f}"
            )
