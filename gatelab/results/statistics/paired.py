"""Statistics of few seeds: intervals, exact tests, many variants against one baseline, equivalence, power.

Seeds are blocks: at the same seed two variants share the order of their data and the initial weights that both have, so
that what is tested are differences at equal seeds. Student's t holds its level at few seeds where a bootstrap does not.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit  # scipy.stats takes long to import

Floats = npt.NDArray[np.float64]


Alternative = Literal["two-sided", "less", "greater"]


LEVEL = 0.05
"""Level of the tests in a table, where a study sets no other."""


EXACT = 32
"""Most pairs whose sign flips are all tried; of more, `RESAMPLES` are drawn."""


RESAMPLES = 100_000


ROUNDING = 1e-12
"""Share of a value: differences below it are rounding."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % t-interval; bounds are nan where there are fewer than two values."""

    mean: float
    low: float
    high: float
    n: int


NO_INTERVAL = Interval(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Mean:
    """A mean of few values, with the standard error and the degrees of freedom that its t-test has."""

    value: float
    error: float  # standard error; nan where there are fewer than two values
    df: float
    n: int

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the two-sided interval at 1 - level."""
        half = float(stdtrit(self.df, 1 - level / 2)) * self.error if self.df > 0 else math.nan
        return Interval(self.value, self.value - half, self.value + half, self.n)

    def p(self, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
        """Return the p-value of Student's t-test against a mean of `null`; nan with fewer than two values, or if all
        are one: without scatter there is nothing to test against.
        """
        if not self.df > 0 or not self.error > 0 or not math.isfinite(self.value):
            return math.nan
        t = (self.value - null) / self.error
        if alternative == "two-sided":
            return 2 * float(stdtr(self.df, -abs(t)))
        return float(stdtr(self.df, t if alternative == "less" else -t))


def mean_of(values: Sequence[float], scale: float = 0.0) -> Mean:
    """Return the mean of a sample. For differences, `scale` is the size of the values that they were taken from."""
    n = len(values)
    if n == 0:
        return Mean(math.nan, math.nan, 0, 0)
    with np.errstate(invalid="ignore"):  # an infinite loss has no spread
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else math.nan
    # What is left of equal values by rounding is no scatter.
    return Mean(
        mean, 0.0 if sd <= ROUNDING * max(scale, float(np.max(np.abs(values)))) else sd / math.sqrt(n), n - 1, n
    )


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean of a sample and its two-sided 95 % interval by Student's t."""
    return mean_of(values).interval()


def equivalence_p(mean: Mean, margin: float) -> float:
    """Return the p-value of two one-sided t-tests (TOST) of whether a mean lies within -margin and margin."""
    return max(mean.p(-margin, "greater"), mean.p(margin, "less"))


def sign_flip_p(differences: Sequence[float], null: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """Return the p-value of the sign-flip test: how often the sum is as extreme if each difference had either sign.

    Exact up to 32 differences; of more, 100,000 flips are drawn (seeded). nan without differences, or if one is not a
    number.
    """
    apart = np.asarray(differences, np.float64) - null
    n = len(apart)
    if n == 0 or not np.isfinite(apart).all():
        return math.nan
    seen = float(apart.sum())
    limit = {"two-sided": abs(seen), "less": -seen, "greater": seen}[alternative]
    limit -= 1e-12 * float(np.abs(apart).sum())  # sums in another order differ in the last digit
    if n > EXACT:
        signs = np.random.default_rng(0).integers(0, 2, (RESAMPLES, n)) * 2 - 1
        sums = np.append(signs @ apart, seen if alternative != "less" else -seen)  # what was seen is one of the flips
        return float(np.mean((np.abs(sums) if alternative == "two-sided" else sums) >= limit))
    # Each sum is one of half of the differences and one of the others: no need to form all 2^n. Signs may all be turned
    # round, so that as many sums lie below -limit as above limit.
    some, others = _flipped_sums(apart[: n // 2]), np.sort(_flipped_sums(apart[n // 2 :]))
    share = float((len(others) - np.searchsorted(others, limit - some)).sum()) * 0.5**n
    if alternative == "two-sided":
        return 2 * share if limit > 0 else 1.0
    return share


def _flipped_sums(values: Floats) -> Floats:
    """Return the sums of values with either sign, for all choices of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def smallest_sign_flip_p(n: int, alternative: Alternative = "two-sided") -> float:
    """Return the smallest p-value that a sign-flip test of n differences can have: never below 0.05 with 5 or fewer."""
    return min(1.0, (2.0 if alternative == "two-sided" else 1.0) * 0.5**n)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return the q-value of each p-value: the share of false discoveries among those as small. nan stays nan."""
    from scipy.stats import false_discovery_control

    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    found = [math.nan] * len(p_values)
    if known:
        adjusted = false_discovery_control([p_values[index] for index in known])
        for index, q in zip(known, adjusted, strict=True):
            found[index] = float(q)
    return found


def unequal_variances_p(samples: Collection[Sequence[float]]) -> float:
    """Return the p-value of Bartlett's test that samples have one variance; nan where it cannot be made."""
    from scipy.stats import bartlett

    usable = [sample for sample in samples if len(sample) > 1 and np.isfinite(sample).all() and np.ptp(sample) > 0]
    if len(usable) < 2:
        return math.nan
    p = float(bartlett(*usable).pvalue)
    return 1.0 if math.isnan(p) else p  # of equal variances, whose statistic rounding may leave just below 0
