"""`hf-plasticity report`: one self-contained HTML page about one run or several."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import PlasticityError
from ..metrics.plasticity_onset.definition import RULES
from ..records import CONFIG_FILE, PROBES_FILE, RunRecord
from .comparison import comparisons
from .groups import SEEDS, identity
from .page import Page, Section, write_page
from .sections.compared import comparison_section, runs_section
from .sections.configuration import configuration_section
from .sections.correlation import correlation_sections
from .sections.diagnostics import diagnostics_of_runs, diagnostics_sections
from .sections.forgetting import forgetting_of_runs, forgetting_section
from .sections.onset_law import onset_sections
from .sections.probes import probes_section, probes_table
from .sections.training import training_section
from .series import is_untrained, probe_series
from .summary import run_result, run_summary, runs_result, runs_summary
from .text import plural


NEEDED = ("language", "adaptation", "probe_config_hash", "probe_steps", "losses", "auc", "start_loss", "final_loss")


def write_report(
    runs: Sequence[RunRecord],
    output: str | os.PathLike,
    figures: str | os.PathLike | None = None,
    onset_rule: str | None = None,
) -> Path:
    """
    Write the report of one run or several as one HTML file that works offline.

    Args:
        runs (`Sequence[RunRecord]`): The runs, as [`~records.read_run`] returns them.
        output (`str` or `os.PathLike`): The file to write. Its folder is created if it does not exist.
        figures (`str` or `os.PathLike`, *optional*): A folder in which every figure is also written, as SVG and PNG.
        onset_rule (`str`, *optional*): The rule for onsets, as in [`find_onset`].

    Returns:
        `Path`: The file written.

    Raises:
        [`PlasticityError`]: There is no run, a run is given twice, a probe record lacks a field, the rule is unknown,
            or a file cannot be written.

    Example:

    ```python
    from hf_plasticity.analysis.report import write_report
    from hf_plasticity.records import read_run

    write_report([read_run("runs/quickstart")], "report.html")
    ```
    """
    if not runs:
        raise PlasticityError("runs: there is none; name at least one run folder")
    if onset_rule is not None and onset_rule not in RULES:
        raise PlasticityError(f"onset_rule: '{onset_rule}' is unknown; choose one of {', '.join(RULES)}")
    check_runs(runs)
    page = run_page(runs[0], onset_rule) if len(runs) == 1 else runs_page(runs, onset_rule)
    write_page(page, Path(output), None if figures is None else Path(figures))
    return Path(output)


def run_page(run: RunRecord, onset_rule: str | None = None) -> Page:
    """The report of one run."""
    series = probe_series(run, onset_rule)
    sections = [
        *(probes_section(one) for one in series),
        *(probes_table(one) for one in series),
        training_section(run),
        forgetting_section(run),
        *diagnostics_sections(run),
        *(section for one in series for section in correlation_sections(one)),
        configuration_section(run),
    ]
    return Page(run.name, run_result(series), run_summary(run, series), sections)


def runs_page(runs: Sequence[RunRecord], onset_rule: str | None = None) -> Page:
    """The report of several runs."""
    compared = comparisons(runs, onset_rule)
    sections = [
        *(comparison_section(one) for one in compared),
        *(section for one in compared for section in onset_sections(one)),
        forgetting_of_runs(runs),
        diagnostics_of_runs(runs),
        runs_section(compared),
        missing_section(runs),
    ]
    return Page(plural(len(runs), "run"), runs_result(compared), runs_summary(runs), sections)


def missing_section(runs: Sequence[RunRecord]) -> Section:
    """Notes on runs without a configuration or without a probe."""
    notes = [f"{run.name}: no config.yaml, so it is not grouped with any run." for run in runs if not run.config]
    without = [run for run in runs if all(is_untrained(probe) for probe in run.probes)]
    notes += [f"{run.name}: no probe of the trained model." for run in without]
    return Section("", notes=notes)


def find_runs(paths: Sequence[str | os.PathLike]) -> list[str | os.PathLike]:
    """
    The run folders among `paths`, with each folder of runs replaced by the run folders in it.

    Args:
        paths (`Sequence[str | os.PathLike]`): Run folders, folders of run folders, or names on the Hub, which are not
            changed.

    Returns:
        `list[str | os.PathLike]`: In the order of `paths`; those in one folder sorted by name.
    """
    found = []
    for path in paths:
        folder = Path(path)
        inside = sorted(child for child in folder.iterdir() if is_run(child)) if folder.is_dir() else []
        found += inside if inside and not is_run(folder) else [path]
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder holds the records of a run."""
    return any((folder / name).is_file() for name in (CONFIG_FILE, PROBES_FILE))


def check_runs(runs: Sequence[RunRecord]) -> None:
    """
    Check that no run is there twice, as one folder or as two copies, and that every probe has the fields that a report
    requires.

    Raises:
        [`PlasticityError`]: A check fails.
    """
    folders = [run.folder.resolve() for run in runs]
    known: dict[tuple, RunRecord] = {}
    for run, folder in zip(runs, folders):
        if folders.count(folder) > 1:
            raise PlasticityError(f"runs: '{run.folder}' is named twice; it would count as two seeds")
        seeds = tuple(run.config.get(name) for name in SEEDS)
        other = known.setdefault((*identity(run).items(), *seeds), run)
        if other is not run:
            raise PlasticityError(
                f"runs: '{other.folder}' and '{run.folder}' have the same settings and the same seed "
                f"({run.config.get('seed')}), and would count as two seeds; name one of them"
            )
        for probe in run.probes:
            lacking = [name for name in NEEDED if probe.get(name) is None]
            if lacking:
                where = f"'{run.folder / PROBES_FILE}', the probe of step {probe['step']}"
                raise PlasticityError(f"{where}: it lacks {', '.join(lacking)}")
