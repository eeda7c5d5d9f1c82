"""A comparison as a pivot table: levels of some axes down, levels of others across."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gatelab.errors import WrongRequest
from gatelab.results.analyses.analysis import to_jsonable
from gatelab.results.analyses.comparison import Comparison, ComparisonRow

NO_LEVEL = "–"
"""The level of an axis that makes no difference to a variant."""


@dataclass(frozen=True)
class Pivot:
    """A table with a variant, or none, in each cell."""

    comparison: Comparison
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], ComparisonRow]
    """(levels of `rows`, levels of `columns`) -> the variant there; in the order of the study."""

    @property
    def keys(self) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """Rows and columns, those of the baselines first, then in the order in which they come."""
        baselines_first = sorted(self.cells, key=lambda key: not self.cells[key].is_baseline)
        down = dict.fromkeys(key[0] for key in baselines_first)
        across = dict.fromkeys(key[1] for key in baselines_first)
        return list(down), list(across)

    def frame(self) -> pa.Table:
        """Return the means as they are laid out: a column for each axis of the rows, one for each of `columns`."""
        down, across = self.keys
        levels = [pa.array([key[place] for key in down], pa.utf8()) for place in range(len(self.rows))]
        means = [pa.array([self._mean(key, other) for key in down], pa.float64()) for other in across]
        return pa.table([*levels, *means], [*self.rows, *(", ".join(key) for key in across)])

    def to_dict(self) -> dict[str, Any]:
        """Return a record for each cell, as JSON values."""
        cells = [
            {
                **dict(zip((*self.rows, *self.columns), (*down, *across), strict=True)),
                "variant": row.variant,
                "mean": row.value.mean,
                "delta": row.delta.mean if row.delta else None,
                "verdict": row.verdict,
            }
            for (down, across), row in self.cells.items()
        ]
        whole = {"study": self.comparison.study, "metric": self.comparison.metric, "rows": self.rows}
        return {**to_jsonable({**whole, "columns": self.columns, "cells": cells})}

    def _mean(self, down: tuple[str, ...], across: tuple[str, ...]) -> float | None:
        row = self.cells.get((down, across))
        return None if row is None or math.isnan(row.value.mean) else row.value.mean


def pivot(comparison: Comparison, rows: Sequence[str], columns: Sequence[str]) -> Pivot:
    """Lay a comparison out by axes, which may be named by their last words. Raises WrongRequest.

    An axis that is in neither must be the same, or make no difference, wherever two variants would share a cell.
    """
    down, across = (tuple(_axis(name, comparison.axes) for name in names) for names in (rows, columns))
    if twice := set(down) & set(across):
        raise WrongRequest(f"{', '.join(sorted(twice))}: both in rows and in columns")
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], ComparisonRow] = {}
    for row in comparison.rows:
        key = _levels(row, down), _levels(row, across)
        if key in cells:
            others = [axis for axis in comparison.axes if axis not in (*down, *across)]
            differing = [axis for axis in others if row.levels[axis] != cells[key].levels[axis]]
            raise WrongRequest(f"{' and '.join(differing)} differ within a cell: put them into rows or columns")
        cells[key] = row
    return Pivot(comparison, down, across, cells)


def _levels(row: ComparisonRow, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(NO_LEVEL if (level := row.levels[axis]) is None else level for axis in axes)


def _axis(name: str, axes: Sequence[str]) -> str:
    """Return the axis with this name. Raises WrongRequest."""
    found = [axis for axis in axes if axis == name] or [axis for axis in axes if axis.endswith(f".{name}")]
    if len(found) != 1:
        raise WrongRequest(
            f"{name!r} {'is more than one axis' if found else 'is no axis'} (there are: {', '.join(axes)})"
        )
    return found[0]
