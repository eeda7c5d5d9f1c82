"""Fits of scaling laws: Huber loss on log losses, many problems at once by Levenberg-Marquardt.

`scipy.optimize.least_squares(loss="huber")` fits one problem; a bootstrap needs thousands, solved here as
one batch.
"""

import itertools
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from gatelab.results.statistics.power_law import Cells, Floats, Integers, Law

Offset = Literal["shared", "own", "zero"]


LEAST_EXPONENT, MOST_EXPONENT = 1e-3, 3.0
HUBER = 1e-3
"""Differences of log losses beyond this count by their size, not by their square."""


GRID = np.geomspace(0.02, 2.0, 14)
"""Exponents that starts are projected at."""


STARTS = 6


def fit(cells: Cells, offset: Offset = "shared") -> Law:
    """Fit a law to cells. E is shared, each arm's own, or zero.

    `refusal` says whether cells support a fit at all, and `offset_caveat` whether they determine E.
    """
    problem = Problem(cells, offset)
    starts = problem.starts()
    found, costs = descend(problem, starts, np.broadcast_to(cells.mean, (len(starts), len(cells.x))))
    return problem.law(found[np.argmin(costs)])


class Problem:
    """Cells as a least-squares problem in theta = (E …, log A …, alpha …, log B, beta).

    A and B are those of x and tokens over their geometric means, which keeps exponents and scales apart.
    """

    def __init__(self, cells: Cells, offset: Offset) -> None:
        arms = cells.arms
        self.cells, self.offsets = cells, arms if offset == "own" else 1
        self.centres = [float(np.mean(np.log(x))) for x in (cells.x, cells.tokens) if x is not None]
        self.x = np.log(cells.x) - self.centres[0]
        self.tokens = None if cells.tokens is None else np.log(cells.tokens) - self.centres[1]
        self.size = self.offsets + 2 * arms + (0 if self.tokens is None else 2)
        self.weights = cells.seeds.astype(float)
        # The columns of each cell's own parameters.
        self.offset_of = np.minimum(cells.arm, self.offsets - 1)
        self.scale_of, self.exponent_of = self.offsets + cells.arm, self.offsets + arms + cells.arm
        low, high = np.full(self.size, -40.0), np.full(self.size, 40.0)
        low[: self.offsets], high[: self.offsets] = 0.0, 0.0 if offset == "zero" else np.inf
        exponents = [*range(self.offsets + arms, self.offsets + 2 * arms), *([] if self.tokens is None else [-1])]
        low[exponents], high[exponents] = LEAST_EXPONENT, MOST_EXPONENT
        self.low, self.high = low, high

    def predict(self, theta: Floats) -> tuple[Floats, list[tuple[Integers | int, Floats]]]:
        """Return log losses [R, n] for theta [R, size], and their derivatives: columns and values [R, n]."""
        power = np.exp(theta[:, self.scale_of] - theta[:, self.exponent_of] * self.x)
        total = theta[:, self.offset_of] + power
        parts: list[tuple[Integers | int, Floats]] = [(self.scale_of, power), (self.exponent_of, -power * self.x)]
        if self.tokens is not None:
            data = np.exp(theta[:, -2:-1] - theta[:, -1:] * self.tokens)
            total += data
            parts += [(-2, data), (-1, -data * self.tokens)]
        total = np.maximum(total, 1e-300)
        return np.log(total), [(self.offset_of, 1 / total), *((column, part / total) for column, part in parts)]

    def starts(self) -> Floats:
        """Return [starts, size]: the best of a grid of exponents, with E, A and B by non-negative least squares at
        each.
        """
        losses, rows, linear = np.exp(self.cells.mean), np.arange(len(self.x)), self.offsets + self.cells.arms
        scale = np.sqrt(self.weights) / losses  # squares of relative errors
        found = []
        for alpha, beta in itertools.product(GRID, [0.0] if self.tokens is None else GRID):
            design = np.zeros((len(losses), linear + 1))  # E, A and, in the last column, B
            design[rows, self.offset_of] = self.high[0] > 0
            design[rows, self.scale_of] = np.exp(-alpha * self.x)
            if self.tokens is not None:
                design[:, -1] = np.exp(-beta * self.tokens)
            solved, misfit = nnls(design * scale[:, None], np.sqrt(self.weights))
            solved[self.offsets :] = np.log(np.maximum(solved[self.offsets :], 1e-9 * losses.mean()))
            tail = [] if self.tokens is None else [solved[-1], beta]
            found.append((misfit, np.concatenate([solved[:linear], np.full(self.cells.arms, alpha), tail])))
        found.sort(key=lambda start: start[0])
        best: Floats = np.clip(np.array([theta for _, theta in found[:STARTS]]), self.low, self.high)
        return best

    def law(self, theta: Floats) -> Law:
        """Convert parameters [..., size] to a law."""
        arms, offsets = self.cells.arms, self.offsets
        exponent = theta[..., offsets + arms : offsets + 2 * arms]
        scale = np.exp(theta[..., offsets : offsets + arms] + exponent * self.centres[0])
        if self.tokens is None:
            return Law(theta[..., :offsets], scale, exponent)
        data = np.stack([np.exp(theta[..., -2] + theta[..., -1] * self.centres[1]), theta[..., -1]], -1)
        return Law(theta[..., :offsets], scale, exponent, data)

    def theta(self, law: Law) -> Floats:
        """Convert a law to parameters [size]."""
        parts = [law.offset, np.log(law.scale) - law.exponent * self.centres[0], law.exponent]
        if law.data is not None:
            parts.append(np.array([np.log(law.data[0]) - law.data[1] * self.centres[1], law.data[1]]))
        theta: Floats = np.concatenate(parts)
        return theta


def descend(
    problem: Problem, start: Floats, targets: Floats, tolerance: float = 1e-9, steps: int = 1000
) -> tuple[Floats, Floats]:
    """Run Levenberg and Marquardt's method on a batch: theta [R, size] and costs [R] for log losses [R, n].

    Huber's weights are those of the last step (iteratively reweighted least squares), so that costs fall all the way.
    A replicate rests when a step would move none of its parameters by more than the tolerance.
    """
    theta = start.copy()
    damping, at_work = np.full(len(start), 1e-3), np.arange(len(start))
    costs = _cost(problem.predict(theta)[0] - targets, problem.weights)
    for _ in range(steps):
        own = theta[at_work]
        gradient, curvature = _normal_equations(problem, own, targets[at_work])
        held = ((own <= problem.low) & (gradient > 0)) | ((own >= problem.high) & (gradient < 0))
        gradient[held] = 0
        curvature[held[:, :, None] | held[:, None, :]] = 0
        diagonal = np.einsum("rpp->rp", curvature)
        diagonal += damping[at_work, None] * diagonal + 1e-14
        diagonal[held] = 1
        moved = np.clip(own - np.linalg.solve(curvature, gradient[..., None])[..., 0], problem.low, problem.high)
        cost = _cost(problem.predict(moved)[0] - targets[at_work], problem.weights)
        better = cost <= costs[at_work]
        rests = np.abs(moved - own).max(1) < tolerance
        theta[at_work[better]], costs[at_work[better]] = moved[better], cost[better]
        damping[at_work] = np.clip(damping[at_work] * np.where(better, 0.2, 5.0), 1e-12, 1e12)
        at_work = at_work[~rests]
        if not len(at_work):
            break
    return theta, costs


def _normal_equations(problem: Problem, theta: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Return gradient [R, size] and curvature [R, size, size] of the weighted squares that touch Huber's loss here."""
    logs, derivatives = problem.predict(theta)
    residuals = logs - targets
    jacobian = np.zeros((*residuals.shape, problem.size))
    for column, values in derivatives:
        jacobian[:, np.arange(len(problem.x)), column] = values
    weighted = jacobian * (problem.weights * np.minimum(1, HUBER / np.maximum(np.abs(residuals), 1e-300)))[..., None]
    turned = weighted.transpose(0, 2, 1)
    return (turned @ residuals[..., None])[..., 0], turned @ jacobian


def _cost(residuals: Floats, weights: Floats) -> Floats:
    """Return the weighted sums [R] of Huber losses of residuals [R, n]."""
    size = np.abs(residuals)
    costs: Floats = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2)) @ weights
    return costs
