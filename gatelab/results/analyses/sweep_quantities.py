"""What a sweep says of its arm: optimum, sensitivity, edges and width, seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gatelab.results.analyses.sweeps import Sweep, best_rate, centred_window
from gatelab.results.statistics.optimum import (
    Bounded,
    largest_stable,
    lower_edge,
    optimum,
    sensitivity,
    upper_edge,
)
from gatelab.results.statistics.paired import Interval, t_interval


@dataclass(frozen=True)
class Quantity:
    """One property of an arm: for each seed, over seeds, and against the baseline."""

    name: str
    unit: str
    by_seed: dict[int, Bounded]
    delta: Interval | None = None
    """Paired differences to the baseline over the seeds where neither is a mere bound; in decades if of rates."""

    @property
    def is_rate(self) -> bool:
        """Return whether values are decimal logarithms of learning rates."""
        return self.unit == "log10"

    @property
    def interval(self) -> Interval:
        """Over seeds; where `bound` is not '', only its mean means something: it is a bound."""
        return t_interval([estimate.value for estimate in self.by_seed.values()])

    @property
    def bound(self) -> str:
        """'' or of what kind of bound the mean is; '?' where seeds have bounds of either kind."""
        bounds = {estimate.bound for estimate in self.by_seed.values()} - {""}
        return bounds.pop() if len(bounds) == 1 else "?" if bounds else ""


LOSS = ("loss at the optimum", "nats/token")


OPTIMUM = ("optimal learning rate", "log10")


SENSITIVITY = ("sensitivity S, window", "nats/token")


CENTRED = ("sensitivity S, centred", "nats/token")


LOWER, UPPER = ("lower edge", "log10"), ("upper edge", "log10")


WIDTH = ("tolerance width", "decades")


STABLE = ("largest stable, all seeds", "log10")


def measure_sweep(
    sweep: Sweep, lattice: Sequence[float], window: Sequence[float], margin: float
) -> dict[tuple[str, str], dict[int, Bounded]]:
    """Name and unit -> seed -> value. A seed of which nothing finished has none."""
    best = best_rate(sweep)
    centred = centred_window(sweep, lattice, len(window))
    found: dict[tuple[str, str], dict[int, Bounded]] = {
        name: {} for name in (OPTIMUM, LOSS, SENSITIVITY, CENTRED, LOWER, UPPER, WIDTH, STABLE)
    }
    for row, seed in enumerate(sweep.seeds):
        known = np.isfinite(sweep.losses[row])
        if not (known & sweep.stable[row]).any():
            continue
        x, losses, stable = np.log10(sweep.rates[known]), sweep.losses[row][known], sweep.stable[row][known]
        threshold = float(losses.min()) * (1 + margin)
        lower, upper = lower_edge(x, losses, threshold), upper_edge(x, losses, threshold)
        found[OPTIMUM][seed] = optimum(x, losses)
        if best is not None:
            at_end = best in (sweep.rates[0], sweep.rates[-1])
            loss = float(sweep.losses[row][list(sweep.rates).index(best)])
            found[LOSS][seed] = Bounded(loss, "≤" if at_end else "")
        found[SENSITIVITY][seed] = _sensitivity_of(sweep, row, window)
        if centred is not None:
            found[CENTRED][seed] = _sensitivity_of(sweep, row, centred)
        found[LOWER][seed], found[UPPER][seed] = lower, upper
        found[WIDTH][seed] = Bounded(upper.value - lower.value, "≥" if lower.bound or upper.bound else "")
        found[STABLE][seed] = largest_stable(x, losses, stable)
    return found


def _sensitivity_of(sweep: Sweep, row: int, window: Sequence[float]) -> Bounded:
    """Return S of one seed. An unknown cell is censored: S is then at least what it is with a perfect one."""
    own = dict(zip(sweep.rates.tolist(), sweep.losses[row].tolist(), strict=True))
    losses = np.array([own.get(rate, math.nan) for rate in window])
    known = np.isfinite(losses)
    if not known.any():
        return Bounded(0.0, "≥")
    best = losses[known].min()
    return Bounded(sensitivity(np.where(known, losses, best)), "" if known.all() else "≥")


def compared(name: str, unit: str, own: dict[int, Bounded], other: dict[int, Bounded] | None) -> Quantity:
    """Return a quantity of an arm, with its paired differences to the baseline's if there is one."""
    if other is None or (name, unit) == STABLE:  # places of a grid: a difference of one is no finding
        return Quantity(name, unit, own)
    pairs = [
        own[seed].value - other[seed].value
        for seed in sorted(own.keys() & other.keys())
        if not own[seed].bound and not other[seed].bound
    ]
    return Quantity(name, unit, own, t_interval(pairs))
