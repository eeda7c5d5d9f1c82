"""Which effects of axes a set of variants can tell apart, and which it cannot: the alias table of a fraction.

An effect is the main effect of one axis, or the interaction of two. Over n variants it is a space: that of its
contrasts, which for an interaction are the products of those of both axes, less their means. Two spaces that share a
direction (a canonical correlation of 1) show the same differences between variants: no seeds tell their effects apart.
Canonical correlations are singular values of the product of two orthonormal bases: Björck and Golub, "Numerical methods
for computing angles between linear subspaces", Mathematics of Computation 27 (1973).
"""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from gatelab.results.statistics.linear_model import (
    SAME,
    Axes,
    Cell,
    Effect,
    Floats,
    basis,
    contrasts,
    effects_of,
    mean_basis,
)

MEAN: Effect = ()


@dataclass(frozen=True)
class Alias:
    """Two effects that cannot be told apart, or not wholly."""

    first: Effect
    second: Effect
    correlations: tuple[float, ...]
    """Canonical correlations of their spaces that are not 0, the largest first."""
    dimensions: tuple[int, int]
    """Dimensions of their spaces."""

    @property
    def is_complete(self) -> bool:
        """True if all of one effect is in the other."""
        return len(self.correlations) == min(self.dimensions) and self.correlations[-1] > 1 - SAME


@dataclass(frozen=True)
class Structure:
    """What the cells of a table allow to be told apart."""

    complete: bool
    """All combinations of levels: every effect can be told from every other."""
    regular: bool
    """Two effects are orthogonal or aliased, never in between."""
    orthogonal: bool
    """Main effects are orthogonal to each other and to the mean, though perhaps not to interactions."""
    aliases: tuple[Alias, ...]


def is_complete(cells: Collection[Cell], axes: Axes) -> bool:
    """Return whether there is a cell for each combination of levels."""
    return len(set(cells)) == math.prod(len(levels) for levels in axes.values())


def structure(cells: Sequence[Cell], axes: Axes) -> Structure:
    """Find which effects these cells allow to be told apart."""
    if is_complete(cells, axes):
        return Structure(True, True, True, ())
    raw = {effect: contrasts(cells, axes, effect) for effect in effects_of(axes)}
    mean = mean_basis(len(cells))
    spaces = {effect: basis(columns - columns.mean(0)) for effect, columns in raw.items()}
    found = [_alias(MEAN, effect, mean, basis(columns)) for effect, columns in raw.items()]
    found += [_alias(*pair, *(spaces[effect] for effect in pair)) for pair in itertools.combinations(raw, 2)]
    aliased = [alias for alias in found if alias.correlations]
    return Structure(
        complete=False,
        regular=all(of > 1 - SAME for alias in aliased for of in alias.correlations),
        orthogonal=not any(max(len(alias.first), len(alias.second)) == 1 for alias in aliased),
        # An effect that is not quite orthogonal to the mean is one whose levels have unequal numbers of variants.
        aliases=tuple(alias for alias in aliased if alias.first != MEAN or alias.is_complete),
    )


def strings(cells: Sequence[Cell], axes: Axes, effects: Sequence[Effect]) -> list[tuple[tuple[Effect, ...], Floats]]:
    """Join effects that are orthogonal or aliased into alias strings: those that are one, and an orthonormal basis.

    A basis is of [variants, degrees of freedom], its columns without means. Effects of more than two levels may have a
    part in several strings.
    """
    found: list[tuple[tuple[Effect, ...], Floats]] = []
    for effect in effects:
        columns = contrasts(cells, axes, effect)
        rest = basis(columns - columns.mean(0))
        split = []
        for names, space in found:
            turned, cosines, _ = np.linalg.svd(space.T @ rest)
            inside = int(np.sum(cosines > 0.5))
            common, other = np.split(space @ turned, [inside], axis=1)
            split += [((*names, effect), common), (names, other)]
            rest = basis(rest, common)
        found = [(names, space) for names, space in [*split, ((effect,), rest)] if space.shape[1]]
    return found


def complete_part(cells: Collection[Cell], axes: Axes) -> dict[str, tuple[str, ...]] | None:
    """Find levels all combinations of which are among the cells: two or more of each axis, or of at least two axes.

    Levels that have the smallest share of their combinations go first. None where that leads to nothing.
    """
    present, kept = set(cells), {axis: list(levels) for axis, levels in axes.items()}
    needed = min(2, len(axes))
    while True:
        inside = [cell for cell in present if all(level in kept[axis] for axis, level in zip(kept, cell, strict=True))]
        if is_complete(inside, kept):
            return {axis: tuple(levels) for axis, levels in kept.items()}
        shares = {}
        for place, (axis, levels) in enumerate(kept.items()):
            wide = sum(len(others) > 1 for name, others in kept.items() if name != axis)
            if len(levels) > 1 and wide + (len(levels) > 2) >= needed:
                every = math.prod(len(others) for name, others in kept.items() if name != axis)
                for level in levels:
                    shares[axis, level] = sum(cell[place] == level for cell in inside) / every
        if not shares:
            return None
        axis, level = min(reversed(shares), key=shares.__getitem__)  # of equals, the last that the study names
        kept[axis].remove(level)


def _alias(first: Effect, second: Effect, one: Floats, other: Floats) -> Alias:
    cosines = np.linalg.svd(one.T @ other, compute_uv=False) if one.shape[1] and other.shape[1] else np.zeros(0)
    known = tuple(min(1.0, float(of)) for of in cosines if of > SAME)
    return Alias(first, second, known, (one.shape[1], other.shape[1]))
