"""Dunnett's test by quadrature, for blocked designs and baselines with seeds of their own."""

import functools
import math

import numpy as np
from scipy.special import gammaincinv, gammaln, ndtr, stdtrit  # scipy.stats takes long to import

from gatelab.results.statistics.paired import Alternative, Floats


def dunnett_p(
    t: float, comparisons: int, df: float, correlation: float = 0.5, alternative: Alternative = "two-sided"
) -> float:
    """Return the p-value of one of several comparisons with a baseline, allowing for all of them (Dunnett 1955).

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
    spread, weights = spreads(df)
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
    """Return the statistic at which the one-sided p of `dunnett_p` equals `level`."""
    from scipy.optimize import brentq

    def excess(t: float) -> float:
        return dunnett_p(t, comparisons, df, correlation, "greater") - level

    return float(brentq(excess, 0, 2 * float(stdtrit(df, 1 - level / comparisons)) + 1))


@functools.cache
def spreads(df: float) -> tuple[Floats, Floats]:
    """Return standard deviations of samples over the true one, and the weights of an expectation over them."""
    low, high = (math.sqrt(2 / df * float(gammaincinv(df / 2, share))) for share in (1e-12, 1 - 1e-12))
    nodes, weights = _nodes(low, high, 96)
    # The density of a chi distribution of so many degrees of freedom over their root.
    log_density = (df - 1) * np.log(nodes) - df * nodes**2 / 2 + df / 2 * math.log(df / 2) - gammaln(df / 2)
    return nodes, weights * 2 * np.exp(log_density)


@functools.cache  # finding them takes ten times as long as the integral
def _legendre(count: int) -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(count)


def _nodes(low: float, high: float, count: int) -> tuple[Floats, Floats]:
    """Return Gauss-Legendre nodes and weights of an integral."""
    nodes, weights = _legendre(count)
    return (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2 * weights
