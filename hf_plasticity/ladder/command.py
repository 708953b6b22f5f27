"""`hf-plasticity ladder`: the study at several sizes, seeds and schedules, and one report of all runs."""

import argparse
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

from ..errors import PlasticityError
from ..models import model_size
from ..records import PROBES_FILE, REPORT_FILE, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command; every other argument goes to `hf-plasticity train`."""
    parser.add_argument("--sizes", nargs="+", required=True, help="model sizes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="seeds (default: 42)")
    parser.add_argument("--schedules", nargs="+", default=["rotation"], help="schedules (default: rotation)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ladder"), help="parent of the run folders")
    parser.add_argument("--num_processes", metavar="N", help="processes of each run, as in `hf-plasticity train`")
    parser.add_argument("--accelerate_config", metavar="FILE", help="as in `hf-plasticity train`")
    parser.add_argument("--print_commands", action="store_true", help="print one command for each run instead")


def run_ladder(options: argparse.Namespace) -> int:
    """
    Run all combinations one after the other. The same command resumes.

    Raises:
        [`PlasticityError`]: A setting that differs from run to run, or a value that is given twice.
    """
    commands = _commands(options)
    if options.print_commands:
        for words in commands.values():
            print(shlex.join(words))
        return 0
    failed = {}
    for number, (folder, words) in enumerate(commands.items(), start=1):
        print(f"\n[{number}/{len(commands)}] {folder}", flush=True)
        status = subprocess.run(words).returncode
        if status != 0:
            failed[folder] = status
    for folder, status in failed.items():
        print(f"failed: {folder} (exit status {status})", file=sys.stderr)
    _report(options.output_dir, list(commands))
    return 1 if failed else 0


def _commands(options: argparse.Namespace) -> dict[Path, list[str]]:
    for name, plural in (("--size", "--sizes"), ("--seed", "--seeds"), ("--schedule", "--schedules")):
        if any(setting.split("=")[0] == name for setting in options.settings):
            raise PlasticityError(f"{name[2:]}: it differs from run to run in a ladder; use {plural}")
    for size in options.sizes:
        model_size(size)
    for name in ("sizes", "seeds", "schedules"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise PlasticityError(f"{name}: '{' '.join(map(str, values))}' has a duplicate")
    launcher = [
        f"--{name}={getattr(options, name)}"
        for name in ("num_processes", "accelerate_config")
        if getattr(options, name) is not None
    ]
    commands = {}
    for size, schedule, seed in product(options.sizes, options.schedules, options.seeds):
        folder = options.output_dir / f"{size}-{schedule.replace(',', '-')}-seed{seed}"
        run = [f"--size={size}", f"--schedule={schedule}", f"--seed={seed}", f"--output_dir={folder}"]
        commands[folder] = [sys.executable, "-m", "hf_plasticity", "train", *launcher, *options.settings, *run]
    return commands


def _report(output_dir: Path, folders: list[Path]) -> None:
    """Write one report of all runs that have a probe, failed ones included."""
    from ..analysis.report import write_report

    probed = [folder for folder in folders if (folder / PROBES_FILE).exists()]
    if probed:
        report = write_report([read_run(folder) for folder in probed], output_dir / REPORT_FILE)
        print(f"\nreport of {len(probed)} runs  {report}")
