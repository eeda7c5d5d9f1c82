"""What attention and gates do, as a table and figures by layer, over training and by position."""

import contextlib
import re
from collections.abc import Mapping
from textwrap import wrap

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gatelab.errors import AnalysisUnavailable
from gatelab.metrics import MetricSpec, Specs, find_spec
from gatelab.results.analyses.comparison import Comparisons
from gatelab.results.analyses.curves import Variants, curves_by_seed
from gatelab.results.analyses.diagnostics import GATE_PANELS, LAYER_PANELS, TRAINING_PANELS, no_diagnostics
from gatelab.results.statistics.series import Curve, differences_to_baselines
from gatelab.results.store.metrics import named
from gatelab.results.views.comparison import metrics_table
from gatelab.results.views.format import unit_of, with_unit
from gatelab.results.views.style import draw_curves, legend_below, panels, spans_decade, style_axes
from gatelab.results.views.table import Table


def plot_by_layer(metrics: pa.Table, variants: Variants, title: str, specs: Specs) -> Figure:
    """Draw each measure by layer, at each trial's last evaluation. Raises AnalysisUnavailable."""
    last = _at_last_step(_of_diagnostics(metrics, layers=True))
    whole = _of_diagnostics(metrics, layers=False)
    names = [*LAYER_PANELS, *_gate_panels(last), *(f"weight_norm/gate_{position}" for position in _positions(last))]

    def draw(axes: Axes, name: str) -> None:
        spec = find_spec(name, specs)
        _draw_variants(axes, name, spec, last, variants, "layer", marker="o")
        _draw_floor(axes, spec.floor, whole)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return panels(names, draw, "layer (the first is 0)", title)


def plot_over_training(metrics: pa.Table, variants: Variants, title: str, specs: Specs) -> Figure:
    """Draw each measure of the whole model over training. Raises AnalysisUnavailable."""
    whole = _of_diagnostics(metrics, layers=False)
    names = [*TRAINING_PANELS, *_gate_panels(whole)]

    def draw(axes: Axes, name: str) -> None:
        spec = find_spec(name, specs)
        _draw_variants(axes, name, spec, whole, variants, "step", marker="o")
        _draw_floor(axes, spec.floor, whole)

    return panels(names, draw, "step", title)


def plot_gates(metrics: pa.Table, variants: Variants, title: str) -> Figure | None:
    """Draw distributions of gate scores by layer, a panel for each gate, at the last evaluation. None without gates."""
    last = _at_last_step(metrics.filter(named(metrics, "histogram/gate/*")))
    shares = {
        (variant, position): histogram
        for variant in variants
        for position, histogram in _histograms(last.filter(pc.equal(last["variant"], variant))).items()
    }
    if not shares:
        return None
    columns = min(3, len(shares))
    rows = -(-len(shares) // columns)
    figure = Figure(figsize=(2.9 * columns + 0.8, 2.3 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    most = max(float(histogram.max()) for histogram in shares.values())
    for axes, ((variant, position), histogram) in zip(grid.flat, shares.items(), strict=False):
        image = axes.imshow(
            histogram,
            origin="lower",
            aspect="auto",
            extent=(0, 1, -0.5, len(histogram) - 0.5),
            vmin=0,
            vmax=most,
            cmap="viridis",
        )
        axes.set_title("\n".join([*wrap(variant, 40), f"gate/{position}"]), fontsize=8)
        axes.set_xlabel("score", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(shares))
        if place + columns >= len(shares):  # the lowest of its column
            axes.tick_params(labelbottom=True)
        else:
            axes.set_xlabel("")
    bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.9)
    bar.set_label("fraction of scores", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_by_position(metrics: pa.Table, variants: Variants, title: str, specs: Specs) -> Figure:
    """Draw loss by the number of tokens that a prediction sees, at the last evaluation.

    Below it stands the paired difference. Raises AnalysisUnavailable.
    """
    rows = _at_last_step(metrics.filter(named(metrics, "validation/position/*")))
    if not len(rows):
        raise AnalysisUnavailable("no trial has been evaluated yet")
    seen = [float(np.sqrt(np.prod(_bounds(name)))) for name in rows["name"].to_pylist()]
    rows = rows.append_column("seen", pa.array(seen)).sort_by("seen")
    curves = {variant: curves_by_seed(rows.filter(pc.equal(rows["variant"], variant)), "seen") for variant in variants}
    unit = unit_of(find_spec(rows["name"][0].as_py(), specs))
    differences = differences_to_baselines(curves, variants)
    compared = any(differences.values())
    figure = Figure(figsize=(6.5, 5.4 if compared else 3.4), layout="constrained")
    grid = figure.subplots(1 + compared, 1, sharex=True, squeeze=False)[:, 0]
    parts: list[tuple[Mapping[str, Mapping[int, Curve]], str]] = [(curves, "validation loss")]
    if compared:
        parts.append((differences, "difference\nfrom baseline"))
        grid[1].axhline(0, color="#555555", linewidth=0.8)
    for axes, (own, label) in zip(grid, parts, strict=True):
        for index, variant in enumerate(variants):
            draw_curves(axes, index, own.get(variant, {}), variant, marker="o")
        axes.set_xscale("log", base=2)
        axes.set_ylabel(f"{label}{unit}")
        style_axes(axes)
    grid[0].set_title(title, fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles, strict=True)))
    grid[-1].set_xlabel("tokens that the prediction sees")
    figure.align_ylabels()
    return figure


def _of_diagnostics(metrics: pa.Table, layers: bool) -> pa.Table:
    """Return the rows of layers, or of the whole model. Raises AnalysisUnavailable if no trial was measured."""
    of_autopsies = named(metrics, "autopsy/*")  # of no evaluation
    rows = metrics.filter(pc.and_not((pc.is_valid if layers else pc.is_null)(metrics["layer"]), of_autopsies))
    if not pc.any(pc.equal(rows["name"], "attention/entropy")).as_py():
        raise no_diagnostics()
    return rows


def _at_last_step(rows: pa.Table) -> pa.Table:
    """Return the rows of each trial's last evaluation."""
    last = rows.group_by("trial").aggregate([("step", "max")])
    joined = rows.join(last, "trial", join_type="inner")
    return joined.filter(pc.equal(joined["step"], joined["step_max"])).drop_columns("step_max")


def _positions(rows: pa.Table) -> list[str]:
    """Return the positions at which some trial has a gate."""
    names = pc.unique(rows["name"]).to_pylist()
    return sorted({match[1] for name in names if (match := re.fullmatch(r"gate/(\w+)/mean", name))})


def _gate_panels(rows: pa.Table) -> list[str]:
    return [f"gate/{position}/{kind}" for position in _positions(rows) for kind in GATE_PANELS]


def _draw_variants(
    axes: Axes, name: str, spec: MetricSpec, rows: pa.Table, variants: Variants, abscissa: str, marker: str = ""
) -> None:
    mine = rows.filter(pc.equal(rows["name"], name)).sort_by(abscissa)
    for index, variant in enumerate(variants):
        curves = curves_by_seed(mine.filter(pc.equal(mine["variant"], variant)), abscissa)
        draw_curves(axes, index, curves, variant, marker)
    axes.set_title(with_unit(name, spec), fontsize=8)
    if spec.logarithmic and len(mine) and spans_decade(mine["value"].to_numpy()):
        axes.set_yscale("log")


def _draw_floor(axes: Axes, floor: str, whole: pa.Table) -> None:
    """Draw what uniform attention shows, where the measure has such a floor."""
    if floor:
        for value in pc.unique(whole.filter(pc.equal(whole["name"], floor))["value"]).to_pylist():
            axes.axhline(value, color="#555555", linestyle=":", linewidth=1, label="uniform attention")


def _histograms(rows: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    """Return `[layers, bins]` shares of scores of each gate, mean over seeds, by position."""
    mean = rows.group_by(["name", "layer"]).aggregate([("value", "mean")])
    cells: dict[str, dict[tuple[int, int], float]] = {}
    for entry in mean.to_pylist():
        _, _, position, index = entry["name"].split("/")
        cells.setdefault(position, {})[entry["layer"], int(index)] = entry["value_mean"]
    found = {}
    for position, values in sorted(cells.items()):  # Arrow keeps no order of groups
        layers, bins = (1 + max(key[axis] for key in values) for axis in (0, 1))
        found[position] = np.array(
            [[values.get((layer, index), 0.0) for index in range(bins)] for layer in range(layers)]
        )
    return found


def _bounds(name: str) -> tuple[int, int]:
    """Parse the bounds of a range of positions: 4 and 7 of …/position/00004-00007."""
    first, last = name.rpartition("/")[2].split("-")
    return int(first), int(last)


DRAWINGS = {
    "diagnostics-layers": plot_by_layer,
    "diagnostics-training": plot_over_training,
    "diagnostics-gates": lambda metrics, variants, title, specs: plot_gates(metrics, variants, title),
    "loss-by-position": plot_by_position,
}
"""Name of a file -> how its figure is drawn."""


def tables(found: Comparisons) -> list[Table]:
    """Return one table: a row for each diagnostic, with each variant's difference to the baseline."""
    return [metrics_table("diagnostics", found.comparisons, found.notes)]


def figures(found: Comparisons, metrics: pa.Table, variants: Variants, specs: Specs) -> dict[str, Figure]:
    """Draw what `drawn_rows` keeps of the values of some variants: the figures that these values make."""
    drawn: dict[str, Figure] = {}
    for name, draw in DRAWINGS.items():
        with contextlib.suppress(AnalysisUnavailable):
            figure = draw(metrics, variants, found.study, specs)
            drawn |= {name: figure} if figure is not None else {}
    return drawn
