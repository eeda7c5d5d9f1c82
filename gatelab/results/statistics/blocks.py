"""Noise of variants that share seeds: variance, correlation, and what pairing gains."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gatelab.results.statistics.dunnett import dunnett_p
from gatelab.results.statistics.paired import ROUNDING, Alternative, Mean, mean_of


@dataclass(frozen=True)
class Noise:
    """Noise of a metric over seeds in variants that are compared with one baseline: a randomised block design."""

    error: float
    """Variance that seeds have beyond what all variants share: the mean square of variants x seeds."""
    shared: float
    """Variance of what all variants share at a seed."""
    df: int
    """Degrees of freedom of the error."""
    seeds: tuple[int, ...]
    """Seeds that all variants have finished."""
    variants: tuple[str, ...]
    """Variants that the noise was estimated from, the baseline first."""

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
        """Correlation of two variants over seeds: the benefit of pairing."""
        whole = self.error + self.shared
        return self.shared / whole if whole else 0.0

    @property
    def gain(self) -> float:
        """Ratio of the seeds that an unpaired comparison would need to those of a paired one: 1 / (1 - correlation)."""
        return pairing_gain(self.correlation)

    def variance(self, n: int, n_baseline: int) -> float:
        """Return the variance of the difference of a variant with n seeds to a baseline that has these and others."""
        return 2 * self.error / n * variance_share(self.correlation, n, n_baseline)

    def dunnett_p(self, difference: float, n_baseline: int, alternative: Alternative = "two-sided") -> float:
        """Return the p-value of a variant's difference, allowing for all variants compared with the baseline."""
        n, family = len(self.seeds), len(self.variants) - 1
        if not self.error:
            return math.nan
        t = difference / math.sqrt(self.variance(n, n_baseline))
        shared = correlation_of_differences(self.correlation, n, n_baseline)
        return dunnett_p(t, family, self.df, shared, alternative)


def pairing_gain(correlation: float) -> float:
    """Return how many times as many seeds an unpaired comparison would need, by the correlation over seeds."""
    return 1 / (1 - correlation) if correlation != 1 else math.inf


def correlation_of_differences(correlation: float, n: int, n_baseline: int) -> float:
    """Return the correlation of two differences to one baseline.

    Each variant has n seeds; the baseline, which they share, has these and others.
    """
    own, extra = correlation / n, (1 - correlation) / n_baseline
    return (own + extra) / (1 / n + own + extra)


def variance_share(correlation: float, n: int, n_baseline: int) -> float:
    """Return the variance of a difference that uses the baseline's further seeds, over that of the n pairs alone."""
    return ((1 + correlation) + (1 - correlation) * n / n_baseline) / 2


def noise_of(values: Mapping[str, Mapping[int, float]], baseline: str) -> Noise | None:
    """Estimate noise from variant -> seed -> value, baseline included; None with fewer than two common seeds.

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
    """Estimate the difference of a variant to a baseline with more seeds, from pairs and the baseline's other seeds.

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
