"""Scaling laws: loss as a power of compute, or of parameters and tokens, fitted to several arms at once.

    L = E + A / X^alpha                  X: compute, parameters or tokens
    L = E + A / N^alpha + B / D^beta     approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, eq. 2-3 and D.2)

With a handful of rungs no curve determines an offset of its own, so that arms share E, B and beta, and each has its A
and alpha. The objective is that of the paper: the sum (a mean stops optimisers early) of Huber losses, delta 1e-3, of
differences of log losses, here of each cell's mean over seeds, as often as it has seeds. E, A and B are never negative.

Starts come from variable projection: for fixed exponents, which all arms share at this point, E, A and B are linear.
Levenberg and Marquardt's method then runs on all starts, or on thousands of bootstrap replicates, in one batch.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from gatelab.results.statistics.law_fit import Problem, descend, fit
from gatelab.results.statistics.power_law import Cells, Floats, Law, log_losses

LEAST_RUNGS, LEAST_CELLS, LEAST_SIZES, LEAST_SPAN = 4, 6, 3, 3.0


MOST_CORRELATION = 0.95
"""Highest correlation of log parameters and log tokens; beyond it their terms are not told apart."""


@dataclass(frozen=True)
class Scatter:
    """Differences between measured log losses and a law."""

    seeds: float
    """Standard deviation between seeds, pooled over cells; 0 where no cell has two."""
    lack_of_fit: float
    """Standard deviation of cells' means about the law beyond what seeds explain."""
    freedom_of_seeds: int
    freedom_of_fit: int
    """Degrees of freedom that each comes from."""


def scatter(cells: Cells, law: Law) -> Scatter:
    """Measure how losses scatter about a law that was fitted to them."""
    counts, logs = cells.seeds, np.log(cells.losses)
    freedom_of_seeds = int((counts - 1).sum())
    squares = float(np.nansum((logs - cells.mean[:, None]) ** 2))
    seeds = squares / freedom_of_seeds if freedom_of_seeds else 0.0
    freedom = len(counts) - law.parameters
    missed = float(np.sum((cells.mean - log_losses(cells, law)) ** 2))
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
    counts, fitted = cells.seeds, log_losses(cells, law)

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

    problem = Problem(cells, "shared" if law.offset.shape[-1] == 1 else "own")
    start = np.broadcast_to(problem.theta(law), (count, problem.size))
    found, _ = descend(problem, start, fitted + noise + lack, tolerance=1e-7)
    return problem.law(found), noise if repeated.any() else lack


def refusal(cells: Cells, arm: int) -> str:
    """Return why an arm's cells support no fit, or ''."""
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
    """Return why a fit's shared offset is not to be taken as a number, or ''.

    E counts as determined if the best fit with E = 0 is worse by more than chance, a difference of chi2 beyond the
    95 % quantile of F(1, degrees of freedom), 3.84 where there are many; and if, of bootstrap replicates, the 95 %
    interval does not reach 0.
    """
    spread = scatter(cells, law)
    freedom = spread.freedom_of_seeds + spread.freedom_of_fit
    variance = spread.seeds**2 / cells.seeds + spread.lack_of_fit**2 + 1e-18  # exact data have none
    without = fit(cells, "zero")
    best, worse = (float(np.sum((cells.mean - log_losses(cells, own)) ** 2 / variance)) for own in (law, without))
    least = law.offset[0] if replicates is None else np.quantile(replicates.offset[..., 0], 0.025)
    if worse - best > float(stdtrit(freedom, 0.975)) ** 2 and least > 0:
        return ""
    return (
        "the offset E is not determined (0 fits as well): it is not shown, and the intervals of exponents and gains "
        "hold that doubt"
    )


def _draw(vectors: Floats, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Draw vectors [vectors, arms], as [*shape, arms]. What is nan in one is drawn by itself from all that there is."""
    vectors = vectors[np.isfinite(vectors).any(1)]
    if not len(vectors):
        return np.zeros((*shape, vectors.shape[1]))
    drawn = vectors[rng.integers(0, len(vectors), shape)]
    missing = np.isnan(drawn)
    drawn[missing] = rng.choice(vectors[np.isfinite(vectors)], int(missing.sum()))
    return drawn
