"""How a variant bears learning rates: sensitivity, optimum, edges, width, of each seed and compared by seed.

Sensitivity is that of Wortsman et al. (arXiv 2309.14322, section 2.2): the mean over a window of learning rates of
min(loss, initial loss) less the best of the window. A trial that diverged counts with the initial loss.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.analysis import tidy, to_jsonable
from gatelab.results.analyses.comparison import environment_notes
from gatelab.results.analyses.fits import FITS
from gatelab.results.analyses.sweep_quantities import OPTIMUM, STABLE, Quantity, compared, measure_sweep
from gatelab.results.analyses.sweeps import Sweep, best_rate, first_unstable, sweeps
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import runs_of_record


@dataclass(frozen=True)
class Arm:
    """An arm, as a search found it."""

    sweep: Sweep
    quantities: tuple[Quantity, ...]
    best_rate: float | None
    """The learning rate with the lowest mean loss, among those with every seed known."""
    first_unstable: float | None
    """The lowest learning rate above the best at which some seed was not stable."""
    notes: tuple[str, ...]

    @property
    def optimum(self) -> float | None:
        """The optimal learning rate; None where there is only a bound on it."""
        found = self.quantity(OPTIMUM[0])
        return float(10**found.interval.mean) if found.by_seed and not found.bound else None

    def quantity(self, name: str) -> Quantity:
        """Return the quantity with this name."""
        return next(quantity for quantity in self.quantities if quantity.name == name)


@dataclass(frozen=True)
class LearningRates:
    """A study's arms and the rules by which they were judged."""

    study: str
    study_hash: str
    window: tuple[float, ...]
    margin: float
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]

    def frame(self) -> pa.Table:
        """Return a row for each trial: its loss (at most the initial one) and whether it was stable, where known."""
        return tidy((row for arm in self.arms for row in _trial_rows(arm.sweep)), TRIALS)

    def fits(self) -> pa.Table:
        """Return each quantity of each arm over seeds, in `FITS`; learning rates as such, differences in decades."""
        return tidy(_fit_rows(self), FITS)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values: learning rates as such, their differences in decades. None: no such
        number."""
        return {**to_jsonable(self), "arms": [to_jsonable(_arm_dict(arm)) for arm in self.arms]}


TRIALS = pa.schema(
    [
        ("arm", pa.utf8()),
        ("learning_rate", pa.utf8()),  # as levels are written
        ("seed", pa.int64()),
        ("loss", pa.float64()),
        ("stable", pa.bool_()),
    ]
)
"""Columns of the frame of a search."""


def _trial_rows(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for row, seed in enumerate(sweep.seeds):
        for rate, loss, stable in zip(sweep.rates, sweep.losses[row], sweep.stable[row], strict=True):
            known = {"loss": float(loss), "stable": bool(stable)} if math.isfinite(loss) else {}
            yield {"arm": sweep.arm, "learning_rate": f"{rate:g}", "seed": seed, **known}


def _arm_dict(arm: Arm) -> dict[str, Any]:
    sweep = arm.sweep
    return {
        "arm": sweep.arm,
        "baseline": sweep.baseline,
        "best_rate": arm.best_rate,
        "first_unstable": arm.first_unstable,
        "diverged": sweep.diverged,
        "quantities": [_quantity_dict(quantity) for quantity in arm.quantities],
        "rates": sweep.rates.tolist(),
        "seeds": list(sweep.seeds),
        "losses": sweep.losses.tolist(),
        "stable": sweep.stable.tolist(),
        "notes": list(arm.notes),
    }


def _quantity_dict(quantity: Quantity) -> dict[str, Any]:
    def plain(value: float) -> float:
        return 10**value if quantity.is_rate else value

    interval = quantity.interval
    return {
        "name": quantity.name,
        "unit": "" if quantity.is_rate else quantity.unit,
        "mean": plain(interval.mean),
        "low": None if quantity.bound else plain(interval.low),
        "high": None if quantity.bound else plain(interval.high),
        "bound": quantity.bound,
        "by_seed": {str(seed): [plain(own.value), own.bound] for seed, own in quantity.by_seed.items()},
        "difference": None if quantity.delta is None else vars(quantity.delta),
        "difference_unit": "decades" if quantity.is_rate else quantity.unit,
    }


def _fit_rows(found: LearningRates) -> Iterator[dict[str, Any]]:
    """Yield a search's report, quantity by quantity over seeds; differences of learning rates are in decades."""
    for arm in found.arms:
        common = {"law": "learning rates", "arm": arm.sweep.arm, "baseline": arm.sweep.baseline}
        for quantity in arm.quantities:
            if quantity.by_seed:
                yield {**common, "quantity": quantity.name, **_fit_numbers(quantity)}
            delta = quantity.delta
            if delta is not None and delta.n:
                unit = "decades" if quantity.is_rate else quantity.unit
                numbers = {"value": delta.mean, "low": delta.low, "high": delta.high, "n": delta.n}
                yield {**common, "quantity": f"{quantity.name}, difference", **numbers, "bound": "", "unit": unit}
        for name, rate in (("best of those tried", arm.best_rate), ("first not stable", arm.first_unstable)):
            if rate is not None:
                yield {**common, "quantity": name, "value": rate, "bound": "", "n": len(arm.sweep.seeds), "unit": ""}


def _fit_numbers(quantity: Quantity) -> dict[str, Any]:
    interval = quantity.interval
    if (quantity.name, quantity.unit) == STABLE:  # of all seeds, not of their mean
        least = min(quantity.by_seed.values(), key=lambda own: own.value)
        return {"value": 10**least.value, "bound": least.bound, "n": interval.n, "unit": ""}
    numbers = {"value": interval.mean, **({} if quantity.bound else {"low": interval.low, "high": interval.high})}
    if quantity.is_rate:
        numbers = {name: 10**value for name, value in numbers.items()}
    return {**numbers, "bound": quantity.bound, "n": interval.n, "unit": "" if quantity.is_rate else quantity.unit}


def learning_rates(runs: pa.Table, lattice: Sequence[float], window: Sequence[float], margin: float) -> LearningRates:
    """Analyse a search by its `runs` frame.

    Args:
        runs: of the search's study.
        lattice: the learning rates of the window and its continuation on both sides, ascending.
        window: those at which every arm was to be trained, a run of the lattice.
        margin: share of the best loss by which a tolerated one may exceed it.

    Raises AnalysisUnavailable if no trial is over.
    """
    found = {sweep.arm: sweep for sweep in sweeps(runs)}
    if not any(np.isfinite(sweep.losses).any() for sweep in found.values()):
        raise AnalysisUnavailable("no trial has finished or diverged yet: there is nothing to show")
    measured = {arm: measure_sweep(sweep, lattice, window, margin) for arm, sweep in found.items()}
    arms = []
    for arm, sweep in found.items():
        others = measured.get(sweep.baseline or "", {}) if sweep.baseline != arm else {}
        quantities = tuple(
            compared(name, unit, own, others.get((name, unit))) for (name, unit), own in measured[arm].items()
        )
        best = best_rate(sweep)
        arms.append(Arm(sweep, quantities, best, first_unstable(sweep), tuple(_notes(sweep, window))))
    row = runs.slice(0, 1).to_pylist()[0]
    return LearningRates(
        row["study"], row["study_hash"], tuple(window), margin, tuple(arms), tuple(environment_notes(runs))
    )


def read_learning_rates(folder: RunsFolder, study: str) -> LearningRates:
    """Return what a search found, from its trials' own files. Raises NotFound, AnalysisUnavailable."""
    record = folder.study(study).read()
    return learning_rates_from_record(record, runs_of_record(folder, record))


def learning_rates_from_record(record: StudyRecord, runs: pa.Table) -> LearningRates:
    """Analyse the search of a study's record by its `runs` and the record's rules. Raises AnalysisUnavailable."""
    rules = record.tolerance
    if rules is None:
        raise AnalysisUnavailable(f"{record.name} was last run before there were searches")
    return learning_rates(runs, rules.lattice, rules.rates, rules.margin)


def _notes(sweep: Sweep, window: Sequence[float]) -> Iterator[str]:
    unknown = int(np.isnan(sweep.losses).sum())
    if unknown:
        yield f"{sweep.arm}: {unknown} of {sweep.losses.size} trials are not known (failed, or still to run): partial"
    best = best_rate(sweep)
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
