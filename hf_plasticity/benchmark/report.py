"""The benchmark's Markdown: sections of one table each, written to the file after every row."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..threads import available_cores


PACKAGES = ("torch", "transformers", "accelerate", "numpy")


@dataclass
class Section:
    """
    A table.

    Args:
        title (`str`): Its heading.
        header (`tuple[str, ...]`): Its columns.
        text (`str`): What was measured, and how.
        rows (`list[tuple[str, ...]]`): Cells by column.
    """

    title: str
    header: tuple[str, ...]
    text: str
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """The section."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"## {self.title}\n\n{self.text}\n\n{table}\n"


class Report:
    """
    The whole document. It is written to disk after every row.

    Args:
        suite (`str`): `"cpu"` or `"gpu"`.
        path (`Path`, *optional*): The file.
        time_limit (`float`): Seconds after which no further row is started.
    """

    def __init__(self, suite: str, path: Path | None, time_limit: float):
        self.suite, self.path, self.sections = suite, path, list[Section]()
        self._until = time.monotonic() + time_limit

    def left(self) -> float:
        """Seconds until the time limit."""
        return self._until - time.monotonic()

    def section(self, title: str, header: tuple[str, ...], text: str) -> Section:
        """Begin a section."""
        self.sections.append(Section(title, header, text))
        return self.sections[-1]

    def add(self, *cells: str) -> None:
        """Add a row to the last section; a short row is padded."""
        section = self.sections[-1]
        section.rows.append((*cells, *("",) * (len(section.header) - len(cells))))
        print(f"{self.left():5.0f} s left  {section.title}: {' | '.join(cells)}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Write the document so far."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The document."""
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        head = f"# Benchmark, suite {self.suite}\n\n{datetime.date.today()}, {hardware(self.suite)}; {versions}\n"
        return "\n".join([head, *(section.markdown() for section in self.sections)])


def hardware(suite: str) -> str:
    """The machine, in words."""
    cores = f"{available_cores()} of {os.cpu_count()} CPU cores ({processor()})"
    if suite != "gpu":
        return cores
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        answer = ""
    return f"{answer.splitlines()[0]}, {cores}" if answer else cores


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
