"""The command line of `recipes/benchmark.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import PlasticityError
from .cpu import CPU_PARTS, cpu_suite
from .gpu import GPU_PARTS, fill_compile_cache, gpu_suite
from .report import Report


DESCRIPTION = """
Measure the speed of training, probes and diagnoses on this machine, and print Markdown tables with date, hardware and
versions.

    python recipes/benchmark.py --suite cpu --output benchmark-cpu.md
    python recipes/benchmark.py --suite gpu --output benchmark-gpu.md

The file is written after every row. Rows that fail or exceed the time limit are marked.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run a suite and print it.

    Args:
        arguments (`Sequence[str]`, *optional*): The arguments of the command line; `sys.argv` by default.
    """
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the tables to this file")
    parser.add_argument(
        "--time_limit",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="start no row after this time (default: 3600)",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help=f"only these parts, in this order; cpu: {', '.join(CPU_PARTS)}; gpu: {', '.join(GPU_PARTS)}",
    )
    parser.add_argument(
        "--dry", action="store_true", help="run with minimal work to test the suite; the numbers are meaningless"
    )
    parser.add_argument(
        "--compile_only",
        action="store_true",
        help="only fill the cache of torch.compile for the suite gpu",
    )
    options = parser.parse_args(arguments)
    known = CPU_PARTS if options.suite == "cpu" else GPU_PARTS
    for part in options.parts or ():
        if part not in known:
            parser.error(f"parts: {part!r} is not a part of the suite {options.suite}; choose from {', '.join(known)}")
    import torch

    if options.suite == "gpu" and not options.dry and not torch.cuda.is_available():
        raise PlasticityError("suite: gpu requires a CUDA device, and there is none; choose cpu")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile_only:
        fill_compile_cache(options.dry, device)
        return
    report = Report(options.suite, options.output, options.time_limit)
    if options.suite == "cpu":
        cpu_suite(report, options.dry, options.parts)
    else:
        gpu_suite(report, options.dry, device, options.parts)
    report.write()
    print(report.markdown())
