"""What led to a divergence or to a spike of the loss: which layer's measurements left their usual band first.

While it trains, a trial keeps cheap measurements of each layer in each of its last 256 steps and records them on an
event; here they are read. docs/stability.md says how.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.figures import panels
from gatelab.results.frames import named
from gatelab.results.measures import with_unit
from gatelab.results.tables import Column, Grid

NEEDED = 32
"""Values before anything is judged, as for the robust counters of spikes."""
RING = 256
"""Steps of an autopsy."""
BAND = 10.0
"""Robust standard deviations from the median within which a measurement is in its band."""
SMALLEST = 1e-3
"""Of the median: no measurement is so calm that less than this is its noise."""
LASTING = 4
"""Steps in a row out of its band after which a measurement has left it."""


@dataclass(frozen=True)
class Exit:
    """A measurement of a layer that left its band."""

    layer: int
    name: str
    step: int
    usual: float  # median of the older half of the ring
    value: float  # at that step
    low: float
    high: float


@dataclass(frozen=True)
class Autopsy:
    """What the last steps before an event show."""

    trial: str
    variant: str
    seed: int
    found: int  # step of the look that found the event
    diverged: bool  # else: a spike of the loss
    at: int  # of the first loss that was not finite, or else that found is or where a spike began
    steps: int  # in the ring
    loss_step: int | None  # at which the loss left its band, if it did
    exits: tuple[Exit, ...]  # the first one first

    @property
    def sentence(self) -> str:
        """What a person wants to know."""
        event = f"{'diverged' if self.diverged else 'loss spike'} at step {self.at}"
        if self.steps < NEEDED:
            return f"{event}: the {self.steps} steps kept are too few to say what was usual"
        if not self.exits:
            return f"{event}: no measurement of a layer left its band"
        first = self.exits[0]
        if self.loss_step is None:
            before = "the loss stayed within its own"
        elif first.step >= self.loss_step:
            return f"{event}: nothing left its band before the loss did at step {self.loss_step}"
        else:
            before = f"{_steps(self.loss_step - first.step)} before the loss"
        others = sum(other.step == first.step for other in self.exits) - 1
        return (
            f"{event}: first out of band was layer {first.layer}'s {first.name} at step {first.step} "
            f"({first.usual:.3g} → {first.value:.3g}){f', with {others} more' if others else ''}, {before}"
        )


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def autopsies(trials: Iterable[Mapping[str, Any]], metrics: pa.Table) -> Iterator[Autopsy]:
    """The autopsies of trials, rows of a `runs` frame: of each event whose ring is in their journals."""
    rings = ring_rows(metrics)
    losses = metrics.filter(pc.and_(pc.is_null(metrics["layer"]), pc.equal(metrics["name"], "train/loss")))
    for trial in trials:
        mine = rings.filter(pc.equal(rings["trial"], trial["trial"]))
        own = losses.filter(pc.equal(losses["trial"], trial["trial"]))
        for found in sorted(pc.unique(mine["found"]).to_pylist()):
            ring = _of_event(mine, found)
            steps = np.unique(ring["step"].to_numpy())
            mine_losses = own.filter(pc.is_in(own["step"], pa.array(steps)))
            where, values = mine_losses["step"].to_numpy(), mine_losses["value"].to_numpy()
            left = band_exit(values, upwards=True)
            loss_step = None if left is None else int(where[left[0]])
            diverged = trial["outcome"] == "diverged" and found == trial["step"]
            lost = where[~np.isfinite(values)]
            at = found if loss_step is None or diverged else loss_step
            yield Autopsy(
                trial=trial["trial"],
                variant=trial["variant"],
                seed=trial["seed"],
                found=found,
                diverged=diverged,
                at=int(lost[0]) if len(lost) else at,
                steps=len(steps),
                loss_step=loss_step,
                exits=tuple(_exits(ring)),
            )


def ring_rows(metrics: pa.Table) -> pa.Table:
    """What rings held, in long form: trial, variant, seed, found, step, layer, name, value.

    found is the step at which it was written; of a step that two events share there is one row, the earlier one's.
    """
    rows = metrics.filter(named(metrics, "autopsy/*"))
    parts = pc.extract_regex(rows["name"].cast(pa.utf8()), r"^autopsy/(?P<name>.+)/(?P<before>\d+)$")
    before = pc.cast(pc.struct_field(parts, "before"), pa.int64())
    return pa.table(
        {
            **{name: rows[name] for name in ("trial", "variant", "seed")},
            "found": rows["step"],
            "step": pc.subtract(rows["step"], before),
            "layer": rows["layer"],
            "name": pc.struct_field(parts, "name"),
            "value": rows["value"],
        }
    )


def _of_event(rings: pa.Table, found: int) -> pa.Table:
    """The rows of one trial's ring as it was at an event, steps ascending."""
    held = pc.and_(pc.less_equal(rings["found"], found), pc.greater(rings["step"], found - RING))
    return rings.filter(held).sort_by("step")


def _exits(ring: pa.Table) -> Iterator[Exit]:
    """Every measurement of a ring that left its band, the first one first; at one step those of lower layers, and of
    these what comes first in the forward pass."""
    found = []
    names = pc.unique(ring["name"]).to_pylist()
    order = {name: index for index, name in enumerate(sorted(names, key=_place))}
    for layer in sorted(pc.unique(ring["layer"]).to_pylist()):
        own = ring.filter(pc.equal(ring["layer"], layer))
        for name in names:
            mine = own.filter(pc.equal(own["name"], name))
            values = mine["value"].to_numpy()
            left = band_exit(values)
            if left is not None:
                index, usual, low, high = left
                step = int(mine["step"][index].as_py())
                found.append(Exit(layer, name, step, usual, float(values[index]), low, high))
    yield from sorted(found, key=lambda one: (one.step, one.layer, order[one.name]))


FORWARD = ("gate/", "attention/", "activation/attention_output", "activation/ffn_output", "activation/", "gradient")


def _place(name: str) -> tuple[int, str]:
    """Where in the forward pass a measurement is taken."""
    return next(index for index, begin in enumerate(FORWARD) if name.startswith(begin)), name


def band_exit(values: npt.NDArray[np.float64], upwards: bool = False) -> tuple[int, float, float, float] | None:
    """Where a series leaves the band of its older half, to be out in its newer one: (index, median, low, high).

    The band is the median ± 10 × 1.4826 × the median absolute deviation (at least 0.1 % of the median) of the older
    half's finite values; with `upwards` it has no lower end. A series that goes on rising or falling as it did stays
    within. It has left where 4 values in a row are out, or a run of them holds one that is not finite: that is out of
    any band. None if it does not, or if there are fewer than 32 values.
    """
    half = len(values) // 2
    older = values[:half][np.isfinite(values[:half])]
    if len(values) < NEEDED or not len(older):
        return None
    usual = float(np.median(older))
    reach = BAND * max(1.4826 * float(np.median(np.abs(older - usual))), SMALLEST * abs(usual))
    low, high = (-math.inf if upwards else usual - reach), usual + reach
    finite = np.isfinite(values)
    out = ~finite | (values > high) | (values < low)
    begin = half
    while begin and out[begin] and out[begin - 1]:  # it may have left earlier
        begin -= 1
    while begin < len(values):
        if not out[begin]:
            begin += 1
            continue
        within = np.flatnonzero(~out[begin:])
        end = begin + int(within[0]) if len(within) else len(values)
        if end - begin >= LASTING or not finite[begin:end].all():
            return begin, usual, low, high
        begin = end
    return None


def autopsies_grid(study: str, found: Iterable[Autopsy]) -> Grid:
    """Autopsies for people: a row for each event."""
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
                "–" if one.loss_step is None else str(one.loss_step),
                "–" if first is None else f"layer {first.layer}, {first.name}",
                "–" if first is None else str(first.step),
                "–" if first is None else f"{first.usual:.3g} → {first.value:.3g}",
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
    return Grid(f"{study}: autopsies", columns, tuple(rows), (False,) * len(rows), tuple(notes))


def plot_autopsy(metrics: pa.Table, autopsy: Autopsy) -> Figure:
    """The ring of an event: the loss and, of each measurement, a line for each layer; a point marks where it left."""
    rings = ring_rows(metrics.filter(pc.equal(metrics["trial"], autopsy.trial)))
    ring = _of_event(rings, autopsy.found)
    names = sorted(pc.unique(ring["name"]).to_pylist(), key=_place)
    layers = sorted(pc.unique(ring["layer"]).to_pylist())
    own = metrics.filter(pc.and_(pc.equal(metrics["trial"], autopsy.trial), pc.equal(metrics["name"], "train/loss")))
    losses = own.filter(pc.is_in(own["step"], pc.unique(ring["step"])))
    palette = colormaps["viridis"].resampled(max(2, len(layers) + 1))
    exits = {(one.layer, one.name): one for one in autopsy.exits}

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
        if autopsy.exits and autopsy.exits[0].name == name:
            first = autopsy.exits[0]
            axes.axhspan(first.low, first.high, color=palette(layers.index(first.layer)), alpha=0.15, linewidth=0)
        if autopsy.loss_step is not None:
            axes.axvline(
                autopsy.loss_step, color="#D55E00", linestyle="--", linewidth=1, label="the loss left its band"
            )
        axes.set_title(with_unit(name), fontsize=8)
        shown = (losses if name == "train/loss" else ring.filter(pc.equal(ring["name"], name)))["value"].to_numpy()
        shown = shown[np.isfinite(shown)]
        if len(shown) and 0 < 10 * shown.min() < shown.max():
            axes.set_yscale("log")

    figure = panels(["train/loss", *names], draw, "step", "")
    figure.suptitle("\n".join([f"{autopsy.variant}, seed {autopsy.seed}", *wrap(autopsy.sentence, 115)]), fontsize=9)
    return figure
