"""A comparison spread over two axes, as a table."""

import math

from gatelab.results.analyses.comparison import ComparisonRow
from gatelab.results.analyses.pivot import NO_LEVEL, Pivot
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.store.runs import short_axes
from gatelab.results.views.format import DASH, level, number, with_unit
from gatelab.results.views.table import Column, Table

NOTHING = "not run"
"""Stands where no variant has the levels of a cell."""


def pivot_table(found: Pivot) -> Table:
    """Lay out a pivot table for people: mean, difference from the baseline with half of its interval, verdict."""
    down, across = found.keys
    names = short_axes(found.comparison.axes)
    headings = [names[axis] for axis in found.rows]
    over = " × ".join(names[axis] for axis in found.columns)
    measure = with_unit(found.comparison.metric, found.comparison.spec)
    columns = [Column(heading) for heading in headings]
    columns += [Column(f"{over} = {', '.join(map(_level, key))}" if key else measure, True) for key in across]
    cells = [[found.cells.get((key, other)) for other in across] for key in down]
    texts = [
        [_empty(found, key, other) if row is None else _cell(row) for other, row in zip(across, own, strict=True)]
        for key, own in zip(down, cells, strict=True)
    ]
    rows = tuple((*map(_level, key), *own) for key, own in zip(down, texts, strict=True))
    better = [tuple(row is not None and row.verdict == Verdict.BETTER for row in own) for own in cells]
    emphasised = tuple((*(False,) * len(headings), *own) for own in better)
    every = {text for row in rows for text in row} | {level for key in across for level in key}
    legend = [  # whether it applies, and the text
        (True, f"{measure}: mean over seeds (difference from the baseline ± half of its 95 % t-interval, verdict)."),
        (any(map(any, better)), "In bold: better than the baseline by its verdict."),
        (DASH in every, f"{DASH}: the axis makes no difference there."),
        (NOTHING in every, f"{NOTHING}: the study has no variant with these levels."),
    ]
    notes = (*(text for applies, text in legend if applies), *found.comparison.notes)
    return Table(f"{found.comparison.study}: {found.comparison.metric}", tuple(columns), rows, emphasised, notes)


def tables(found: Pivot) -> list[Table]:
    """Return the one table."""
    return [pivot_table(found)]


def _level(name: str) -> str:
    return level(None if name == NO_LEVEL else name)


def _empty(found: Pivot, down: tuple[str, ...], across: tuple[str, ...]) -> str:
    """Return what stands in a cell without a variant: whether one with other levels is the same."""
    wanted = (*down, *across)
    for key in found.cells:
        levels = (*key[0], *key[1])
        if all(level in (NO_LEVEL, other) for level, other in zip(levels, wanted, strict=True)):
            return DASH
    return NOTHING


def _cell(row: ComparisonRow) -> str:
    if math.isnan(row.value.mean):
        return row.why or "no value yet"
    mean = number(row.value.mean)
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        return f"{mean} (baseline)" if row.is_baseline else mean
    half = "" if row.delta.n == 1 else f" ± {(row.delta.high - row.delta.low) / 2:.2g}"
    return f"{mean} ({row.delta.mean:+.4f}{half}, {row.verdict})"
