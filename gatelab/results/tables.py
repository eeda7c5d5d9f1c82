"""Tables for people: a grid of texts, and its forms for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gatelab.results.comparison import UNFINISHED, Comparison, ComparisonRow, Interval
from gatelab.results.measures import measure, with_unit


@dataclass(frozen=True)
class Column:
    """A heading and how its cells stand."""

    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as it is read."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasised: tuple[bool, ...]  # by row
    notes: tuple[str, ...] = ()


def comparison_grid(comparison: Comparison) -> Grid:
    """A comparison for people: every variant, what is missing or diverged spelled out."""
    shown_axes = [axis for axis in comparison.axes if any(row.levels[axis] is not None for row in comparison.rows)]
    columns = [Column(_short(axis, shown_axes)) for axis in shown_axes] or [Column("variant")]
    columns += [
        Column(with_unit(comparison.metric), numeric=True),
        Column("Δ to baseline", numeric=True),
        Column("95 % interval", numeric=True),
        Column("verdict"),
        Column("seeds", numeric=True),
        Column("parameters", numeric=True),
        Column("added", numeric=True),
        Column("tokens/s", numeric=True),
    ]
    rows = []
    for row in comparison.rows:
        names = [row.levels[axis] or "–" for axis in shown_axes] or [row.variant]
        rows.append((*names, *_cells(row)))
    directed = measure(comparison.metric).better
    notes = [
        f"Mean over seeds{', best first' if directed else ''}; Δ: mean of the differences to the baseline at equal "
        f"seeds, with Student's t-interval.{' * best mean.' if directed else ''}"
    ]
    if any(row.value.n == 1 for row in comparison.rows):
        notes.append("† a single seed: no interval, no verdict.")
    return Grid(
        f"{comparison.study}: {comparison.metric}",
        tuple(columns),
        tuple(rows),
        tuple(row.best for row in comparison.rows),
        (*notes, *comparison.notes),
    )


def measures_grid(title: str, comparisons: Sequence[Comparison], notes: Sequence[str]) -> Grid:
    """Several comparisons of one study in one table: a row for each measure, a column for each variant.

    A cell holds the mean and, in parentheses, the paired difference to the baseline with half the width of its
    interval; an asterisk marks an interval without 0.
    """
    variants = {row.variant: row for row in comparisons[0].rows}
    order = sorted(variants, key=lambda variant: not variants[variant].is_baseline)
    rows = []
    zeros = [comparison.metric for comparison in comparisons if all(row.value.mean == 0 for row in comparison.rows)]
    for comparison in comparisons:
        cells = {row.variant: _mean_and_difference(row) for row in comparison.rows}
        if comparison.metric not in zeros:
            rows.append((with_unit(comparison.metric), *(cells[variant] for variant in order)))
    seeds = sorted({row.value.n for row in variants.values()})
    legend = (
        f"Mean over {' or '.join(map(str, seeds))} seeds (difference to the baseline at equal seeds ± half of its 95 % "
        "t-interval); * the interval does not hold 0, which it misses once in twenty by chance."
    )
    if zeros:
        notes = [*notes, f"0 for every variant and seed: {', '.join(zeros)}."]
    columns = [Column("measure"), *(Column(variant, numeric=True) for variant in order)]
    title = f"{comparisons[0].study}: {title}"
    return Grid(title, tuple(columns), tuple(rows), (False,) * len(rows), (legend, *notes))


def _mean_and_difference(row: ComparisonRow) -> str:
    if row.value.n == 0:
        return "–"
    mean = f"{row.value.mean:.{5 if abs(row.value.mean) >= 0.1 else 2}g}"
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        return mean
    if row.delta.n == 1:
        return f"{mean} ({row.delta.mean:+.2g})"
    half = (row.delta.high - row.delta.low) / 2
    mark = "*" if row.verdict in ("lower", "higher") else ""
    return f"{mean} ({row.delta.mean:+.2g} ± {half:.2g}){mark}"


def comparison_json(comparison: Comparison) -> str:
    """A comparison for programs, with full precision; numbers that do not exist are null."""
    return json.dumps(comparison_dict(comparison), indent=1)


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON values; numbers that do not exist are None."""
    rows = [{**asdict(row), "is_baseline": row.is_baseline, "verdict": row.verdict} for row in comparison.rows]
    whole: dict[str, Any] = finite({**asdict(comparison), "rows": rows})
    return whole


def comparison_csv(*comparisons: Comparison) -> str:
    """Comparisons of one study for spreadsheets, with full precision; numbers that do not exist are empty."""
    out = io.StringIO()
    axes = comparisons[0].axes
    headings = ["variant", *axes, "metric", "mean", "low", "high", "n", "delta", "delta_low", "delta_high"]
    headings += ["pairs", "verdict", "finished", "diverged", "failed", "unfinished", "parameters", "added_parameters"]
    writer = csv.writer(out)
    writer.writerow([*headings, "tokens_per_second"])
    for comparison in comparisons:
        for row in comparison.rows:
            delta = row.delta or Interval(math.nan, math.nan, math.nan, 0)
            counts = row.outcomes
            cells: list[Any] = [row.variant, *(row.levels[axis] for axis in axes), comparison.metric]
            cells += [row.value.mean, row.value.low, row.value.high, row.value.n]
            cells += [delta.mean, delta.low, delta.high, delta.n, row.verdict]
            cells += [counts.get(name, 0) for name in ("finished", "diverged", "failed")]
            cells += [sum(counts.get(name, 0) for name in UNFINISHED), row.parameters, row.added_parameters]
            cells.append(row.tokens_per_second)
            writer.writerow(["" if cell is None or cell != cell else cell for cell in cells])
    return out.getvalue()


def to_markdown(grid: Grid) -> str:
    """A GitHub-flavoured Markdown table, the title above and the notes below."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [
        line([f"**{cell}**" if bold and cell else cell for cell in row])
        for row, bold in zip(grid.rows, grid.emphasised, strict=True)
    ]
    rule = line(["---:" if column.numeric else ":---" for column in grid.columns])
    notes = [f"\n{note}" for note in grid.notes]
    return (
        "\n".join([f"**{grid.title}**\n", line([column.heading for column in grid.columns]), rule, *rows, *notes])
        + "\n"
    )


def to_latex(grid: Grid) -> str:
    """A LaTeX table with booktabs rules; notes as comments beneath."""

    def line(cells: list[str]) -> str:
        return "  " + " & ".join(_latex(cell) for cell in cells) + r" \\"

    def bold(cells: tuple[str, ...]) -> str:
        return "  " + " & ".join(rf"\textbf{{{_latex(cell)}}}" if cell else "" for cell in cells) + r" \\"

    rows = [bold(row) if best else line(list(row)) for row, best in zip(grid.rows, grid.emphasised, strict=True)]
    alignment = "".join("r" if column.numeric else "l" for column in grid.columns)
    return (
        "\n".join(
            [
                rf"% {grid.title}; needs \usepackage{{booktabs}}",
                rf"\begin{{tabular}}{{{alignment}}}",
                r"  \toprule",
                line([column.heading for column in grid.columns]),
                r"  \midrule",
                *rows,
                r"  \bottomrule",
                r"\end{tabular}",
                *(f"% {text}" for note in grid.notes for text in note.splitlines()),
            ]
        )
        + "\n"
    )


def _cells(row: ComparisonRow) -> list[str]:
    mark = ("*" if row.best else "") + ("†" if row.value.n == 1 else "")
    value = "–" if math.isnan(row.value.mean) else f"{_number(row.value.mean)}{mark}"
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        delta, interval = "–", "–"
    else:
        delta = f"{row.delta.mean:+.4f}"
        interval = "–" if row.delta.n == 1 else f"[{row.delta.low:+.4f}, {row.delta.high:+.4f}]"
    added = "–" if row.added_parameters is None else f"{row.added_parameters:+,}" if row.added_parameters else "0"
    speed = "–" if math.isnan(row.tokens_per_second) else f"{row.tokens_per_second:,.0f}"
    return [value, delta, interval, row.verdict, _seeds(row), f"{row.parameters:,}", added, speed]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:,.0f}"


def _seeds(row: ComparisonRow) -> str:
    """'3', or '2 + 1 diverged' where not all finished."""
    others = [f"{count} {name}" for name, count in row.outcomes.items() if name != "finished"]
    return " + ".join([str(row.value.n), *others])


def _short(axis: str, axes: list[str]) -> str:
    end = axis.rsplit(".", 1)[-1]
    return end if sum(other.rsplit(".", 1)[-1] == end for other in axes) == 1 else axis


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}
_LATEX |= {
    "Δ": r"$\Delta$",
    "–": "--",
    "†": r"$^\dagger$",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def finite(value: Any) -> Any:
    """JSON values with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
