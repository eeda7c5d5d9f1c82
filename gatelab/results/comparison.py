"""The comparison of a study's variants with their baseline: means over seeds, paired differences, intervals.

Differences are paired by seed: the same seed means the same data order and the same initial weights where two
variants share them. Intervals are Student's t at 95 %, which holds its level at few seeds where a bootstrap does not.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import stdtrit

from gatelab.results.frames import AXIS, OUTCOMES, axes_of, metrics_of
from gatelab.results.measures import measure

DEFAULT_METRIC = "validation/loss"
UNFINISHED = ("running", "interrupted", "waiting")
ENVIRONMENT = ("code", "data", "device", "precision", "threads", "torch", "python")


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % t-interval; bounds are nan where there are fewer than two values."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ComparisonRow:
    """One variant."""

    variant: str
    levels: dict[str, str | None]
    baseline: str | None
    value: Interval  # over the seeds that finished
    delta: Interval | None  # paired differences to the baseline; None for the baseline itself or without one
    outcomes: dict[str, int]  # trials by outcome
    reasons: tuple[str, ...]  # why trials diverged or failed
    parameters: int
    added_parameters: int | None
    tokens_per_second: float  # median over trials; nan if unknown
    best: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.baseline == self.variant

    @property
    def verdict(self) -> str:
        """What the interval says of the difference: lower, higher, undecided, or why it says nothing."""
        if self.is_baseline:
            return "baseline"
        if self.delta is None or self.delta.n == 0:
            return "no pairs"
        if self.delta.n == 1:
            return "single seed"
        if self.delta.high < 0:
            return "lower"
        return "higher" if self.delta.low > 0 else "undecided"  # and where a difference is not a number


@dataclass(frozen=True)
class Comparison:
    """A study's variants: best first, or in the study's order where the metric has no direction."""

    study: str
    study_hash: str
    metric: str
    axes: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]


def compare(runs: pa.Table, metric: str = DEFAULT_METRIC) -> Comparison:
    """Compare the variants of a `runs` frame by a summary metric: best mean first, if the metric has a direction.

    Trials that diverged, failed or have not finished have no value: they are counted beside the mean, never in it.
    Raises ValueError for an unknown metric.
    """
    known = metrics_of(runs)
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=3) or known
        raise ValueError(f"no trial has {metric!r}, but for example {', '.join(near)}")
    trials = runs.to_pylist()
    axes = axes_of(runs)
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        by_variant.setdefault(trial["variant"], []).append(trial)
    values = {
        variant: {
            trial["seed"]: trial[metric]
            for trial in members
            if trial["outcome"] == "finished" and trial[metric] is not None
        }
        for variant, members in by_variant.items()
    }
    rows = [_row(variant, members, values, axes) for variant, members in by_variant.items()]
    better = measure(metric).better
    if better:
        sign = -1.0 if better == "higher" else 1.0
        rows.sort(key=lambda row: (math.isnan(row.value.mean), sign * row.value.mean))
        if rows and not math.isnan(rows[0].value.mean):
            rows[0] = replace(rows[0], best=True)
    return Comparison(
        study=trials[0]["study"],
        study_hash=trials[0]["study_hash"],
        metric=metric,
        axes=axes,
        rows=tuple(rows),
        notes=tuple(_notes(runs, rows)),
    )


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of a sample and its two-sided 95 % interval by Student's t."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _row(
    variant: str, members: list[dict[str, Any]], values: dict[str, dict[int, float]], axes: Sequence[str]
) -> ComparisonRow:
    first = members[0]
    baseline = first["baseline"]
    delta = None
    if baseline is not None and baseline != variant:
        own, other = values[variant], values.get(baseline, {})
        delta = t_interval([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])
    speeds = [speed for trial in members if (speed := trial["train/mean_tokens_per_second"]) is not None]
    return ComparisonRow(
        variant=variant,
        levels={axis: first[AXIS + axis] for axis in axes},
        baseline=baseline,
        value=t_interval(list(values[variant].values())),
        delta=delta,
        outcomes={
            outcome: count for outcome in OUTCOMES if (count := sum(trial["outcome"] == outcome for trial in members))
        },
        reasons=tuple(f"seed {trial['seed']}: {trial['reason']}" for trial in members if trial["reason"]),
        parameters=first["parameters"],
        added_parameters=first["added_parameters"],
        tokens_per_second=float(np.median(speeds)) if speeds else math.nan,
    )


def environment_notes(runs: pa.Table) -> Iterator[str]:
    """In what the trials of a `runs` frame differ that they should have in common."""
    for name in ENVIRONMENT:
        kinds = [value for value in pc.unique(runs[name]).to_pylist() if value is not None]
        if len(kinds) > 1:
            yield f"trials differ in {name}: {', '.join(sorted(kinds))}"


def _notes(runs: pa.Table, rows: Sequence[ComparisonRow]) -> Iterator[str]:
    yield from environment_notes(runs)
    unfinished = sum(count for row in rows for name, count in row.outcomes.items() if name in UNFINISHED)
    if unfinished:
        yield f"{unfinished} trials have not finished: the table will change"
    for row in rows:
        for reason in row.reasons:
            yield f"{row.variant}, {reason}"
