"""Curves over training: a line for each variant, a band over its seeds, and the paired difference to the baseline."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.metrics import MetricSpec
from gatelab.results.analyses.curves import Variants, curves_by_seed, unknown_metric
from gatelab.results.statistics.series import Curve, bin_means, differences_to_baselines
from gatelab.results.views.format import unit_of, with_unit
from gatelab.results.views.style import draw_curves, legend_below, spans_decade, style_axes

INSIDE = 6
"""Lines of a figure whose names have room within it."""


def plot_curves(metrics: pa.Table, metric: str, variants: Variants, title: str, spec: MetricSpec) -> Figure:
    """Plot a metric against steps, and below it each variant's difference from its baseline, paired by seed.

    Args:
        metrics: in the long form of `metrics_from_journals`.
        metric: a name in it.
        variants: variant -> its baseline, in the order of the legend.
        title: above the figure.
        spec: what the metric is: its unit and its axis.

    Lines are means over the seeds that have reached a step; bands reach from the lowest to the highest seed.
    Non-finite values are left out. A metric with a logarithmic axis has one if its values span a factor of ten.
    Raises AnalysisUnavailable.
    """
    of_model = metrics.filter(pc.is_null(metrics["layer"]))
    rows = of_model.filter(pc.equal(of_model["name"], metric))
    if not rows.num_rows:
        raise unknown_metric(metric, set(of_model["name"].unique().to_pylist()))
    last = pc.max(rows["step"]).as_py()
    curves = {variant: _by_seed(rows.filter(pc.equal(rows["variant"], variant)), last) for variant in variants}
    differences = differences_to_baselines(curves, variants)
    compared = any(differences.values())
    figure = Figure(figsize=(6.5, 6.2 if compared else 4.2), layout="constrained")
    panels = figure.subplots(2 if compared else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 + compared])
    top = panels[0, 0]
    for index, variant in enumerate(variants):
        seeds = len(curves[variant])
        draw_curves(top, index, curves[variant], f"{variant} ({seeds} seed{'s' if seeds != 1 else ''})")
    top.set_ylabel(with_unit(metric, spec))
    how = "mean; band: range over seeds"
    if len(variants) > INSIDE:
        top.set_title(f"{title} ({how})", fontsize=10)
        handles, labels = top.get_legend_handles_labels()
        legend_below(figure, dict(zip(labels, handles, strict=True)))
    else:
        top.set_title(title, fontsize=10)
        top.legend(frameon=False, fontsize=8, title=how, title_fontsize=7)
    drawn = [curve for own in curves.values() for curve in own.values()]
    if spec.logarithmic and drawn and spans_decade(np.concatenate([values for _, values in drawn])):
        top.set_yscale("log")
    else:
        _focus(top, drawn)
    if compared:
        bottom = panels[1, 0]
        bottom.axhline(0, color="#555555", linewidth=0.8)
        for index, variant in enumerate(variants):
            draw_curves(bottom, index, differences.get(variant, {}), variant)
        bottom.set_ylabel(f"difference\nfrom baseline{unit_of(spec)}")
        _focus(bottom, [curve for own in differences.values() for curve in own.values()])
    panels[-1, 0].set_xlabel("step")
    for panel in panels[:, 0]:
        style_axes(panel)
    figure.align_ylabels()
    return figure


def _by_seed(rows: pa.Table, last: int) -> dict[int, Curve]:
    """Return the curve of each seed, averaged over spans of steps where it has many points."""
    return {seed: bin_means(curve, last) for seed, curve in curves_by_seed(rows).items()}


def _focus(axes: Axes, curves: list[Curve]) -> None:
    """Let the early fall of a loss leave the picture, so that the differences at the end can be seen."""
    if not curves:
        return
    steps, values = (np.concatenate([curve[part] for curve in curves]) for part in (0, 1))
    late = values[steps >= 0.2 * steps.max()]
    margin = 0.08 * float(late.max() - late.min()) or 0.05
    axes.set_ylim(float(late.min()) - margin, float(late.max()) + margin)
    axes.set_xlim(0, float(steps.max()) * 1.02)
