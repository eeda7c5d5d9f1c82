"""What a search says of a variant's learning rates is what the definitions give, and a bound where they give none."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.learning_rates import Arm, LearningRates, learning_rates
from gatelab.results.analyses.sweep_quantities import (
    CENTRED,
    LOSS,
    LOWER,
    OPTIMUM,
    SENSITIVITY,
    STABLE,
    UPPER,
    WIDTH,
)
from gatelab.results.analyses.sweeps import RATE, centred_window, sweeps
from gatelab.results.statistics.optimum import (
    Bounded,
    largest_stable,
    lower_edge,
    optimum,
    sensitivity,
    upper_edge,
    vertex,
)
from gatelab.results.statistics.paired import t_interval
from gatelab.results.store.runs import AXIS, runs_schema

INITIAL = 5.0
WINDOW = (0.001, 0.01, 0.1)

Cells = Mapping[float, Sequence[Any]]
"""Learning rate -> of each seed: its loss, or how it ended otherwise, or a whole row."""

NUMBERS = st.integers(-800, 800).map(lambda number: number / 16)
GAPS = st.integers(1, 64).map(lambda number: number / 32)


def build_frame(arms: Mapping[str, Cells], **common: Any) -> pa.Table:
    """The `runs` frame of a search whose first arm is the baseline; what was begun knows its initial loss."""
    first, rows = next(iter(arms)), []
    for arm, cells in arms.items():
        for rate, results in cells.items():
            for seed, result in enumerate(results):
                row = {"study": "s", "study_hash": "h", "seed": seed, "variant": f"{arm}, {rate:g}", "tokens": 1000}
                row |= {"baseline": f"{first}, {rate:g}" if rate in arms[first] else None, AXIS + "arm": arm}
                row |= {AXIS + RATE: f"{rate:g}", "outcome": "finished", "train/initial_loss": INITIAL}
                if isinstance(result, str):
                    row |= {"outcome": result}
                    row |= {} if result == "diverged" else {"train/initial_loss": None}
                else:
                    row |= result if isinstance(result, dict) else {"validation/loss": float(result)}
                rows.append(row | common)
    return pa.Table.from_pylist(rows, runs_schema(["arm", RATE], ["train/initial_loss"]))


def judge(arms: Mapping[str, Cells], lattice: Sequence[float] = (), window: Sequence[float] = WINDOW) -> LearningRates:
    """What is said of such a search; its window is all that there is of the lattice unless told otherwise."""
    return learning_rates(build_frame(arms), lattice or window, window, 0.02)


def arm_of(found: LearningRates, name: str) -> Arm:
    """The arm of a name."""
    return next(arm for arm in found.arms if arm.sweep.arm == f"arm={name}")


def test_sensitivity_is_that_of_the_paper() -> None:
    """The number must be comparable with arXiv 2309.14322's: diverged, or worse than at the start, is the start."""
    rates = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    cells = dict(zip(rates, ([2.0], [1.5], [1.2], [1.4], ["diverged"], [7.0]), strict=True))
    [arm] = judge({"a": cells}, window=rates).arms
    # min(loss, 5): 2 + 1.5 + 1.2 + 1.4 + 5 + 5 = 16.1, a sixth of it less 1.2
    assert arm.quantity(SENSITIVITY[0]).by_seed == {0: Bounded(pytest.approx(16.1 / 6 - 1.2, abs=1e-12))}
    assert (arm.sweep.diverged, arm.best_rate, arm.first_unstable) == (1, 1e-2, 1.0)
    assert arm.sweep.losses.tolist() == [[2.0, 1.5, 1.2, 1.4, INITIAL, INITIAL]]
    assert arm.sweep.stable.tolist() == [[True] * 4 + [False] * 2]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 160), min_size=3, max_size=9), st.integers(2, 100))
def test_sensitivity_by_brute_force(sixteenths: list[int], initial: int) -> None:
    """Any losses, any initial loss: the definition, written out."""
    losses = [number / 16 for number in sixteenths]
    assume(min(losses) < initial / 16)
    rates = [10.0 ** (index - 5) for index in range(len(losses))]
    row = {"train/initial_loss": initial / 16}
    cells = {rate: [{"validation/loss": loss, **row}] for rate, loss in zip(rates, losses, strict=True)}
    [arm] = judge({"a": cells}, window=rates).arms
    capped = [min(loss, initial / 16) for loss in losses]
    expected = math.fsum(loss - min(losses) for loss in capped) / len(capped)
    [found] = arm.quantity(SENSITIVITY[0]).by_seed.values()
    assert (found.value, found.bound) == (pytest.approx(expected, abs=1e-12), "")


@settings(deadline=None)
@given(st.lists(st.integers(0, 64), min_size=1, max_size=9), st.integers(-64, 64))
def test_sensitivity_sees_no_level(sixteenths: list[int], shift: int) -> None:
    """It is never negative, 0 of what is the same everywhere, and the same of a model that is worse everywhere."""
    losses = np.array(sixteenths) / 16
    assert sensitivity(losses) >= 0
    assert sensitivity(losses + shift / 16) == pytest.approx(sensitivity(losses), abs=1e-12)
    assert (sensitivity(losses) == 0) == (len(set(sixteenths)) == 1)


@given(NUMBERS, GAPS, GAPS, NUMBERS, st.integers(0, 100), st.integers(0, 100))
def test_the_vertex_is_that_of_numpys_parabola(
    start: float, left: float, right: float, low: float, falls: int, rises: int
) -> None:
    """However the three points are spaced: least squares through three points is the parabola through them."""
    assume(falls or rises)
    x, y = [start, start + left, start + left + right], [low + falls / 16, low, low + rises / 16]
    square, linear, _ = np.polyfit(np.array(x) - x[1], np.array(y) - low, 2)
    found = vertex(x, y)
    assert found - x[1] == pytest.approx(-linear / (2 * square), abs=1e-9)
    assert x[1] - left / 2 - 1e-12 <= found <= x[1] + right / 2 + 1e-12


@given(NUMBERS, GAPS, GAPS, st.floats(-0.5, 0.5), st.floats(0.01, 50), NUMBERS)
def test_the_minimum_of_a_parabola_is_found(
    middle: float, left: float, right: float, off: float, curvature: float, low: float
) -> None:
    """Where the loss is a parabola of the logarithm, three points are enough."""
    true = middle + off * (left if off < 0 else right)
    x = np.array([middle - 3 * left, middle - left, middle, middle + right, middle + 4 * right])
    losses = low + curvature * (x - true) ** 2
    found = optimum(x, losses)
    assert (found.value, found.bound) == (pytest.approx(true, abs=1e-6), "")


def test_the_vertex_of_a_plain_is_its_middle() -> None:
    """Three equal losses say nothing of where it is lower."""
    assert vertex([1.0, 2.0, 5.0], [3.0, 3.0, 3.0]) == 2.0


def test_an_optimum_at_an_end_is_a_bound() -> None:
    """Who did not look further has not found the optimum."""
    x = np.array([-3.0, -2.0, -1.0])
    assert optimum(x, np.array([1.0, 2.0, 3.0])) == Bounded(-3.0, "≤")
    assert optimum(x, np.array([3.0, 2.0, 1.0])) == Bounded(-1.0, "≥")
    assert optimum(x[:1], np.array([1.0])).bound


def test_edges_in_closed_form() -> None:
    """Where a polygon leaves the tolerated, to the digit: from 1.0 at -2 it reaches 1.02 after 0.02 / slope."""
    x, losses = np.array([-4.0, -3.0, -2.0, -1.0, 0.0]), np.array([1.4, 1.1, 1.0, 1.01, 1.05])
    assert upper_edge(x, losses, 1.02) == Bounded(pytest.approx(-1 + 0.25))
    assert lower_edge(x, losses, 1.02) == Bounded(pytest.approx(-2 - 0.2))
    assert upper_edge(x, losses, 1.05) == Bounded(0.0, "≥")  # at the threshold is within
    assert lower_edge(x, losses, 1.4) == Bounded(-4.0, "≤")
    assert upper_edge(x, losses, 1.3).bound == "≥"


def test_what_lies_beyond_a_worse_stretch_is_not_tolerated() -> None:
    """An edge is where tolerance first ends; a lucky learning rate far off does not widen it."""
    x, losses = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1.01, 3.0, 1.01, 1.0])
    assert 1.0 < upper_edge(x, losses, 1.02).value < 1.01
    assert lower_edge(x, losses, 1.02) == Bounded(0.0, "≤")  # of the stretch that the upper edge ends


POLYGONS = st.lists(st.tuples(GAPS, st.integers(0, 64)), min_size=2, max_size=9)


@settings(deadline=None)
@given(POLYGONS, st.integers(1, 64))
def test_edges_leave_the_tolerated_there_and_not_before(polygon: list[tuple[float, int]], excess: int) -> None:
    """For any polygon: nothing up to the edge is above the threshold, and just beyond it all is."""
    x = np.cumsum([gap for gap, _ in polygon])
    losses = np.array([1 + height / 16 for _, height in polygon])
    threshold, best = float(losses.min()) + excess / 32, int(np.argmin(losses))
    upper, lower = upper_edge(x, losses, threshold), lower_edge(x, losses, threshold)
    inside = np.linspace(x[best], upper.value, 200)
    assert np.all(np.interp(inside, x, losses) <= threshold + 1e-9)
    if upper.bound:
        assert (upper.value, upper.bound) == (x[-1], "≥")
    else:
        assert np.interp(upper.value, x, losses) == pytest.approx(threshold)
        assert np.interp(upper.value + 1e-6, x, losses) > threshold
    assert lower.value <= x[best] <= upper.value  # both of the same stretch, also where two losses are the lowest
    if len(set(losses)) == len(losses):
        mirrored = upper_edge(-x[::-1], losses[::-1], threshold)
        assert lower.value == -mirrored.value
        assert lower.bound == {"": "", "≥": "≤"}[mirrored.bound]


@pytest.mark.parametrize(
    ("stable", "expected"),
    [
        pytest.param([True] * 5, Bounded(4.0, "≥"), id="all"),
        pytest.param([True, True, True, True, False], Bounded(3.0), id="the last is not"),
        pytest.param([True, True, True, False, True], Bounded(2.0), id="stable again beyond does not count"),
        pytest.param([False, True, True, True, True], Bounded(4.0, "≥"), id="below the best does not count"),
        pytest.param([False, True, False, True, True], Bounded(1.0), id="next to the best"),
    ],
)
def test_the_largest_stable_is_the_last_before_the_first_that_is_not(stable: list[bool], expected: Bounded) -> None:
    """Going up from the best: what diverges below it, or does not at twice a fatal rate, is another story."""
    losses = np.array([3.0, 1.0, 2.0, 2.5, 2.75])
    assert largest_stable(np.arange(5.0), losses, np.array(stable)) == expected


def test_the_centred_window_is_around_the_best() -> None:
    """As many learning rates as the window has, the best in their middle; where the lattice ends there is none."""
    lattice = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    for best in lattice[:3]:
        losses = {rate: [2.0 + abs(math.log10(rate) - math.log10(best))] for rate in lattice[:5]}
        losses[3e-3] = [1.0]  # not of the lattice: it was tried to locate something
        [sweep] = sweeps(build_frame({"a": losses}))
        first = lattice.index(best) - 1
        expected = lattice[first : first + 3] if first >= 0 else None
        assert centred_window(sweep, lattice, 3) == expected
    assert centred_window(sweep, lattice, 5) == lattice[:5]
    assert centred_window(sweep, lattice, 7) is None
    assert centred_window(sweep, [2e-3, 2e-2, 2e-1], 3) is None  # nothing on it was tried


def test_centred_sensitivity_is_over_the_centred_window() -> None:
    """If an optimum is elsewhere, S of the fixed window measures that; the other one does not."""
    lattice = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    cells: Cells = {1e-4: [2.5], 1e-3: [2.0], 1e-2: [2.25], 1e-1: [3.0]}
    [arm] = judge({"a": cells}, lattice, lattice[1:4]).arms
    assert arm.quantity(SENSITIVITY[0]).by_seed == {0: Bounded(pytest.approx((0 + 0.25 + 1) / 3))}
    assert arm.quantity(CENTRED[0]).by_seed == {0: Bounded(pytest.approx((0.5 + 0 + 0.25) / 3))}
    [short] = judge({"a": cells}, lattice[1:], lattice[1:4]).arms
    assert short.quantity(CENTRED[0]).by_seed == {}


def test_a_sweep_holds_what_is_known() -> None:
    """Diverged counts with the initial loss, failed and waiting with nothing; both keep their place."""
    cells: Cells = {0.1: ["diverged", "failed"], 0.001: [2.0, 2.5], 0.01: [1.5, "waiting"], 1: ["running", 4.0]}
    other: Cells = {0.01: [1.0, 1.0]}
    found = {sweep.arm: sweep for sweep in sweeps(build_frame({"a": cells, "b": other}))}
    sweep = found["arm=a"]
    assert list(found) == ["arm=a", "arm=b"]
    assert sweep.diverged == 1
    assert (sweep.baseline, found["arm=b"].baseline) == ("arm=a", "arm=a")
    assert (sweep.seeds, sweep.rates.tolist()) == ((0, 1), [0.001, 0.01, 0.1, 1.0])
    unknown = math.nan
    np.testing.assert_array_equal(sweep.losses, [[2.0, 1.5, INITIAL, unknown], [2.5, unknown, unknown, 4.0]])
    assert sweep.stable.tolist() == [[True, True, False, False], [True, False, False, True]]
    np.testing.assert_array_equal(sweep.mean, [2.25, 1.5, INITIAL, 4.0])
    assert sweep.complete.tolist() == [True, False, False, False]


def test_a_diverged_trial_without_an_initial_loss_takes_its_seeds() -> None:
    """The first batch is the same at every learning rate; where no trial of a seed knows it, nothing is known."""
    lost = {"outcome": "diverged", "train/initial_loss": None}
    cells: Cells = {0.001: [{"validation/loss": 2.0, "train/initial_loss": 4.5}, "waiting"], 0.01: [lost, lost]}
    [sweep] = sweeps(build_frame({"a": cells}))
    np.testing.assert_array_equal(sweep.losses, [[2.0, 4.5], [math.nan, math.nan]])
    assert not sweep.stable[:, 1].any()
    [known] = sweeps(build_frame({"a": {0.01: [{"validation/loss": 9.0, "train/initial_loss": None}]}}))
    assert (known.losses.tolist(), known.stable.tolist()) == ([[9.0]], [[True]])


def test_a_study_without_learning_rates_is_no_search() -> None:
    """A search's report of another study is refused in words."""
    frame = build_frame({"a": {0.01: [1.0]}}).drop_columns([AXIS + RATE])
    with pytest.raises(AnalysisUnavailable, match=f"no axis {RATE}"):
        sweeps(frame)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(8, 70), min_size=4, max_size=4), st.integers(0, 3), st.integers(1, 80))
def test_a_cell_that_is_not_known_makes_s_a_lower_bound(sixteenths: list[int], place: int, truth: int) -> None:
    """A trial that failed must not make a variant look steadier: whatever it would have given, S is not below."""
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    losses = [number / 16 for number in sixteenths]

    def judged(of_failed: Any) -> Bounded:
        cells = {
            rate: [of_failed if index == place else loss]
            for index, (rate, loss) in enumerate(zip(rates, losses, strict=True))
        }
        [arm] = judge({"a": cells}, window=rates).arms
        [found] = arm.quantity(SENSITIVITY[0]).by_seed.values()
        return found

    censored, whole = judged("failed"), judged(truth / 16)
    assert (censored.bound, whole.bound) == ("≥", "")
    assert whole.value >= censored.value - 1e-12


PAIRED: dict[str, Cells] = {
    "a": {0.001: [2.0, 2.1, 2.3, 2.2], 0.01: [1.5, 1.7, 1.6, 1.8], 0.1: [1.9, 1.8, 2.4, 2.0]},
    "b": {0.001: [2.2, 2.0, 2.1, 2.5], 0.01: [1.4, 1.5, 1.7, 1.6], 0.1: [2.5, "diverged", 2.2, 3.0]},
}


def test_differences_are_paired_by_seed() -> None:
    """Every property's difference has the interval of SciPy's paired t-test over the seeds."""
    found = judge(PAIRED)
    own, base = arm_of(found, "b"), arm_of(found, "a")
    assert own.quantity(SENSITIVITY[0]).delta is not None
    assert all(quantity.delta is None for quantity in base.quantities)
    for name in (SENSITIVITY[0], OPTIMUM[0], LOSS[0], UPPER[0], LOWER[0], WIDTH[0]):
        values = [[estimate.value for estimate in arm.quantity(name).by_seed.values()] for arm in (own, base)]
        assert not own.quantity(name).bound
        expected = scipy.stats.ttest_rel(*values).confidence_interval(0.95)
        delta = own.quantity(name).delta
        assert delta is not None
        assert (delta.low, delta.high, delta.n) == (pytest.approx(expected.low), pytest.approx(expected.high), 4)
        assert own.quantity(name).interval == t_interval(values[0])


def test_values_by_seed_are_those_of_its_own_curve() -> None:
    """An interval over seeds needs each seed's value, from its own losses: here NumPy's parabola through three."""
    [arm] = judge({"a": PAIRED["a"]}).arms
    for seed in range(4):
        losses = [results[seed] for results in PAIRED["a"].values()]
        square, linear, _ = np.polyfit([-3, -2, -1], losses, 2)
        assert arm.quantity(OPTIMUM[0]).by_seed[seed].value == pytest.approx(-linear / (2 * square))
        margin = 0.02 * losses[1]
        upper, lower = -2 + margin / (losses[2] - losses[1]), -2 - margin / (losses[0] - losses[1])
        assert arm.quantity(UPPER[0]).by_seed[seed] == Bounded(pytest.approx(upper))
        assert arm.quantity(LOWER[0]).by_seed[seed] == Bounded(pytest.approx(lower))
        assert arm.quantity(WIDTH[0]).by_seed[seed] == Bounded(pytest.approx(upper - lower))
        assert arm.quantity(LOSS[0]).by_seed[seed] == Bounded(losses[1])
    assert arm.optimum == pytest.approx(10 ** arm.quantity(OPTIMUM[0]).interval.mean)


def test_a_mere_bound_is_in_no_difference() -> None:
    """The difference of two bounds may be anything: such a seed is left out, of the one or of the other."""
    a: Cells = {0.001: [2.0, 1.0, 2.3, 2.2], 0.01: [1.5, 1.7, 1.6, 1.8], 0.1: [1.9, 1.8, 2.4, 2.0]}
    b: Cells = {0.001: [2.2, 2.0, 2.1, 2.5], 0.01: [1.4, 1.5, 1.7, 1.6], 0.1: [2.5, 2.1, 1.2, 3.0]}
    found = judge({"a": a, "b": b})
    own, base = (arm_of(found, name).quantity(OPTIMUM[0]) for name in ("b", "a"))
    assert [base.by_seed[seed].bound for seed in range(4)] == ["", "≤", "", ""]
    assert [own.by_seed[seed].bound for seed in range(4)] == ["", "", "≥", ""]
    pairs = [own.by_seed[seed].value - base.by_seed[seed].value for seed in (0, 3)]
    assert own.delta == t_interval(pairs)
    assert (own.bound, base.bound) == ("≥", "≤")
    assert arm_of(found, "a").optimum is None
    assert arm_of(found, "b").optimum is None


def test_bounds_of_both_kinds_are_no_bound() -> None:
    """One seed at the one end and one at the other: the mean is neither at least nor at most."""
    [arm] = judge({"a": {0.001: [1.0, 3.0], 0.01: [2.0, 2.0], 0.1: [3.0, 1.0]}}).arms
    assert arm.quantity(OPTIMUM[0]).bound == "?"
    assert arm.optimum is None


def test_all_diverged_is_said() -> None:
    """There is little to be said of learning rates that were all too high, and that is what is said."""
    with pytest.raises(AnalysisUnavailable, match="no trial has finished or diverged yet"):
        judge({"a": {0.01: ["failed"], 0.1: ["waiting"], 1.0: ["waiting"]}})
    [wild] = judge({"a": {0.01: ["diverged"], 0.1: [6.0], 1.0: ["waiting"]}}).arms
    assert all(quantity.by_seed == {} for quantity in wild.quantities)
    assert any("no trial finished below its initial loss: lower tolerance.rates" in note for note in wild.notes)
    found = judge({"a": {0.001: [2.0], 0.01: [1.0], 0.1: [2.0]}, "b": {0.001: ["diverged"], 0.01: ["diverged"]}})
    lost = arm_of(found, "b")
    assert all(quantity.by_seed == {} for quantity in lost.quantities)
    assert lost.optimum is None
    assert any("no trial finished below its initial loss" in note for note in lost.notes)
    assert arm_of(found, "a").optimum == pytest.approx(0.01)


def notes_of(cells: Cells, window: Sequence[float] = WINDOW, lattice: Sequence[float] = ()) -> tuple[str, ...]:
    [arm] = judge({"a": cells}, lattice, window).arms
    return arm.notes


def test_an_optimum_beyond_what_was_tried_is_said() -> None:
    """The best at the border is no optimum: nothing may be trained at it unseen."""
    for losses, at in (([1.0, 2.0, 3.0], "0.001"), ([3.0, 2.0, 1.0], "0.1")):
        [arm] = judge({"a": {rate: [loss] for rate, loss in zip(WINDOW, losses, strict=True)}}).arms
        [note] = arm.notes
        assert f"the lowest loss is at {at}, the end of what was tried" in note
        assert arm.optimum is None
        assert arm.best_rate == float(at)


def test_an_optimum_beyond_the_window_is_said() -> None:
    """There S of the window, the number that is published, is not what it is taken for."""
    lattice = (0.0001, *WINDOW, 1.0)
    cells: Cells = {1e-5: [1.5], 0.0001: [1.0], 0.001: [2.0], 0.01: [3.0], 0.1: [4.0]}
    [note] = notes_of(cells, lattice=lattice)
    assert "the optimum is not within the window" in note
    assert notes_of({0.001: [2.0], 0.01: [1.0], 0.1: [4.0]}) == ()


def test_what_is_missing_is_said() -> None:
    """A partial answer names itself one."""
    notes = notes_of({0.001: [2.0, 2.0], 0.01: [1.0, "failed"], 0.1: [4.0, "waiting"]})
    assert any("2 of 6 trials are not known (failed, or still to run): partial" in note for note in notes)
    notes = notes_of({0.001: [2.0, "failed"], 0.01: ["waiting", 1.0]})
    assert any("no learning rate has all its seeds" in note for note in notes)


def test_the_loss_at_the_optimum_is_that_of_the_best_complete_rate() -> None:
    """All seeds at the same learning rate, or the loss at it is none that one could train for."""
    cells: Cells = {0.001: [2.0, 2.5], 0.01: [1.5, 2.0], 0.1: [1.0, "failed"]}
    [arm] = judge({"a": cells}).arms
    assert arm.best_rate == 0.01
    assert {seed: own.value for seed, own in arm.quantity(LOSS[0]).by_seed.items()} == {0: 1.5, 1: 2.0}


def test_a_single_seed_has_values_and_no_intervals() -> None:
    """One seed is an answer without a claim."""
    found = judge({"a": {0.001: [2.0], 0.01: [1.0], 0.1: [4.0]}, "b": {0.001: [2.5], 0.01: [1.0], 0.1: [3.0]}})
    for name, _ in (OPTIMUM, SENSITIVITY, UPPER):
        quantity = arm_of(found, "b").quantity(name)
        assert (quantity.interval.n, math.isnan(quantity.interval.low)) == (1, True)
        assert quantity.delta is not None
        assert (quantity.delta.n, math.isnan(quantity.delta.high)) == (1, True)
    assert arm_of(found, "b").optimum is not None


def test_the_first_not_stable_is_above_the_best_and_whole() -> None:
    """One seed that diverges is enough; below the best, and where a seed is not known, it is no such edge."""
    cells: Cells = {
        1e-4: ["diverged", 3.0], 1e-3: [2.0, 2.0], 1e-2: [3.0, "failed"], 1e-1: [3.0, "diverged"], 1.0: [9.0, 9.0],
    }  # fmt: skip
    [arm] = judge({"a": cells}).arms
    assert (arm.best_rate, arm.first_unstable) == (1e-3, 1e-1)
    stable = arm.quantity(STABLE[0])
    assert {seed: (10**own.value, own.bound) for seed, own in stable.by_seed.items()} == {
        0: (pytest.approx(1e-1), ""),
        1: (pytest.approx(1e-3), ""),
    }


def test_arms_are_in_the_studys_order_and_have_the_same_rows() -> None:
    """A table needs every property of every arm, in one order."""
    found = judge(PAIRED | {"c": {0.01: ["failed"] * 4}})
    assert [arm.sweep.arm for arm in found.arms] == ["arm=a", "arm=b", "arm=c"]
    names = [[quantity.name for quantity in arm.quantities] for arm in found.arms]
    assert all(one == other for one, other in itertools.pairwise(names))
    assert (found.study, found.study_hash, found.window, found.margin) == ("s", "h", WINDOW, 0.02)
