"""How a variant bears learning rates: sensitivity, optimum, edges, width, of each seed and compared by seed.

Sensitivity is that of Wortsman et al. (arXiv 2309.14322, section 2.2): the mean over a window of learning rates of
min(loss, initial loss) less the best of the window. A trial that diverged counts with the initial loss.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gatelab.results.analyses.comparison import environment_notes
from gatelab.results.statistics.optimum import (
    Bounded,
    Floats,
    around,
    largest_stable,
    lower_edge,
    optimum,
    sensitivity,
    upper_edge,
)
from gatelab.results.statistics.paired import Interval, t_interval
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import AXIS, arm_of

RATE = "training.optimizer.learning_rate"


class NotSearched(ValueError):
    """A study whose learning rates have not been searched, or not enough to say anything."""


@dataclass(frozen=True)
class Sweep:
    """One arm (a variant, learning rates aside) at its learning rates."""

    arm: str
    baseline: str | None
    rates: Floats
    """`[R]`, ascending."""
    seeds: tuple[int, ...]
    losses: Floats
    """`[S, R]`: last validation loss, at most the initial loss, which diverged trials count with; nan: not known."""
    stable: npt.NDArray[np.bool_]
    """`[S, R]`: whether a trial finished below its initial loss; False also where nothing is known."""
    diverged: int
    """Trials that diverged."""

    @property
    def mean(self) -> Floats:
        """`[R]`: mean loss over the seeds that are known."""
        known = np.isfinite(self.losses)
        sums = np.where(known, self.losses, 0.0).sum(0)
        counts = known.sum(0)
        means: Floats = np.divide(sums, counts, out=np.full(len(self.rates), np.nan), where=counts > 0)
        return means

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """`[R]`: whether all seeds are known."""
        known: npt.NDArray[np.bool_] = np.all(np.isfinite(self.losses), axis=0)
        return known


@dataclass(frozen=True)
class Quantity:
    """One property of an arm: of each seed, over seeds, and against the baseline."""

    name: str
    unit: str
    by_seed: dict[int, Bounded]
    delta: Interval | None = None
    """Paired differences to the baseline over the seeds where neither is a mere bound; in decades if of rates."""

    @property
    def is_rate(self) -> bool:
        """Whether values are decimal logarithms of learning rates."""
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


@dataclass(frozen=True)
class Arm:
    """What a search found of one arm."""

    sweep: Sweep
    quantities: tuple[Quantity, ...]
    best_rate: float | None
    """Of all learning rates with every seed known, the one with the lowest mean loss."""
    first_unstable: float | None
    """The lowest learning rate above the best at which some seed was not stable."""
    notes: tuple[str, ...]

    @property
    def optimum(self) -> float | None:
        """The optimal learning rate; None where there is only a bound on it."""
        found = self.quantity(OPTIMUM[0])
        return float(10**found.interval.mean) if found.by_seed and not found.bound else None

    def quantity(self, name: str) -> Quantity:
        """The quantity of a name."""
        return next(quantity for quantity in self.quantities if quantity.name == name)


@dataclass(frozen=True)
class Tolerance:
    """A study's arms and the rules by which they were judged."""

    study: str
    study_hash: str
    window: tuple[float, ...]
    margin: float
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]


def sweeps(runs: pa.Table, metric: str = "validation/loss") -> list[Sweep]:
    """The sweeps of a search's `runs` frame, in its order. Raises NotSearched if it has no axis of learning rates."""
    if AXIS + RATE not in runs.column_names:
        raise NotSearched(f"the study has no axis {RATE}: it is not a search")
    trials = runs.to_pylist()
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        by_arm.setdefault(arm_of(trial, [RATE]), []).append(trial)
    arm_of_variant = {trial["variant"]: arm for arm, members in by_arm.items() for trial in members}
    return [_sweep(arm, members, arm_of_variant, metric) for arm, members in by_arm.items()]


def _sweep(arm: str, trials: list[dict[str, Any]], arm_of_variant: Mapping[str, str], metric: str) -> Sweep:
    rates = sorted({float(trial[AXIS + RATE]) for trial in trials})
    seeds = sorted({trial["seed"] for trial in trials})
    losses = np.full((len(seeds), len(rates)), np.nan)
    stable = np.zeros(losses.shape, dtype=bool)
    initial = {
        trial["seed"]: trial["train/initial_loss"] for trial in trials if trial.get("train/initial_loss") is not None
    }
    for trial in trials:
        place = seeds.index(trial["seed"]), rates.index(float(trial[AXIS + RATE]))
        worst = initial.get(trial["seed"], math.nan)
        if trial["outcome"] == "finished" and trial[metric] is not None:
            losses[place] = min(trial[metric], worst) if math.isfinite(worst) else trial[metric]
            stable[place] = not trial[metric] >= worst
        elif trial["outcome"] == "diverged":
            losses[place] = worst
    baselines = {arm_of_variant[trial["baseline"]] for trial in trials if trial["baseline"] is not None}
    return Sweep(
        arm=arm,
        baseline=next(iter(baselines), None),
        rates=np.array(rates),
        seeds=tuple(seeds),
        losses=losses,
        stable=stable,
        diverged=sum(trial["outcome"] == "diverged" for trial in trials),
    )


def tolerance(runs: pa.Table, lattice: Sequence[float], window: Sequence[float], margin: float) -> Tolerance:
    """What a search found, of its `runs` frame.

    Args:
        runs: of the search's study.
        lattice: the learning rates of the window and its continuation on both sides, ascending.
        window: those at which every arm was to be trained, a run of the lattice.
        margin: share of the best loss by which a tolerated one may exceed it.

    Raises NotSearched if no trial is over.
    """
    found = {sweep.arm: sweep for sweep in sweeps(runs)}
    if not any(np.isfinite(sweep.losses).any() for sweep in found.values()):
        raise NotSearched("no trial has finished or diverged yet: there is nothing to show")
    measured = {arm: _quantities(sweep, lattice, window, margin) for arm, sweep in found.items()}
    arms = []
    for arm, sweep in found.items():
        others = measured.get(sweep.baseline or "", {}) if sweep.baseline != arm else {}
        quantities = tuple(
            _compared(name, unit, own, others.get((name, unit))) for (name, unit), own in measured[arm].items()
        )
        best = _best_rate(sweep)
        arms.append(Arm(sweep, quantities, best, _first_unstable(sweep), tuple(_notes(sweep, window))))
    row = runs.slice(0, 1).to_pylist()[0]
    return Tolerance(
        row["study"], row["study_hash"], tuple(window), margin, tuple(arms), tuple(environment_notes(runs))
    )


def tolerance_of_record(record: StudyRecord, runs: pa.Table) -> Tolerance:
    """What the search of a study's record found, of its `runs`, by the record's rules. Raises NotSearched."""
    rules = record.tolerance
    if rules is None:
        raise NotSearched(f"{record.name} was last run before there were searches")
    return tolerance(runs, rules.lattice, rules.rates, rules.margin)


LOSS = ("loss at the optimum", "nats/token")


OPTIMUM = ("optimal learning rate", "log10")


SENSITIVITY = ("sensitivity S, window", "nats/token")


CENTRED = ("sensitivity S, centred", "nats/token")


LOWER, UPPER = ("lower edge", "log10"), ("upper edge", "log10")


WIDTH = ("tolerance width", "decades")


STABLE = ("largest stable, all seeds", "log10")


def _quantities(
    sweep: Sweep, lattice: Sequence[float], window: Sequence[float], margin: float
) -> dict[tuple[str, str], dict[int, Bounded]]:
    """Name and unit -> seed -> value. A seed of which nothing finished has none."""
    best = _best_rate(sweep)
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
    """S of one seed. A cell of which nothing is known is censored: S is then at least what it is with a perfect one."""
    own = dict(zip(sweep.rates.tolist(), sweep.losses[row].tolist(), strict=True))
    losses = np.array([own.get(rate, math.nan) for rate in window])
    known = np.isfinite(losses)
    if not known.any():
        return Bounded(0.0, "≥")
    best = losses[known].min()
    return Bounded(sensitivity(np.where(known, losses, best)), "" if known.all() else "≥")


def centred_window(sweep: Sweep, lattice: Sequence[float], points: int) -> list[float] | None:
    """The run of so many learning rates of a lattice around the arm's best one; None if the lattice ends before."""
    on_lattice = [index for index, rate in enumerate(sweep.rates) if rate in lattice and np.isfinite(sweep.mean[index])]
    if not on_lattice:
        return None
    best = min(on_lattice, key=lambda index: sweep.mean[index])
    window = around(float(sweep.rates[best]), lattice, points)
    return window if len(window) == points else None


def _best_rate(sweep: Sweep) -> float | None:
    candidates = np.flatnonzero(sweep.complete)
    return float(sweep.rates[candidates[np.argmin(sweep.mean[candidates])]]) if len(candidates) else None


def _first_unstable(sweep: Sweep) -> float | None:
    best = _best_rate(sweep)
    unstable = [
        float(rate)
        for rate, known, stable in zip(sweep.rates, sweep.complete, np.all(sweep.stable, axis=0), strict=True)
        if best is not None and rate > best and known and not stable
    ]
    return min(unstable, default=None)


def _compared(name: str, unit: str, own: dict[int, Bounded], other: dict[int, Bounded] | None) -> Quantity:
    if other is None or (name, unit) == STABLE:  # places of a grid: a difference of one is no finding
        return Quantity(name, unit, own)
    pairs = [
        own[seed].value - other[seed].value
        for seed in sorted(own.keys() & other.keys())
        if not own[seed].bound and not other[seed].bound
    ]
    return Quantity(name, unit, own, t_interval(pairs))


def _notes(sweep: Sweep, window: Sequence[float]) -> Iterator[str]:
    unknown = int(np.isnan(sweep.losses).sum())
    if unknown:
        yield f"{sweep.arm}: {unknown} of {sweep.losses.size} trials are not known (failed, or still to run): partial"
    best = _best_rate(sweep)
    if best is None:
        yield f"{sweep.arm}: no learning rate has all its seeds"
        return
    if best in (sweep.rates[0], sweep.rates[-1]) and sweep.stable.any():
        yield (
            f"{sweep.arm}: the lowest loss is at {best:g}, the end of what was tried: its optimum lies there or "
            "beyond, and the window is too narrow to hold it (tolerance.rates, tolerance.extend)"
        )
    elif not window[0] < best < window[-1]:
        yield f"{sweep.arm}: the optimum is not within the window: S of the window misleads, the centred one holds"
    if not sweep.stable.any():
        yield f"{sweep.arm}: no trial finished below its initial loss: lower tolerance.rates"
    elif not sweep.stable.any(1).all():
        yield f"{sweep.arm}: of some seeds no trial finished below its initial loss; they count in none of its rows"
