"""What every command shares: the console, tables on it, errors and exit codes."""

import errno
import functools
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from gatelab.errors import DamagedFile, GatelabError
from gatelab.results.views.table import Table
from gatelab.text import visible

if TYPE_CHECKING:
    from gatelab.results.report.artifacts import Artifacts

DONE, SOME_FAILED, BAD_REQUEST, INTERRUPTED = 0, 1, 2, 130

GAP = 2  # cells between two columns of a table


class _Console(Console):
    """A console on which control characters of users' words are seen, not carried out."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


# Without a terminal there is no width to fit: tables are as wide as they need to be.
console = _Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 1000, highlight=False)
errors = _Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn what a user can mend into a message and exit code 2."""
    try:
        yield
    except GatelabError as error:
        _report(str(error))
        raise typer.Exit(BAD_REQUEST) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever reads the output has gone
            raise
        _report(told(error))
        raise typer.Exit(BAD_REQUEST) from error


def told(error: OSError) -> str:
    """Say what the operating system refused: PATH: reason."""
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "is a file, where a folder is needed"
    return reason if error.filename is None else f"{error.filename}: {reason}"


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that turns what a user can mend into a message and exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        with reporting_errors():
            command(*args, **options)

    return run


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
    _report(message)
    raise typer.Exit(BAD_REQUEST) from cause


def _report(message: str) -> None:
    for line in message.splitlines():
        errors.print(f"[red]error[/] {escape(line)}")


def print_table(table: Table) -> None:
    """Show a table, what is emphasised in bold, its notes beneath. Nothing of it is left out.

    Where it is too wide for the terminal its headings are broken; then its columns are shown below each other, as many
    at a time as fit, each time beside those that name the rows; words of a column that is too wide by itself are
    wrapped.
    """
    if table.title:
        console.print(f"[italic]{escape(table.title)}[/]")
    for part in _parts(table, console.width):
        console.print(_grid(table, part), crop=False)
    for note in table.notes:
        console.print(f"[dim]{escape(note)}[/]")


Widths = dict[int, int]
"""Column -> cells that it takes."""


def _parts(table: Table, room: int) -> list[Widths]:
    """Divide the columns of a table into parts that fit into a width."""
    cells = [
        max((cell_len(visible(row[place])) for row in table.rows), default=0) for place in range(len(table.columns))
    ]
    headings = [cell_len(column.heading) for column in table.columns]
    whole = [max(pair) for pair in zip(cells, headings, strict=True)]
    if _taken(whole) <= room:
        return [dict(enumerate(whole))]
    words = [max(map(cell_len, column.heading.split()), default=0) for column in table.columns]
    broken = [max(pair) for pair in zip(cells, words, strict=True)]
    if _taken(broken) <= room:
        return [dict(enumerate(broken))]
    widths = [min(width, max(room // 2 - GAP, 8)) for width in broken]
    names: Widths = {0: widths[0]}
    for place in itertools.takewhile(lambda place: not table.columns[place].numeric, range(1, len(widths))):
        if _taken([*names.values(), widths[place]]) > room // 2:
            break
        names[place] = widths[place]
    parts = [dict(names)]
    for place in range(len(names), len(widths)):
        if len(parts[-1]) > len(names) and _taken([*parts[-1].values(), widths[place]]) > room:
            parts.append(dict(names))
        parts[-1][place] = widths[place]
    return parts


def _taken(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _grid(table: Table, part: Widths) -> RichTable:
    shown = RichTable(box=None, pad_edge=False, header_style="bold underline")
    for place, width in part.items():
        column = table.columns[place]
        shown.add_column(
            escape(column.heading), justify="right" if column.numeric else "left", width=width, overflow="fold"
        )
    for row, bold in table.styled_rows:
        shown.add_row(*(f"[bold]{escape(row[place])}[/]" if bold[place] else escape(row[place]) for place in part))
    return shown


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
        warn(written.problems)
        return
    for table in written.shown:
        print_table(table)
    show_files(written.files)
    warn(written.problems)
    if problem:
        console.print(f"[yellow]{escape(problem)}[/]")


def show_files(paths: Sequence[Path]) -> None:
    """Show where files lie, a line for those of one name: FOLDER/effects.{md,tex,png}."""
    groups: dict[Path, list[str]] = {}
    for path in paths:
        groups.setdefault(path.with_suffix(""), []).append(path.suffix.removeprefix("."))
    for stem, suffixes in groups.items():
        ending = suffixes[0] if len(suffixes) == 1 else f"{{{','.join(suffixes)}}}"
        console.print(escape(f"{stem}.{ending}" if ending else str(stem)))


def warn(problems: Sequence[str]) -> None:
    """Say on standard error what could not be done beside the rest."""
    for problem in problems:
        errors.print(f"[yellow]note[/] {escape(problem)}")


def print_json(value: Any) -> None:
    """Write JSON to standard output, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 trial, 2 trials."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
