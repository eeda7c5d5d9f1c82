"""A comparison spread over two axes, as a table."""

import csv
import io
import json
import math

from gatelab.results.analyses.comparison import ComparisonRow
from gatelab.results.analyses.pivot import NONE, Pivot
from gatelab.results.store.metric_specs import with_unit
from gatelab.results.store.runs import short_axes
from gatelab.results.views.table import Column, Grid, finite, number


def pivot_grid(found: Pivot) -> Grid:
    """A pivot table for people: the mean, the difference to the baseline with half of its interval, the verdict."""
    down, across = _keys(found)
    names = short_axes(found.comparison.axes)
    headings = [names[axis] for axis in found.rows]
    over = " × ".join(names[axis] for axis in found.columns)
    columns = [Column(heading) for heading in headings]
    columns += [
        Column(f"{over} = {', '.join(key)}" if key else with_unit(found.comparison.metric), True) for key in across
    ]
    rows = [(*key, *(_cell(found.cells.get((key, other))) for other in across)) for key in down]
    best = {key for key, row in found.cells.items() if row.best}
    emphasised = tuple(any(place[0] == key for place in best) for key in down)
    notes = (
        f"{with_unit(found.comparison.metric)}: mean over seeds (difference to the baseline ± half of its 95 % "
        f"t-interval, and the verdict); {NONE}: the axis makes no difference there. In bold: the row of the best mean.",
        *found.comparison.notes,
    )
    return Grid(f"{found.comparison.study}: {found.comparison.metric}", tuple(columns), tuple(rows), emphasised, notes)


def pivot_csv(found: Pivot) -> str:
    """The means of a pivot table, with full precision; empty where there is none."""
    down, across = _keys(found)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*found.rows, *(", ".join(key) for key in across)])
    for key in down:
        means = [row.value.mean if (row := found.cells.get((key, other))) else math.nan for other in across]
        writer.writerow([*key, *("" if math.isnan(mean) else mean for mean in means)])
    return out.getvalue()


def pivot_json(found: Pivot) -> str:
    """A pivot table for programs: a record for each cell."""
    cells = [
        {
            **dict(zip((*found.rows, *found.columns), (*down, *across), strict=True)),
            "variant": row.variant,
            "mean": row.value.mean,
            "delta": row.delta.mean if row.delta else math.nan,
            "verdict": row.verdict,
        }
        for (down, across), row in found.cells.items()
    ]
    whole = {"study": found.comparison.study, "metric": found.comparison.metric, "rows": found.rows}
    return json.dumps(finite({**whole, "columns": found.columns, "cells": cells}), indent=1)


def _keys(found: Pivot) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Rows and columns, those of the baselines first, then in the order in which they come."""
    baselines_first = sorted(found.cells, key=lambda key: not found.cells[key].is_baseline)
    return list(dict.fromkeys(key[0] for key in baselines_first)), list(
        dict.fromkeys(key[1] for key in baselines_first)
    )


def _cell(row: ComparisonRow | None) -> str:
    if row is None or math.isnan(row.value.mean):
        return NONE if row is None else row.why or NONE
    mean = number(row.value.mean)
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        return f"{mean} (baseline)" if row.is_baseline else mean
    half = "" if row.delta.n == 1 else f" ± {(row.delta.high - row.delta.low) / 2:.2g}"
    return f"{mean} ({row.delta.mean:+.4f}{half}, {row.verdict})"
