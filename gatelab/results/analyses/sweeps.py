"""The sweeps of a search: the losses of each arm (a variant, learning rates aside) at its learning rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.statistics.optimum import Floats, around
from gatelab.results.store.runs import AXIS, arm_of
from gatelab.status import Status

RATE = "training.optimizer.learning_rate"


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


def sweeps(runs: pa.Table, metric: str = DEFAULT_METRIC) -> list[Sweep]:
    """Return the sweeps of a search's `runs` frame, in its order.

    Raises AnalysisUnavailable if it has no axis of learning rates.
    """
    if AXIS + RATE not in runs.column_names:
        raise AnalysisUnavailable(f"the study has no axis {RATE}: it is not a search")
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
        if trial["outcome"] == Status.FINISHED and trial[metric] is not None:
            losses[place] = min(trial[metric], worst) if math.isfinite(worst) else trial[metric]
            stable[place] = not trial[metric] >= worst
        elif trial["outcome"] == Status.DIVERGED:
            losses[place] = worst
    baselines = {arm_of_variant[trial["baseline"]] for trial in trials if trial["baseline"] is not None}
    return Sweep(
        arm=arm,
        baseline=next(iter(baselines), None),
        rates=np.array(rates),
        seeds=tuple(seeds),
        losses=losses,
        stable=stable,
        diverged=sum(trial["outcome"] == Status.DIVERGED for trial in trials),
    )


def centred_window(sweep: Sweep, lattice: Sequence[float], points: int) -> list[float] | None:
    """Return the run of `points` learning rates of a lattice around the arm's best; None if the lattice ends before."""
    on_lattice = [index for index, rate in enumerate(sweep.rates) if rate in lattice and np.isfinite(sweep.mean[index])]
    if not on_lattice:
        return None
    best = min(on_lattice, key=lambda index: sweep.mean[index])
    window = around(float(sweep.rates[best]), lattice, points)
    return window if len(window) == points else None


def best_rate(sweep: Sweep) -> float | None:
    """Return the rate with the lowest mean loss, of those with every seed known."""
    candidates = np.flatnonzero(sweep.complete)
    return float(sweep.rates[candidates[np.argmin(sweep.mean[candidates])]]) if len(candidates) else None


def first_unstable(sweep: Sweep) -> float | None:
    """Return the lowest rate above the best at which some seed was not stable."""
    best = best_rate(sweep)
    unstable = [
        float(rate)
        for rate, known, stable in zip(sweep.rates, sweep.complete, np.all(sweep.stable, axis=0), strict=True)
        if best is not None and rate > best and known and not stable
    ]
    return min(unstable, default=None)
