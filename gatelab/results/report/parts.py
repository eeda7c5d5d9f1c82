"""The parts of a report: pictures, lists, sections."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from gatelab.results.views.style import draw
from gatelab.results.views.table import Column, Table

MOST_COLUMNS = 8
"""Variants beside each other in a table."""


@dataclass(frozen=True)
class Picture:
    """A figure: what its files are called, how it is read, width and height in inches, its files by suffix."""

    name: str
    caption: str
    size: tuple[float, float]
    files: dict[str, bytes]
    scale: bool = False
    """True if its colours are a scale, as those of a map are."""


@dataclass(frozen=True)
class Listing:
    """A text that is shown as it is."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report. Words between backticks are names, in prose and captions."""

    id: str
    title: str
    prose: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    wordy: bool = False
    """True if its tables hold sentences, to be broken into lines."""
    listings: tuple[Listing, ...] = ()


def pictures(
    make: Callable[[], Mapping[str, Figure]], caption: Callable[[str], str], what: str
) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Draw figures as pictures of a page; return them, and a sentence for each that cannot be drawn.

    `caption` is asked for each by its name; `what` names all of them.
    """
    drawn, problems = draw(make, what)
    made = (Picture(name, caption(name), drawing.size, drawing.files) for name, drawing in drawn.items())
    return tuple(made), tuple(f"{problem}." for problem in problems)


def upright(table: Table) -> Table:
    """Turn a table with a column for each variant into one with a row for each, where there are many."""
    if len(table.columns) <= 1 + MOST_COLUMNS:
        return table
    cells = [[column.heading for column in table.columns], *table.rows]
    head, *rows = zip(*cells, strict=True)
    columns = (Column(head[0]), *(Column(name, numeric=True) for name in head[1:]))
    return replace(table, columns=columns, rows=tuple(rows), emphasised=())


def listed(items: Iterable[str], most: int = 12) -> str:
    """Join texts into a list, cut short after `most` of them."""
    every = list(items)
    return ", ".join(every[:most]) + (f", … ({len(every)} in all)" if len(every) > most else "")
