"""Scaling laws: loss as a power of compute, or of parameters and tokens, fitted to several arms at once.

    L = E + A / X^alpha                  X: compute, parameters or tokens
    L = E + A / N^alpha + B / D^beta     approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, eq. 2-3 and D.2)

With a handful of rungs no curve determines an offset of its own, so that arms share E, B and beta, and each has its A
and alpha. The objective is that of the paper: the sum (a mean stops optimisers early) of Huber losses, delta 1e-3, of
differences of log losses, here of each cell's mean over seeds, as often as it has seeds. E, A and B are never negative.

Starts come from variable projection: for fixed exponents, which all arms share at this point, E, A and B are linear.
Levenberg and Marquardt's method then runs on all starts, or on thousands of bootstrap replicates, in one batch.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.special import ndtri, stdtrit

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Offset = Literal["shared", "own", "zero"]

HUBER = 1e-3
"""Differences of log losses beyond this count by their size, not by their square."""
LEAST_EXPONENT, MOST_EXPONENT = 1e-3, 3.0
GRID = np.geomspace(0.02, 2.0, 14)
"""Exponents that starts are projected at."""
STARTS = 6
LEAST_RUNGS, LEAST_CELLS, LEAST_SIZES, LEAST_SPAN = 4, 6, 3, 3.0
MOST_CORRELATION = 0.95
"""Of log parameters and log tokens: beyond it their terms are not told apart."""


@dataclass(frozen=True)
class Cells:
    """What laws are fitted to: the losses of each arm at each rung, n cells."""

    arm: Integers
    """[n], from 0 on."""
    rung: Integers
    """[n], from 0 on. Equal seeds of the same rung are paired."""
    x: Floats
    """[n]: compute, or with tokens the parameters."""
    losses: Floats
    """[n, seeds], a column for each seed; nan where there is none. Each cell has one at least."""
    tokens: Floats | None = None
    """[n]; None: a law of x alone."""

    @property
    def arms(self) -> int:
        """How many arms there are."""
        return int(self.arm.max()) + 1

    def only(self, arm: int) -> "Cells":
        """The cells of one arm."""
        mine = self.arm == arm
        tokens = None if self.tokens is None else self.tokens[mine]
        return Cells(self.arm[mine] * 0, self.rung[mine], self.x[mine], self.losses[mine], tokens)

    @property
    def seeds(self) -> Integers:
        """[n] how many losses there are of each cell."""
        counts: Integers = np.isfinite(self.losses).sum(1)
        return counts

    @property
    def mean(self) -> Floats:
        """[n] mean log losses."""
        means: Floats = np.nanmean(np.log(self.losses), 1)
        return means


@dataclass(frozen=True)
class Law:
    """The curves of all arms; leading axes, if there are any, are those of bootstrap replicates."""

    offset: Floats
    """E: [..., 1] where arms share it, else [..., arms]."""
    scale: Floats
    """A: [..., arms]."""
    exponent: Floats
    """alpha: [..., arms]."""
    data: Floats | None = None
    """B and beta: [..., 2]; None without tokens."""

    @property
    def parameters(self) -> int:
        """How many numbers are fitted."""
        offsets, arms = self.offset.shape[-1], self.scale.shape[-1]
        return int(offsets + 2 * arms + (0 if self.data is None else 2))

    def losses(self, arm: npt.ArrayLike, x: npt.ArrayLike, tokens: npt.ArrayLike | None = None) -> Floats:
        """[..., n] the losses of arms [n] at x [..., n] and, if the law has a term of them, tokens [..., n]."""
        arms = np.atleast_1d(arm)
        offset = np.broadcast_to(self.offset, self.scale.shape)[..., arms]
        total: Floats = offset + self.scale[..., arms] * np.power(np.atleast_1d(x), -self.exponent[..., arms])
        if self.data is not None:
            assert tokens is not None
            total = total + self.data[..., :1] * np.power(np.atleast_1d(tokens), -self.data[..., 1:])
        return total

    def compute_exponent(self, arm: int) -> Floats:
        """[...] that of the loss above E in compute: alpha, or at optimal N and D alpha beta / (alpha + beta)."""
        alpha: Floats = self.exponent[..., arm]
        if self.data is None:
            return alpha
        beta = self.data[..., 1]
        product: Floats = alpha * beta / (alpha + beta)
        return product


@dataclass(frozen=True)
class Scatter:
    """What lies between measured log losses and a law."""

    seeds: float
    """Standard deviation between seeds, pooled over cells; 0 where no cell has two."""
    lack_of_fit: float
    """Standard deviation of cells' means about the law beyond what seeds explain."""
    freedom_of_seeds: int
    freedom_of_fit: int
    """Degrees of freedom that each comes from."""


def fit(cells: Cells, offset: Offset = "shared") -> Law:
    """The law that fits cells best. E is shared, each arm's own, or zero.

    Whether cells support a fit at all is what `refusal` says, and `offset_caveat` whether they determine E.
    """
    problem = _Problem(cells, offset)
    starts = problem.starts()
    found, costs = _descend(problem, starts, np.broadcast_to(cells.mean, (len(starts), len(cells.x))))
    return problem.law(found[np.argmin(costs)])


def scatter(cells: Cells, law: Law) -> Scatter:
    """How measured losses scatter about a law that was fitted to them."""
    counts, logs = cells.seeds, np.log(cells.losses)
    freedom_of_seeds = int((counts - 1).sum())
    squares = float(np.nansum((logs - cells.mean[:, None]) ** 2))
    seeds = squares / freedom_of_seeds if freedom_of_seeds else 0.0
    freedom = len(counts) - law.parameters
    missed = float(np.sum((cells.mean - _log_losses(cells, law)) ** 2))
    beyond = max(0.0, missed / freedom - seeds * float(np.mean(1 / counts))) if freedom > 0 else 0.0
    return Scatter(math.sqrt(seeds), math.sqrt(beyond), freedom_of_seeds, freedom)


def bootstrap(cells: Cells, law: Law, count: int, rng: np.random.Generator) -> tuple[Law, Floats]:
    """Refit a law to resampled cells: the replicates, and [count, n] how far noise moved each cell's mean log loss.

    Residuals are resampled, at two levels, and added to the law's own curve. To resample the runs themselves, seeds
    within cells and then cells, does not work here: of four or five rungs, a resample that lacks one cannot determine
    a curve, and with three seeds it has two thirds of their variance. Therefore

    - seeds: for each rung and seed, the residuals about their cells' means of all arms at an equal seed are drawn
      together, which keeps the pairing of arms, from those of all rungs, scaled by sqrt(n / (n - 1));
    - lack of fit: for each rung, the residuals of cells' means about the law are drawn together for all arms, with a
      random sign, scaled to the variance that is left, for the degrees of freedom, beyond what seeds explain.

    Where an arm has no residual beside those of others, one is drawn for it alone. Both levels are widened by the
    ratio of Student's t to the normal quantile, for an arm's share of their degrees of freedom. Where no cell has two
    seeds there is lack of fit only, and noise is all of it; else noise is that of seeds. In simulated studies of three
    arms with four or five rungs and one to three seeds, 95 % percentile intervals held the truth in 90 to 98 % of them.

    Replicates start from the law itself: where noise was of a usual size, no other start found a better fit.
    """
    spread = scatter(cells, law)
    counts, fitted = cells.seeds, _log_losses(cells, law)

    def widening(freedom: int) -> float:  # of a contrast between arms, which are drawn together
        return float(stdtrit(max(1, freedom / cells.arms), 0.975) / ndtri(0.975))

    rungs, seeds = int(cells.rung.max()) + 1, cells.losses.shape[1]

    repeated = counts[:, None] > 1
    between = np.log(cells.losses) - cells.mean[:, None]
    between = np.where(repeated, between * np.sqrt(counts / np.maximum(counts - 1, 1))[:, None], np.nan)
    table = np.full((rungs, seeds, cells.arms), np.nan)
    table[cells.rung, :, cells.arm] = between * widening(spread.freedom_of_seeds)
    drawn = _draw(table.reshape(-1, cells.arms), (count, rungs, seeds), rng)[:, cells.rung, :, cells.arm]
    present = np.isfinite(cells.losses)  # [n, seeds]; drawn: [n, count, seeds], as advanced indices come first
    noise = (np.where(present[:, None], drawn, 0).sum(2) / counts[:, None]).T

    missed = cells.mean - fitted
    size = float(np.sqrt(np.mean(missed**2)))
    table = np.full((rungs, cells.arms), np.nan)
    table[cells.rung, cells.arm] = missed * (
        widening(spread.freedom_of_fit) * spread.lack_of_fit / size if size else 0.0
    )
    drawn = _draw(table, (count, rungs), rng) * rng.choice((-1.0, 1.0), (count, rungs, 1))
    lack = drawn[:, cells.rung, cells.arm]

    problem = _Problem(cells, "shared" if law.offset.shape[-1] == 1 else "own")
    start = np.broadcast_to(problem.theta(law), (count, problem.size))
    found, _ = _descend(problem, start, fitted + noise + lack, tolerance=1e-7)
    return problem.law(found), noise if repeated.any() else lack


def refusal(cells: Cells, arm: int) -> str:
    """Why an arm's cells support no fit, or ''."""
    own = cells.only(arm)
    x, means = own.x, own.mean
    logs = [np.log(values) for values in (x, own.tokens) if values is not None]
    if own.tokens is None:
        if (rungs := len(np.unique(x))) < LEAST_RUNGS:
            return f"a law with three parameters needs {LEAST_RUNGS} rungs with a loss (got {rungs})"
    else:
        sizes, budgets = len(np.unique(x)), len(np.unique(own.tokens))
        if min(sizes, budgets) < LEAST_SIZES or len(x) < LEAST_CELLS:
            return (
                f"a law in parameters and tokens needs {LEAST_SIZES} numbers of each and {LEAST_CELLS} rungs with a "
                f"loss (got {sizes} of parameters, {budgets} of tokens, {len(x)} rungs)"
            )
        if abs(np.corrcoef(logs[0], logs[1])[0, 1]) > MOST_CORRELATION:
            return "parameters and tokens change together, which does not tell their effects apart"
    if (span := min(float(np.exp(np.ptp(log))) for log in logs)) < LEAST_SPAN:
        return f"rungs should span a factor of {LEAST_SPAN:g} (got {span:.2g})"
    design = np.stack([np.ones_like(means), *logs], 1)
    inverse = np.linalg.pinv(design.T @ design)
    slopes = inverse @ design.T @ means
    freedom = len(means) - design.shape[1]
    error = np.sqrt(np.sum((means - design @ slopes) ** 2) / freedom * np.diag(inverse))
    if (slopes + float(stdtrit(freedom, 0.95)) * error)[1:].max() >= 0:
        return "losses do not fall along the ladder beyond their scatter"
    return ""


def offset_caveat(cells: Cells, law: Law, replicates: Law | None = None) -> str:
    """Why a fit's shared offset is not to be taken as a number, or ''.

    E counts as determined if the best fit with E = 0 is worse by more than chance, a difference of chi2 beyond the
    95 % quantile of F(1, degrees of freedom), 3.84 where there are many; and if, of bootstrap replicates, the 95 %
    interval does not reach 0.
    """
    spread = scatter(cells, law)
    freedom = spread.freedom_of_seeds + spread.freedom_of_fit
    variance = spread.seeds**2 / cells.seeds + spread.lack_of_fit**2 + 1e-18  # exact data have none
    without = fit(cells, "zero")
    best, worse = (float(np.sum((cells.mean - _log_losses(cells, own)) ** 2 / variance)) for own in (law, without))
    least = law.offset[0] if replicates is None else np.quantile(replicates.offset[..., 0], 0.025)
    if worse - best > float(stdtrit(freedom, 0.975)) ** 2 and least > 0:
        return ""
    return (
        "the offset E is not determined (0 fits as well): it is not shown, and the intervals of exponents and gains "
        "hold that doubt"
    )


def compute_gain(
    baseline: npt.ArrayLike, loss: npt.ArrayLike, offset: npt.ArrayLike, exponent: npt.ArrayLike
) -> Floats:
    """The factor of compute that would take the baseline from its loss to this one: ((Lb - E) / (L - E))^(1/alpha).

    Offset and exponent are the baseline's. Infinite where the loss is not above the offset, nan where neither is.
    """
    from_loss, to_loss = (np.maximum(np.subtract(each, offset), 0) for each in (baseline, loss))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gain: Floats = np.power(from_loss / to_loss, 1 / np.asarray(exponent))
    return gain


def crossover(law: Law, arm: int, baseline: int) -> Floats:
    """[...] the x at which two arms with a shared offset have equal losses: (A/A_base)^(1/(alpha - alpha_base))."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs = np.log(law.scale[..., arm] / law.scale[..., baseline])
        where: Floats = np.exp(logs / (law.exponent[..., arm] - law.exponent[..., baseline]))
    return where


def optimum(law: Law, arm: int, compute: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The parameters and tokens [..., n] with the least loss of an arm for a compute [n] of 6 N D FLOPs."""
    assert law.data is not None
    alpha, scale, beta = law.exponent[..., arm, None], law.data[..., :1], law.data[..., 1:]
    product = np.atleast_1d(compute) / 6
    balance = (alpha * law.scale[..., arm, None] / (beta * scale)) ** (1 / (alpha + beta))
    parameters: Floats = balance * product ** (beta / (alpha + beta))
    tokens: Floats = product ** (alpha / (alpha + beta)) / balance
    return parameters, tokens


class _Problem:
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
        """[R, n] log losses for theta [R, size], and their derivatives: columns and values [R, n]."""
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
        """[starts, size] the best of a grid of exponents, with E, A and B by non-negative least squares at each."""
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
        """Parameters [..., size] as a law."""
        arms, offsets = self.cells.arms, self.offsets
        exponent = theta[..., offsets + arms : offsets + 2 * arms]
        scale = np.exp(theta[..., offsets : offsets + arms] + exponent * self.centres[0])
        if self.tokens is None:
            return Law(theta[..., :offsets], scale, exponent)
        data = np.stack([np.exp(theta[..., -2] + theta[..., -1] * self.centres[1]), theta[..., -1]], -1)
        return Law(theta[..., :offsets], scale, exponent, data)

    def theta(self, law: Law) -> Floats:
        """A law as parameters [size]."""
        parts = [law.offset, np.log(law.scale) - law.exponent * self.centres[0], law.exponent]
        if law.data is not None:
            parts.append(np.array([np.log(law.data[0]) - law.data[1] * self.centres[1], law.data[1]]))
        theta: Floats = np.concatenate(parts)
        return theta


def _descend(
    problem: _Problem, start: Floats, targets: Floats, tolerance: float = 1e-9, steps: int = 1000
) -> tuple[Floats, Floats]:
    """Levenberg and Marquardt's method on a batch: theta [R, size] and costs [R] for log losses [R, n].

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


def _normal_equations(problem: _Problem, theta: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Gradient [R, size] and curvature [R, size, size] of the weighted squares that touch Huber's loss here."""
    logs, derivatives = problem.predict(theta)
    residuals = logs - targets
    jacobian = np.zeros((*residuals.shape, problem.size))
    for column, values in derivatives:
        jacobian[:, np.arange(len(problem.x)), column] = values
    weighted = jacobian * (problem.weights * np.minimum(1, HUBER / np.maximum(np.abs(residuals), 1e-300)))[..., None]
    turned = weighted.transpose(0, 2, 1)
    return (turned @ residuals[..., None])[..., 0], turned @ jacobian


def _cost(residuals: Floats, weights: Floats) -> Floats:
    """[R] weighted sums of Huber losses of residuals [R, n]."""
    size = np.abs(residuals)
    costs: Floats = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2)) @ weights
    return costs


def _log_losses(cells: Cells, law: Law) -> Floats:
    logs: Floats = np.log(law.losses(cells.arm, cells.x, cells.tokens))
    return logs


def _draw(vectors: Floats, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Draw vectors [vectors, arms], as [*shape, arms]. What is nan in one is drawn by itself from all that there is."""
    vectors = vectors[np.isfinite(vectors).any(1)]
    if not len(vectors):
        return np.zeros((*shape, vectors.shape[1]))
    drawn = vectors[rng.integers(0, len(vectors), shape)]
    missing = np.isnan(drawn)
    drawn[missing] = rng.choice(vectors[np.isfinite(vectors)], int(missing.sum()))
    return drawn
