"""The numbers that laws and searches give, a row for each: scaling laws, compute-equivalent gains, learning rates."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from gatelab.results.analyses.learning_rates import STABLE, NotSearched, Quantity, Tolerance, tolerance_of_record
from gatelab.results.analyses.scaling import BEYOND, FORMULAS, Estimate, NotScalable, Scaling, scaling_of_record
from gatelab.results.store.records import StudyRecord

FITS = pa.schema(
    [
        ("law", pa.utf8()),
        ("arm", pa.utf8()),
        ("baseline", pa.utf8()),
        ("rung", pa.utf8()),
        ("quantity", pa.utf8()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("bound", pa.utf8()),
        ("n", pa.int64()),
        ("unit", pa.utf8()),
    ]
)
"""Columns of `fits`."""


SEARCH = "learning rates"
"""The `law` of what a learning-rate search found."""


def fits(record: StudyRecord, runs: pa.Table) -> pa.Table:
    """What the ladder and the search of a study's record found, of its `runs`; no rows where it has neither."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(NotScalable):
        rows += _of_ladder(scaling_of_record(record, runs))
    with contextlib.suppress(NotSearched):
        rows += _of_search(tolerance_of_record(record, runs))
    # Of a single seed there is no interval.
    known = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    return pa.Table.from_pylist(known, FITS)


def _of_ladder(found: Scaling) -> Iterator[dict[str, Any]]:
    """A scaling report: shared numbers have no arm, those of a rung have one."""
    fit = found.fit
    if fit is None:
        return
    common = {"law": FORMULAS[fit.kind], "n": found.bootstraps}
    for name, estimate in fit.shared.items():
        bound = "?" if name == "E" and fit.caveat else ""
        yield {
            **common,
            "quantity": _ASCII.get(name, name),
            "bound": bound,
            **_numbers(estimate),
            "unit": _UNITS.get(name, ""),
        }
    for arm in fit.arms:
        own = {**common, "arm": arm.arm, "baseline": found.baselines[arm.arm], "bound": ""}
        quantities = (
            ("A", arm.scale, ""),
            ("alpha", arm.exponent, ""),
            ("alpha, difference", arm.exponent_difference, ""),
            ("own E, difference", arm.offset_difference, "nats/token"),
            ("crossover", arm.crossover, "FLOPs"),
        )
        for name, own_part, unit in quantities:
            if own_part is not None:
                yield {**own, "quantity": name, **_numbers(own_part), "unit": unit}
        for multiple, share in zip(BEYOND, arm.better or (), strict=False):
            yield {**own, "quantity": f"P(lower loss) at {multiple}x", "value": share, "unit": "share"}
    for rung in found.rungs:
        own = {**common, "arm": rung.arm, "baseline": found.baselines[rung.arm], "rung": rung.rung, "bound": ""}
        for name, gain in (("gain", rung.gain), ("gain in time", rung.gain_in_time)):
            if gain is not None:
                yield {**own, "quantity": name, **_numbers(gain), "unit": "x"}


_ASCII = {"α": "alpha", "β": "beta"}


_UNITS = {"E": "nats/token"}


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _of_search(found: Tolerance) -> Iterator[dict[str, Any]]:
    """A search's report, quantity by quantity over seeds; learning rates as such, their differences in decades."""
    for arm in found.arms:
        common = {"law": SEARCH, "arm": arm.sweep.arm, "baseline": arm.sweep.baseline}
        for quantity in arm.quantities:
            if quantity.by_seed:
                yield {**common, "quantity": quantity.name, **_mean(quantity)}
            delta = quantity.delta
            if delta is not None and delta.n:
                unit = "decades" if quantity.is_rate else quantity.unit
                numbers = {"value": delta.mean, "low": delta.low, "high": delta.high, "n": delta.n}
                yield {**common, "quantity": f"{quantity.name}, difference", **numbers, "bound": "", "unit": unit}
        for name, rate in (("best of those tried", arm.best_rate), ("first not stable", arm.first_unstable)):
            if rate is not None:
                yield {**common, "quantity": name, "value": rate, "bound": "", "n": len(arm.sweep.seeds), "unit": ""}


def _mean(quantity: Quantity) -> dict[str, Any]:
    interval = quantity.interval
    if (quantity.name, quantity.unit) == STABLE:  # of all seeds, not of their mean
        least = min(quantity.by_seed.values(), key=lambda own: own.value)
        return {"value": 10**least.value, "bound": least.bound, "n": interval.n, "unit": ""}
    numbers = {"value": interval.mean, **({} if quantity.bound else {"low": interval.low, "high": interval.high})}
    if quantity.is_rate:
        numbers = {name: 10**value for name, value in numbers.items()}
    return {**numbers, "bound": quantity.bound, "n": interval.n, "unit": "" if quantity.is_rate else quantity.unit}
