"""The comparison says of each variant what its seeds allow to be said, and no more."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.results.comparison import DEFAULT_METRIC, Comparison, ComparisonRow, compare, t_interval
from gatelab.results.frames import runs_schema

SPEED = "train/mean_tokens_per_second"


def build_frame(values: Mapping[str, Mapping[int, Any]], metric: str = DEFAULT_METRIC, **common: Any) -> pa.Table:
    """A `runs` frame: variant -> seed -> value, outcome or row; all are compared with the first variant."""
    rows = []
    for variant, trials in values.items():
        for seed, result in trials.items():
            row = {"study": "s", "study_hash": "h", "variant": variant, "baseline": next(iter(values)), "seed": seed}
            row |= {"axis": variant, "parameters": 1000, "added_parameters": 0, "outcome": "finished"}
            if isinstance(result, str):
                row |= {"outcome": result}
            elif isinstance(result, dict):
                row |= result
            else:
                row |= {metric: result}
            rows.append(row | common)
    return pa.Table.from_pylist(rows, runs_schema(["axis"]))


def by_variant(comparison: Comparison) -> dict[str, ComparisonRow]:
    """Its rows by variant."""
    return {row.variant: row for row in comparison.rows}


NUMBERS = st.integers(-1000, 1000).map(lambda number: number / 16)


@settings(deadline=None, max_examples=100)
@given(st.lists(NUMBERS, min_size=2, max_size=12, unique=True))
def test_the_interval_is_students(values: list[float]) -> None:
    """A 95 % interval must be one: SciPy's, for any sample."""
    interval = t_interval(values)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.mean, interval.n) == (pytest.approx(np.mean(values), rel=1e-12, abs=1e-12), len(values))
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("values", [[], [1.5]], ids=["none", "one"])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    """One seed shows a value but no spread: bounds that look like numbers would be taken for an interval."""
    interval = t_interval(values)
    assert interval.n == len(values)
    assert repr(interval.mean) == ("1.5" if values else "nan")
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=8, unique_by=lambda pair: pair[0] - pair[1]), st.data()
)
def test_differences_are_paired_by_seed(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    """Seeds that only one of two variants has finished take part in its mean, but not in the difference."""
    drop = st.sets(st.integers(0, len(pairs) - 1), max_size=1)
    without_own, without_other = data.draw(drop), data.draw(drop)
    own = {seed: value for seed, (value, _) in enumerate(pairs) if seed not in without_own}
    other = {seed: value for seed, (_, value) in enumerate(pairs) if seed not in without_other}
    shuffled = dict(data.draw(st.permutations(sorted(own.items()))))
    row = by_variant(compare(build_frame({"base": other, "gate": shuffled})))["gate"]
    common = sorted(own.keys() & other.keys())
    assert row.value.mean == pytest.approx(np.mean(list(own.values())))
    assert row.delta is not None
    assert row.delta.n == len(common)
    if len(common) == 1:
        assert row.verdict == "single seed"
        return
    test = scipy.stats.ttest_rel([own[seed] for seed in common], [other[seed] for seed in common])
    expected = test.confidence_interval(0.95)
    assert [row.delta.low, row.delta.high] == pytest.approx([expected.low, expected.high], rel=1e-9, abs=1e-9)
    if test.pvalue < 0.049:
        assert row.verdict == ("lower" if test.statistic < 0 else "higher")
    elif test.pvalue > 0.051:
        assert row.verdict == "undecided"


def test_verdicts_follow_the_interval() -> None:
    """A reader may rely on the word: lower or higher only where zero is outside the interval."""
    rows = by_variant(
        compare(
            build_frame(
                {
                    "base": {0: 2.0, 1: 2.5, 2: 3.0},
                    "good": {0: 1.9, 1: 2.41, 2: 2.89},  # always about 0.1 less, although the seeds differ by more
                    "bad": {0: 2.1, 1: 2.59, 2: 3.11},
                    "noisy": {0: 1.0, 1: 2.6, 2: 3.2},
                    "once": {1: 2.4},
                    "elsewhere": {7: 2.0, 8: 2.1},
                    "lost": {0: "failed"},
                }
            )
        )
    )
    assert {name: row.verdict for name, row in rows.items()} == {
        "base": "baseline",
        "good": "lower",
        "bad": "higher",
        "noisy": "undecided",
        "once": "single seed",
        "elsewhere": "no pairs",
        "lost": "no pairs",
    }
    assert rows["base"].delta is None
    assert rows["base"].is_baseline
    assert rows["good"].delta is not None
    assert rows["good"].delta.mean == pytest.approx(-0.1)


def test_what_did_not_finish_is_counted_and_never_averaged() -> None:
    """A diverged trial's last loss in a mean, or a trial missing from the count, would turn a failure into a result."""
    values: dict[int, Any] = {0: 1.0, 1: 2.0}
    values |= {
        seed: {"outcome": outcome, DEFAULT_METRIC: 1e6, "reason": f"why {outcome}"}
        for seed, outcome in enumerate(("diverged", "failed", "running", "interrupted", "waiting"), 2)
    }
    comparison = compare(build_frame({"base": {seed: 0.5 for seed in range(7)}, "gate": values}))
    row = by_variant(comparison)["gate"]
    assert (row.value.mean, row.value.n) == (1.5, 2)
    assert row.delta is not None
    assert (row.delta.mean, row.delta.n) == (1.0, 2)
    once = {"diverged": 1, "failed": 1, "running": 1, "interrupted": 1, "waiting": 1}
    assert row.outcomes == {"finished": 2, **once}
    assert "seed 2: why diverged" in row.reasons
    assert any("gate, seed 3: why failed" in note for note in comparison.notes)
    assert any(note.startswith("3 trials have not finished") for note in comparison.notes)


def test_variants_without_a_value_stay_in_the_table() -> None:
    """That a variant always diverges is a finding: it stands at the bottom, not nowhere."""
    gone = {seed: "diverged" for seed in range(3)}
    comparison = compare(build_frame({"broken": gone, "worse": {0: 3.0}, "better": {0: 2.0}, "lost": {0: "waiting"}}))
    assert [row.variant for row in comparison.rows] == ["better", "worse", "broken", "lost"]
    assert [row.best for row in comparison.rows] == [True, False, False, False]
    broken = by_variant(comparison)["broken"]
    assert (math.isnan(broken.value.mean), broken.value.n, broken.outcomes) == (True, 0, {"diverged": 3})
    assert by_variant(comparison)["better"].verdict == "no pairs"  # its baseline has no value
    nothing = compare(build_frame({"broken": gone}))
    assert not nothing.rows[0].best


def test_the_best_is_first_whichever_way_is_better() -> None:
    """Losses are better low, speeds are better high."""
    values = {"base": {0: 2.0, 1: 4.0}, "low": {0: 1.0, 1: 2.0}, "high": {0: 5.0, 1: 6.0}}
    losses, speeds = compare(build_frame(values)), compare(build_frame(values, SPEED), SPEED)
    assert [row.variant for row in losses.rows] == ["low", "base", "high"]
    assert [row.variant for row in speeds.rows] == ["high", "base", "low"]
    assert losses.rows[0].best
    assert speeds.rows[0].best
    assert sum(row.best for row in (*losses.rows, *speeds.rows)) == 2


@pytest.mark.parametrize("name", ["code", "data", "device", "precision", "threads", "torch", "python"])
def test_a_mixed_environment_is_said(name: str) -> None:
    """Numbers from two machines or two versions of the code may differ for that reason alone."""
    values = {"base": {0: {DEFAULT_METRIC: 1.0, name: "this"}, 1: {DEFAULT_METRIC: 1.0, name: "that"}}}
    [note] = compare(build_frame(values)).notes
    assert note == f"trials differ in {name}: that, this"
    assert compare(build_frame({"base": {0: 1.0, 1: "finished"}}, **{name: "this"})).notes == ()


def test_speed_is_the_median_over_trials() -> None:
    """One trial that shared its machine must not make a variant look slow."""
    speeds = {seed: {DEFAULT_METRIC: 1.0, SPEED: speed} for seed, speed in enumerate((100.0, 110.0, 5.0))}
    rows = by_variant(compare(build_frame({"base": speeds, "gate": {0: 1.0}})))
    assert rows["base"].tokens_per_second == 100.0
    assert math.isnan(rows["gate"].tokens_per_second)


def test_an_unknown_metric_is_answered_with_the_known() -> None:
    """A typing mistake is answered with the nearest metric, anything else with all that there are."""
    frame = build_frame({"base": {0: 1.0}})
    with pytest.raises(ValueError, match=r"'validation/los', but for example validation/loss"):
        compare(frame, "validation/los")
    with pytest.raises(ValueError, match=r"'accuracy', but for example validation/loss, .*memory/peak_bytes$"):
        compare(frame, "accuracy")


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_difference_that_is_no_number_decides_nothing(odd: float) -> None:
    """Infinite perplexities have no difference: no verdict may come of it."""
    frame = build_frame({"base": {0: odd, 1: 1.0}, "other": {0: odd, 1: 2.0}})
    with np.errstate(invalid="ignore"):
        assert by_variant(compare(frame))["other"].verdict == "undecided"
