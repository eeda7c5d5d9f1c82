"""Effects are those that closed forms and an independent library give, and what cannot be told is said in words."""

import csv
import io
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.effects import Effects, effects, shared_trunks
from gatelab.results.analyses.factorial import Factorial
from gatelab.results.store.records import read_json, write_json
from gatelab.results.store.runs import runs_schema
from gatelab.results.views.effects import tables
from gatelab.results.views.effects_figures import plot_effects, plot_interaction
from gatelab.results.views.table import Table, to_csv, to_latex, to_markdown

Levels = tuple[str | None, ...]
Truth = Callable[[Levels, int], float | None]


def build_frame(
    axes: Mapping[str, Sequence[str]],
    value: Truth,
    seeds: int = 3,
    keep: Callable[[Levels], bool] = lambda levels: True,
    fold: Callable[[Levels], Levels] = lambda levels: levels,
    metric: str = "validation/loss",
) -> pa.Table:
    """A `runs` frame with a row for each combination of levels that is kept and each seed; no value: diverged."""
    rows = []
    cells = dict.fromkeys(fold(levels) for levels in itertools.product(*axes.values()) if keep(levels))
    for levels, seed in itertools.product(cells, range(seeds)):
        number = value(levels, seed)
        row = {"study": "table", "study_hash": "h", "variant": ", ".join(map(str, levels)), "seed": seed}
        row |= {"outcome": "diverged" if number is None else "finished", metric: number}
        rows.append(row | {f"axis/{axis}": level for axis, level in zip(axes, levels, strict=True)})
    return pa.Table.from_pylist(rows, runs_schema([*axes], [metric]))


def noisy(truth: Callable[[Levels], float], seed: int = 0, sd: float = 1.0, blocks: float = 5.0) -> Truth:
    """Values that scatter about a truth, and a lot between seeds; the same each time."""

    def value(levels: Levels, block: int) -> float:
        random = np.random.default_rng([seed, block, *"".join(map(str, levels)).encode()])
        return truth(levels) + blocks * (block + 1) ** 0.5 + float(random.normal(0, sd))

    return value


def taken_apart(found: Effects) -> Factorial:
    assert found.factorial is not None
    return found.factorial


def long(frame: pa.Table) -> pd.DataFrame:
    """A frame for statsmodels."""
    data = frame.to_pandas()
    data.columns = [name.removeprefix("axis/").replace("validation/loss", "y") for name in data.columns]
    return data


AB = {"a": ("0", "1", "2"), "b": ("x", "y")}
ABC = {"a": ("0", "1", "2"), "b": ("x", "y"), "c": ("p", "q")}


def test_two_axes_have_the_table_of_statsmodels() -> None:
    """Sums of squares, F and p of both axes and their interaction, with seeds as blocks."""
    frame = build_frame(AB, noisy(lambda levels: 2 * int(levels[0] or 0) * (levels[1] == "x")), seeds=4)
    found = taken_apart(effects(frame))
    table = anova_lm(ols("y ~ C(a) * C(b) + C(seed)", long(frame)).fit())
    for term, name in zip(found.terms, ("C(a)", "C(b)", "C(a):C(b)"), strict=True):
        ours, theirs = (term.df, term.ss, term.f, term.p), table.loc[name, ["df", "sum_sq", "F", "PR(>F)"]]
        assert ours == pytest.approx(tuple(theirs), rel=1e-9)
    [error] = found.errors
    assert (error.df, error.ss) == pytest.approx(tuple(table.loc["Residual", ["df", "sum_sq"]]))
    assert found.seeds_ss == pytest.approx(table.loc["C(seed)", "sum_sq"])
    assert found.total_ss == pytest.approx(table["sum_sq"].sum() - found.seeds_ss)
    assert [term.q for term in found.terms] == pytest.approx(
        stats.false_discovery_control(table["PR(>F)"].iloc[[0, 1, 3]])
    )
    assert sum(term.share for term in found.terms) + error.ss / found.total_ss == pytest.approx(1)


def test_three_axes_keep_their_triple_interaction_out_of_the_error() -> None:
    """All of statsmodels' model with every interaction: the last row is that of three axes."""
    frame = build_frame(ABC, noisy(lambda levels: 3.0 * (levels == ("2", "x", "q"))))
    found = taken_apart(effects(frame))
    table = anova_lm(ols("y ~ C(a) * C(b) * C(c) + C(seed)", long(frame)).fit())
    names = ("C(a)", "C(b)", "C(c)", "C(a):C(b)", "C(a):C(c)", "C(b):C(c)", "C(a):C(b):C(c)")
    assert [term.name for term in found.terms] == ["a", "b", "c", "a × b", "a × c", "b × c", found.terms[-1].name]
    assert "three axes" in found.terms[-1].name
    for term, name in zip(found.terms, names, strict=True):
        ours, theirs = (term.df, term.ss, term.f, term.p), table.loc[name, ["df", "sum_sq", "F", "PR(>F)"]]
        assert ours == pytest.approx(tuple(theirs), rel=1e-8, abs=1e-12)
    assert found.errors[0].df == table.loc["Residual", "df"] == (12 - 1) * (3 - 1)


def test_three_axes_by_brute_force() -> None:
    """Every effect is a difference of averages over the trials that have the levels."""
    frame = build_frame(ABC, noisy(lambda levels: float(int(levels[0] or 0) ** 2)))
    found, data = taken_apart(effects(frame)), long(frame)
    grand = data["y"].mean()
    for level in found.levels:
        mean = data.loc[data[level.axis] == level.level, "y"].mean()
        assert (level.mean, level.effect.mean) == pytest.approx((mean, mean - grand))
    assert len(found.combinations) == 6 + 6 + 4
    for cell in found.combinations:
        rows = [data[axis] == level for axis, level in zip(cell.axes, cell.levels, strict=True)]
        mean = data.loc[rows[0] & rows[1], "y"].mean()
        additive = data.loc[rows[0], "y"].mean() + data.loc[rows[1], "y"].mean() - grand
        assert (cell.mean, cell.effect.mean) == pytest.approx((mean, mean - additive))


def test_a_table_made_by_hand() -> None:
    """Effects of 1, 2 and 0.5 are found as they were put in, and an axis without one is undecided."""
    sign = {"-": -1, "+": 1}
    wobble = np.array([[0.1, -0.1], [-0.1, 0.1]])  # sums to 0 over cells and seeds: no effect of its own

    def value(levels: Levels, seed: int) -> float:
        a, b = (sign[str(level)] for level in levels)
        return 10 + a + 2 * b + 0.5 * a * b + seed + a * b * float(wobble[0, seed])

    found = taken_apart(effects(build_frame({"a": ("-", "+"), "b": ("-", "+")}, value, seeds=2)))
    assert {(of.axis, of.level): round(of.effect.mean, 9) for of in found.levels} == {
        ("a", "-"): -1.0,
        ("a", "+"): 1.0,
        ("b", "-"): -2.0,
        ("b", "+"): 2.0,
    }
    assert [round(of.effect.mean, 9) for of in found.combinations] == [0.5, -0.5, -0.5, 0.5]
    assert [term.ss for term in found.terms] == pytest.approx([8 * 1, 8 * 4, 8 * 0.25])
    assert found.seeds_ss == pytest.approx(8 * 0.25)
    assert (found.errors[0].ss, found.errors[0].df) == pytest.approx((8 * 0.01, 3))
    assert found.mean == pytest.approx(10.5)


def test_intervals_are_those_of_contrasts_in_the_linear_model() -> None:
    """A level's and a combination's interval, by statsmodels' t-test of the same linear combination."""
    frame = build_frame(AB, noisy(lambda levels: 1.0 * (levels[0] == "1")), seeds=4)
    found = taken_apart(effects(frame))
    model = ols("y ~ C(a, Sum) * C(b, Sum) + C(seed, Sum)", long(frame)).fit()
    bounds = model.conf_int()
    first = next(of for of in found.levels if (of.axis, of.level) == ("a", "0"))
    assert (first.effect.low, first.effect.high) == pytest.approx(tuple(bounds.loc["C(a, Sum)[S.0]"]))
    corner = next(of for of in found.combinations if of.levels == ("1", "x"))
    assert (corner.effect.low, corner.effect.high) == pytest.approx(tuple(bounds.loc["C(a, Sum)[S.1]:C(b, Sum)[S.x]"]))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_effects_sum_to_zero_and_squares_to_their_total(data: st.DataObject) -> None:
    """Of any balanced table: over the levels of an axis, over the rows of an interaction; terms, blocks and error."""
    shape = tuple(data.draw(st.integers(2, 4)) for _ in range(3))
    numbers = st.floats(-100, 100).map(lambda number: round(number, 3))
    table = np.array(data.draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))).reshape(shape)
    axes = {"a": tuple(map(str, range(shape[0]))), "b": tuple(map(str, range(shape[1])))}
    frame = build_frame(
        axes, lambda levels, seed: float(table[int(levels[0] or 0), int(levels[1] or 0), seed]), shape[2]
    )
    found = taken_apart(effects(frame))
    for axis in axes:
        assert sum(of.effect.mean for of in found.levels if of.axis == axis) == pytest.approx(0, abs=1e-9)
        place = list(axes).index(axis)
        for level in axes[axis]:
            row = [of.effect.mean for of in found.combinations if of.levels[place] == level]
            assert sum(row) == pytest.approx(0, abs=1e-9)
    whole = sum(term.ss for term in found.terms) + found.seeds_ss + sum(error.ss for error in found.errors)
    assert whole == pytest.approx(float(((table - table.mean()) ** 2).sum()), rel=1e-9, abs=1e-9)


def test_one_axis_is_a_one_way_layout() -> None:
    """The main effect has statsmodels' F in randomised blocks; there is no interaction to show."""
    frame = build_frame(
        {"model.gate.position": ("none", "sdpa", "value")}, noisy(lambda levels: float(levels == ("sdpa",)))
    )
    found = effects(frame)
    [term] = taken_apart(found).terms
    data = long(frame).rename(columns={"model.gate.position": "p"})
    table = anova_lm(ols("y ~ C(p) + C(seed)", data).fit())
    assert term.name == "position"
    assert (term.f, term.p) == pytest.approx(tuple(table.loc["C(p)", ["F", "PR(>F)"]]))
    assert taken_apart(found).combinations == ()
    assert isinstance(plot_effects(found), Figure)
    assert plot_interaction(found) is None
    assert found.importance is None


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    """Less loss is better, fewer tokens/s are worse, and of an entropy nothing is: lower."""
    truth = noisy(lambda levels: 50.0 * (levels == ("high",)), sd=0.1)
    axes = {"a": ("low", "high")}
    for metric, expected in {
        "validation/loss": ["better", "worse"],
        "train/mean_tokens_per_second": ["worse", "better"],
        "attention/entropy": ["lower", "higher"],
    }.items():
        found = taken_apart(effects(build_frame(axes, truth, metric=metric), metric))
        assert [of.verdict for of in found.levels] == expected
        assert found.terms[0].verdict == "effect"
    nothing = taken_apart(effects(build_frame(axes, noisy(lambda levels: 0.0))))
    assert [of.verdict for of in nothing.levels] == ["undecided"] * 2
    assert nothing.terms[0].verdict == "undecided"


def test_where_nothing_is_an_effect_few_studies_show_one() -> None:
    """Of 6 x 2 variants without any difference about 5 % have a level or combination with a verdict, as any test at 5 %
    says; their intervals, each by itself, leave out 0 in far more."""
    axes = {"a": tuple("012345"), "b": ("x", "y")}
    judged = outside = 0
    for study in range(400):
        table = np.random.default_rng([7, study]).normal(size=(6, 2, 3))
        frame = build_frame(axes, lambda of, seed: float(table[int(of[0] or 0), "xy".index(str(of[1])), seed]))  # noqa: B023
        factorial = taken_apart(effects(frame))
        every = [*factorial.levels, *factorial.combinations]
        judged += any(of.verdict in ("better", "worse") for of in every)
        outside += any(not of.effect.low <= 0 <= of.effect.high for of in every)
    assert 0.02 < judged / 400 < 0.075
    assert outside / 400 > 0.3


def test_levels_have_a_verdict_where_their_axis_is_an_effect() -> None:
    """The levels that differ, and only those of the axis that does something; of combinations those of the interaction
    that is one."""
    found = taken_apart(effects(build_frame(ABC, noisy(lambda levels: 8.0 * (levels[0] == "2") * (levels[2] == "q")))))
    verdicts = {term.name: term.verdict for term in found.terms}
    assert (verdicts["a"], verdicts["b"], verdicts["a × c"], verdicts["a × b"]) == (
        *("effect", "undecided", "effect", "undecided"),
    )
    levels = {(of.axis, of.level): of.verdict for of in found.levels}
    assert (levels["a", "2"], levels["c", "q"], levels["b", "x"]) == ("worse", "worse", "undecided")
    combinations = {of.levels: of.verdict for of in found.combinations}
    assert (combinations["2", "q"], combinations["2", "p"]) == ("worse", "better")
    assert {of.verdict for of in found.combinations if "b" in of.axes} == {"undecided"}


def test_what_diverged_at_some_seeds_has_no_verdict() -> None:
    """The seeds that are left are a choice in its favour: neither its levels nor its combination are judged, nor, of an
    axis of two levels, the other one, whose effect is the same number. All others are."""
    axes = {"a": ("0", "1", "2"), "b": ("x", "y"), "c": ("p", "q", "r")}
    truth = noisy(lambda of: 9.0 * int(of[0] or 0) + 9.0 * (of[1] == "y") + 9.0 * "pqr".index(str(of[2])), sd=0.5)
    whole = taken_apart(effects(build_frame(axes, truth)))
    assert {of.verdict for of in whole.levels if of.axis == "b"} == {"better", "worse"}
    frame = build_frame(axes, lambda of, seed: None if (of, seed) == (("2", "y", "r"), 1) else truth(of, seed))
    found = effects(frame)
    levels = {(of.axis, of.level): of.verdict for of in taken_apart(found).levels}
    assert [levels[at] for at in (("a", "2"), ("b", "x"), ("b", "y"), ("c", "r"))] == ["not evaluable"] * 4
    assert (levels["a", "0"], levels["c", "p"]) == ("better", "better")
    refused = {of.levels for of in taken_apart(found).combinations if of.verdict == "not evaluable"}
    assert refused == {("2", "x"), ("2", "y"), ("2", "r"), ("x", "r"), ("y", "r")}
    assert any(note == "Seed 1 is left out: it diverged in 2, y, r." for note in found.notes)
    [told] = [note for note in found.notes if "in favour of what diverges" in note]
    assert told.startswith("Diverged at some seeds: 2, y, r (seed 1).")


def test_trials_without_a_value_are_told_of_by_what_became_of_them() -> None:
    """Diverged, failed and unfinished ones are different things."""
    frame = build_frame({"a": ("0", "1", "2", "3", "4")}, lambda of, seed: None if of[0] in "234" else seed**2 + 1.0)
    status = {"2": ["diverged"] * 3, "3": ["failed", "diverged", "failed"], "4": ["waiting", "running", "interrupted"]}
    kept = zip(frame["variant"].to_pylist(), frame["seed"].to_pylist(), frame["outcome"].to_pylist(), strict=True)
    outcomes = [status[variant][seed] if variant in status else was for variant, seed, was in kept]
    frame = frame.set_column(frame.column_names.index("outcome"), "outcome", pa.array(outcomes))
    notes = effects(frame).notes
    assert "Left out, as no trial has a value: 2 (diverged); 3 (diverged, failed); 4 (has not finished)." in notes
    assert "3 trials have not finished: the table will change." in notes
    assert not any("in favour of" in note for note in notes)


@pytest.mark.parametrize(("seeds", "said"), [(1, "single seed"), (2, "Seeds do not differ")])
def test_without_error_there_are_effects_and_no_tests(seeds: int, said: str) -> None:
    """One seed, or seeds that are all alike: no F, no interval, not evaluable, and the reason."""
    found = effects(build_frame(AB, lambda levels, seed: float("012".index(str(levels[0]))) + 0.1 * seed, seeds=seeds))
    factorial = taken_apart(found)
    assert any(said in note for note in found.notes)
    assert [of.effect.mean for of in factorial.levels[:3]] == pytest.approx([-1, 0, 1])
    assert factorial.terms[0].share == pytest.approx(1)
    for term in factorial.terms:
        assert (math.isnan(term.f), math.isnan(term.q), term.verdict) == (True, True, "not evaluable")
    assert {of.verdict for of in (*factorial.levels, *factorial.combinations)} == {"not evaluable"}
    grids = tables(found)
    assert cell(grids[0], "p", "a") == "–"
    assert cell(grids[1], "95 % interval", "a", "0") == "–"
    json.dumps(found.to_dict(), allow_nan=False)


def cell(grid: Table, heading: str, *begins: str) -> str:
    """The cell of the row that begins with these."""
    [row] = [row for row in grid.rows if row[: len(begins)] == begins]
    return row[[column.heading for column in grid.columns].index(heading)]


def test_seeds_that_some_variant_lacks_are_left_out() -> None:
    """As in a study of the other seeds alone, and the seed and the variant are named."""
    truth = noisy(lambda levels: 2.0 * (levels[1] == "x"))
    found = effects(
        build_frame(
            AB, lambda levels, seed: None if (seed, levels) == (3, ("1", "y")) else truth(levels, seed), seeds=4
        )
    )
    assert taken_apart(found).seeds == (0, 1, 2)
    assert taken_apart(found).terms == taken_apart(effects(build_frame(AB, truth, seeds=3))).terms
    assert any("Seed 3 is left out" in note and "1, y" in note for note in found.notes)
    assert found.importance is None


def test_variants_at_which_an_axis_makes_no_difference_are_left_out() -> None:
    """Without a gate there is no granularity: the table is of gates, and importance of all."""
    axes = {"model.gate.position": ("none", "sdpa", "value"), "model.gate.granularity": ("e", "h")}
    truth = noisy(lambda levels: 3.0 * (levels[0] == "sdpa") - (levels[0] is None), sd=0.2)
    found = effects(build_frame(axes, truth, fold=lambda of: ("none", None) if of[0] == "none" else of))
    factorial = taken_apart(found)
    assert factorial.axes == {"model.gate.position": ("sdpa", "value"), "model.gate.granularity": ("e", "h")}
    assert factorial.cells == 4
    assert any("no level there: none, None." in note for note in found.notes)
    assert found.importance is not None
    assert (found.importance.variants, found.importance.runs) == (5, 15)
    assert [grid.title for grid in tables(found)][-1] == "table: importance for validation/loss"


def test_a_missing_combination_leaves_the_part_that_is_whole() -> None:
    """A level that is not everywhere is left out; the part has its own table, and the whole its aliases."""
    truth = noisy(lambda levels: 3.0 * (levels[1] == "x"))
    found = effects(build_frame(AB, truth, keep=lambda levels: levels != ("1", "y")))
    part = taken_apart(effects(build_frame({"a": ("0", "2"), "b": AB["b"]}, truth)))
    assert taken_apart(found).terms == part.terms
    assert any("5 of 6 combinations" in note and "a at 0, 2; b at x, y" in note for note in found.notes)
    assert {alias.first + alias.second for alias in found.aliases} >= {("a", "b")}
    assert found.importance is not None


def test_a_study_that_nothing_can_be_told_of_says_so() -> None:
    """One change at a time: no table and no test, but why, aliases and importance."""
    axes = {"a": ("0", "1"), "b": ("x", "y"), "c": ("p", "q")}
    base = ("0", "x", "p")
    keep = lambda levels: sum(x != y for x, y in zip(levels, base, strict=True)) < 2  # noqa: E731
    found = effects(build_frame(axes, noisy(lambda levels: 2.0 * (levels[0] == "1")), keep=keep))
    assert found.factorial is None
    assert any("Only 4 of 8 combinations of levels have results; no effect is tested" in note for note in found.notes)
    grids = tables(found)
    assert "confounded (aliased) effects" in grids[0].title
    assert any("no effect is tested" in note for note in grids[0].notes)
    assert cell(grids[0], "correlation", "a ~ b") == f"{1 / 3:.3f}"  # phi of the counts 2, 1, 1, 0
    assert (plot_effects(found), plot_interaction(found)) == (None, None)


def half(levels: Levels) -> bool:
    """Whether a cell is in the half of a 2^4 with D = ABC."""
    signs = [1 if level == "+" else -1 for level in levels]
    return signs[3] == signs[0] * signs[1] * signs[2]


def test_a_regular_fraction_tests_each_string_once() -> None:
    """2^(4-1): four main effects and three strings, whose F is that of the one contrast, brute force."""
    axes = {name: ("-", "+") for name in "ABCD"}
    frame = build_frame(axes, noisy(lambda levels: 4.0 * (levels[0] == levels[1])), keep=half)
    found = effects(frame)
    factorial = taken_apart(found)
    assert [term.name for term in factorial.terms] == [
        "A",
        "B",
        "C",
        "D",
        "A × B = C × D",
        "A × C = B × D",
        "A × D = B × C",
    ]
    data = long(frame)
    signs = data[list("ABCD")].eq("+") * 2 - 1
    contrast = float((signs["A"] * signs["B"] * data["y"]).sum())
    string = factorial.terms[4]
    assert (string.df, string.ss) == pytest.approx((1, contrast**2 / len(data)))
    assert string.f == pytest.approx(string.ss / factorial.errors[0].ms)
    assert string.p == pytest.approx(stats.f.sf(string.f, 1, 14))
    assert string.verdict == "effect"
    assert factorial.combinations == ()
    aliases = next(grid for grid in tables(found) if "confounded (aliased) effects" in grid.title)
    assert [row[0] for row in aliases.rows] == ["A × B = C × D", "A × C = B × D", "A × D = B × C"]
    assert any("tested once" in note for note in found.notes)


def test_a_fraction_that_mixes_in_part_tests_main_effects_only() -> None:
    """A Plackett-Burman plan with five axes: orthogonal main effects, and the warning of what they hold."""
    row = "++-+++---+-"
    runs = {tuple((row[-shift:] + row[:-shift] if shift else row)[:5]) for shift in range(11)} | {("-",) * 5}
    axes = {name: ("-", "+") for name in "ABCDE"}
    frame = build_frame(axes, noisy(lambda levels: 2.0 * (levels[0] == "+")), keep=lambda levels: levels in runs)
    found = effects(frame)
    factorial = taken_apart(found)
    assert factorial.kind == "main effects"
    assert [term.name for term in factorial.terms] == [*"ABCDE", "all other interactions"]
    data = long(frame)
    model = ols("y ~ A + B + C_ + D + E + C(seed)", data.rename(columns={"C": "C_"})).fit()
    table = anova_lm(model)
    for term in factorial.terms[:5]:
        assert term.ss == pytest.approx(table.loc[term.name.replace("C", "C_"), "sum_sq"])
    assert factorial.errors[0].df == 22
    assert any("parts of interactions" in note for note in found.notes)
    aliases = next(grid for grid in tables(found) if "confounded (aliased) effects" in grid.title)
    assert cell(aliases, "correlation", "A ~ B × C") == "0.333"
    assert any("more pairs" in note for note in aliases.notes)


def test_trials_of_one_trunk_are_not_taken_for_independent_ones() -> None:
    """Effects between trunks have the F of the means over budgets; those of budgets that of what is within trunks."""
    axes = {"arm": ("none", "sdpa"), "size": ("s", "m", "l"), "budget": ("1M", "2M")}
    own = noisy(lambda levels: 0.5 * (levels[0] == "sdpa") * "sml".index(str(levels[1])), sd=0.1)
    trunk = noisy(lambda levels: 0.0, seed=1, sd=1.0)
    frame = build_frame(axes, lambda levels, seed: own(levels, seed) + trunk(levels[:2], seed), seeds=4)
    found = effects(frame, trunks=("budget",))
    factorial = taken_apart(found)
    data = long(frame)
    means = data.groupby(["arm", "size", "seed"], as_index=False)["y"].mean()
    between = anova_lm(ols("y ~ C(arm) * C(size) + C(seed)", means).fit())
    # Of two budgets: their differences, which no trunk is in.
    pair = data.pivot_table(index=["arm", "size", "seed"], columns="budget", values="y").reset_index()
    pair["half"] = (pair["2M"] - pair["1M"]) / 2**0.5
    inside = anova_lm(ols("half ~ C(arm) * C(size)", pair).fit())
    terms = {term.name: term for term in factorial.terms}
    for name, theirs in {"arm": "C(arm)", "size": "C(size)", "arm × size": "C(arm):C(size)"}.items():
        assert (terms[name].f, terms[name].p) == pytest.approx(tuple(between.loc[theirs, ["F", "PR(>F)"]]))
    shared, within = factorial.errors
    assert (shared.df, shared.ms) == pytest.approx((15, 2 * between.loc["Residual", "mean_sq"]))
    assert within.df == inside.loc["Residual", "df"] == 18
    assert within.ss == pytest.approx(inside.loc["Residual", "sum_sq"])
    for name, theirs in {"arm × budget": "C(arm)", "size × budget": "C(size)"}.items():
        assert (terms[name].f, terms[name].p) == pytest.approx(tuple(inside.loc[theirs, ["F", "PR(>F)"]]))
    one = {term.name: term for term in taken_apart(effects(frame)).terms}
    assert terms["arm"].p > one["arm"].p
    widths = [of.effect.high - of.effect.low for of in factorial.levels]
    assert widths[0] == pytest.approx(2 * stats.t.ppf(0.975, 15) * math.sqrt(shared.ms / 48))
    assert widths[-1] == pytest.approx(2 * stats.t.ppf(0.975, 18) * math.sqrt(within.ms / 48))
    assert any("share a trunk" in note for note in found.notes)


def test_trunks_are_known_from_what_trials_say_of_themselves(laboratory: Callable[..., Any]) -> None:
    """The axes in which a trial differs from the one that it branched off from, and no others."""
    axes = {"model.gate.position": ["none", "sdpa"], "training.tokens": [40, 80]}
    study = laboratory(axes=axes)
    for variant, seed in itertools.product(range(4), range(2)):
        study.begin(variant, seed)
    assert shared_trunks(study.folder, study.record) == ()
    levels = [study.record.variants[name].levels for name in study.variants]
    short, full = (
        next(
            i for i, of in enumerate(levels) if of["model.gate.position"] == "sdpa" and of["training.tokens"] == tokens
        )
        for tokens in ("40", "80")
    )
    path = study.trial(short, 1).description
    write_json(path, {**(read_json(path) or {}), "branch": {"trunk": study.id(full, 1), "step": 10}})
    assert shared_trunks(study.folder, study.record) == ("training.tokens",)


def test_unequal_scatter_is_pointed_out() -> None:
    """Of the axis over whose levels seeds scatter differently, and of no other."""
    wild, calm = (noisy(lambda levels: 0.0, sd=sd) for sd in (5.0, 0.1))
    axes = {"a": ("0", "1", "2", "3"), "b": ("x", "y")}
    found = effects(build_frame(axes, lambda of, seed: (wild if of[1] == "y" else calm)(of, seed), seeds=5))
    [note] = [note for note in found.notes if "scatter unequally" in note]
    assert note.startswith("Seeds scatter unequally over b (")
    a, b = taken_apart(found).scatter
    assert b.sds["y"] == pytest.approx(5, rel=0.4)
    assert b.sds["x"] < 0.2
    assert a.p > 0.01


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no axis": ({"axes": {}, "value": lambda *_: 1.0}, "validation/loss", "two levels or more, and the study has none"),
    "one level": ({"axes": {"a": ("0",)}, "value": lambda *_: 1.0}, "validation/loss", "the study has none"),
    "nothing finished": ({"axes": AB, "value": lambda *_: None}, "validation/loss", "0 of 6"),
    "one variant": (
        {"axes": AB, "value": lambda levels, _: 1.0 if levels == ("0", "x") else None},
        "validation/loss",
        "1 of 6",
    ),
    "a metric": ({"axes": AB, "value": lambda *_: 1.0}, "validation/los", r"'validation/los', but .* validation/loss"),
}


@pytest.mark.parametrize(("frame", "metric", "said"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_effects_is_said(frame: dict[str, Any], metric: str, said: str) -> None:
    """Errors say what was expected and what there is."""
    with pytest.raises(AnalysisUnavailable, match=said):
        effects(build_frame(**frame), metric)


def test_no_common_seed_leaves_the_variants_that_have_most() -> None:
    """A variant that finished another seed than all others is left out rather than every seed."""
    truth = noisy(lambda levels: float(levels == ("b",)))
    gone = {("c", 0), ("c", 1), ("a", 2), ("b", 2)}
    found = effects(
        build_frame({"x": ("a", "b", "c")}, lambda of, seed: None if (of[0], seed) in gone else truth(of, seed))
    )
    assert taken_apart(found).axes == {"x": ("a", "b")}
    assert taken_apart(found).seeds == (0, 1)
    assert any("No seed has finished in all variants" in note for note in found.notes)


STUDIES: dict[str, dict[str, Any]] = {
    "factorial": {"axes": ABC},
    "part": {"axes": AB, "keep": lambda levels: levels != ("1", "y")},
    "fraction": {"axes": {name: ("-", "+") for name in "ABCD"}, "keep": half},
    "one seed": {"axes": AB, "seeds": 1},
}


@pytest.mark.parametrize("frame", STUDIES.values(), ids=STUDIES)
def test_all_forms_are_complete_and_agree(frame: dict[str, Any], tmp_path: Path) -> None:
    """Tables have every cell, JSON no number that does not exist, and CSV the very numbers of the analysis."""
    found = effects(build_frame(value=noisy(lambda levels: 1.0 * (levels[0] in "0+")), **frame))
    factorial = taken_apart(found)
    for grid in tables(found):
        assert all(len(row) == len(grid.columns) for row in grid.rows)
        assert not any(text in ("nan", "inf", "") for row in grid.rows for text in row)
        assert grid.title in to_markdown(grid)
        table = to_latex(grid).partition("\n")[2].partition("\\end{tabular}")[0]
        assert not set("η²×–<") & set(table)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    rows = list(csv.DictReader(io.StringIO(to_csv(found.frame()))))
    by_kind = {kind: [row for row in rows if row["what"] == kind] for kind in {row["what"] for row in rows}}
    for row, term, inner in zip(by_kind["effect"], factorial.terms, values["factorial"]["terms"], strict=True):
        assert (float(row["ss"]), int(row["df"]), row["verdict"]) == (term.ss, term.df, term.verdict)
        assert row["F"] == ("" if math.isnan(term.f) else str(term.f))
        assert (inner["f"], inner["verdict"]) == (None if math.isnan(term.f) else term.f, term.verdict)
    assert len(by_kind["level"]) == sum(map(len, factorial.axes.values()))
    assert len(by_kind.get("combination", [])) == len(factorial.combinations)
    assert len(by_kind.get("alias", [])) == len(found.aliases)
    important = found.importance
    assert {row["name"]: float(row["value"]) for row in by_kind.get("fANOVA", [])} == (
        (important.fanova or {}) if important else {}
    )


def test_figures_show_means_and_their_intervals() -> None:
    """A panel for each axis on one scale; a line for each level of an interaction, at the means."""
    found = effects(build_frame(ABC, noisy(lambda levels: 6.0 * (levels[0] == "2") * (levels[2] == "q"), sd=0.3)))
    factorial = taken_apart(found)
    figure = plot_effects(found)
    assert figure is not None
    panels = figure.axes
    assert [axes.get_xlabel() for axes in panels] == ["a", "b", "c"]
    assert panels[0].get_ylabel() == "validation/loss [nats/token]"
    assert len({axes.get_ylim() for axes in panels}) == 1
    line = panels[0].containers[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(orig=False), [of.mean for of in factorial.levels if of.axis == "a"])
    [bars] = panels[0].containers[0].lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(factorial.levels[0].effect.high - factorial.levels[0].effect.low)

    interaction = plot_interaction(found)
    assert interaction is not None
    [axes] = interaction.axes
    assert axes.get_xlabel() == "a"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["p", "q"]
    drawn = axes.containers[1].lines[0].get_ydata(orig=False)
    means = [of.mean for of in factorial.combinations if of.axes == ("a", "c") and of.levels[1] == "q"]
    np.testing.assert_allclose(drawn, means)


def test_without_scikit_learn_the_table_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importance is then PED-ANOVA's alone, in every form."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    axes = {"a": tuple("012345"), "b": ("x", "y")}
    found = effects(build_frame(axes, noisy(lambda levels: 9.0 * (levels[0] == "2")), keep=lambda of: of != ("1", "y")))
    assert any("pip install 'gatelab[importance]'" in note for note in found.notes)
    grid = tables(found)[-1]
    assert [column.heading for column in grid.columns] == ["axis", "PED-ANOVA"]
    assert (grid.rows[0][0], len(grid.rows)) == ("a", 2)
    assert found.to_dict()["importance"]["fanova"] is None
    assert "fANOVA" not in to_csv(found.frame())


def test_variants_whose_tokenizer_loses_text_have_no_effect_on_bits_per_byte() -> None:
    """Bits that text would have cost are no effect of a tokenizer: its variants are left out, with the reason."""
    metric, axes = "validation/bits_per_byte", {"tokenizer": ["bytes", "narrow", "wide"], "gate": ["none", "sdpa"]}
    rows = build_frame(axes, noisy(lambda levels: float(len(str(levels)))), metric=metric).to_pylist()
    for row in rows:
        tokenizer = row["axis/tokenizer"]
        row |= {"data": tokenizer, "validation/lost_bytes": 0.4 if tokenizer == "narrow" else None}
    runs = pa.Table.from_pylist(rows, runs_schema([*axes], [metric, "validation/lost_bytes"]))
    found = effects(runs, metric)
    assert {level.level for level in taken_apart(found).levels if level.axis == "tokenizer"} == {"bytes", "wide"}
    left = next(note for note in found.notes if note.startswith("Left out"))
    assert "narrow, none (its tokenizer loses 40 % of the text)" in left
