"""How every plot looks: colours, lines, files. A line is a mean over seeds, its band reaches over them all."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files; needs no display

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart in print and by colour-blind readers (Okabe and Ito), then by dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")

UNDATED: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Formats in which figures are written, and what keeps the date out of each."""

Curve = tuple[npt.NDArray[Any], npt.NDArray[np.float64]]
"""Abscissae, ascending, and values."""
Variants = Mapping[str, str | None]
"""Variant -> its baseline, in the order of the legend."""

SPANS = 200
"""Points of a line over training: one that has more is thinned."""


def averaged(curve: Curve, last: int) -> Curve:
    """A curve over steps as means over spans of them, `SPANS` up to step `last`, if it has more points than spans.

    A span that the curve has not finished is left out: curves that went on have more of it.
    """
    steps, values = curve
    span, last = max(1, math.ceil(last / SPANS)), max(last, int(steps[-1]))  # a trial may go on while it is read
    if len(steps) <= math.ceil(steps[-1] / span):
        return curve
    index = (steps - 1) // span
    counts = np.bincount(index)
    ends = np.minimum((np.flatnonzero(counts) + 1) * span, last)
    means = np.bincount(index, values)[counts > 0] / counts[counts > 0]
    over = ends <= steps[-1]
    return ends[over], means[over]


def averaged_rows(rows: pa.Table, last: int) -> pa.Table:
    """The same of one trial's values of the whole model in long form, metric by metric.

    What is not finite is left out, but for the last value of a metric that has no other.
    """
    parts = [rows.schema.empty_table()]  # an empty slice would keep all of them in memory
    for name in pc.unique(rows["name"]).to_pylist():
        whole = rows.filter(pc.equal(rows["name"], name))
        own = whole.filter(pc.is_finite(whole["value"]))
        if not len(own):
            parts.append(whole.slice(len(whole) - 1))
            continue
        before = own["step"].to_numpy()
        steps, values = averaged((before, own["value"].to_numpy()), last)
        own = own.take(np.searchsorted(before, steps, side="right") - 1)  # a span has the time of its last value
        for column, found in (("step", steps), ("value", values)):
            own = own.set_column(own.schema.get_field_index(column), column, pa.array(found))
        parts.append(own)
    return pa.concat_tables(parts)


def extremes(curve: Curve, spans: int = SPANS) -> npt.NDArray[np.intp]:
    """Which points of a curve over steps to keep so that no extreme is lost, ascending: of each of so many spans of its
    steps the lowest, the highest and the last value and the first that is not finite. All, if there are no more points
    than spans.
    """
    steps, values = curve
    places = np.arange(len(steps))
    if len(steps) <= spans:
        return places
    of_span = (steps - 1) // math.ceil(steps[-1] / spans)
    finite = np.isfinite(values)
    ordered = places[finite][np.lexsort((values[finite], of_span[finite]))]

    def first_of_spans(grouped: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return grouped[np.flatnonzero(np.diff(of_span[grouped], prepend=-2))]

    grouped = (ordered, ordered[::-1], places[::-1], places[~finite])
    return np.unique(np.concatenate([first_of_spans(each) for each in grouped]))


def curves_by_seed(rows: pa.Table, abscissa: str = "step", value: str = "value") -> dict[int, Curve]:
    """The curve of each seed, of rows in long form. Non-finite values are left out, and seeds that have no other."""
    curves = {}
    for seed in sorted(pc.unique(rows["seed"]).to_pylist()):
        mine = rows.filter(pc.equal(rows["seed"], seed))
        where, values = mine[abscissa].to_numpy(), mine[value].to_numpy()
        finite = np.isfinite(values)
        if finite.any():
            curves[seed] = where[finite], values[finite]
    return curves


def differences_to_baselines(curves: dict[str, dict[int, Curve]], variants: Variants) -> dict[str, dict[int, Curve]]:
    """Of each variant that has a baseline beside itself, the paired differences of its curves."""
    return {
        variant: _paired_differences(curves[variant], curves[baseline])
        for variant, baseline in variants.items()
        if baseline in curves and baseline != variant
    }


def _paired_differences(own: Mapping[int, Curve], baseline: Mapping[int, Curve]) -> dict[int, Curve]:
    """Own less the baseline's value, at the seeds and abscissae that both have."""
    paired = {}
    for seed in own.keys() & baseline.keys():
        where, mine, others = np.intersect1d(own[seed][0], baseline[seed][0], return_indices=True)
        if len(where):
            paired[seed] = (where, own[seed][1][mine] - baseline[seed][1][others])
    return paired


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def draw_curves(axes: Axes, index: int, curves: Mapping[int, Curve], label: str, marker: str = "") -> None:
    """A mean line and a band over seeds, in the index-th colour. Draws nothing where there are no curves."""
    if not curves:
        return
    where = np.unique(np.concatenate([own for own, _ in curves.values()]))
    grid = np.full((len(curves), len(where)), np.nan)
    for row, (own, values) in enumerate(curves.values()):
        grid[row, np.searchsorted(where, own)] = values
    style = line_style(index)
    axes.plot(where, np.nanmean(grid, 0), **style, linewidth=1.4, marker=marker, markersize=3, label=label)
    axes.fill_between(where, np.nanmin(grid, 0), np.nanmax(grid, 0), color=style["color"], alpha=0.18, linewidth=0)


def tidy(axes: Axes) -> None:
    """A light grid and no frame."""
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def panels(
    names: Sequence[str], draw: Callable[[Axes, str], None], abscissa: str, title: str, columns: int = 3
) -> Figure:
    """A figure with a panel for each name, one legend for all, and the abscissa's name under each column."""
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.3, 2.2 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    entries: dict[str, Any] = {}
    for axes, name in zip(grid.flat, names, strict=False):
        draw(axes, name)
        tidy(axes)
        axes.tick_params(which="both", labelsize=8)
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
        elif place + columns >= len(names):
            axes.set_xlabel(abscissa, fontsize=8)
            axes.tick_params(labelbottom=True)
    figure.suptitle(f"{title} (mean over seeds; band: their range)", fontsize=10)
    legend_below(figure, entries)
    return figure


def legend_below(figure: Figure, entries: Mapping[str, Any]) -> None:
    """One legend for a whole figure: label -> what is drawn. The figure grows by what is more than two lines of it."""
    longest = max(map(len, entries), default=0)
    fitting = int(figure.get_figwidth() / (0.07 * longest + 0.45))  # inches of a letter, and of a line with its gap
    columns = max(1, min(4, len(entries), fitting))
    lines = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - 2))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG, SVG and PDF; return the paths."""
    return save_files(render_figure(figure), stem)


def render_figure(figure: Figure) -> dict[str, bytes]:
    """A figure's files by suffix. Equal figures give equal files: none says when it was drawn."""
    files = {}
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what has its place keeps it: to find it costs as much as to draw
    with matplotlib.rc_context({"svg.hashsalt": "gatelab"}):
        for suffix, undated in UNDATED.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=200, metadata=undated)
            files[suffix] = buffer.getvalue()
    return files


def save_files(files: Mapping[str, bytes], stem: Path) -> list[Path]:
    """Write the files of a figure; return the paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, content in files.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        path.write_bytes(content)
        paths.append(path)
    return paths
