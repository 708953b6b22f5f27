"""The command line: `hf-plasticity <command>`."""

import argparse
import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from .configs import find_config
from .errors import PlasticityError, TrainingInterrupted, one_line


SETTINGS = "Also accepts every setting of `hf-plasticity train`; `hf-plasticity train --help` lists them."
TRAIN = """
Run the study: a GPT-2-style model rotates through languages and is probed on a held-out one after every cycle.

    hf-plasticity train
    hf-plasticity train --config micro --source local --data_dir corpus
    hf-plasticity train --config paper --size 12M --num_processes 8 --accelerate_config ddp

Without arguments, this runs the configuration `quickstart`: a micro model on generated text, two minutes on a laptop,
without downloads. With arguments, settings that are neither given nor in --config have the defaults below. The same
command in the same folder resumes the run. --num_processes and --accelerate_config (single, ddp, fsdp2, or a file)
start it with `accelerate launch`.
"""
QUICKSTART = ["--config", "quickstart"]
PROBE = """
Probe a suite of published checkpoints: how fast does each checkpoint learn a language?

    hf-plasticity probe --model EleutherAI/pythia-70m --revisions "step*000" --every 10 \\
        --source hub --dataset wikipedia --probe_language vi

The checkpoints are branches of a repository, or subfolders of a folder. All get the same probe. The same command
resumes. Add revisions to probe more checkpoints.

    hf-plasticity probe --model runs/mine --follow

probes the checkpoints of a run that was started with `--probe deferred`, as they appear in its folder or on the Hub;
`hf-plasticity probe --follow --help` lists its settings.
--num_processes and --accelerate_config start it with `accelerate launch`.
"""
# System errors about a path, the disk or access rights, which are not bugs of this program.
USER_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments (`Sequence[str]`, *optional*): The arguments after `hf-plasticity`; `sys.argv` by default.

    Returns:
        `int`: The exit status: 0, or 2 for a user error, which is printed as one line on stderr.
    """
    try:
        with errors_on_one_line(_program()):
            return _run([_with_underscores(one) for one in (sys.argv[1:] if arguments is None else arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)


def _run(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in LAUNCHED:
        return _launch_or_run(command, rest)
    parser = _parser()
    options, settings = parser.parse_known_args(arguments)
    options.settings = settings
    if options.settings and not options.takes_settings:
        raise PlasticityError(f"unknown argument '{options.settings[0]}'; see --help")
    return options.command(options) or 0


def _with_underscores(argument: str) -> str:
    """`--output-dir` as `--output_dir`: Transformers accepts both."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if argument.startswith("--") else argument


def _program() -> str:
    """The name of the started script for messages: `continual.py`, or `hf-plasticity`."""
    name = Path(sys.argv[0]).name
    return name if name.endswith(".py") and name != "__main__.py" else "hf-plasticity"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PlasticityError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-plasticity", description="Measure loss of plasticity in language models.")
    parser.add_argument("--version", action="version", version=f"hf-plasticity {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="run the study, or resume it", add_help=False)
    commands.add_parser("probe", help="probe published checkpoints, or those of a run", add_help=False)
    mitigations = _add_parser(commands, "mitigations", "list the mitigations of plasticity loss")
    mitigations.set_defaults(command=_mitigations, takes_settings=False)
    for add in (_add_ladder, _add_compare, _add_plan, _add_prepare, _add_report, _add_push):
        add(commands)
    return parser


def _launch_or_run(command: str, arguments: list[str]) -> int:
    """Run a command in this process, or in several processes of `accelerate launch`."""
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--num_processes")
    launcher.add_argument("--accelerate_config")
    options, rest = launcher.parse_known_args(arguments)
    if options.accelerate_config is None and options.num_processes in (None, "1"):
        LAUNCHED[command](rest)
        return 0
    config = find_config(options.accelerate_config or "ddp", "accelerate")
    words = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--config_file", str(config)]
    if options.num_processes is not None:
        words += ["--num_processes", options.num_processes]
    words += ["-m", "hf_plasticity", command, *rest]
    if os.name != "posix":
        return subprocess.run(words).returncode
    # The launcher takes the place of this process, so that signals reach it.
    sys.stdout.flush()
    os.execv(sys.executable, words)


def _train(arguments: list[str]) -> None:
    from .experiment import parse_experiment, run_experiment

    run_experiment(parse_experiment(arguments or QUICKSTART, TRAIN))


def _probe(arguments: list[str]) -> None:
    if any(argument == "--follow" or argument.startswith("--follow=") for argument in arguments):
        from .deferred import parse_deferred, probe_deferred

        probe_deferred(parse_deferred(arguments, PROBE))
    else:
        from .published import parse_suite, probe_suite

        probe_suite(*parse_suite(arguments, PROBE))


LAUNCHED: dict[str, Callable[[list[str]], None]] = {"train": _train, "probe": _probe}


def _mitigations(options: argparse.Namespace) -> None:
    from .mitigations.listing import list_mitigations

    print(list_mitigations())


def _add_parser(
    commands: argparse._SubParsersAction, name: str, summary: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    return commands.add_parser(name, help=summary, description=description, epilog=epilog, allow_abbrev=False)


def _add_ladder(commands: argparse._SubParsersAction) -> None:
    from .ladder.command import add_arguments

    parser = _add_parser(commands, "ladder", "run several sizes, seeds and schedules", epilog=SETTINGS)
    add_arguments(parser)
    parser.set_defaults(command=_ladder, takes_settings=True)


def _ladder(options: argparse.Namespace) -> int:
    from .ladder.command import run_ladder

    return run_ladder(options)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    from .comparing.command import add_arguments

    parser = _add_parser(commands, "compare", "compare mitigations of plasticity loss", epilog=SETTINGS)
    add_arguments(parser)
    parser.set_defaults(command=_compare, takes_settings=True)


def _compare(options: argparse.Namespace) -> int:
    from .comparing.command import run_comparison

    return run_comparison(options)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    summary = "estimate tokens, FLOPs, time, memory and disk of a run"
    parser = _add_parser(commands, "plan", summary, epilog=SETTINGS)
    parser.add_argument("--num_processes", type=int, default=1, metavar="N", help="devices (default: 1)")
    parser.add_argument(
        "--sharding", default="none", metavar="KIND", help="none (one device, or DDP; the default) or fsdp2"
    )
    parser.add_argument(
        "--tokens_per_second", type=float, metavar="X", help="throughput of training over all devices, for the time"
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the throughput in a few steps on this machine instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_plan, takes_settings=True)


def _plan(options: argparse.Namespace) -> None:
    from .planning.study import parse_planned_study, plan_study
    from .planning.table import plan_table

    study = parse_planned_study(options.settings)
    planned = plan_study(
        study,
        num_processes=options.num_processes,
        sharding=options.sharding,
        tokens_per_second=options.tokens_per_second,
        measure=options.measure,
    )
    print(json.dumps(planned, indent=1, ensure_ascii=False) if options.json else plan_table(study, planned))


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = _add_parser(commands, "prepare", "prepare the text of a run", epilog=SETTINGS)
    parser.set_defaults(command=_prepare, takes_settings=True)


def _prepare(options: argparse.Namespace) -> None:
    from .planning.prepare import describe_prepared, prepare_study
    from .planning.study import parse_planned_study

    print(describe_prepared(prepare_study(parse_planned_study(options.settings, on_cpu=True))))


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = _add_parser(commands, "report", "write one HTML page about one run or several")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, a folder of runs, or org/name on the Hub")
    parser.add_argument("-o", "--output", type=Path, help="the page (by default report.html in the folder)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write every figure here, as SVG and PNG")
    parser.add_argument(
        "--onset_rule",
        default="rise",
        metavar="RULE",
        help="rule for the onset: rise (default), or turning_point, zero_crossing, statistical (docs/study.md)",
    )
    parser.set_defaults(command=_report, takes_settings=False)


def _report(options: argparse.Namespace) -> None:
    from .analysis.report import find_runs, write_report
    from .hub import load_run
    from .records import REPORT_FILE

    if options.output is None and len(options.runs) > 1:
        raise PlasticityError("output: missing; name the page of several runs with -o FILE")
    runs = [load_run(os.fspath(run)) for run in find_runs(options.runs)]
    output = options.output or Path(options.runs[0]) / REPORT_FILE
    if not output.parent.is_dir() and options.output is None:
        raise PlasticityError(f"output: missing; '{options.runs[0]}' is on the Hub, name the page with -o FILE")
    print(write_report(runs, output, options.figures, options.onset_rule))


def _add_push(commands: argparse._SubParsersAction) -> None:
    parser = _add_parser(commands, "push", "upload a run to the Hub, or complete its upload")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--hub_model_id", metavar="NAME", help="repository; by default the run's or the folder's name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.set_defaults(command=_push, takes_settings=False)


def _push(options: argparse.Namespace) -> None:
    from .hub.push import describe, push_run, repository_of
    from .records import run_lock

    repository = repository_of(options.run, options.hub_model_id, options.private)
    try:
        with run_lock(options.run):
            repository.open()
            push_run(options.run, repository)
    except PlasticityError:
        raise
    except Exception as error:
        raise PlasticityError(
            f"'{options.run}' could not be uploaded to '{repository.repo_id}': {describe(error)}; the same command "
            "uploads the rest"
        ) from None
    print(f"{repository.api.endpoint}/{repository.repo_id}")


@contextlib.contextmanager
def errors_on_one_line(program: str) -> Iterator[None]:
    """
    Report a user, data or disk error as one line on stderr with exit status 2, and an interruption as one line with
    exit status 130 (Ctrl-C) or 143 (SIGTERM).
    """
    try:
        yield
        _leave_group()
    except TrainingInterrupted as interrupted:
        _leave_group()
        _end(program, str(interrupted), interrupted.exit_status)
    except KeyboardInterrupt:
        _end(program, "stopped by SIGINT; the same command resumes", 130)
    except (PlasticityError, FloatingPointError) as error:
        _end(program, f"error: {one_line(error)}", 2)
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        _end(program, f"error: {error.filename or 'a file'}: {os.strerror(error.errno)}", 2)


def _leave_group() -> None:
    """Wait for the other processes of the launch, and leave their group."""
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    # A process that exits without this may abort in a gloo thread, and the launcher then stops the others (seen in
    # torch 2.13.0; described in https://github.com/pytorch/pytorch/pull/179291).
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _end(program: str, message: str, status: int) -> NoReturn:
    # On a new line, below the progress bars.
    print(f"\n{program}: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
