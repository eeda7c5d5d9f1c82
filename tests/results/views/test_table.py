"""Tables for people are complete and whole; tables for programs lose no digit."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.metrics import NATS, SPEED, MetricSpec
from gatelab.results.analyses.comparison import Comparison, ComparisonRow
from gatelab.results.analyses.contrasts import Evidence
from gatelab.results.statistics.paired import Interval
from gatelab.results.views import format
from gatelab.results.views.comparison import comparison_table
from gatelab.results.views.table import Column, Table, to_csv, to_latex, to_markdown

NAN = math.nan


def row(variant: str, value: Interval, delta: Interval | None, outcomes: dict[str, int], **rest: Any) -> ComparisonRow:
    """A row of a comparison with the variant `none`."""
    known: dict[str, Any] = {
        "levels": {"model.gate.position": variant, "model.gate.granularity": None if variant == "none" else "headwise"},
        "baseline": "none",
        "reasons": (),
        "parameters": 217_856,
        "added_parameters": 0,
        "tokens_per_second": 23_456.7,
        "verdict": "baseline" if delta is None else "undecided",
    }
    return ComparisonRow(variant=variant, value=value, delta=delta, outcomes=outcomes, **known | rest)


def comparison(
    *rows: ComparisonRow, metric: str = "validation/loss", notes: tuple[str, ...] = (), spec: MetricSpec = NATS
) -> Comparison:
    """A comparison of rows."""
    return Comparison(
        "gates", "abc", metric, None, ("model.gate.position", "model.gate.granularity"), rows, notes, spec
    )


TESTED: dict[str, Any] = {
    "verdict": "better",
    "evidence": Evidence(0.0201, 0.0134, 0.25, 0.25, 0.0267, 2, q=0.0134, detectable=0.0657, correlation=0.75),
}
SMALL = comparison(
    row("sdpa", Interval(1.5, 1.25, 1.75, 3), Interval(-0.1, -0.15, -0.05, 3), {"finished": 3}, best=True, **TESTED),
    row("none", Interval(1.6, 1.3, 1.9, 3), None, {"finished": 3}),
    row(
        "value",
        Interval(1 / 3 + 1, NAN, NAN, 1),
        Interval(0.25, NAN, NAN, 1),
        {"finished": 1, "diverged": 1, "waiting": 1},
        added_parameters=1_234,
        verdict="not evaluable",
        why="1 of 3 seeds diverged",
    ),
    row(
        "key",
        Interval(NAN, NAN, NAN, 0),
        Interval(NAN, NAN, NAN, 0),
        {"failed": 3},
        added_parameters=-56,
        tokens_per_second=NAN,
        reasons=("seed 0: out of memory",),
        verdict="not evaluable",
        why="no pairs",
    ),
    notes=("trials differ in device: a, b",),
)


@pytest.mark.parametrize(("render", "name"), [(to_markdown, "comparison.md"), (to_latex, "comparison.tex")])
def test_a_small_table_is_as_it_was_checked(render: Callable[[Table], str], name: str) -> None:
    """Cell by cell, with alignment, marks, dashes, escapes and notes: for reading, and for a paper."""
    assert render(comparison_table(SMALL)) == (Path(__file__).parent / "golden" / name).read_text(encoding="utf-8")


NASTY = comparison(
    row(
        r"a|b_c & 50% #1 $x$ {y} ~^\z",
        Interval(1.5, 1.0, 2.0, 2),
        Interval(0.1, 0.0, 0.2, 2),
        {"finished": 2},
        best=True,
    ),
    row("none", Interval(1.6, 1.3, 1.9, 3), None, {"finished": 3}),
    notes=("key, seed 0: Traceback (most recent call last):\n  File a_b.py\nError: 100% & more",),
)


def test_latex_compiles_whatever_levels_and_errors_contain() -> None:
    """Names and tracebacks are free text: neither may break the paper that includes the table."""
    text = to_latex(comparison_table(NASTY))
    table, _, after = text.partition("\\end{tabular}")
    assert all(line.startswith("%") for line in after.strip().splitlines())
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(NASTY.rows)
    for line in rows:
        bare = re.sub(r"\\(text[a-z]+\{\}|[&%#_${}])", "", line.removesuffix(r"\\"))  # what stands for itself
        assert bare.count("&") == 10
        bare = bare.replace(r"\textbf{", "{").replace(r"$\Delta$", "")
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"[%#_$~^\\]", bare)


def test_markdown_keeps_its_columns_whatever_levels_contain() -> None:
    """A pipe in a level's name is not a border."""
    lines = [line for line in to_markdown(comparison_table(NASTY)).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(NASTY.rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {12}


def test_markdown_runs_nothing_and_breaks_no_row() -> None:
    """A level is text: as a tag it would run where the table is shown, and a line break would end the table."""
    name = "a < b <script>alert(1)</script> <!-- </td> <3\nsecond | line"
    grid = Table("t", (Column("v"), Column("n", True)), ((name, "1"), ("b", "2")), (True, False), (f"{name}, seed 0",))
    text = to_markdown(grid)
    assert re.search(r"(?<!\\)<[A-Za-z/!?]", text) is None
    assert r"a < b \<script>alert(1)\</script> \<!-- \</td> <3" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        r"| **a < b \<script>alert(1)\</script> \<!-- \</td> <3 second \| line** | **1** |",
        "| b | 2 |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.05, "0.050"),
        (0.0500001, "0.0501"),
        (0.05003, "0.0501"),
        (0.0504, "0.0504"),
        (0.0506, "0.051"),
        (0.0496, "0.050"),
        (0.012, "0.012"),
        (1.0, "1.000"),
        (0.0009999, "<0.001"),
        (NAN, "–"),
    ],
)
def test_a_p_value_stands_on_its_side_of_5_percent(value: float, text: str) -> None:
    """A reader compares it with 0.05: rounding must not turn an undecided row into a decided one."""
    assert format.p(value) == text


def test_q_stands_in_for_dunnetts_test_and_says_so() -> None:
    """Where no test allows for all variants the column shows what does, marked; without a verdict it shows none."""
    evidence = Evidence(0.02, 0.006, 0.25, 0.25, NAN, 0, q=0.012)
    shown = row("sdpa", Interval(1.5, 1.2, 1.8, 3), Interval(-0.1, -0.2, -0.01, 3), {"finished": 3}, evidence=evidence)
    lost = row("key", shown.value, shown.delta, {"finished": 3, "diverged": 1}, evidence=evidence, why="1 diverged")
    grid = comparison_table(comparison(shown, lost))
    at = [column.heading for column in grid.columns].index("p")
    assert [cells[at] for cells in grid.rows] == ["0.012 (q)", "–"]


def test_csv_and_json_lose_no_digit() -> None:
    """Whoever calculates on gets the very numbers, and nothing where there is no number."""
    csv_rows = list(csv.DictReader(io.StringIO(to_csv(SMALL.frame()))))
    loaded = json.loads(json.dumps(SMALL.to_dict()), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (loaded["study"], loaded["study_hash"], loaded["metric"]) == ("gates", "abc", "validation/loss")
    assert loaded["notes"] == ["trials differ in device: a, b"]
    assert [cells["variant"] for cells in csv_rows] == [cells["variant"] for cells in loaded["rows"]]
    for ours, cells, inner in zip(SMALL.rows, csv_rows, loaded["rows"], strict=True):
        delta = ours.delta or Interval(NAN, NAN, NAN, 0)
        expected = {"mean": ours.value.mean, "low": ours.value.low, "high": ours.value.high, "n": ours.value.n}
        expected |= {"delta": delta.mean, "delta_low": delta.low, "delta_high": delta.high, "pairs": delta.n}
        expected |= {"parameters": ours.parameters, "added_parameters": ours.added_parameters}
        expected |= {"tokens_per_second": ours.tokens_per_second}
        for name, value in expected.items():
            assert cells[name] == "" if math.isnan(value) else float(cells[name]) == value
        for part, interval in (("value", ours.value), ("delta", ours.delta)):
            assert (inner[part] is None) == (interval is None)
            if interval is not None:
                shown = {name: None if value != value else value for name, value in vars(interval).items()}
                assert inner[part] == shown
        assert (inner["verdict"], inner["is_baseline"], inner["best"]) == (ours.verdict, ours.is_baseline, ours.best)
        assert inner["levels"] == ours.levels
        assert inner["outcomes"] == ours.outcomes
        assert cells["verdict"] == ours.verdict
        assert cells["model.gate.granularity"] == (ours.levels["model.gate.granularity"] or "")
    counts = [[cells[name] for name in ("finished", "diverged", "failed", "unfinished")] for cells in csv_rows]
    assert counts == [["3", "0", "0", "0"], ["3", "0", "0", "0"], ["1", "1", "0", "1"], ["0", "0", "3", "0"]]


def test_a_table_says_how_it_is_sorted() -> None:
    """Speeds stand highest first: a table that says otherwise misleads."""
    fast = comparison(
        row("none", Interval(2e4, 1e4, 3e4, 3), None, {"finished": 3}, best=True),
        row("sdpa", Interval(1e4, 1e4, 1e4, 3), Interval(-1e4, -2e4, -1e3, 3), {"finished": 3}),
        metric="train/mean_tokens_per_second",
        spec=SPEED,
    )
    grid = comparison_table(fast)
    assert "train/mean_tokens_per_second [tokens/s]" in [column.heading for column in grid.columns]
    assert "lowest first" not in " ".join(grid.notes)


def test_axes_without_a_level_anywhere_are_left_out() -> None:
    """A column of dashes tells nothing; without any axis the variant is named."""
    rows = [row("none", Interval(1.6, 1.3, 1.9, 3), None, {"finished": 3}, levels={"a.b": None, "c.b": "x"})]
    known = [
        Comparison("s", "h", "validation/loss", None, axes, tuple(rows), (), NATS)
        for axes in (("a.b", "c.b"), ("a.b",))
    ]
    assert [comparison_table(each).columns[0].heading for each in known] == ["b", "variant"]
    assert [comparison_table(each).rows[0][0] for each in known] == ["x", "none"]
    both = [row("none", Interval(1.6, 1.3, 1.9, 3), None, {"finished": 3}, levels={"a.b": "y", "c.b": "x"})]
    headings = [
        c.heading
        for c in comparison_table(
            Comparison("s", "h", "validation/loss", None, ("a.b", "c.b"), tuple(both), (), NATS)
        ).columns
    ]
    assert headings[:2] == ["a.b", "c.b"]


def test_an_undecided_row_says_why_its_p_does_not_decide() -> None:
    """Dunnett's p is of the scatter of all variants, the interval of the variant's own: both must agree."""
    tested = {
        "above": Evidence(0.3, 0.09, 0.25, 0.25, 0.0004, 2, q=0.09),
        "alike": Evidence(0.3, 0.09, 0.25, 0.25, 0.4, 2, q=0.09),
    }
    around_0 = Interval(-0.13, -0.31, 0.03, 3)
    rows = [row(name, Interval(1.5, 1, 2, 3), around_0, {"finished": 3}, evidence=of) for name, of in tested.items()]
    shown = {
        cells[0]: dict(zip(("p", "verdict"), cells[5:7], strict=True))
        for cells in comparison_table(comparison(*rows)).rows
    }
    assert shown["above"] == {"p": "<0.001", "verdict": "undecided: its own interval contains 0"}
    assert shown["alike"] == {"p": "0.400", "verdict": "undecided"}
