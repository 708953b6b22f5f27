"""`hf-plasticity ladder`: the study at several sizes, seeds and schedules, and one report of all runs."""

import argparse
import os
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..configs import find_config
from ..errors import PlasticityError
from ..records import PROBES_FILE, REPORT_FILE, FolderInUseError, differences, read_config, read_run, run_lock


if TYPE_CHECKING:
    from ..experiment import ExperimentConfig
    from .jobs import Job

LOCAL, SLURM = EXECUTORS = ("local", "slurm")
SLURM_OPTIONS = ("timeout_min", "slurm_partition", "gpus_per_node", "cpus_per_task")
TIMEOUT_MIN = 240


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command; all other arguments are passed to `hf-plasticity train`."""
    parser.add_argument("--sizes", nargs="+", required=True, help="model sizes")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds (default: the seed of the configuration)")
    parser.add_argument("--schedules", nargs="+", help="schedules (default: the schedule of the configuration)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/ladder"), help="parent of the run folders (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at the same time (default: as many as the GPUs or CPU cores allow)"
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="N", help="processes of each run, as in `hf-plasticity train`"
    )
    parser.add_argument("--accelerate_config", metavar="FILE", help="as in `hf-plasticity train`")
    parser.add_argument("--executor", default=LOCAL, help="local (default), or slurm: one cluster job per run")
    parser.add_argument(
        "--timeout_min",
        type=int,
        help=f"with slurm: time limit of a job, which is then queued again (default: {TIMEOUT_MIN})",
    )
    parser.add_argument("--slurm_partition", help="with slurm: the partition")
    parser.add_argument("--gpus_per_node", type=int, metavar="N", help="with slurm: GPUs of a run (default: none)")
    parser.add_argument("--cpus_per_task", type=int, metavar="N", help="with slurm: CPU cores of a run (default: 1)")
    parser.add_argument("--print_commands", action="store_true", help="print one command for each run instead")


def run_ladder(options: argparse.Namespace) -> int:
    """
    Run all combinations of sizes, schedules and seeds. The same command resumes.

    Raises:
        [`PlasticityError`]: A setting that the ladder decides, a duplicate or invalid value in any run, or an invalid
            number of jobs or executor.
    """
    runs = ladder_runs(options)
    commands = ladder_commands(runs, options)
    if options.print_commands:
        for words in commands.values():
            print(shlex.join(words))
        return 0
    _check_executor(options, len(runs))
    if options.executor == SLURM:
        return _submit(runs, commands, options)
    return _run_here(runs, commands, options)


def _check_executor(options: argparse.Namespace, runs: int) -> None:
    if options.executor not in EXECUTORS:
        raise PlasticityError(f"executor: '{options.executor}' is unknown; choose {' or '.join(EXECUTORS)}")
    if options.executor == SLURM and options.jobs is not None:
        raise PlasticityError(f"jobs: {options.jobs} has no meaning with --executor {SLURM}; leave it out")
    for name in SLURM_OPTIONS:
        if options.executor == LOCAL and getattr(options, name) is not None:
            raise PlasticityError(f"{name}: {getattr(options, name)} requires --executor {SLURM}")
    if options.jobs is not None and not 1 <= options.jobs <= runs:
        raise PlasticityError(f"jobs: {options.jobs} is not between 1 and the number of runs, {runs}")


def _run_here(
    runs: "dict[Path, ExperimentConfig]", commands: dict[Path, list[str]], options: argparse.Namespace
) -> int:
    """Run all on this machine, and write one report of them."""
    from .jobs import COMPLETE, FAILED

    cpu_threads = next(iter(runs.values())).training.cpu_threads
    try:
        jobs = run_in_parallel(commands, options.jobs, processes=_processes_of_a_run(options), cpu_threads=cpu_threads)
    finally:
        write_ladder_report(options.output_dir, list(commands))
    for job in jobs:
        if job.state == FAILED:
            print(f"failed: {job.folder}: {job.last_line()}", file=sys.stderr)
    return 0 if all(job.state == COMPLETE for job in jobs) else 1


def _processes_of_a_run(options: argparse.Namespace) -> int:
    """The processes of each run: as given, or as in the Accelerate configuration."""
    if options.num_processes is not None or options.accelerate_config is None:
        return options.num_processes or 1
    config = yaml.safe_load(find_config(options.accelerate_config, "accelerate").read_text(encoding="utf-8"))
    return int(config.get("num_processes", 1))


def run_in_parallel(
    commands: dict[Path, list[str]],
    at_once: int | None,
    runs_in_total: int | None = None,
    processes: int = 1,
    cpu_threads: int | None = None,
) -> "list[Job]":
    """
    Run the commands of run folders on this machine.

    Args:
        commands (`dict[Path, list[str]]`): The command of each run by its folder.
        at_once (`int`, *optional*): Runs at the same time; by default as many as there are GPUs, or CPU cores, for
            their processes.
        runs_in_total (`int`, *optional*): The number of runs, if `commands` are only those that are not complete.
            Then all runs have the same CPU threads.
        processes (`int`, *optional*, defaults to 1): Processes of each run.
        cpu_threads (`int`, *optional*): The CPU threads of each process, if the settings of the runs have them. By
            default, the CPU cores are divided among the runs.

    Returns:
        `list[Job]`: The finished jobs, in the order of `commands`.
    """
    from ..experiment.folder import recorded_setting
    from .jobs import Job, run_jobs

    at_once, arguments, devices = _share_of_machine(at_once, runs_in_total or len(commands), processes, cpu_threads)
    jobs = []
    for folder, words in commands.items():
        # A run resumes with its own number of CPU threads.
        own = [] if recorded_setting(folder, "cpu_threads") else arguments
        jobs.append(Job(folder, [*words[:4], *own, *words[4:]]))
    at_once = min(at_once, len(jobs))
    print(f"{len(jobs)} runs, {at_once} at a time; the output of each is in its folder (log.txt)", flush=True)
    run_jobs(jobs, at_once, devices)
    return jobs


def ladder_runs(options: argparse.Namespace) -> "dict[Path, ExperimentConfig]":
    """The configuration of each run by its folder, checked as far as is possible without its text."""
    from ..planning.study import parse_planned_study

    for name, plural in (("--size", "--sizes"), ("--seed", "--seeds"), ("--schedule", "--schedules")):
        if any(setting.split("=")[0] == name for setting in options.settings):
            raise PlasticityError(f"{name[2:]}: the ladder decides it for each run; use {plural}")
    if any(setting.split("=")[0] == "--hub_token" for setting in options.settings):
        # submitit writes the commands to files.
        raise PlasticityError(
            "hub_token: it would be part of the command of each run; use `hf auth login` or the environment variable "
            "HF_TOKEN"
        )
    for name in ("sizes", "seeds", "schedules"):
        values = getattr(options, name) or []
        if len(set(values)) < len(values):
            raise PlasticityError(f"{name}: '{' '.join(map(str, values))}' has a duplicate")
    first = [f"--size={options.sizes[0]}", *(f"--schedule={schedule}" for schedule in (options.schedules or [])[:1])]
    base = parse_planned_study([*options.settings, *first], on_cpu=True).training
    if base.hub_model_id is not None:
        raise PlasticityError(
            f"hub_model_id: all runs would be uploaded to '{base.hub_model_id}'; leave it out, and each run "
            "is uploaded to a repository with the name of its folder"
        )
    runs = {}
    for size, schedule, seed in product(
        options.sizes, options.schedules or [base.schedule], options.seeds or [base.seed]
    ):
        folder = options.output_dir / f"{size}-{schedule.replace(',', '-')}-seed{seed}"
        run = [f"--size={size}", f"--schedule={schedule}", f"--seed={seed}", f"--output_dir={folder}"]
        runs[folder] = parse_planned_study([*options.settings, *run], on_cpu=True)
    return runs


def ladder_commands(runs: "dict[Path, ExperimentConfig]", options: argparse.Namespace) -> dict[Path, list[str]]:
    """The command of each run by its folder."""
    launcher = [
        f"--{name}={getattr(options, name)}"
        for name in ("num_processes", "accelerate_config")
        if getattr(options, name) is not None
    ]
    train = [sys.executable, "-m", "hf_plasticity", "train", *launcher, *options.settings]
    return {
        folder: [
            *train,
            f"--size={config.model.size}",
            f"--schedule={config.training.schedule}",
            f"--seed={config.training.seed}",
            f"--output_dir={folder}",
        ]
        for folder, config in runs.items()
    }


def _share_of_machine(
    jobs: int | None, runs: int, processes: int, cpu_threads: int | None = None
) -> tuple[int, list[str], list[dict[str, str]]]:
    """
    The number of runs at a time, the arguments of each, and for several GPUs the environments that select the GPUs of
    a run.
    """
    import torch

    from ..threads import available_cores

    gpus, cores = torch.cuda.device_count(), available_cores()
    cores_of_a_run = processes * (cpu_threads or 1)
    at_once = min(jobs or max(1, gpus // processes if gpus else cores // cores_of_a_run), runs)
    if not gpus:
        if at_once > max(1, cores // cores_of_a_run):
            needed = at_once * cores_of_a_run
            raise PlasticityError(f"jobs: {at_once} need {needed} CPU cores, and {cores} are available; use fewer")
        return at_once, [] if cpu_threads else [f"--cpu_threads={max(1, cores // at_once // processes)}"], []
    # Devices that are already selected for this command, by number or identifier.
    selected = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = selected if len(selected) == gpus and selected[0] else [str(number) for number in range(gpus)]
    sets = [names[first : first + processes] for first in range(0, gpus - processes + 1, processes)]
    return at_once, [], [{"CUDA_VISIBLE_DEVICES": ",".join(names)} for names in sets] if len(sets) > 1 else []


def _submit(runs: "dict[Path, ExperimentConfig]", commands: dict[Path, list[str]], options: argparse.Namespace) -> int:
    """Submit every run that is neither complete nor running."""
    from ..experiment.folder import is_finished
    from .cluster import submit_jobs
    from .jobs import Job

    parameters: dict[str, Any] = {"timeout_min": TIMEOUT_MIN}
    for name in SLURM_OPTIONS:
        if getattr(options, name) is not None:
            parameters[name] = getattr(options, name)
    jobs = []
    for folder, config in runs.items():
        if is_finished(config) and _has_settings(folder, config) and not config.training.push_to_hub:
            print(f"complete  {folder}")
        elif _is_locked(folder):
            print(f"running  {folder}")
        else:
            jobs.append(Job(folder, commands[folder]))
    submitted = submit_jobs(jobs, options.executor, str(options.output_dir / "jobs"), parameters) if jobs else []
    for job, handle in zip(jobs, submitted):
        print(f"{handle.job_id}  {job.folder}")
    print(f"\nonce they are complete: hf-plasticity report {options.output_dir} -o report.html")
    return 0


def _has_settings(folder: Path, config: "ExperimentConfig") -> bool:
    """Whether the run in a folder has these settings, apart from `tf32`, which was not parsed for its devices."""
    current = {name: value for name, value in config.numerics().items() if name != "tf32"}
    recorded = {name: value for name, value in (read_config(folder) or {}).items() if name != "tf32"}
    return not differences(recorded, current)


def _is_locked(folder: Path) -> bool:
    """Whether another process uses a run folder."""
    if folder.exists():
        try:
            with run_lock(folder):
                pass
        except FolderInUseError:
            return True
    return False


def write_ladder_report(output_dir: Path, folders: list[Path]) -> None:
    """Write one report of all runs that have a probe, failed ones included."""
    from ..analysis.report import write_report

    probed = [folder for folder in folders if (folder / PROBES_FILE).exists()]
    if probed:
        report = write_report([read_run(folder) for folder in probed], output_dir / REPORT_FILE)
        print(f"\nreport of {len(probed)} runs  {report}")
