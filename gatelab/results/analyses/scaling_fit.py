"""Laws fitted to the rungs of a ladder, and what they say of its arms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gatelab.results.analyses.comparison import ComparisonRow
from gatelab.results.statistics import law_bootstrap, law_fit, power_law
from gatelab.results.statistics.power_law import Cells, Floats, Law

BEYOND = (1, 10, 100)
"""Multiples of the baseline's largest compute at which arms are compared by their laws."""


COMPUTE, PARAMETERS_AND_TOKENS = "compute", "parameters and tokens"


FORMULAS = {COMPUTE: "L = E + A / C^α (C: compute)", PARAMETERS_AND_TOKENS: "L = E + A / N^α + B / D^β"}


@dataclass(frozen=True)
class Estimate:
    """A number from a fit and the 95 % percentile interval of its bootstrap replicates."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rung:
    """An arm at one rung of the ladder."""

    arm: str
    rung: str
    row: ComparisonRow
    """Its loss, compared with that of the baseline's arm at the same rung."""
    tokens: int
    compute: float
    """FLOPs to train."""
    losses: dict[int, float]
    """Loss by seed, of the trials that finished."""
    gain: Estimate | None = None
    """Compute-equivalent gain over the baseline's arm. None: no law says."""
    gain_in_time: Estimate | None = None
    """The same at the speeds of both."""


@dataclass(frozen=True)
class ArmFit:
    """An arm's own part of a law, and how it differs from its baseline's. None: not determined, or no baseline."""

    arm: str
    scale: Estimate
    exponent: Estimate
    exponent_difference: Estimate | None = None
    offset_difference: Estimate | None = None
    """Difference of offsets in a fit in which each arm has one of its own: a check of the shared one."""
    crossover: Estimate | None = None
    """FLOPs at which both curves meet."""
    better: tuple[float, ...] | None = None
    """Share of replicates in which the arm's loss is lower, at each of `BEYOND`."""


@dataclass(frozen=True)
class Fit:
    """A law fitted to several arms at once."""

    kind: str
    law: Law
    replicates: Law
    shared: dict[str, Estimate]
    """Parameters that all arms share: E, and in a law of parameters and tokens B and β."""
    caveat: str
    """The reason not to take E as a number, or ''."""
    why_compute: str
    """The reason why the law is not one in parameters and tokens, or ''."""
    arms: tuple[ArmFit, ...]
    """In the order of the law's arms."""


Gains = dict[tuple[str, str], Estimate]
"""(arm, rung) -> compute-equivalent gain."""


def fit_ladder(
    measured: Sequence[Rung], baselines: Mapping[str, str | None], bootstraps: int, seed: int
) -> tuple[Fit | None, Gains, dict[str, str]]:
    """Fit the law of the arms that support one. Return it, the gains by it, and why each other arm has none."""
    names = [arm for arm in baselines if any(rung.arm == arm for rung in measured)]
    reasons = dict.fromkeys(set(baselines) - set(names), "none of its rungs has a loss")
    why_compute = ""
    for kind in (PARAMETERS_AND_TOKENS, COMPUTE):
        cells = _cells(measured, names, kind)
        refused = {name: reason for arm, name in enumerate(names) if (reason := law_bootstrap.refusal(cells, arm))}
        if not refused:
            break
        why_compute = why_compute or "; ".join(dict.fromkeys(refused.values()))
    reasons |= refused
    names = [name for name in names if name not in refused]
    if not names:
        return None, {}, reasons
    rungs = [rung for rung in measured if rung.arm in names]
    cells, rng = _cells(rungs, names, kind), np.random.default_rng(seed)
    law = law_fit.fit(cells)
    replicates, noise = law_bootstrap.bootstrap(cells, law, bootstraps, rng)
    shared = {"E": _estimate(law.offset[0], replicates.offset[:, 0])}
    if law.data is not None and replicates.data is not None:
        shared |= {name: _estimate(law.data[i], replicates.data[:, i]) for i, name in enumerate(("B", "β"))}
    pairs = {
        arm: names.index(baseline)
        for arm, name in enumerate(names)
        if (baseline := baselines[name]) in names and baseline != name
    }
    offsets = _own_offsets(cells, pairs, bootstraps, rng)
    arms = []
    for arm, name in enumerate(names):
        scale = _estimate(law.scale[arm], replicates.scale[:, arm])
        exponent = _estimate(law.exponent[arm], replicates.exponent[:, arm])
        found = ArmFit(name, scale, exponent, offset_difference=offsets.get(arm))
        arms.append(_compared(found, arm, pairs[arm], law, replicates, cells, rungs) if arm in pairs else found)
    fit = Fit(
        kind, law, replicates, shared, law_bootstrap.offset_caveat(cells, law, replicates), why_compute, tuple(arms)
    )
    return fit, _gains(fit, pairs, cells, noise, rungs), reasons


def _cells(rungs: Sequence[Rung], arms: Sequence[str], kind: str) -> Cells:
    seeds = sorted({seed for rung in rungs for seed in rung.losses})
    names = list(dict.fromkeys(rung.rung for rung in rungs))
    both = kind == PARAMETERS_AND_TOKENS
    return Cells(
        arm=np.array([arms.index(rung.arm) for rung in rungs]),
        rung=np.array([names.index(rung.rung) for rung in rungs]),
        x=np.array([float(rung.row.parameters) if both else rung.compute for rung in rungs]),
        losses=np.array([[rung.losses.get(seed, math.nan) for seed in seeds] for rung in rungs]),
        tokens=np.array([float(rung.tokens) for rung in rungs]) if both else None,
    )


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # replicates may meet nowhere
def _compared(
    found: ArmFit, arm: int, base: int, law: Law, replicates: Law, cells: Cells, rungs: Sequence[Rung]
) -> ArmFit:
    """Return an arm's curve compared with its baseline's.

    The comparison is at equal compute. With tokens it is at equal parameters and tokens, which grow alike from the
    baseline's largest rung, so that compute grows as the square of either.
    """
    difference = _estimate(
        law.exponent[arm] - law.exponent[base], replicates.exponent[:, arm] - replicates.exponent[:, base]
    )
    power = 1 if cells.tokens is None else 2
    top = max((index for index, of in enumerate(cells.arm) if of == base), key=lambda index: rungs[index].compute)
    growth = np.power(BEYOND, 1 / power)
    tokens = None if cells.tokens is None else cells.tokens[top] * growth
    own, other = (replicates.losses([each] * len(growth), cells.x[top] * growth, tokens) for each in (arm, base))
    crossover = None
    if difference.low > 0 or difference.high < 0:  # else the curves may meet anywhere
        value, many = (
            rungs[top].compute * (power_law.crossover(each, arm, base) / cells.x[top]) ** power
            for each in (law, replicates)
        )
        crossover = _estimate(value, many)
    better = tuple(float(share) for share in np.mean(own < other, 0))
    return replace(found, exponent_difference=difference, crossover=crossover, better=better)


def _own_offsets(
    cells: Cells, pairs: Mapping[int, int], bootstraps: int, rng: np.random.Generator
) -> dict[int, Estimate]:
    """Map each arm to the difference of its own offset to its baseline's, where the cells of each determine one."""
    alone = [cells.only(arm) for arm in range(cells.arms)]
    determined = [not law_bootstrap.offset_caveat(each, law_fit.fit(each)) for each in alone]
    pairs = {arm: base for arm, base in pairs.items() if determined[arm] and determined[base]}
    if not pairs:
        return {}
    law = law_fit.fit(cells, "own")
    offsets = law_bootstrap.bootstrap(cells, law, bootstraps, rng)[0].offset
    return {
        arm: _estimate(law.offset[arm] - law.offset[base], offsets[:, arm] - offsets[:, base])
        for arm, base in pairs.items()
    }


def _gains(fit: Fit, pairs: Mapping[int, int], cells: Cells, noise: Floats, rungs: Sequence[Rung]) -> Gains:
    """Return the gain at each rung where an arm and its baseline have a loss, from measured losses and their noise."""
    place = {(rung.arm, rung.rung): index for index, rung in enumerate(rungs)}
    gains = {}
    for index, rung in enumerate(rungs):
        arm = int(cells.arm[index])
        if arm in pairs and (other := place.get((fit.arms[pairs[arm]].arm, rung.rung))) is not None:
            logs, moves = _paired_means(cells, [other, index]), noise[:, [other, index]]
            many = _gain(logs + moves, fit.replicates, pairs[arm])
            gains[rung.arm, rung.rung] = _estimate(_gain(logs, fit.law, pairs[arm]), many)
    return gains


def _paired_means(cells: Cells, pair: Sequence[int]) -> Floats:
    """Return the mean log losses [2] of two cells.

    That of the second follows from its difference at seeds that both have, if any.
    """
    first, second = np.log(cells.losses[pair])
    differences = (second - first)[np.isfinite(second - first)]
    means = cells.mean[pair]
    return means if not len(differences) else np.array([means[0], means[0] + differences.mean()])


def _gain(logs: Floats, law: Law, base: int) -> Floats:
    """Return the compute-equivalent gain [...] from mean log losses [..., 2] of the baseline and of an arm."""
    losses = np.exp(logs)
    return power_law.compute_gain(losses[..., 0], losses[..., 1], law.offset[..., 0], law.compute_exponent(base))


def _estimate(value: Any, replicates: Floats) -> Estimate:
    low, high = np.nanquantile(replicates, (0.025, 0.975), method="nearest")  # some may be infinite
    return Estimate(float(value), float(low), float(high))
