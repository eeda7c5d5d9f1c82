"""The analysis of a table of variants × seeds: effects of axes and of each two together, with tests and intervals."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.statistics.aliasing import strings
from gatelab.results.statistics.linear_model import (
    Anova,
    Axes,
    Cell,
    Effect,
    Floats,
    Labels,
    Square,
    anova,
    effects_of,
    f_test,
    scatter_of_levels,
)
from gatelab.results.statistics.paired import LEVEL, Interval, Mean, benjamini_hochberg
from gatelab.results.store.runs import short_axes

FACTORIAL, FRACTION, MAIN_EFFECTS = "factorial", "fraction", "main effects"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Seeds:
    """Results of the seeds of a variant."""

    values: dict[int, float]
    lost: dict[int, str]
    """Seed -> why it has no value."""

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds that diverged."""
        return tuple(seed for seed, why in sorted(self.lost.items()) if why == DIVERGED)


@dataclass(frozen=True)
class Design:
    """The cells of a table whose effects are orthogonal or aliased, and the seeds that all of them have finished."""

    kind: str
    """factorial (all combinations of levels), fraction (a regular one), main effects (others are mixed into these)."""
    axes: dict[str, tuple[str, ...]]
    """Axis -> its levels, in the study's order."""
    cells: dict[Cell, Seeds]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """An effect, or those that cannot be told from it, and its test. Not a number where there is none."""

    name: str
    effects: tuple[Effect, ...]
    """Aliased ones together; empty: all that is left between variants."""
    df: int
    ss: float
    """Sum of squares, over variants and seeds."""
    share: float
    """η²: of the sum of squares that values have about the means of their seeds."""
    f: float
    p: float
    q: float
    """Benjamini and Hochberg's, over all terms."""

    @property
    def verdict(self) -> Verdict:
        """Return effect, undecided, or not evaluable where there is no test."""
        if math.isnan(self.q):
            return Verdict.NOT_EVALUABLE
        return Verdict.EFFECT if self.q < LEVEL else Verdict.UNDECIDED


@dataclass(frozen=True)
class LevelEffect:
    """A level of an axis: its mean, and that less the grand mean, with its interval."""

    axis: str
    level: str
    mean: float
    effect: Interval
    verdict: Verdict
    """better or worse than the grand mean where the test of the axis says effect; else undecided or not evaluable."""


@dataclass(frozen=True)
class CellEffect:
    """A combination of two axes' levels: its mean, and that less row and column plus grand mean, with its interval."""

    axes: tuple[str, str]
    levels: tuple[str, str]
    mean: float
    effect: Interval
    verdict: Verdict
    """The same, where the test of the interaction says effect."""


@dataclass(frozen=True)
class Error(Square):
    """Error that effects are tested against: the scatter over seeds of the differences of variants."""

    name: str


@dataclass(frozen=True)
class Scatter:
    """Test of whether seeds scatter alike at all levels of an axis."""

    axis: str
    sds: dict[str, float]
    """Level -> standard deviation over seeds."""
    p: float
    """p of Bartlett's test; not a number with one seed."""


@dataclass(frozen=True)
class Factorial:
    """Variants at the seeds that all have finished, taken apart."""

    kind: str
    axes: dict[str, tuple[str, ...]]
    """Axis -> its levels, in the study's order."""
    cells: int
    seeds: tuple[int, ...]
    mean: float
    terms: tuple[Term, ...]
    """Main effects, interactions, and at last what else is between variants."""
    levels: tuple[LevelEffect, ...]
    combinations: tuple[CellEffect, ...]
    """The effects in each combination of an interaction; none in a fraction."""
    seeds_ss: float
    """Sum of squares of seeds, which are blocks."""
    total_ss: float
    """Sum of squares of values about the means of their seeds: all terms and errors."""
    errors: tuple[Error, ...]
    """Errors of variants x seeds; or, where trials share trunks, of trunks x seeds and within trunks."""
    trunks: tuple[str, ...]
    """Axes along which trials branch off from one trunk."""
    scatter: tuple[Scatter, ...]

    @property
    def is_tested(self) -> bool:
        """True if seeds scatter, so that there are tests and intervals."""
        return all(error.ms > 0 for error in self.errors)


def factorial(design: Design, trunks: Collection[str], better: str) -> Factorial:
    """Analyse a design by one linear model in which seeds are blocks.

    Trials that differ only along the axes `trunks` share an error; `better` is lower, higher or empty.
    """
    axes, cells = design.axes, list(design.cells)
    values = np.array([[own.values[seed] for seed in design.seeds] for own in design.cells.values()])
    cell, seed = (index.ravel() for index in np.indices(values.shape))
    branching = [axis for axis in axes if axis in trunks] if design.kind == FACTORIAL else []
    shared = tuple(branching) if len(branching) < len(axes) else ()
    wanted = [(axis,) for axis in axes] if design.kind == MAIN_EFFECTS else effects_of(axes)
    spaces = [(names, space[cell]) for names, space in strings(cells, axes, wanted)]
    fit = anova(values.ravel(), seed, cell, spaces, _trunk_of(cells, axes, shared)[cell] if shared else None)
    named = ("trunks × seeds", "within trunks") if shared else ("variants × seeds",)
    errors = tuple(Error(square.ss, square.df, name) for name, square in zip(named, fit.errors, strict=True))
    terms = _terms(design, [names for names, _ in spaces], fit, shared, errors)
    grand, residuals = float(values.mean()), fit.residuals.reshape(values.shape)
    estimates = _Estimates(design, grand, values.mean(1) - grand, errors, shared, terms, better)
    return Factorial(
        kind=design.kind,
        axes=axes,
        cells=len(cells),
        seeds=design.seeds,
        mean=grand,
        terms=terms,
        levels=tuple(
            LevelEffect(axis, level, *estimates.of((axis,), (level,))) for axis, of in axes.items() for level in of
        ),
        combinations=tuple(
            CellEffect(pair, levels, *estimates.of(pair, levels))
            for pair in (itertools.combinations(axes, 2) if design.kind == FACTORIAL else ())
            for levels in itertools.product(axes[pair[0]], axes[pair[1]])
        ),
        seeds_ss=fit.blocks.ss,
        total_ss=fit.total,
        errors=errors,
        trunks=shared,
        scatter=tuple(
            Scatter(axis, *scatter_of_levels(residuals, [of[place] for of in cells], axes[axis]))
            for place, axis in enumerate(axes)
        ),
    )


def _terms(
    design: Design, spaces: Sequence[tuple[Effect, ...]], fit: Anova, trunks: Sequence[str], errors: Sequence[Error]
) -> tuple[Term, ...]:
    """Test each set of aliased effects, and all that is left between variants."""
    lines = [
        (_string_name(names, square.df, design.axes), names, square)
        for names, square in zip(spaces, fit.terms, strict=True)
    ]
    if fit.rest.df:
        beyond = "interactions of three axes or more" if design.kind == FACTORIAL else "all other interactions"
        lines.append((beyond, (), fit.rest))
    tests = [f_test(square, _error_of(names, design.axes, trunks, errors)) for _, names, square in lines]
    chances = benjamini_hochberg([p for _, p in tests])
    return tuple(
        Term(name, names, square.df, square.ss, square.ss / fit.total if fit.total else math.nan, f, p, q)
        for (name, names, square), (f, p), q in zip(lines, tests, chances, strict=True)
    )


@dataclass(frozen=True)
class _Estimates:
    """Means and errors from which the effects of levels and combinations, their intervals and verdicts follow."""

    design: Design
    grand: float
    means: Floats
    """[cells], about the grand mean."""
    errors: tuple[Error, ...]
    trunks: tuple[str, ...]
    terms: tuple[Term, ...]
    better: str

    def of(self, axes: Effect, levels: Sequence[str]) -> tuple[float, Interval, Verdict]:
        """Return mean, effect and verdict of a level, or of a combination of two."""
        mean = self.mean(axes, levels)
        below = zip(axes, levels, strict=True) if len(axes) > 1 else ()
        effect = mean - sum(self.mean((axis,), (level,)) for axis, level in below)
        # In a balanced table its variance is the error times its degrees of freedom over the number of values.
        error, values = _error_of([axes], self.design.axes, self.trunks, self.errors), len(self.means)
        values *= len(self.design.seeds)
        df = math.prod(len(self.design.axes[axis]) - 1 for axis in axes)
        interval = Mean(effect, math.sqrt(df * error.ms / values), error.df, values).interval()
        return self.grand + mean, interval, self.verdict(axes, levels, interval)

    def mean(self, axes: Effect, levels: Sequence[str]) -> float:
        """Return the mean of the cells that have these levels, about the grand mean."""
        places = [list(self.design.axes).index(axis) for axis in axes]
        inside = [[cell[place] for place in places] == list(levels) for cell in self.design.cells]
        return float(self.means[inside].mean())

    def verdict(self, axes: Effect, levels: Sequence[str], effect: Interval) -> Verdict:
        """Tell whether an effect is better or worse than nothing; lower or higher where neither is better."""
        if math.isnan(effect.low) or self.is_chosen(axes, levels):
            return Verdict.NOT_EVALUABLE
        # Of many intervals some leave out 0 by chance. The test is one for all, and adjusted for their number.
        is_effect = any(axes in term.effects and term.verdict == Verdict.EFFECT for term in self.terms)
        if not is_effect or effect.low <= 0 <= effect.high:
            return Verdict.UNDECIDED
        way = Verdict.LOWER if effect.high < 0 else Verdict.HIGHER
        return way if not self.better else Verdict.BETTER if way == self.better else Verdict.WORSE

    def is_chosen(self, axes: Effect, levels: Sequence[str]) -> bool:
        """Return whether levels are those of a cell whose seeds are a choice in favour of what diverges.

        Of an axis with two levels both are: their effects are one number.
        """
        own, two = dict(zip(axes, levels, strict=True)), {axis for axis in axes if len(self.design.axes[axis]) == 2}
        lost = [dict(zip(self.design.axes, cell, strict=True)) for cell, of in self.design.cells.items() if of.diverged]
        return any(all(axis in two or cell[axis] == level for axis, level in own.items()) for cell in lost)


def effect_name(effect: Effect, names: Mapping[str, str]) -> str:
    """Return `position`, or `position × granularity`."""
    return " × ".join(names[axis] for axis in effect) if effect else "mean"


def _error_of(effects: Sequence[Effect], axes: Axes, trunks: Sequence[str], errors: Sequence[Error]) -> Square:
    """Choose the error against which aliased effects are tested; with no effects, that of all interactions of three
    axes or more.

    Not a number where some error has none: without any scatter of seeds there is no test and no interval.
    """
    within = any(axis in trunks for effect in effects for axis in effect)
    if not effects:
        within = len(axes) - len(trunks) < 3  # else some of them are between trunks, which vary more
    error = errors[-1 if within else 0]
    return error if all(of.ms > 0 for of in errors) else Square(math.nan, error.df)


def _trunk_of(cells: Sequence[Cell], axes: Axes, trunks: Collection[str]) -> Labels:
    """Number the trunk of each cell: cells with equal levels on all axes but `trunks` share one."""
    stems = [tuple(level for axis, level in zip(axes, cell, strict=True) if axis not in trunks) for cell in cells]
    return np.array([list(dict.fromkeys(stems)).index(stem) for stem in stems])


def _string_name(aliased: Sequence[Effect], df: int, axes: Axes) -> str:
    """Name a string of aliased effects: `position = granularity × sharing`.

    An effect that has more degrees of freedom than the string is named as a part.
    """
    names, whole = short_axes(axes), {effect: math.prod(len(axes[axis]) - 1 for axis in effect) for effect in aliased}
    return " = ".join(f"{'part of ' if whole[effect] > df else ''}{effect_name(effect, names)}" for effect in aliased)
