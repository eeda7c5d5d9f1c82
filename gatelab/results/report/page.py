"""The report of a study as one HTML page: nothing outside the file is asked for, with or without JavaScript."""

import base64
import re
from html import escape
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.report.parts import Picture
from gatelab.results.report.report import Report, report
from gatelab.results.store.layout import PAGE, RunsFolder
from gatelab.results.views.style import save_files
from gatelab.results.views.table import Table, to_html
from gatelab.text import visible

MOST_ROWS = 40
"""Rows of a table that is shown at once; a longer one has to be opened."""


BREADTHS = {"vast": 12, "broad": 10}
"""Class of a table -> from how many columns on it is one of those."""


WIDE = 7.5
"""Inches from which on a picture is one of several panels, and needs the whole width of a printed page."""


LARGEST_SVG = 400_000
"""Bytes of a drawing that goes into the page; a larger one goes in as pixels."""


def write_report(
    folder: RunsFolder, study: str, page: Path | None = None, metric: str = DEFAULT_METRIC
) -> tuple[Path, list[Path]]:
    """Write the page of a study, and its figures into the study's folder; return the page's path and theirs.

    Args:
        folder: where the study's trials are.
        study: its name.
        page: the file to write. Default: report.html in the study's folder.
        metric: by which variants are compared.

    Raises NotFound, and WrongRequest for an unknown metric.
    """
    target = folder.study(study).path
    page = page or target / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    collected = report(folder, study, metric)
    figures = [
        path
        for section in collected.sections
        for picture in section.pictures
        for path in save_files(picture.files, target / picture.name)
    ]
    page.write_text(to_page(collected), encoding="utf-8")
    return page, figures


def to_page(collected: Report) -> str:
    """Render a report as an HTML page. Equal reports give equal pages."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"inline": _inline, "plain": _plain, "table": _table}
    environment.filters |= {"source": _source, "pixels": _pixels, "kind": _kind, "breadth": _breadth}
    template = resources.files("gatelab.results.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(report=collected, most_rows=MOST_ROWS)


def _inline(text: str) -> Markup:
    """Mark up text, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escape(visible(text))))


def _plain(text: str) -> str:
    """Return text without backticks, where there can be no markup."""
    return text.replace("`", "")


def _breadth(table: Table) -> str:
    """Return the class of a table that has to be small to fit onto a printed page."""
    return next((name for name, columns in BREADTHS.items() if len(table.columns) >= columns), "")


def _table(table: Table) -> Markup:
    return Markup(to_html(table))


def _source(picture: Picture) -> str:
    """Encode a picture as an address that holds all of it."""
    suffix = "svg" if len(picture.files["svg"]) <= LARGEST_SVG else "png"
    kind = {"svg": "image/svg+xml", "png": "image/png"}[suffix]
    return f"data:{kind};base64,{base64.b64encode(picture.files[suffix]).decode('ascii')}"


def _kind(picture: Picture) -> str:
    """Return the classes of a picture: how it is to be shown in the dark and in print."""
    return " ".join(["picture", *(["scale"] if picture.scale else []), *(["wide"] if picture.size[0] > WIDE else [])])


def _pixels(inches: float) -> int:
    """Convert a length in inches to CSS pixels."""
    return round(96 * inches)
