"""Curves over training: a line for each variant, a band over its seeds, and the paired difference to the baseline."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.figures import Curve, Variants, curves_by_seed, differences_to_baselines, draw_curves, tidy
from gatelab.results.measures import with_unit

SPANS = 200  # points of a line; a metric recorded at more steps is averaged over spans first


def plot_curves(metrics: pa.Table, metric: str, variants: Variants, title: str) -> Figure:
    """Plot a metric against steps, and below it each variant's difference to its baseline at equal seeds.

    Args:
        metrics: in the long form of `metrics_from_journals`.
        metric: a name in it.
        variants: variant -> its baseline, in the order of the legend.
        title: above the figure.

    Lines are means over the seeds that have reached a step; bands reach from the lowest to the highest seed.
    Non-finite values are left out. Raises ValueError if the metric was not recorded.
    """
    of_model = metrics.filter(pc.is_null(metrics["layer"]))
    rows = of_model.filter(pc.equal(of_model["name"], metric))
    if not rows.num_rows:
        known = sorted(of_model["name"].unique().to_pylist())
        raise ValueError(f"metric {metric!r} was not recorded (there are: {', '.join(known) or 'none yet'})")
    last, points = pc.max(rows["step"]).as_py(), pc.count_distinct(rows["step"]).as_py()
    span = math.ceil(last / SPANS) if points > SPANS else 1
    curves = {variant: _by_seed(rows.filter(pc.equal(rows["variant"], variant)), span, last) for variant in variants}
    differences = differences_to_baselines(curves, variants)
    unit = with_unit(metric).removeprefix(metric)
    compared = any(differences.values())
    figure = Figure(figsize=(6.5, 6.2 if compared else 4.2), layout="constrained")
    panels = figure.subplots(2 if compared else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 + compared])
    top = panels[0, 0]
    for index, variant in enumerate(variants):
        seeds = len(curves[variant])
        draw_curves(top, index, curves[variant], f"{variant} ({seeds} seed{'s' if seeds != 1 else ''})")
    top.set_title(title, fontsize=10)
    top.set_ylabel(metric + unit)
    top.legend(frameon=False, fontsize=8, title="mean; band: range over seeds", title_fontsize=7)
    _focus(top, [curve for own in curves.values() for curve in own.values()])
    if compared:
        bottom = panels[1, 0]
        bottom.axhline(0, color="#555555", linewidth=0.8)
        for index, variant in enumerate(variants):
            draw_curves(bottom, index, differences.get(variant, {}), variant)
        bottom.set_ylabel(f"difference\nto baseline{unit}")
        _focus(bottom, [curve for own in differences.values() for curve in own.values()])
    panels[-1, 0].set_xlabel("step")
    for panel in panels[:, 0]:
        tidy(panel)
    figure.align_ylabels()
    return figure


def _by_seed(rows: pa.Table, span: int, last: int) -> dict[int, Curve]:
    """The curve of each seed, averaged over spans of steps."""
    return {seed: _average(curve, span, last) for seed, curve in curves_by_seed(rows).items()}


def _average(curve: Curve, span: int, last: int) -> Curve:
    """Means over spans. A span that a trial has not finished yet is left out: others have more of it."""
    steps, values = curve
    if span == 1:
        return curve
    index = (steps - 1) // span
    counts = np.bincount(index)
    ends = np.minimum((np.flatnonzero(counts) + 1) * span, last)
    means = np.bincount(index, values)[counts > 0] / counts[counts > 0]
    over = ends <= steps[-1]
    return ends[over], means[over]


def _focus(axes: Axes, curves: list[Curve]) -> None:
    """Let the early fall of a loss leave the picture, so that the differences at the end can be seen."""
    if not curves:
        return
    steps, values = (np.concatenate([curve[part] for curve in curves]) for part in (0, 1))
    late = values[steps >= 0.2 * steps.max()]
    margin = 0.08 * float(late.max() - late.min()) or 0.05
    axes.set_ylim(float(late.min()) - margin, float(late.max()) + margin)
    axes.set_xlim(0, float(steps.max()) * 1.02)
