"""Statistics of few seeds: intervals, exact tests, many variants against one baseline, equivalence, power.

Seeds are blocks: at the same seed two variants share the order of their data and the initial weights that both have, so
that what is tested are differences at equal seeds. Student's t holds its level at few seeds where a bootstrap does not.
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv, gammaln, nctdtr, ndtr, stdtr, stdtrit  # scipy.stats takes long to import

Floats = npt.NDArray[np.float64]
Alternative = Literal["two-sided", "less", "greater"]

LEVEL = 0.05
"""Of a test of a table, where a study does not say another."""
POWER = 0.8
"""With which a smallest detectable effect is detected."""
EXACT = 32
"""Most pairs whose sign flips are all tried; of more, `RESAMPLES` are drawn."""
RESAMPLES = 100_000
SIMULATED = 2_000
"""Samples in a simulated power."""
ROUNDING = 1e-12
"""Of a value: differences below it are rounding."""


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
        """The two-sided interval at 1 - level."""
        half = float(stdtrit(self.df, 1 - level / 2)) * self.error if self.df > 0 else math.nan
        return Interval(self.value, self.value - half, self.value + half, self.n)

    def p(self, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
        """The p-value of Student's t-test against a mean of `null`; nan with fewer than two values, or if all are one:
        without scatter there is nothing to test against."""
        if not self.df > 0 or not self.error > 0 or not math.isfinite(self.value):
            return math.nan
        t = (self.value - null) / self.error
        if alternative == "two-sided":
            return 2 * float(stdtr(self.df, -abs(t)))
        return float(stdtr(self.df, t if alternative == "less" else -t))


def mean_of(values: Sequence[float], scale: float = 0.0) -> Mean:
    """The mean of a sample; of differences, `scale` is the size of the values that they are of."""
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
    """Mean of a sample and its two-sided 95 % interval by Student's t."""
    return mean_of(values).interval()


def equivalence_p(mean: Mean, margin: float) -> float:
    """The p-value of two one-sided t-tests (TOST): whether a mean lies within -margin and margin."""
    return max(mean.p(-margin, "greater"), mean.p(margin, "less"))


def sign_flip_p(differences: Sequence[float], null: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """The p-value of the sign-flip test: how often the sum is as extreme if each difference had either sign.

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
    """The sums of values with either sign, for all choices of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def smallest_sign_flip_p(n: int, alternative: Alternative = "two-sided") -> float:
    """The smallest p-value that a sign-flip test of n differences can have: with 5 or fewer none is below 0.05."""
    return min(1.0, (2.0 if alternative == "two-sided" else 1.0) * 0.5**n)


def detection_power(effect: float, sd: float, n: int, level: float = LEVEL, sides: int = 2) -> float:
    """The power of a paired t-test of n differences with a standard deviation, by the noncentral t distribution."""
    if n < 2:
        return math.nan
    if sd == 0:
        return 1.0 if effect else level
    critical, shift = float(stdtrit(n - 1, 1 - level / sides)), abs(effect) / sd * math.sqrt(n)
    return 1 - _below(critical, n - 1, shift) + (_below(-critical, n - 1, shift) if sides == 2 else 0.0)


def _below(t: float, df: float, shift: float) -> float:
    """The probability that a noncentral t is below a statistic, which is no larger than about its shift."""
    probability = float(nctdtr(df, shift, t))
    return 0.0 if math.isnan(probability) and math.isfinite(shift) else probability  # so small that SciPy gives up


def dunnett_power(shift: float, comparisons: int, df: float, correlation: float = 0.5, level: float = LEVEL) -> float:
    """The power of a one-sided Dunnett test of a true difference of `shift` standard errors; see `dunnett_p`."""
    return 1 - _below(dunnett_critical(level, comparisons, df, correlation), df, shift)


def sign_flip_power(effect: float, sd: float, n: int, level: float = LEVEL) -> float:
    """The power of a one-sided sign-flip test of n normal differences: simulated (seeded) up to 10 of them, where it is
    well below the t-test's; of more, the t-test's."""
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
    """The power of two one-sided t-tests of n differences whose true mean is 0.

    An integral over the sample's standard deviation, given which the mean is normal. `df` and `critical` are those of
    another test of the mean than the t-test of the differences.
    """
    if n < 2:
        return math.nan
    if sd == 0:
        return 1.0
    df = n - 1 if df is None else df
    critical = float(stdtrit(df, 1 - level)) if critical is None else critical
    spread, weights = _spreads(df)  # of the sample's standard deviation, in units of the true one
    room = margin / sd * math.sqrt(n) - critical * spread
    return float(weights @ np.where(room > 0, 2 * ndtr(np.maximum(room, 0)) - 1, 0.0))


def smallest_with_power(power_of: Callable[[float], float], power: float = POWER) -> float:
    """The smallest effect with a power, of a function that grows with it from less than that at 0 to 1."""
    from scipy.optimize import brentq

    high = 1.0
    while power_of(high) < power:
        high *= 2
    return float(brentq(lambda effect: power_of(effect) - power, 0, high, xtol=1e-6))


def equivalence_margin(sd: float, n: int, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest margin within which two one-sided t-tests of n differences place a true 0 with a power; nan below
    two."""
    if n < 2 or not math.isfinite(sd):
        return math.nan
    return sd * smallest_with_power(lambda margin: equivalence_power(1.0, n, margin, level), power)


def detectable(sd: float, n: int, level: float = LEVEL, sides: int = 2, power: float = POWER) -> float:
    """The smallest true difference that a paired t-test of n differences detects with a power; nan below two."""
    if n < 2 or not math.isfinite(sd):
        return math.nan
    return sd * smallest_with_power(lambda effect: detection_power(effect, 1.0, n, level, sides), power)


def seeds_needed(
    ratio: float, level: float = LEVEL, sides: int = 2, power: float = POWER, most: int = 1_000
) -> int | None:
    """The seeds that a paired t-test needs to detect a difference of `ratio` standard deviations of differences; None
    if they are more than `most`."""
    return next((n for n in range(2, most + 1) if detection_power(ratio, 1.0, n, level, sides) >= power), None)


@dataclass(frozen=True)
class Noise:
    """How a metric scatters over seeds in variants that are compared with one baseline: a randomised block design."""

    error: float
    """Variance that seeds have beyond what all variants share: the mean square of variants x seeds."""
    shared: float
    """Variance of what all variants share at a seed."""
    df: int
    """Degrees of freedom of the error."""
    seeds: tuple[int, ...]
    """That all have finished."""
    variants: tuple[str, ...]
    """Of which it is, the baseline first."""

    @property
    def sd(self) -> float:
        """Standard deviation of a paired difference."""
        return math.sqrt(2 * self.error)

    @property
    def sd_of_seeds(self) -> float:
        """Standard deviation over seeds of one variant."""
        return math.sqrt(self.error + self.shared)

    @property
    def correlation(self) -> float:
        """Of two variants over seeds: what pairing is worth."""
        whole = self.error + self.shared
        return self.shared / whole if whole else 0.0

    @property
    def gain(self) -> float:
        """How many times as many seeds an unpaired comparison would need: 1 / (1 - correlation)."""
        return pairing_gain(self.correlation)

    def variance(self, n: int, n_baseline: int) -> float:
        """Of the estimated difference of a variant with n seeds to a baseline that has these and others."""
        return 2 * self.error / n * variance_share(self.correlation, n, n_baseline)

    def dunnett_p(self, difference: float, n_baseline: int, alternative: Alternative = "two-sided") -> float:
        """The p-value of a variant's difference, allowing for all variants that are compared with the baseline."""
        n, family = len(self.seeds), len(self.variants) - 1
        if not self.error:
            return math.nan
        t = difference / math.sqrt(self.variance(n, n_baseline))
        shared = correlation_of_differences(self.correlation, n, n_baseline)
        return dunnett_p(t, family, self.df, shared, alternative)


def pairing_gain(correlation: float) -> float:
    """How many times as many seeds an unpaired comparison would need, by the correlation over seeds."""
    return 1 / (1 - correlation) if correlation != 1 else math.inf


def correlation_of_differences(correlation: float, n: int, n_baseline: int) -> float:
    """Of the differences of two variants with n seeds to a baseline that has these and others: they share it."""
    own, extra = correlation / n, (1 - correlation) / n_baseline
    return (own + extra) / (1 / n + own + extra)


def variance_share(correlation: float, n: int, n_baseline: int) -> float:
    """The variance of a difference with a baseline's further seeds, over that of the n pairs alone."""
    return ((1 + correlation) + (1 - correlation) * n / n_baseline) / 2


def noise_of(values: Mapping[str, Mapping[int, float]], baseline: str) -> Noise | None:
    """The noise of variants and their baseline, from variant -> seed -> value; None with fewer than two common seeds.

    Variants with fewer than two seeds of the baseline are left out, and those with a value that is not a number; of the
    others, the seeds that all have count. Where these are fewer than two, the variants with the fewest seeds are left
    out, too.
    """
    base = {seed: value for seed, value in values.get(baseline, {}).items() if math.isfinite(value)}
    shared = {
        name: own.keys() & base.keys()
        for name, own in values.items()
        if name != baseline and all(map(math.isfinite, own.values()))
    }
    others = sorted((name for name in shared if len(shared[name]) > 1), key=lambda name: -len(shared[name]))
    while others and len(set.intersection(*(set(shared[name]) for name in others))) < 2:
        others.pop()
    if not others:
        return None
    variants = (baseline, *(name for name in values if name in others))
    seeds = sorted(set.intersection(*(set(shared[name]) for name in others)))
    table = np.array([[values[name][seed] for seed in seeds] for name in variants])
    k, n = table.shape
    centred = table - table.mean()
    rows, columns = centred.mean(axis=1, keepdims=True), centred.mean(axis=0, keepdims=True)
    df = (k - 1) * (n - 1)
    error = float(((centred - rows - columns) ** 2).sum()) / df
    if error <= (ROUNDING * float(np.abs(table).max())) ** 2:
        error = 0.0
    between = k * float((columns**2).sum()) / (n - 1)
    return Noise(error, max(0.0, (between - error) / k), df, tuple(seeds), variants)


def augmented_difference(own: Mapping[int, float], base: Mapping[int, float], correlation: float) -> Mean:
    """The difference of a variant to a baseline that has more seeds than it: pairs, and what the others add.

    With r the correlation over seeds, the estimate is the mean over pairs of (variant - r x baseline), less (1 - r)
    times the baseline's mean over all of its seeds. Both parts are uncorrelated, so that Welch's interval holds; r = 1
    gives the paired difference, r = 0 the unpaired one.
    """
    pairs = sorted(own.keys() & base.keys())
    paired = mean_of([own[seed] - correlation * base[seed] for seed in pairs])
    whole = mean_of([(1 - correlation) * value for value in base.values()])
    variance = paired.error**2 + whole.error**2
    if not variance > 0:
        return Mean(paired.value - whole.value, math.sqrt(variance), paired.df, len(pairs))
    df = variance**2 / (paired.error**4 / paired.df + whole.error**4 / whole.df)
    return Mean(paired.value - whole.value, math.sqrt(variance), df, len(pairs))


def dunnett_p(
    t: float, comparisons: int, df: float, correlation: float = 0.5, alternative: Alternative = "two-sided"
) -> float:
    """The p-value of one of several comparisons with a baseline, allowing for all of them (Dunnett 1955).

    Args:
        t: the difference over its standard error, which is pooled over the comparisons.
        comparisons: how many variants are compared with the baseline.
        df: degrees of freedom of the pooled variance.
        correlation: of two differences; 0.5 where the baseline has as many seeds as each variant.
        alternative: which differences count as extreme.

    1 - P(all |T| < t) for equally correlated T: an integral over what they share (normal) and over their variance
    (chi), with errors below 1e-6.
    """
    if math.isnan(t):
        return math.nan
    spread, weights = _spreads(df)
    normal, mass = _nodes(-8, 8, 96)
    mass = mass * np.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi)
    own = math.sqrt(1 - correlation)

    def below(limit: float) -> Floats:
        shifted = limit * spread[:, None] + math.sqrt(correlation) * normal
        return np.asarray(ndtr(shifted / own), np.float64)

    extreme = {"two-sided": abs(t), "less": -t, "greater": t}[alternative]
    inside = below(extreme) - (below(-extreme) if alternative == "two-sided" else 0.0)
    return float(np.clip(1 - weights @ (inside**comparisons @ mass), 0.0, 1.0))


@functools.cache
def dunnett_critical(level: float, comparisons: int, df: float, correlation: float = 0.5) -> float:
    """The statistic at which the one-sided p of `dunnett_p` is a level."""
    from scipy.optimize import brentq

    def excess(t: float) -> float:
        return dunnett_p(t, comparisons, df, correlation, "greater") - level

    return float(brentq(excess, 0, 2 * float(stdtrit(df, 1 - level / comparisons)) + 1))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """The q-value of each p-value: the share of false discoveries among those as small. Those that are nan stay so."""
    from scipy.stats import false_discovery_control

    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    found = [math.nan] * len(p_values)
    if known:
        adjusted = false_discovery_control([p_values[index] for index in known])
        for index, q in zip(known, adjusted, strict=True):
            found[index] = float(q)
    return found


def unequal_variances_p(samples: Collection[Sequence[float]]) -> float:
    """The p-value of Bartlett's test that samples have one variance; nan where it cannot be asked."""
    from scipy.stats import bartlett

    usable = [sample for sample in samples if len(sample) > 1 and np.isfinite(sample).all() and np.ptp(sample) > 0]
    return float(bartlett(*usable).pvalue) if len(usable) > 1 else math.nan


@functools.cache
def _spreads(df: float) -> tuple[Floats, Floats]:
    """Standard deviations of samples over the true one, and the weights of an expectation over them."""
    low, high = (math.sqrt(2 / df * float(gammaincinv(df / 2, share))) for share in (1e-12, 1 - 1e-12))
    nodes, weights = _nodes(low, high, 96)
    # The density of a chi distribution of so many degrees of freedom over their root.
    log_density = (df - 1) * np.log(nodes) - df * nodes**2 / 2 + df / 2 * math.log(df / 2) - gammaln(df / 2)
    return nodes, weights * 2 * np.exp(log_density)


@functools.cache  # finding them takes ten times as long as the integral
def _legendre(count: int) -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(count)


def _nodes(low: float, high: float, count: int) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights of an integral."""
    nodes, weights = _legendre(count)
    return (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2 * weights
