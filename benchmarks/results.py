"""What a scaling report costs: thousands of bootstrap fits in one batch, against a plain loop of single fits.

    python benchmarks/results.py [--bootstraps 4000] [--single 20]

Three arms, three seeds; five sizes for the law in compute, and five sizes with three numbers of tokens each for the
law in parameters and tokens. The loops fit a resample at a time, from the law itself as the batch does, with SciPy and
exact derivatives of the same objective: by least_squares with its Huber loss, and by L-BFGS-B at the tight tolerances
of published fits. All are timed in turn; the loops on fewer resamples, and their time scaled to as many as the batch
has. The batch must find fits as good as theirs before anything is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import progress, report
from scipy.optimize import least_squares, minimize

from gatelab.results.power_laws import HUBER, Cells, Floats, Law, bootstrap, fit

LAWS = {
    "compute": Law(np.array([1.6]), np.array([60.0, 60.5, 66.0]), np.array([0.09, 0.0906, 0.092])),
    "parameters and tokens": Law(
        np.array([1.69]), np.array([406.4, 380.0, 420.0]), np.array([0.34, 0.337, 0.342]), np.array([410.7, 0.28])
    ),
}


def measured(law: Law, noise: float = 0.002, seeds: int = 3) -> Cells:
    """A study of a law: every arm at every rung, noise on log losses, half of its variance shared by paired seeds."""
    sizes = np.geomspace(5e7, 1e10, 5) if law.data is not None else np.geomspace(1e17, 1e21, 5)
    budgets = np.geomspace(1e9, 2e11, 3) if law.data is not None else np.ones(1)
    arm, size, budget = (grid.ravel() for grid in np.indices((3, len(sizes), len(budgets))))
    tokens = None if law.data is None else budgets[budget]
    rng, rung = np.random.default_rng(0), size * len(budgets) + budget
    shared = rng.normal(0, noise / np.sqrt(2), (rung.max() + 1, seeds))
    own = rng.normal(0, noise / np.sqrt(2), (len(arm), seeds))
    return Cells(
        arm, rung, sizes[size], law.losses(arm, sizes[size], tokens)[:, None] * np.exp(shared[rung] + own), tokens
    )


def residuals(theta: Floats, cells: Cells, logs: Floats) -> tuple[Floats, Floats]:
    """Differences of log losses and their derivatives, as one would write them for a single fit."""
    rows, arms = np.arange(len(logs)), cells.arms
    x = np.log(cells.x) - np.log(cells.x).mean()
    power = np.exp(theta[1 + cells.arm] - theta[1 + arms + cells.arm] * x)
    jacobian = np.zeros((len(logs), len(theta)))
    jacobian[:, 0], jacobian[rows, 1 + cells.arm], jacobian[rows, 1 + arms + cells.arm] = 1, power, -power * x
    total = theta[0] + power
    if cells.tokens is not None:
        d = np.log(cells.tokens) - np.log(cells.tokens).mean()
        data = np.exp(theta[-2] - theta[-1] * d)
        jacobian[:, -2], jacobian[:, -1], total = data, -data * d, total + data
    return np.log(total) - logs, jacobian / total[:, None]


def objective(theta: Floats, cells: Cells, logs: Floats) -> tuple[float, Floats]:
    """The sum of Huber losses and its gradient."""
    misses, jacobian = residuals(theta, cells, logs)
    size = np.abs(misses)
    cost = float(np.sum(np.where(size < HUBER, size**2 / 2, HUBER * (size - HUBER / 2))))
    return cost, np.clip(misses, -HUBER, HUBER) @ jacobian


def as_theta(law: Law, cells: Cells) -> Floats:
    """E, log A, alpha, log B, beta for x and tokens over their geometric means."""
    parts = [law.offset, np.log(law.scale) - law.exponent * np.log(cells.x).mean(), law.exponent]
    if law.data is not None and cells.tokens is not None:
        parts.append(np.array([np.log(law.data[0]) - law.data[1] * np.log(cells.tokens).mean(), law.data[1]]))
    return np.concatenate(parts)


def by_lbfgs(cells: Cells, start: Floats, logs: Floats) -> float:
    """The least cost of one resample."""
    bounds = [(0, None)] + [(None, None)] * (len(start) - 1)
    options = {"ftol": 0, "gtol": 1e-10, "maxiter": 10_000, "maxfun": 100_000}
    return float(minimize(objective, start, (cells, logs), "L-BFGS-B", jac=True, bounds=bounds, options=options).fun)


def by_least_squares(cells: Cells, start: Floats, logs: Floats) -> float:
    """The least cost of one resample."""
    low = np.where(np.arange(len(start)) == 0, 0, -np.inf)
    return float(
        least_squares(
            lambda theta: residuals(theta, cells, logs)[0],
            start,
            lambda theta: residuals(theta, cells, logs)[1],
            bounds=(low, np.inf),
            loss="huber",
            f_scale=HUBER,
            x_scale="jac",
            xtol=1e-7,
            ftol=1e-10,
            gtol=None,
        ).cost
    )


LOOPS = {"least_squares": by_least_squares, "L-BFGS-B": by_lbfgs}


def assert_as_good(cells: Cells, law: Law, count: int) -> Floats:
    """Check the batch's fits of `count` resamples against the loops' and return the resamples."""
    # With single seeds, what a bootstrap draws is all of its noise, so that the loops can be given the same.
    one = Cells(cells.arm, cells.rung, cells.x, np.exp(cells.mean)[:, None], cells.tokens)
    replicates, noise = bootstrap(one, law, count, np.random.default_rng(0))
    targets: Floats = np.log(law.losses(cells.arm, cells.x, cells.tokens)) + noise
    for index, logs in enumerate(targets):
        data = None if replicates.data is None else replicates.data[index]
        mine = as_theta(Law(replicates.offset[index], replicates.scale[index], replicates.exponent[index], data), one)
        best = min(fit_one(one, as_theta(law, cells), logs) for fit_one in LOOPS.values())
        assert objective(mine, one, logs)[0] < 1.001 * best, f"resample {index}: a loop found a better fit"
    return targets


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(name: str, truth: Law, bootstraps: int, single: int, rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds in which batch and loops take turns."""
    cells = measured(truth)
    law = fit(cells)
    start, targets = as_theta(law, cells), assert_as_good(cells, law, single)
    times: dict[str, list[float]] = {"batch": [], **{loop: [] for loop in LOOPS}}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        times["batch"].append(seconds(lambda: bootstrap(cells, law, bootstraps, rng)))
        for loop, fit_one in LOOPS.items():
            spent = seconds(lambda fit_one=fit_one: [fit_one(cells, start, logs) for logs in targets])
            times[loop].append(spent * bootstraps / single)
        progress(f"{name}: " + ", ".join(f"{side} {values[-1]:.3g} s" for side, values in times.items()))
    batch, *loops = (statistics.median(values) for values in times.values())
    what = f"law in {name}"
    first = statistics.median(seconds(lambda: fit(cells)) for _ in range(rounds))
    rows: list[dict[str, Any]] = [{"what": f"{what}: one fit with its starts", "value": 1e3 * first, "unit": "ms"}]
    rows.append({"what": f"{what}: {bootstraps} fits, batch", "value": batch, "unit": "s", "target": "< 10 s"})
    for loop, spent in zip(LOOPS, loops, strict=True):
        rows.append({"what": f"{what}: {bootstraps} fits, loop of {loop}", "value": spent, "unit": "s"})
        rows.append({"what": f"{what}: {loop} / batch", "value": spent / batch, "unit": "x"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstraps", type=int, default=4000)
    parser.add_argument("--single", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sizes = (arguments.bootstraps, arguments.single, arguments.rounds)
    report("results", [row for name, law in LAWS.items() for row in measure(name, law, *sizes)])


if __name__ == "__main__":
    main()
