"""What led to a divergence or to a spike of the loss: which layer's measurements left their usual band first.

While it trains, a trial keeps cheap measurements of each layer in each of its last 256 steps and records them on an
event; here they are read. docs/stability.md says how.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatelab.results.statistics.spikes import band_exit
from gatelab.results.store.metrics import named, split
from gatelab.status import Status
from gatelab.thresholds import HISTORY_STEPS, MIN_VALUES


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
class DivergenceTrace:
    """The last steps before an event: which measurements left their band."""

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
        """Say in a sentence what happened, and what left its band first."""
        event = f"{'diverged' if self.diverged else 'loss spike'} at step {self.at}"
        if self.steps < MIN_VALUES:
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


def divergence_traces(trials: Iterable[Mapping[str, Any]], metrics: pa.Table) -> Iterator[DivergenceTrace]:
    """Yield the divergence traces of trials, rows of a `runs` frame: of each event whose ring is in their journals."""
    rings = ring_rows(metrics)
    losses = metrics.filter(pc.and_(pc.is_null(metrics["layer"]), pc.equal(metrics["name"], "train/loss")))
    rings_of, losses_of = split(rings, "trial"), split(losses, "trial")
    for trial in trials:
        mine = rings_of.get(trial["trial"], rings.slice(0, 0))
        own = losses_of.get(trial["trial"], losses.slice(0, 0))
        for found in sorted(pc.unique(mine["found"]).to_pylist()):
            ring = measurements_of_event(mine, found)
            steps = np.unique(ring["step"].to_numpy())
            mine_losses = own.filter(pc.is_in(own["step"], pa.array(steps)))
            where, values = mine_losses["step"].to_numpy(), mine_losses["value"].to_numpy()
            left = band_exit(values, upwards=True)
            loss_step = None if left is None else int(where[left[0]])
            diverged = trial["outcome"] == Status.DIVERGED and found == trial["step"]
            lost = where[~np.isfinite(values)]
            at = found if loss_step is None or diverged else loss_step
            yield DivergenceTrace(
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
    """Return what rings held, in long form: trial, variant, seed, found, step, layer, name, value.

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


def measurements_of_event(rings: pa.Table, found: int) -> pa.Table:
    """Return the rows of one trial's ring as it was at an event, steps ascending."""
    held = pc.and_(pc.less_equal(rings["found"], found), pc.greater(rings["step"], found - HISTORY_STEPS))
    return rings.filter(held).sort_by("step")


def _exits(ring: pa.Table) -> Iterator[Exit]:
    """Yield every measurement of a ring that left its band, the earliest first. At one step, lower layers come first;
    within a layer, the order is that of the forward pass.
    """
    found = []
    names = pc.unique(ring["name"]).to_pylist()
    order = {name: index for index, name in enumerate(sorted(names, key=place_of))}
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
"""Begins of the names of measurements, in the order of the forward pass."""


def place_of(name: str) -> tuple[int, str]:
    """Return where in the forward pass a measurement is taken, to sort by; what is not known comes last."""
    places = (index for index, begin in enumerate(FORWARD) if name.startswith(begin))
    return next(places, len(FORWARD)), name
