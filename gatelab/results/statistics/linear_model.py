"""Analysis of variance of one linear model by least squares, balanced or not: numbers in, numbers out.

The model of n observations is mean + blocks + terms + error. A set of columns is held as an orthonormal basis Q of its
space, [n, degrees of freedom]: then Qᵀy are least squares coefficients and ‖Qᵀy‖² is the sum of squares they explain.
What a term explains beyond others is the drop of the residual sum of squares between two nested fits, R(term | others)
of Searle, *Linear Models* (1971), sections 6.3 and 7.2. Columns that others hold already add no rank, and so no degrees
of freedom.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import helmert
from scipy.special import fdtrc

from gatelab.results.statistics.paired import ROUNDING, unequal_variances_p

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]
"""[n], a group of each observation, counted from 0."""
Effect = tuple[str, ...]
"""The axes of a main effect or of an interaction; of no axis: the mean."""
Cell = tuple[str, ...]
"""A variant's levels, one for each axis."""
Axes = Mapping[str, Sequence[str]]
"""Axis -> its levels."""

SAME = 1e-6
"""Singular values and canonical correlations that differ from 0 or 1 by less are 0 or 1."""


@dataclass(frozen=True)
class Square:
    """A sum of squares and its degrees of freedom."""

    ss: float
    df: int

    @property
    def ms(self) -> float:
        """Mean square; not a number without degrees of freedom."""
        return self.ss / self.df if self.df else math.nan


@dataclass(frozen=True)
class Anova:
    """The analysis of variance of a model."""

    blocks: Square
    """Not adjusted for terms."""
    terms: tuple[Square, ...]
    """Squares of each term, beyond blocks and all terms that do not contain it (type II)."""
    rest: Square
    """Squares between cells, beyond blocks and all terms."""
    errors: tuple[Square, ...]
    """Squares left in cells beyond blocks; with plots, those of plots × blocks, and those within plots."""
    total: float
    """Sum of squares about the means of blocks."""
    residuals: Floats
    """[n], of the model of cells and blocks."""


def effects_of(axes: Iterable[str]) -> list[Effect]:
    """List the main effects, then the interactions of two axes."""
    axes = list(axes)
    return [*((axis,) for axis in axes), *itertools.combinations(axes, 2)]


def contrasts(cells: Sequence[Cell], axes: Axes, effect: Effect) -> Floats:
    """Return an effect's columns, [cells, contrasts]: Helmert's of an axis, products of those of an interaction's."""
    columns = np.ones((len(cells), 1))
    for place, (axis, levels) in enumerate(axes.items()):
        if axis in effect:
            own = helmert(len(levels)).T[[list(levels).index(cell[place]) for cell in cells]]
            columns = (columns[:, :, None] * own[:, None, :]).reshape(len(cells), -1)
    return columns


def basis(columns: Floats, given: Floats | None = None) -> Floats:
    """Return an orthonormal basis of the space of columns [n, k], beyond that of the orthonormal `given` [n, g]."""
    if given is not None:
        columns = columns - given @ (given.T @ columns)
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > SAME], np.float64)


def mean_basis(n: int) -> Floats:
    """Return the basis of the mean of n observations, [n, 1]."""
    return np.full((n, 1), 1 / math.sqrt(n))


def anova(
    values: Floats,
    blocks: Labels,
    cells: Labels,
    terms: Sequence[tuple[Sequence[Effect], Floats]],
    plots: Labels | None = None,
) -> Anova:
    """Analyse values [n] by terms, each the effects that are one in it and its columns [n, k], alike in all of a cell.

    Type II sums of squares, as terms need no order and are tested where those that contain them are nothing: Langsrud,
    "ANOVA for unbalanced data", Statistics and Computing 13 (2003). Cells of a plot share an error of their own in each
    block, as in a split-plot table: Cochran and Cox, *Experimental Designs* (1957), chapter 7.
    """
    limit = ROUNDING * float(np.abs(values).max())
    about_mean = _cleared(values - values.mean(), limit)
    cell, block = _indicators(cells), _indicators(blocks)
    # All but the error is in the space of cells and blocks, in whose few coordinates the terms are fitted.
    whole = np.hstack([cell, basis(block, cell)])
    residuals = _cleared(about_mean - whole @ (whole.T @ about_mean), limit)
    inside, mean = whole.T @ about_mean, whole.T @ mean_basis(len(values))
    added = basis(whole.T @ block, mean)
    own = [whole.T @ columns for _, columns in terms]
    base = np.hstack([mean, added])
    squares = []
    for place, (effects, _) in enumerate(terms):
        others = [own[at] for at, (names, _) in enumerate(terms) if at != place and not _contains(names, effects)]
        squares.append(_explained(inside, basis(own[place], basis(np.hstack([base, *others])))))
    rest = basis(np.eye(whole.shape[1]), basis(np.hstack([base, *own])))
    errors = [Square(float(residuals @ residuals), len(values) - whole.shape[1])]
    if plots is not None:
        shared = _explained_beyond(residuals, _indicators(plots * (blocks.max() + 1) + blocks), whole)
        errors = [shared, Square(max(0.0, errors[0].ss - shared.ss), errors[0].df - shared.df)]
    within = about_mean - block @ (block.T @ about_mean)
    return Anova(
        blocks=_explained(inside, added),
        terms=tuple(squares),
        rest=_explained(inside, rest),
        errors=tuple(errors),
        total=float(within @ within),
        residuals=residuals,
    )


def f_test(term: Square, error: Square) -> tuple[float, float]:
    """Return F, the ratio of mean squares, and its p-value; no numbers where the error has none."""
    f = term.ms / error.ms if error.ms > 0 else math.nan
    return f, float(fdtrc(term.df, error.df, f)) if f == f else math.nan


def scatter_of_levels(residuals: Floats, own: Sequence[str], levels: Sequence[str]) -> tuple[dict[str, float], float]:
    """Return the standard deviation of residuals [cells, blocks] at each level, and p of Bartlett's test of them.

    `own` is the level of each cell. Residuals are turned into Helmert's contrasts of blocks, and of the cells of a
    level, so that they are independent.
    """
    if residuals.shape[1] < 2:
        return {}, math.nan
    free = residuals @ helmert(residuals.shape[1]).T
    at = {level: free[[index for index, of in enumerate(own) if of == level]] for level in levels}
    if all(len(of) > 1 for of in at.values()):  # then without what the level's cells share, which others have disturbed
        at = {level: helmert(len(of)) @ of for level, of in at.items()}
    sds = {level: float(np.sqrt((of**2).mean())) for level, of in at.items()}
    return sds, unequal_variances_p([of.ravel() for of in at.values()])


def _contains(names: Sequence[Effect], others: Sequence[Effect]) -> bool:
    """True if an effect among `names` is an interaction of one among `others` with further axes."""
    return any(set(other) < set(name) for name in names for other in others)


def _indicators(labels: Labels) -> Floats:
    """Return an orthonormal basis of the means of groups, [n, groups]."""
    groups = np.asarray(np.unique(labels) == labels[:, None], np.float64)
    return np.asarray(groups / np.sqrt(groups.sum(0)), np.float64)


def _explained(values: Floats, space: Floats) -> Square:
    return Square(float(((space.T @ values) ** 2).sum()), space.shape[1])


def _explained_beyond(residuals: Floats, space: Floats, given: Floats) -> Square:
    """Return what one orthonormal basis explains beyond another, whose residuals these are.

    The eigenvectors of (1 - cos²) separate what the two bases share.
    """
    shared = given.T @ space
    sizes, turned = np.linalg.eigh(np.eye(space.shape[1]) - shared.T @ shared)
    own = sizes > SAME
    return Square(float(((turned.T @ (space.T @ residuals))[own] ** 2 / sizes[own]).sum()), int(own.sum()))


def _cleared(values: Floats, limit: float) -> Floats:
    """Set values that are nothing but rounding to zero."""
    return np.where(np.abs(values) < limit, 0.0, values)
