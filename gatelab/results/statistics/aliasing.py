"""Which effects of axes a set of variants can tell apart, and which it cannot: the alias table of a fraction.

An effect is the main effect of one axis, or the interaction of two. Over n variants it is a space: that of its
contrasts, which for an interaction are the products of those of both axes, less their means. Two spaces that share a
direction (a canonical correlation of 1) show the same differences between variants: no seeds tell their effects apart.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import helmert

Floats = npt.NDArray[np.float64]


Effect = tuple[str, ...]
"""The axes of a main effect or of an interaction; of no axis: the mean."""


Cell = tuple[str, ...]
"""A variant's levels, one for each axis."""


Axes = Mapping[str, Sequence[str]]
"""Axis -> its levels."""


MEAN: Effect = ()


SAME = 1e-6
"""Canonical correlations that differ from 0 or 1 by less are 0 or 1."""


@dataclass(frozen=True)
class Alias:
    """Two effects that cannot be told apart, or not wholly."""

    first: Effect
    second: Effect
    correlations: tuple[float, ...]
    """Canonical correlations of their spaces that are not 0, the largest first."""
    dimensions: tuple[int, int]
    """Of their spaces."""

    @property
    def is_complete(self) -> bool:
        """Whether all of one is in the other."""
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


def effects_of(axes: Iterable[str]) -> list[Effect]:
    """The main effects, then the interactions of two axes."""
    axes = list(axes)
    return [*((axis,) for axis in axes), *itertools.combinations(axes, 2)]


def is_complete(cells: Collection[Cell], axes: Axes) -> bool:
    """Whether there is a cell for each combination of levels."""
    return len(set(cells)) == math.prod(len(levels) for levels in axes.values())


def structure(cells: Sequence[Cell], axes: Axes) -> Structure:
    """What these cells allow to be told apart."""
    if is_complete(cells, axes):
        return Structure(True, True, True, ())
    raw = {effect: _contrasts(cells, axes, effect) for effect in effects_of(axes)}
    mean = np.full((len(cells), 1), 1 / math.sqrt(len(cells)))
    found = [_alias(MEAN, effect, mean, _basis(columns)) for effect, columns in raw.items()]
    spaces = {effect: _basis(_centred(columns)) for effect, columns in raw.items()}
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
    """The alias strings of effects that are orthogonal or aliased: those that are one, and an orthonormal basis of it.

    A basis is of [variants, degrees of freedom], its columns without means. Effects of more than two levels may have a
    part in several strings.
    """
    found: list[tuple[tuple[Effect, ...], Floats]] = []
    for effect in effects:
        rest = _basis(_centred(_contrasts(cells, axes, effect)))
        split = []
        for names, space in found:
            turned, cosines, _ = np.linalg.svd(space.T @ rest)
            inside = int(np.sum(cosines > 0.5))
            common, other = np.split(space @ turned, [inside], axis=1)
            split += [((*names, effect), common), (names, other)]
            rest = _basis(rest - common @ (common.T @ rest))
        found = [(names, space) for names, space in [*split, ((effect,), rest)] if space.shape[1]]
    return found


def complete_part(cells: Collection[Cell], axes: Axes) -> dict[str, tuple[str, ...]] | None:
    """Levels all combinations of which are among the cells: two or more of each axis, or of at least two of the axes.

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


def _contrasts(cells: Sequence[Cell], axes: Axes, effect: Effect) -> Floats:
    """[variants, contrasts]; of an interaction, the products of its axes' contrasts."""
    columns = np.ones((len(cells), 1))
    for place, (axis, levels) in enumerate(axes.items()):
        if axis in effect:
            own = helmert(len(levels)).T[[list(levels).index(cell[place]) for cell in cells]]
            columns = (columns[:, :, None] * own[:, None, :]).reshape(len(cells), -1)
    return columns


def _centred(columns: Floats) -> Floats:
    return np.asarray(columns - columns.mean(0), np.float64)


def _basis(columns: Floats) -> Floats:
    """An orthonormal basis of the space of columns; a column that is nothing but rounding is none."""
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > SAME], np.float64)


def _alias(first: Effect, second: Effect, one: Floats, other: Floats) -> Alias:
    cosines = np.linalg.svd(one.T @ other, compute_uv=False) if one.shape[1] and other.shape[1] else np.zeros(0)
    known = tuple(min(1.0, float(of)) for of in cosines if of > SAME)
    return Alias(first, second, known, (one.shape[1], other.shape[1]))
