"""Optima and edges of a curve of losses over learning rates, or bounds where they are not enclosed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bounded:
    """A number, or a bound on it where the cells that are there do not hold it."""

    value: float
    bound: str = ""
    """'≤' or '≥' where the value is only a bound."""


def sensitivity(losses: Floats) -> float:
    """Return S of the losses `[n]` over a window, none of them above the initial loss."""
    return float(np.mean(losses) - np.min(losses))


def vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the abscissa of the vertex of the parabola through three points, of which the middle one is the lowest."""
    left, right = x[1] - x[0], x[2] - x[1]
    falls, rises = y[0] - y[1], y[2] - y[1]
    curvature = left * rises + right * falls
    if curvature <= 0:  # all three are equal
        return x[1]
    return x[1] + (right**2 * falls - left**2 * rises) / (2 * curvature)


def optimum(x: Floats, losses: Floats) -> Bounded:
    """Return the lowest point of the parabola through the lowest loss and its neighbours; a bound with only one."""
    best = int(np.argmin(losses))
    if best == 0:
        return Bounded(float(x[0]), "≤")
    if best == len(x) - 1:
        return Bounded(float(x[-1]), "≥")
    around = slice(best - 1, best + 2)
    return Bounded(vertex(x[around].tolist(), losses[around].tolist()))


def upper_edge(x: Floats, losses: Floats, threshold: float) -> Bounded:
    """Return the largest abscissa, going up from the lowest loss, at which the polygon through the points is within a
    threshold; a bound if it never leaves it.
    """
    edge = _edge(x, losses, threshold, int(np.argmin(losses)))
    return Bounded(float(x[-1]), "≥") if edge is None else Bounded(edge)


def lower_edge(x: Floats, losses: Floats, threshold: float) -> Bounded:
    """Return the smallest such abscissa, going down from the lowest loss; see `upper_edge`."""
    edge = _edge(-x[::-1], losses[::-1], threshold, len(x) - 1 - int(np.argmin(losses)))
    return Bounded(float(x[0]), "≤") if edge is None else Bounded(-edge)


def _edge(x: Floats, losses: Floats, threshold: float, start: int) -> float | None:
    for left, right in itertools.pairwise(range(start, len(x))):
        if losses[right] > threshold:
            share = (threshold - losses[left]) / (losses[right] - losses[left])
            return float(x[left] + share * (x[right] - x[left]))
    return None


def largest_stable(x: Floats, losses: Floats, stable: npt.NDArray[np.bool_]) -> Bounded:
    """Return the largest abscissa before the first, going up from the lowest loss, that was not stable; a bound if all
    were, or if the lowest loss itself was not.
    """
    best = int(np.argmin(losses))
    unstable = np.flatnonzero(~stable[best:])
    if not len(unstable):
        return Bounded(float(x[-1]), "≥")
    return Bounded(float(x[best + unstable[0] - 1])) if unstable[0] else Bounded(float(x[best]), "≤")


def around(rate: float, lattice: Sequence[float], points: int) -> list[float]:
    """Return the run of `points` learning rates of a lattice with `rate` in its middle, as far as the lattice goes."""
    first = list(lattice).index(rate) - (points - 1) // 2
    return list(lattice[max(0, first) : first + points])
