"""Curves over training: a line for each variant, a band over its seeds."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files; needs no display

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from gatelab.results.tables import UNITS

# Told apart in print and by colour-blind readers (Okabe and Ito), then by dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def plot_curves(metrics: pa.Table, metric: str, variants: Sequence[str], title: str) -> Figure:
    """Plot a metric against steps. `metrics` is in the long form of `metrics_from_journals`.

    Lines are means over the seeds that have reached a step, bands reach from the lowest to the highest of them.
    A metric recorded at more than 200 steps is averaged over spans first. Raises ValueError if it was not recorded.
    """
    rows = metrics.filter(pc.and_(pc.equal(metrics["name"], metric), pc.is_null(metrics["layer"])))
    if not rows.num_rows:
        known = sorted(set(metrics.filter(pc.is_null(metrics["layer"]))["name"].unique().to_pylist()))
        raise ValueError(f"metric {metric!r} was not recorded (there are: {', '.join(known) or 'none yet'})")
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, variant in enumerate(variants):
        curves = _by_seed(rows.filter(pc.equal(rows["variant"], variant)))
        if not curves:
            continue
        steps, low, mean, high = _summarise(curves)
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        label = f"{variant} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
        axes.plot(steps, mean, color=colour, linestyle=dash, linewidth=1.4, label=label)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel(f"{metric} [{UNITS[metric]}]" if metric in UNITS else metric)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, title="mean; band: range over seeds", title_fontsize=7)
    _focus(axes, rows)
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG; return the paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=200)
    return paths


Curve = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


def _by_seed(rows: pa.Table) -> list[Curve]:
    """(steps, values) of each seed, non-finite values left out."""
    curves = []
    for seed in sorted(pc.unique(rows["seed"]).to_pylist()):
        mine = rows.filter(pc.equal(rows["seed"], seed))
        steps, values = mine["step"].to_numpy(), mine["value"].to_numpy()
        finite = np.isfinite(values)
        if finite.any():
            curves.append(_average_spans(steps[finite], values[finite]))
    return curves


def _average_spans(steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64], spans: int = 200) -> Curve:
    if len(steps) <= spans:
        return steps, values
    width = int(np.ceil(steps[-1] / spans))
    span = (steps - 1) // width
    counts = np.bincount(span)
    means = np.bincount(span, values)[counts > 0] / counts[counts > 0]
    return (np.flatnonzero(counts) + 1) * width, means


def _summarise(curves: list[Curve]) -> tuple[npt.NDArray[np.int64], *tuple[npt.NDArray[np.float64], ...]]:
    """(steps, lowest, mean, highest) over the seeds that have a value at a step."""
    steps = np.unique(np.concatenate([curve[0] for curve in curves]))
    grid = np.full((len(curves), len(steps)), np.nan)
    for row, (own, values) in enumerate(curves):
        grid[row, np.searchsorted(steps, own)] = values
    return steps, np.nanmin(grid, 0), np.nanmean(grid, 0), np.nanmax(grid, 0)


def _focus(axes: matplotlib.axes.Axes, rows: pa.Table) -> None:
    """Let the early fall of a loss leave the picture, so that the differences at the end can be seen."""
    values = rows["value"].to_numpy()
    steps = rows["step"].to_numpy()
    late = values[(steps >= 0.2 * steps.max()) & np.isfinite(values)]
    if len(late) and values[np.isfinite(values)].max() > late.max():
        margin = 0.08 * (late.max() - late.min() or 1.0)
        axes.set_ylim(late.min() - margin, late.max() + margin)
