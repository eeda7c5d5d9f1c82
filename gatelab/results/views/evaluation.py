"""Evaluations after training: a table, and figures of losses by length and position and of retrieval."""

import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.metrics import Specs, find_spec
from gatelab.results.analyses.comparison import Comparisons
from gatelab.results.analyses.curves import Variants, curves_by_seed
from gatelab.results.views.comparison import metrics_table
from gatelab.results.views.format import unit_of
from gatelab.results.views.style import draw_curves, panels
from gatelab.results.views.table import Table

LENGTH = re.compile(r"length/(?P<length>\d+)/(?P<rope>[^/]+)/loss")


POSITION = re.compile(r"length/(?P<length>\d+)/(?P<rope>[^/]+)/position/(?P<first>\d+)-(?P<last>\d+)")


RETRIEVAL = re.compile(r"retrieval/(?P<length>\d+)/(?P<rope>[^/]+)/(?P<task>[^/]+)/(?P<score>accuracy|gain)")


def plot_by_length(rows: pa.Table, variants: Variants, title: str, specs: Specs) -> Figure | None:
    """Draw loss against the length of the sequence, a panel for each RoPE."""

    def place(match: re.Match[str]) -> tuple[str, float]:
        return f"loss, {match['rope']}", float(match["length"])

    return _plot(rows, variants, LENGTH, place, "tokens in a sequence", title, specs)


def plot_by_position(rows: pa.Table, variants: Variants, title: str, specs: Specs) -> Figure | None:
    """Draw loss against the number of tokens that a prediction sees, in the longest sequences, by RoPE."""
    lengths = [match["length"] for name in rows["name"].to_pylist() if (match := POSITION.fullmatch(name))]
    longest = max(lengths, key=int, default="")

    def place(match: re.Match[str]) -> tuple[str, float] | None:
        seen = float(int(match["first"]) * int(match["last"])) ** 0.5
        return (f"loss, {match['rope']}", seen) if match["length"] == longest else None

    return _plot(rows, variants, POSITION, place, "tokens that the prediction sees", title, specs)


def plot_retrieval(rows: pa.Table, variants: Variants, title: str, specs: Specs) -> Figure | None:
    """Draw gain and, where there is any, accuracy against the length: a row of panels for each synthetic task."""
    values = zip(rows["name"].to_pylist(), rows["value"].to_pylist(), strict=True)
    matches = [(match, value) for name, value in values if (match := RETRIEVAL.fullmatch(name))]
    scored = any(value and match["score"] == "accuracy" for match, value in matches)
    ropes = {match["rope"] for match, _ in matches}

    def place(match: re.Match[str]) -> tuple[str, float] | None:
        shown = match["score"] == "gain" or scored
        return (f"{match['task']}/{match['score']}, {match['rope']}", float(match["length"])) if shown else None

    columns = len(ropes) * (2 if scored else 1)
    return _plot(rows, variants, RETRIEVAL, place, "tokens in a sequence", title, specs, columns)


def _plot(
    rows: pa.Table,
    variants: Variants,
    pattern: re.Pattern[str],
    place: Callable[[re.Match[str]], tuple[str, float] | None],
    label: str,
    title: str,
    specs: Specs,
    columns: int = 3,
) -> Figure | None:
    """Draw curves of the metrics that have the pattern, at the panel and abscissa of `place`; None without any."""
    matches = [pattern.fullmatch(name) for name in rows["name"].to_pylist()]
    places = [None if match is None else place(match) for match in matches]
    found = rows.append_column("panel", pa.array([at and at[0] for at in places], pa.utf8()))
    found = found.append_column("at", pa.array([at and at[1] for at in places], pa.float64()))
    found = found.filter(pc.is_valid(found["at"])).sort_by("at")
    if not len(found):
        return None
    units = {
        row["panel"]: unit_of(find_spec(row["name"], specs)) for row in found.select(["panel", "name"]).to_pylist()
    }

    def draw(axes: Axes, panel: str) -> None:
        mine = found.filter(pc.equal(found["panel"], panel))
        for index, variant in enumerate(variants):
            curves = curves_by_seed(mine.filter(pc.equal(mine["variant"], variant)), "at")
            draw_curves(axes, index, curves, variant, marker="o")
        axes.set_title(f"{panel}{units[panel]}", fontsize=8)
        axes.set_xscale("log", base=2)

    return panels(sorted(units), draw, label, title, columns)


DRAWINGS = {
    "loss-by-length": plot_by_length,
    "loss-by-position-beyond": plot_by_position,
    "retrieval": plot_retrieval,
}
"""Name of a file -> how its figure is drawn."""


def tables(found: Comparisons) -> list[Table]:
    """Return one table: a row for each question, with each variant's difference to the baseline."""
    return [metrics_table("evaluation", found.comparisons, found.notes)]


def figures(found: Comparisons, evaluations: pa.Table, variants: Variants, specs: Specs) -> dict[str, Figure]:
    """Draw the answers of some variants, in long form: a figure for each kind of question that was asked."""
    drawn = {name: draw(evaluations, variants, found.study, specs) for name, draw in DRAWINGS.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}
