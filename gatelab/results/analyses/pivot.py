"""A comparison as a pivot table: levels of some axes down, levels of others across."""

from collections.abc import Sequence
from dataclasses import dataclass

from gatelab.results.analyses.comparison import Comparison, ComparisonRow

NONE = "–"  # the level of an axis that makes no difference to a variant


@dataclass(frozen=True)
class Pivot:
    """A table with a variant, or none, in each cell."""

    comparison: Comparison
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], ComparisonRow]
    """(levels of `rows`, levels of `columns`) -> the variant there; in the order of the study."""


def pivot(comparison: Comparison, rows: Sequence[str], columns: Sequence[str]) -> Pivot:
    """Lay a comparison out by axes, which may be named by their last words. Raises ValueError.

    An axis that is in neither must be the same, or make no difference, wherever two variants would share a cell.
    """
    down, across = (tuple(_axis(name, comparison.axes) for name in names) for names in (rows, columns))
    if twice := set(down) & set(across):
        raise ValueError(f"{', '.join(sorted(twice))}: both in rows and in columns")
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], ComparisonRow] = {}
    for row in comparison.rows:
        place = tuple(tuple(row.levels[axis] or NONE for axis in axes) for axes in (down, across))
        key = (place[0], place[1])
        if key in cells:
            others = [axis for axis in comparison.axes if axis not in (*down, *across)]
            differing = [axis for axis in others if row.levels[axis] != cells[key].levels[axis]]
            raise ValueError(f"{' and '.join(differing)} differ within a cell: put them into rows or columns")
        cells[key] = row
    return Pivot(comparison, down, across, cells)


def _axis(name: str, axes: Sequence[str]) -> str:
    """The axis of a name. Raises ValueError."""
    found = [axis for axis in axes if axis == name] or [axis for axis in axes if axis.endswith(f".{name}")]
    if len(found) != 1:
        raise ValueError(
            f"{name!r} {'is more than one axis' if found else 'is no axis'} (there are: {', '.join(axes)})"
        )
    return found[0]
