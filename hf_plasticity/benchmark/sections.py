"""The sections that both suites have: training, probe, diagnosis, several processes, long runs."""

import statistics
from collections.abc import Callable
from functools import wraps
from typing import Any

from ..errors import one_line
from .case import Case
from .processes import Worker, WorkerFailed, median_and_range, median_interval, take_turns
from .report import Report


DEFAULT_CYCLE = 640  # steps: eight task instances of 80, the default of `hf-plasticity train`
GB = 1e9
MB = 1e6


def records_failure(section: Callable[..., None]) -> Callable[..., None]:
    """Record a failure of a section as a row, and continue with the next section."""

    @wraps(section)
    def surviving(report: Report, *arguments: Any, **options: Any) -> None:
        try:
            section(report, *arguments, **options)
        except Exception as error:
            report.add("failed", f"{type(error).__name__}: {one_line(error)[:200]}")

    return surviving


def label(case: Case) -> str:
    """The contender and its special settings."""
    traits = ["torch_compile"] * (case.compiled and case.contender != "compiled loop")
    traits += ["bf16"] * case.bf16
    traits += [f"{case.head_loss} head"] * (case.head_loss != "logits")
    return ", ".join([case.contender, *traits])


def model_label(case: Case) -> str:
    """The model and the batch."""
    return f"{case.size}, {case.context_length} × {case.batch_size}"


@records_failure
def training(report: Report, groups: list[tuple[list[Case], int, int]]) -> None:
    """Contenders that take turns: `groups` of cases on one model (the first is the bare loop), starts and rounds."""
    report.section(
        "Training",
        ("model, context × batch", "contender", "tokens/s", "speed", "95% interval of the median", "peak memory"),
        "Each contender is a separate process. They take turns of a few optimizer steps, and start anew several "
        "times, each time with a new model. Speed is the time of the bare loop divided by "
        "that of the contender: median and range over the starts, or over the turns of a single start. Peak memory in "
        "MB, of the process on a CPU, of torch's tensors on a GPU. The compiled loop trains as nanoGPT does: "
        "`torch.compile`, and the next batch is fetched while the device computes.",
    )
    for cases, starts, rounds in groups:
        if report.left() <= 0:
            report.add(model_label(cases[0]), "not measured: time limit")
            continue
        results = take_turns(cases, rounds, starts, timeout=report.left() + 60)
        base = results[0]
        for case, result in zip(cases, results):
            if isinstance(result, WorkerFailed):
                report.add(model_label(case), label(case), f"failed: {result}")
                continue
            speed = interval = ""
            if not isinstance(base, WorkerFailed):
                ratios = [ours / its for ours, its in zip(base["seconds"], result["seconds"])]
                speed, interval = median_and_range(ratios), median_interval(ratios)
            rate = case.tokens / statistics.median(result["seconds"])
            memory = f"{result['memory'] / MB:,.0f}"
            report.add(model_label(case), label(case), f"{rate:,.0f}", speed, interval, memory)


@records_failure
def probing(report: Report, cases: list[tuple[Case, int]]) -> None:
    """
    A probe compared with the same number of plain steps and evaluations. Each case has the contender `probe`, and
    starts so many times.
    """
    report.section(
        "Probe",
        ("model, context × batch", "probe", "seconds", "times the plain ones", "peak memory, times the plain ones"),
        "`run_probe` from its call to its return, with the copy and the restoration of the model, compared with a "
        "bare loop with the same number of training steps and evaluations, in turns; each starts anew several times.",
    )
    for case, starts in cases:
        what = f"{case.option('steps')} steps, {1 + case.option('steps') // case.option('eval_every')} evaluations"
        if report.left() <= 0:
            report.add(model_label(case), what, "not measured: time limit")
            continue
        both = [case, case.but(contender="plain steps")]
        ours, plain = take_turns(both, 1, starts, timeout=report.left() + 60)
        if isinstance(ours, WorkerFailed) or isinstance(plain, WorkerFailed):
            report.add(model_label(case), what, f"failed: {ours if isinstance(ours, WorkerFailed) else plain}")
            continue
        ratios = [one / other for one, other in zip(ours["seconds"], plain["seconds"])]
        report.add(
            model_label(case),
            what,
            median_and_range(ours["seconds"], 2),
            median_and_range(ratios),
            f"{ours['memory'] / plain['memory']:.2f}",
        )


@records_failure
def diagnosing(report: Report, cases: list[tuple[Case, int]]) -> None:
    """A diagnosis compared with the training steps of a cycle; each case has the contender `diagnosis`."""
    report.section(
        "Diagnosis",
        ("model, context × batch", "sequences", "seconds", "training steps", "share of a cycle"),
        "`diagnose` with its default measures, compared with an optimizer step of a bare loop and with a cycle of "
        f"{DEFAULT_CYCLE} steps, the default of `hf-plasticity train`. A cycle of the study has 76,296 steps.",
    )
    for case, rounds in cases:
        sequences = str(case.option("sequences"))
        if report.left() <= 0:
            report.add(model_label(case), sequences, "not measured: time limit")
            continue
        ours, step = take_turns([case, case.but(contender="bare loop")], rounds, timeout=report.left() + 60)
        if isinstance(ours, WorkerFailed) or isinstance(step, WorkerFailed):
            report.add(model_label(case), sequences, f"failed: {ours if isinstance(ours, WorkerFailed) else step}")
            continue
        steps = statistics.median(ours["seconds"]) / statistics.median(step["seconds"])
        report.add(
            model_label(case),
            sequences,
            median_and_range(ours["seconds"]),
            f"{steps:.1f}",
            f"{steps / DEFAULT_CYCLE:.1%}",
        )


@records_failure
def two_processes(report: Report, cases: list[tuple[Case, int]]) -> None:
    """The same global batch on one process with all threads, and on two with half of the threads each."""
    report.section(
        "Two processes",
        ("model, context × batch", "processes × threads", "tokens/s", "speed", "peak memory of a process"),
        "`ContinualTrainer` with the same global batch: one process, and two over gloo; speed as in Training.",
    )
    for case, rounds in cases:
        if report.left() <= 0:
            report.add(model_label(case), "not measured: time limit")
            continue
        both = [case, case.but(processes=2, threads=max(1, case.threads // 2))]
        one, two = take_turns(both, rounds, timeout=report.left() + 60)
        for which, result in zip(both, (one, two)):
            how = f"{which.processes} × {which.threads}"
            if isinstance(result, WorkerFailed):
                report.add(model_label(case), how, f"failed: {result}")
                continue
            speed = "1"
            if result is two and not isinstance(one, WorkerFailed):
                speed = median_and_range([a / b for a, b in zip(one["seconds"], two["seconds"])])
            rate = case.tokens / statistics.median(result["seconds"])
            report.add(model_label(case), how, f"{rate:,.0f}", speed, f"{result['memory'] / MB:,.0f} MB")


def long_run(report: Report, case: Case) -> dict[str, Any] | None:
    """The result of a case that is measured as a whole; `None` if it failed, which is reported as a row."""
    if report.left() <= 0:
        report.add("not measured: time limit")
        return None
    with Worker(case) as worker:
        try:
            return worker.started().result(timeout=report.left() + 120)
        except WorkerFailed as failure:
            report.add(f"failed: {failure}")
            return None


@records_failure
def resuming(report: Report, case: Case) -> None:
    """From a checkpoint to the first step."""
    report.section(
        "Resuming",
        ("corpus", "resumes at step", "a new run, to its first step", "resumed, to its first step", "peak memory"),
        f"{case.size}, eight languages of prepared text in sparse files (checksums verified), global batch of "
        f"{case.tokens:,} tokens: seconds from opening the text to the first training step, in a process that has "
        "imported everything.",
    )
    if result := long_run(report, case):
        report.add(
            f"{result['tokens']:,} tokens",
            f"{result['step']:,}",
            f"{result['fresh']:.1f} s",
            f"{result['resumed']:.1f} s",
            f"{result['memory'] / MB:,.0f} MB",
        )


@records_failure
def late_cycles(report: Report, case: Case) -> None:
    """The last cycles compared with the first."""
    count = case.option("cycles")
    report.section(
        f"Cycle {count} against cycle 1",
        ("run", "cycles 1 to 3", f"cycles {count - 2} to {count}", "times the first"),
        "Seconds of a cycle with its training, logs, checkpoints and probe: medians of three.",
    )
    if result := long_run(report, case):
        first, last = (statistics.median(part) for part in (result["cycles"][:3], result["cycles"][-3:]))
        steps = 2 * case.option("task_steps")
        what = f"{case.size}, {steps} steps and a probe of {case.option('probe_steps')} a cycle"
        report.add(what, f"{first:.2f} s", f"{last:.2f} s", f"{last / first:.2f}")
