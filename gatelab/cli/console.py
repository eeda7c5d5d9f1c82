"""What every command shares: the console, tables on it, errors and exit codes."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Never, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.segment import Segments
from rich.table import Table as RichTable

from gatelab.errors import DamagedFile, GatelabError
from gatelab.results.views.table import Table

if TYPE_CHECKING:
    from gatelab.results.report.artifacts import Artifacts

DONE, SOME_FAILED, BAD_REQUEST, INTERRUPTED = 0, 1, 2, 130

# Without a terminal there is no width to fit: tables are as wide as they need to be.
console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 1000, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn what a user can mend into a message and exit code 2."""
    try:
        yield
    except GatelabError as error:
        for line in str(error).splitlines():
            errors.print(f"[red]error[/] {escape(line)}")
        raise typer.Exit(BAD_REQUEST) from error


def show_damage() -> None:
    """From now on, show in a line each file that is found to be damaged."""
    show_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, DamagedFile):
            errors.print(f"[yellow]damaged[/] {escape(str(message))}")
        else:
            show_others(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def fail(message: str, cause: BaseException | None = None) -> Never:
    """Report a request that cannot be met and exit with code 2."""
    errors.print(f"[red]error[/] {escape(message)}")
    raise typer.Exit(BAD_REQUEST) from cause


def print_table(table: Table) -> None:
    """Show a table, its emphasised rows in bold, its notes beneath. Nothing of it is left out: where it is too wide for
    the terminal its headings are broken, and then its lines."""
    shown = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False, header_style="bold underline")
    cells = [max((cell_len(row[place]) for row in table.rows), default=0) for place in range(len(table.columns))]
    words = [max(map(cell_len, column.heading.split())) for column in table.columns]
    whole = [max(width, cell_len(column.heading)) for width, column in zip(cells, table.columns, strict=True)]
    gaps = 2 * (len(table.columns) - 1)
    fits = sum(whole) + gaps <= console.width
    widths = whole if fits else [max(pair) for pair in zip(cells, words, strict=True)]
    for column, width in zip(table.columns, widths, strict=True):
        shown.add_column(escape(column.heading), justify="right" if column.numeric else "left", width=width)
    for row, bold in table.styled_rows:
        shown.add_row(*(escape(cell) for cell in row), style="bold" if bold else None)
    lines = console.render(shown, console.options.update_width(max(console.width, sum(widths) + gaps)))
    console.print(Segments(lines), crop=False, end="")
    for note in table.notes:
        console.print(f"[dim]{escape(note)}[/]")


def show_written(written: "Artifacts", form: str, problem: str) -> None:
    """Show what was written: on the terminal the tables and where files lie; or the text of one form, and no more.

    Args:
        written: what was found and written.
        form: terminal, or the suffix of a table's form.
        problem: what kept it from MLflow, or ''.
    """
    if form != "terminal":
        for path in written.tables:
            if path.suffix == f".{form}":
                sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    for table in written.shown:
        print_table(table)
    for path in written.files:
        console.print(escape(str(path)))
    if problem:
        console.print(f"[yellow]{escape(problem)}[/]")


def print_json(value: Any) -> None:
    """Write JSON to standard output, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 trial, 2 trials."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
