"""The linear model is statsmodels' where observations and whole cells are missing."""

import itertools

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from gatelab.results.statistics.linear_model import Anova, Cell, Square, anova, contrasts, effects_of, f_test

AXES = {"a": ("0", "1", "2"), "b": ("x", "y"), "c": ("p", "q")}


def observations(axes: list[str], missing: float, seeds: int = 4) -> pd.DataFrame:
    """A row for each combination and seed but those that are missing, with effects, an interaction and noise."""
    random = np.random.default_rng(len(axes))
    rows = []
    for levels, seed in itertools.product(itertools.product(*(AXES[axis] for axis in axes)), range(seeds)):
        truth = 2.0 * (levels[0] == "1") + 3.0 * (levels[:2] == ("2", "y")) + 4.0 * seed
        if random.random() > missing:
            rows.append(dict(zip(axes, levels, strict=True)) | {"seed": seed, "y": truth + random.normal()})
    return pd.DataFrame(rows)


def labels(data: pd.DataFrame, *columns: str) -> npt.NDArray[np.intp]:
    return data.groupby(list(columns)).ngroup().to_numpy(np.intp)


def fitted(data: pd.DataFrame, axes: list[str], plots: npt.NDArray[np.intp] | None = None) -> Anova:
    """The analysis of main effects and interactions of two axes."""
    cells: list[Cell] = [tuple(row) for row in data[axes].to_numpy()]
    terms = [((effect,), contrasts(cells, {axis: AXES[axis] for axis in axes}, effect)) for effect in effects_of(axes)]
    return anova(data["y"].to_numpy(), labels(data, "seed"), labels(data, *axes), terms, plots)


def numbers(square: Square) -> tuple[float, float]:
    return square.df, square.ss


@pytest.mark.parametrize("axes", [["a", "b"], ["a", "b", "c"]], ids="×".join)
def test_unbalanced_tables_have_the_type_ii_squares_of_statsmodels(axes: list[str]) -> None:
    """Sums of squares, degrees of freedom, F and p of all terms, where a quarter of the observations is missing."""
    data = observations(axes, 0.25)
    assert len(set(data.groupby(axes).size())) > 1
    found = fitted(data, axes)
    table = anova_lm(ols(f"y ~ {' * '.join(f'C({axis})' for axis in axes)} + C(seed)", data).fit(), typ=2)
    [error] = found.errors
    assert numbers(error) == pytest.approx(tuple(table.loc["Residual", ["df", "sum_sq"]]))
    blocks = anova_lm(ols("y ~ C(seed)", data).fit())
    assert numbers(found.blocks) == pytest.approx(tuple(blocks.loc["C(seed)", ["df", "sum_sq"]]))
    assert found.total == pytest.approx(blocks.loc["Residual", "sum_sq"])
    names = [":".join(f"C({axis})" for axis in effect) for effect in effects_of(axes)]
    pairs = [*zip(names, found.terms, strict=True), *([("C(a):C(b):C(c)", found.rest)] if len(axes) > 2 else [])]
    for name, term in pairs:
        assert (*numbers(term), *f_test(term, error)) == pytest.approx(
            tuple(table.loc[name, ["df", "sum_sq", "F", "PR(>F)"]]), rel=1e-9
        )


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_a_cell_without_observations_costs_the_interaction_a_degree_of_freedom() -> None:
    """Each term is the step between the two nested models of statsmodels, with the ranks that it finds."""
    data = observations(["a", "b"], 0.1)
    data = data[(data["a"] != "1") | (data["b"] != "y")]
    found = fitted(data, ["a", "b"])
    additive = ols("y ~ C(a) + C(b) + C(seed)", data).fit()
    cells = ols("y ~ C(a):C(b) + C(seed)", data).fit()
    steps = {0: ("y ~ C(b) + C(seed)", additive), 1: ("y ~ C(a) + C(seed)", additive), 2: (additive, cells)}
    for place, (small, large) in steps.items():
        small = ols(small, data).fit() if isinstance(small, str) else small
        expected = (small.df_resid - large.df_resid, small.ssr - large.ssr)
        assert numbers(found.terms[place]) == pytest.approx(expected, rel=1e-8)
    assert [term.df for term in found.terms] == [2, 1, 1]
    assert found.rest.df == 0
    assert numbers(found.errors[0]) == pytest.approx((cells.df_resid, cells.ssr))


def test_columns_that_a_term_shares_with_others_are_not_its_own() -> None:
    """A term that is the same as another has no degrees of freedom beyond it, and no sum of squares."""
    data = observations(["a", "b"], 0.0)
    cells = [tuple(row) for row in data[["a", "b"]].to_numpy()]
    own = contrasts(cells, {"a": AXES["a"], "b": AXES["b"]}, ("a",))
    found = anova(
        data["y"].to_numpy(), labels(data, "seed"), labels(data, "a", "b"), [((("a",),), own), ((("same",),), 2 * own)]
    )
    assert [numbers(term) for term in found.terms] == [(0, 0.0), (0, 0.0)]
    assert found.rest.df == 3


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_errors_of_plots_are_steps_between_nested_models() -> None:
    """Plots × blocks is what plots of their own in each block explain beyond cells and blocks; the rest is within."""
    data = observations(["a", "b", "c"], 0.15)
    found = fitted(data, ["a", "b", "c"], labels(data, "a", "b"))
    cells = ols("y ~ C(a) * C(b) * C(c) + C(seed)", data).fit()
    data["plot"] = data["a"] + data["b"] + data["seed"].astype(str)
    plots = ols("y ~ C(a) * C(b) * C(c) + C(plot)", data).fit()
    between, within = found.errors
    assert numbers(between) == pytest.approx((cells.df_resid - plots.df_resid, cells.ssr - plots.ssr), rel=1e-8)
    assert numbers(within) == pytest.approx((plots.df_resid, plots.ssr), rel=1e-8)
