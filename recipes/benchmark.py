"""
What training, probes and diagnoses cost on this machine: Markdown tables with date, hardware and versions.

    python recipes/benchmark.py --suite cpu --output benchmark-cpu.md
    python recipes/benchmark.py --suite gpu --output benchmark-gpu.md

The file is written after every row. A row that fails, or that the time limit excludes, says so.
"""

import argparse
from pathlib import Path

import torch

from hf_plasticity.benchmark.cpu import cpu_suite
from hf_plasticity.benchmark.gpu import PARTS, fill_compile_cache, gpu_suite
from hf_plasticity.benchmark.report import Report
from hf_plasticity.cli import errors_on_one_line
from hf_plasticity.errors import PlasticityError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tables to this file too")
    parser.add_argument(
        "--time_limit", type=float, default=3600.0, metavar="SECONDS", help="start no row after it (default: 3600)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these parts of the suite gpu, in this order")
    parser.add_argument("--dry", action="store_true", help="tiny work, to test the suite; the numbers mean nothing")
    parser.add_argument(
        "--compile_only", action="store_true", help="only fill the cache of torch.compile for the suite gpu"
    )
    options = parser.parse_args()
    if options.suite == "gpu" and not options.dry and not torch.cuda.is_available():
        raise PlasticityError("suite: gpu requires a CUDA device, and there is none; choose cpu")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile_only:
        fill_compile_cache(options.dry, device)
        return
    report = Report(options.suite, options.output, options.time_limit)
    if options.suite == "cpu":
        cpu_suite(report, options.dry)
    else:
        gpu_suite(report, options.dry, device, options.parts)
    report.write()
    print(report.markdown())


if __name__ == "__main__":
    with errors_on_one_line("benchmark.py"):
        main()
