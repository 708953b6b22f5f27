"""The page of a report: sections of text, figures and tables in one self-contained HTML file."""

import base64
import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from ..errors import PlasticityError
from ..records import write_atomically
from .figures import render
from .text import Estimate, missing


@dataclass
class Drawing:
    """
    A figure that is drawn when the page is written.

    Args:
        name (`str`): Its content, used as alternative text and as the name of its files.
        draw (`Callable[[], Figure]`): Draws it.
        caption (`str`, *optional*): The text below the figure.
    """

    name: str
    draw: Callable[[], Figure]
    caption: str = ""


@dataclass
class Table:
    """
    A table, shown formatted and offered as CSV with full precision.

    Args:
        columns (`dict[str, Callable[[Any], str]]`): The format of each column.
        rows (`list[list]`): The values, `None` if not recorded. An [`Estimate`] has two columns in CSV.
        caption (`str`, *optional*): The text above the table.
        folded (`bool`, *optional*, defaults to `False`): Whether the table is folded at first.
    """

    columns: dict[str, Callable[[Any], str]]
    rows: list[list[Any]]
    caption: str = ""
    folded: bool = False

    def cells(self) -> list[list[str]]:
        """The rows as shown."""
        return [[missing(value, form) for value, form in zip(row, self.columns.values())] for row in self.rows]

    def csv(self) -> str:
        """The rows as CSV."""
        columns: dict[str, list[Any]] = {}
        for index, name in enumerate(self.columns):
            column = [row[index] for row in self.rows]
            if any(isinstance(value, Estimate) for value in column):
                columns[name] = [value and value.value for value in column]
                columns[f"{name} error"] = [value and value.error for value in column]
            else:
                columns[name] = column
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([columns, *zip(*columns.values())])
        return buffer.getvalue()


@dataclass
class Section:
    """
    A section with its content in this order. A section without figures and tables is left out, except its notes.

    Args:
        title (`str`): The heading.
        text (`list[str]`, *optional*): Paragraphs.
        drawings (`list[Drawing]`, *optional*): Figures.
        tables (`list[Table]`, *optional*): Tables.
        notes (`list[str]`, *optional*): One sentence for each missing part of the records.
        size (`str`, *optional*, defaults to `"half"`): The width of a figure: `"whole"`, `"half"` or `"small"`.
    """

    title: str
    text: list[str] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    size: str = "half"


@dataclass
class Page:
    """
    A report before it is HTML.

    Args:
        title (`str`): The name of the run or runs.
        result (`list[str]`): The result in sentences.
        summary (`str`): A description of the runs.
        sections (`list[Section]`): In order.
    """

    title: str
    result: list[str]
    summary: str
    sections: list[Section]

    def notes(self) -> list[str]:
        """The notes of all sections, each once."""
        return list(dict.fromkeys(note for section in self.sections for note in section.notes))


def write_page(page: Page, path: Path, figures: Path | None = None) -> None:
    """
    Write a page to `path`. If a folder `figures` is given, also write every figure to it, as SVG and PNG.

    Raises:
        [`PlasticityError`]: A file cannot be written.
    """
    names: list[str] = []

    def image(drawing: Drawing) -> str:
        svg, *png = render(drawing.draw, *("svg", "png")[: 1 if figures is None else 2])
        for data in png:
            names.append(file_name(drawing.name))
            count = names.count(names[-1])
            stem = f"{names[-1]}-{count}" if count > 1 else names[-1]
            write_file("figures", figures / f"{stem}.svg", svg)
            write_file("figures", figures / f"{stem}.png", data)
        return data_uri("image/svg+xml", svg)

    def csv_link(table: Table) -> str:
        return data_uri("text/csv;charset=utf-8", table.csv().encode("utf-8", "replace"))

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    html = template.render(page=page, image=image, csv_link=csv_link, file_name=file_name)
    write_file("output", path, html.encode("utf-8", "replace"))


def data_uri(kind: str, data: bytes) -> str:
    """The data as a `data:` URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def file_name(title: str) -> str:
    """A title in lowercase letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("δ", "delta-")).strip("-")


def write_file(option: str, path: Path, data: bytes) -> None:
    """
    Write a file atomically.

    Raises:
        [`PlasticityError`]: It cannot be written; `option` is the option with its path.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise PlasticityError(f"{option}: '{path}' cannot be written: {error.strerror}") from None
