"""A comparison spread over two axes, as a table."""

import math

from gatelab.results.analyses.comparison import ComparisonRow
from gatelab.results.analyses.pivot import NO_LEVEL, Pivot
from gatelab.results.store.runs import short_axes
from gatelab.results.views.format import DASH, number, with_unit
from gatelab.results.views.table import Column, Table


def pivot_table(found: Pivot) -> Table:
    """Lay out a pivot table for people: mean, difference to the baseline with half of its interval, verdict."""
    down, across = found.keys
    names = short_axes(found.comparison.axes)
    headings = [names[axis] for axis in found.rows]
    over = " × ".join(names[axis] for axis in found.columns)
    measure = with_unit(found.comparison.metric, found.comparison.spec)
    columns = [Column(heading) for heading in headings]
    columns += [Column(f"{over} = {', '.join(key)}" if key else measure, True) for key in across]
    rows = [(*key, *(_cell(found.cells.get((key, other))) for other in across)) for key in down]
    best = {key for key, row in found.cells.items() if row.best}
    emphasised = tuple(any(place[0] == key for place in best) for key in down)
    notes = (
        f"{measure}: mean over seeds (difference to the baseline ± half of its 95 % "
        f"t-interval, and the verdict); {NO_LEVEL}: the axis makes no difference there. "
        "In bold: the row of the best mean.",
        *found.comparison.notes,
    )
    return Table(f"{found.comparison.study}: {found.comparison.metric}", tuple(columns), tuple(rows), emphasised, notes)


def tables(found: Pivot) -> list[Table]:
    """Return the one table."""
    return [pivot_table(found)]


def _cell(row: ComparisonRow | None) -> str:
    if row is None or math.isnan(row.value.mean):
        return DASH if row is None else row.why or DASH
    mean = number(row.value.mean)
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        return f"{mean} (baseline)" if row.is_baseline else mean
    half = "" if row.delta.n == 1 else f" ± {(row.delta.high - row.delta.low) / 2:.2g}"
    return f"{mean} ({row.delta.mean:+.4f}{half}, {row.verdict})"
