"""What happened before a divergence or a spike, as a table and a figure."""

import math
from collections.abc import Iterable
from textwrap import wrap

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.metrics import Specs, find_spec
from gatelab.results.analyses.divergence import DivergenceTrace, measurements_of_event, place_of, ring_rows
from gatelab.results.views.format import DASH, with_unit
from gatelab.results.views.style import panels, spans_decade
from gatelab.results.views.table import Column, Table


def traces_table(study: str, found: Iterable[DivergenceTrace]) -> Table:
    """Lay out divergence traces for people: a row for each event."""
    rows, notes = [], []
    for one in found:
        first = one.exits[0] if one.exits else None
        rows.append(
            (
                one.variant,
                str(one.seed),
                "divergence" if one.diverged else "loss spike",
                str(one.found),
                str(one.steps),
                DASH if one.loss_step is None else str(one.loss_step),
                DASH if first is None else f"layer {first.layer}, {first.name}",
                DASH if first is None else str(first.step),
                DASH if first is None else f"{first.usual:.3g} → {first.value:.3g}",
            )
        )
        notes.append(f"{one.variant}, seed {one.seed}: {one.sentence}.")
    columns = (
        Column("variant"),
        Column("seed", numeric=True),
        Column("event"),
        Column("found at", numeric=True),
        Column("steps kept", numeric=True),
        Column("loss left at", numeric=True),
        Column("first out of its band"),
        Column("at", numeric=True),
        Column("usual → then", numeric=True),
    )
    return Table(f"{study}: autopsies", columns, tuple(rows), notes=tuple(notes))


def plot_trace(metrics: pa.Table, trace: DivergenceTrace, specs: Specs) -> Figure:
    """Draw the ring of an event: the loss and a line for each layer of each measurement, with its exit as a point."""
    rings = ring_rows(metrics.filter(pc.equal(metrics["trial"], trace.trial)))
    ring = measurements_of_event(rings, trace.found)
    names = sorted(pc.unique(ring["name"]).to_pylist(), key=place_of)
    layers = sorted(pc.unique(ring["layer"]).to_pylist())
    own = metrics.filter(pc.and_(pc.equal(metrics["trial"], trace.trial), pc.equal(metrics["name"], "train/loss")))
    losses = own.filter(pc.is_in(own["step"], pc.unique(ring["step"])))
    palette = colormaps["viridis"].resampled(max(2, len(layers) + 1))
    exits = {(one.layer, one.name): one for one in trace.exits}

    def draw(axes: Axes, name: str) -> None:
        if name == "train/loss":
            axes.plot(losses["step"].to_numpy(), losses["value"].to_numpy(), color="black", linewidth=1)
        for place, layer in enumerate(layers):
            mine = ring.filter(pc.and_(pc.equal(ring["layer"], layer), pc.equal(ring["name"], name)))
            if not len(mine):
                continue
            colour = palette(place)
            label = f"layer {layer}" if len(layers) <= 8 or place in (0, len(layers) - 1) else None
            axes.plot(mine["step"].to_numpy(), mine["value"].to_numpy(), color=colour, linewidth=1, label=label)
            left = exits.get((layer, name))
            if left is not None and math.isfinite(left.value):
                axes.plot(left.step, left.value, color=colour, marker="o", markersize=5, markeredgecolor="black")
        if trace.exits and trace.exits[0].name == name:
            first = trace.exits[0]
            axes.axhspan(first.low, first.high, color=palette(layers.index(first.layer)), alpha=0.15, linewidth=0)
        if trace.loss_step is not None:
            axes.axvline(trace.loss_step, color="#D55E00", linestyle="--", linewidth=1, label="the loss left its band")
        axes.set_title(with_unit(name, find_spec(name, specs)), fontsize=8)
        shown = (losses if name == "train/loss" else ring.filter(pc.equal(ring["name"], name)))["value"].to_numpy()
        if spans_decade(shown[np.isfinite(shown)]):
            axes.set_yscale("log")

    figure = panels(["train/loss", *names], draw, "step", "")
    figure.suptitle("\n".join([f"{trace.variant}, seed {trace.seed}", *wrap(trace.sentence, 115)]), fontsize=9)
    return figure
