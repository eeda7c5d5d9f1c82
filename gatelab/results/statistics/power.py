"""Power of the tests: which differences so many seeds detect, and how many a difference needs."""

import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.special import nctdtr, ndtr, stdtrit  # scipy.stats takes long to import

from gatelab.results.statistics.dunnett import dunnett_critical, spreads
from gatelab.results.statistics.paired import LEVEL, ROUNDING, smallest_sign_flip_p

POWER = 0.8
"""Power at which a smallest detectable effect is detected."""


SIMULATED = 2_000
"""Samples in a simulated power."""


def detection_power(effect: float, sd: float, n: int, level: float = LEVEL, sides: int = 2) -> float:
    """Return the power of a paired t-test of n differences, by the noncentral t distribution."""
    if n < 2:
        return math.nan
    if sd == 0:
        return 1.0 if effect else level
    critical, shift = float(stdtrit(n - 1, 1 - level / sides)), abs(effect) / sd * math.sqrt(n)
    return 1 - _below(critical, n - 1, shift) + (_below(-critical, n - 1, shift) if sides == 2 else 0.0)


def _below(t: float, df: float, shift: float) -> float:
    """Return the probability that a noncentral t is below a statistic, which is no larger than about its shift."""
    probability = float(nctdtr(df, shift, t))
    return 0.0 if math.isnan(probability) and math.isfinite(shift) else probability  # so small that SciPy gives up


def dunnett_power(shift: float, comparisons: int, df: float, correlation: float = 0.5, level: float = LEVEL) -> float:
    """Return the power of a one-sided Dunnett test of a true difference of `shift` standard errors; see `dunnett_p`."""
    return 1 - _below(dunnett_critical(level, comparisons, df, correlation), df, shift)


def sign_flip_power(effect: float, sd: float, n: int, level: float = LEVEL) -> float:
    """Return the power of a one-sided sign-flip test of n normal differences. Up to n = 10 it is simulated (seeded), as
    it is well below the t-test's there; beyond, it is the t-test's.
    """
    if n > 10:
        return detection_power(effect, sd, n, level, sides=1)
    if smallest_sign_flip_p(n, "less") > level:
        return 0.0
    samples = np.random.default_rng(0).normal(effect, sd, (n, SIMULATED))
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    shares = np.mean(signs @ samples >= samples.sum(axis=0) - ROUNDING * np.abs(samples).sum(axis=0), axis=0)
    return float(np.mean(shares <= level))


def equivalence_power(
    sd: float, n: int, margin: float, level: float = LEVEL, df: float | None = None, critical: float | None = None
) -> float:
    """Return the power of two one-sided t-tests of n differences whose true mean is 0.

    Integrate over the sample's standard deviation, given which the mean is normal. `df` and `critical` are those of
    another test of the mean than the t-test of the differences.
    """
    if n < 2:
        return math.nan
    if sd == 0:
        return 1.0
    df = n - 1 if df is None else df
    critical = float(stdtrit(df, 1 - level)) if critical is None else critical
    spread, weights = spreads(df)  # of the sample's standard deviation, in units of the true one
    room = margin / sd * math.sqrt(n) - critical * spread
    return float(weights @ np.where(room > 0, 2 * ndtr(np.maximum(room, 0)) - 1, 0.0))


def smallest_with_power(power_of: Callable[[float], float], power: float = POWER) -> float:
    """Return the smallest effect that reaches a power. `power_of` grows with the effect, from less than that power at 0
    to 1.
    """
    from scipy.optimize import brentq

    high = 1.0
    while power_of(high) < power:
        high *= 2
    return float(brentq(lambda effect: power_of(effect) - power, 0, high, xtol=1e-6))


def equivalence_margin(sd: float, n: int, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest margin within which two one-sided t-tests of n differences place a true 0 with a power.

    nan below two differences.
    """
    if n < 2 or not math.isfinite(sd):
        return math.nan
    return sd * smallest_with_power(lambda margin: equivalence_power(1.0, n, margin, level), power)


def detectable(sd: float, n: int, level: float = LEVEL, sides: int = 2, power: float = POWER) -> float:
    """Return the smallest true difference that a paired t-test of n differences detects with a power; nan below two."""
    if n < 2 or not math.isfinite(sd):
        return math.nan
    return sd * smallest_with_power(lambda effect: detection_power(effect, 1.0, n, level, sides), power)


def seeds_needed(
    ratio: float, level: float = LEVEL, sides: int = 2, power: float = POWER, most: int = 1_000
) -> int | None:
    """Return the seeds that a paired t-test needs to detect a difference of `ratio` standard deviations of differences;
    None if they are more than `most`.
    """
    return next((n for n in range(2, most + 1) if detection_power(ratio, 1.0, n, level, sides) >= power), None)
