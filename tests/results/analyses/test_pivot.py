"""A pivot table has every variant in one cell, or says which axis is missing."""

import csv
import io
import itertools
import json
from typing import Any

import pyarrow as pa
import pytest

from gatelab.results.analyses.comparison import DEFAULT_METRIC, Comparison, compare
from gatelab.results.analyses.pivot import pivot
from gatelab.results.store.runs import runs_schema
from gatelab.results.views.pivot import pivot_table
from gatelab.results.views.table import to_csv

POSITION, GRANULARITY, SIZE = "model.gate.position", "model.gate.granularity", "size"


def frame(*axes: str, drop: tuple[str, ...] = ()) -> pa.Table:
    """Positions by granularities by sizes, which make no difference where they cannot."""
    rows = []
    levels = itertools.product(("none", "value", "sdpa"), ("elementwise", "headwise"), ("small", "big"))
    for position, granularity, size in levels:
        if position == "none" and granularity == "headwise":
            continue
        own = {POSITION: position, GRANULARITY: None if position == "none" else granularity, SIZE: size}
        variant = ", ".join(str(level) for level in own.values() if level)
        for seed in range(3):
            better = {"none": 0.0, "value": -0.1, "sdpa": -0.2}[position] - 0.05 * (granularity == "headwise")
            loss = 3.0 - (size == "big") + better + 0.1 * seed + 0.001 * (seed * len(variant) % 3)
            row = {"study": "s", "study_hash": "h", "variant": variant, "baseline": f"none, {size}", "seed": seed}
            row |= {"parameters": 1, "added_parameters": 0, "outcome": "failed" if variant in drop else "finished"}
            row |= {f"axis/{axis}": level for axis, level in own.items() if axis in axes}
            rows.append(row | ({} if variant in drop else {DEFAULT_METRIC: loss}))
    return pa.Table.from_pylist(rows, runs_schema(list(axes)))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(frame(POSITION, GRANULARITY, SIZE))


def test_every_variant_is_in_its_cell(comparison: Comparison) -> None:
    """Rows and columns are levels; a dash stands for an axis that makes no difference, and for no variant."""
    found = pivot(comparison, ["position"], ["granularity", "size"])
    assert (found.rows, found.columns) == ((POSITION,), (GRANULARITY, SIZE))
    assert len(found.cells) == len(comparison.rows) == 10
    for (down, across), row in found.cells.items():
        assert down == (row.levels[POSITION],)
        assert across == (row.levels[GRANULARITY] or "–", row.levels[SIZE])
    grid = pivot_table(found)
    headings = [column.heading for column in grid.columns]
    assert headings[0] == "position"
    assert set(headings[1:]) == {
        f"granularity × size = {granularity}, {size}"
        for granularity in ("–", "elementwise", "headwise")
        for size in ("small", "big")
    }
    assert headings[1].startswith("granularity × size = –")  # the baselines come first
    assert grid.rows[0][0] == "none"
    table = {row[0]: dict(zip(headings, row, strict=True)) for row in grid.rows}
    assert table["none"]["granularity × size = headwise, big"] == "–"
    assert table["none"]["granularity × size = –, big"] == "2.1000 (baseline)"
    by_variant = {row.variant: row for row in comparison.rows}
    for row in by_variant.values():
        if row.is_baseline or row.delta is None:
            continue
        cell = table[row.levels[POSITION]][f"granularity × size = {row.levels[GRANULARITY]}, {row.levels[SIZE]}"]
        half = f"{(row.delta.high - row.delta.low) / 2:.2g}"
        assert cell == f"{row.value.mean:.4f} ({row.delta.mean:+.4f} ± {half}, {row.verdict})"
    assert by_variant["sdpa, headwise, big"].verdict == "better"
    bold = {
        (row[0], heading)
        for row, flags in grid.styled_rows
        for heading, strong in zip(headings, flags, strict=True)
        if strong
    }
    better = [row for row in comparison.rows if row.verdict == "better"]
    assert bold == {
        (r.levels[POSITION], f"granularity × size = {r.levels[GRANULARITY]}, {r.levels[SIZE]}") for r in better
    }


def test_programs_read_the_same_cells(comparison: Comparison) -> None:
    """CSV has the means with full precision and no more; JSON has a record for each variant."""
    found = pivot(comparison, ["position", "granularity"], ["size"])
    rows = list(csv.reader(io.StringIO(to_csv(found.frame()))))
    assert rows[0] in ([POSITION, GRANULARITY, "small", "big"], [POSITION, GRANULARITY, "big", "small"])
    assert len(rows) == 1 + 5
    means = {(*row[:2], size): float(cell) for row in rows[1:] for size, cell in zip(rows[0][2:], row[2:], strict=True)}
    whole = json.loads(json.dumps(found.to_dict()))
    assert (whole["rows"], whole["columns"]) == ([POSITION, GRANULARITY], [SIZE])
    assert {(cell[POSITION], cell[GRANULARITY], cell[SIZE]): cell["mean"] for cell in whole["cells"]} == means
    assert {cell["variant"]: (cell["mean"], cell["verdict"]) for cell in whole["cells"]} == {
        row.variant: (row.value.mean, row.verdict) for row in comparison.rows
    }


def test_one_side_is_enough(comparison: Comparison) -> None:
    """All axes down gives one column, under the metric's name; all axes across one row."""
    down = pivot_table(pivot(comparison, ["position", "granularity", "size"], []))
    assert [column.heading for column in down.columns][3:] == ["validation/loss [nats/token]"]
    assert len(down.rows) == 10
    across = pivot_table(pivot(comparison, [], ["position", "granularity", "size"]))
    assert (len(across.rows), len(across.columns)) == (1, 10)


def test_variants_without_a_value_say_why() -> None:
    """A hole in a pivot table may be a variant that failed: not the same as one that never was."""
    lost = compare(frame(POSITION, GRANULARITY, SIZE, drop=("sdpa, headwise, big",)))
    found = pivot(lost, ["position"], ["granularity", "size"])
    grid = pivot_table(found)
    place = [column.heading for column in grid.columns].index("granularity × size = headwise, big")
    assert {row[0]: row[place] for row in grid.rows} == {
        "none": "–",
        "value": next(row[place] for row in grid.rows if row[0] == "value"),
        "sdpa": "no pairs",
    }
    cells = {cell["variant"]: cell for cell in json.loads(json.dumps(found.to_dict()))["cells"]}
    assert (cells["sdpa, headwise, big"]["mean"], cells["sdpa, headwise, big"]["delta"]) == (None, None)
    rows = {row[0]: row for row in csv.reader(io.StringIO(to_csv(found.frame())))}
    assert rows["sdpa"][rows[POSITION].index("headwise, big")] == ""


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (["position"], ["granularity"], "size differ within a cell: put them into rows or columns"),
        (["size"], ["granularity"], "^model.gate.position differ within a cell"),
        (["size", "position"], ["model.gate.position"], r"model\.gate\.position: both in rows and in columns"),
        (
            ["positon"],
            ["size"],
            r"'positon' is no axis \(there are: model.gate.position, model.gate.granularity, size\)",
        ),
    ],
)
def test_what_is_no_table_is_refused(rows: list[str], columns: list[str], said: str, comparison: Comparison) -> None:
    """Two variants in one cell would hide one of them."""
    with pytest.raises(ValueError, match=said):
        pivot(comparison, rows, columns)


def test_an_axis_is_named_by_its_last_word_if_that_is_enough() -> None:
    """`position` of two modules is neither; the whole name always works."""
    runs: list[dict[str, Any]] = []
    for a, b in itertools.product("xy", repeat=2):
        row = {"study": "s", "study_hash": "h", "variant": a + b, "baseline": None, "seed": 0, "outcome": "finished"}
        runs.append(row | {"parameters": 1, "axis/a.kind": a, "axis/b.kind": b, "axis/kind": a, DEFAULT_METRIC: 1.0})
    names = ["a.kind", "b.kind"]
    two = compare(pa.Table.from_pylist(runs, runs_schema(names)))
    with pytest.raises(ValueError, match="'kind' is more than one axis"):
        pivot(two, ["kind"], [])
    assert len(pivot(two, ["a.kind"], ["b.kind"]).cells) == 4
    three = compare(pa.Table.from_pylist(runs, runs_schema([*names, "kind"])))
    assert pivot(three, ["kind"], ["b.kind"]).rows == ("kind",)
