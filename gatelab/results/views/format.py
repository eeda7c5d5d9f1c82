"""How numbers are written in tables and sentences: means, differences, intervals, p-values."""

import math

from gatelab.metrics import MetricSpec
from gatelab.results.statistics.paired import Interval

DASH = "–"
"""Stands where there is no number."""


def level(name: str | None) -> str:
    """Write the level of an axis: a dash for None, where the axis makes no difference; an empty name in quotes."""
    return DASH if name is None else name or '""'


def unit_of(spec: MetricSpec) -> str:
    """Write the unit of a metric as it follows a name: ' [nats/token]', or nothing where it has none."""
    return f" [{spec.unit}]" if spec.unit else ""


def with_unit(name: str, spec: MetricSpec) -> str:
    """Write a metric and its unit, for the head of a column or the side of a plot."""
    return f"{name}{unit_of(spec)}"


def number(value: float) -> str:
    """Write a mean: four decimals, or a whole number where it is large."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:,.0f}"


def or_dash(value: float, form: str) -> str:
    """Format a number; a dash where it is not finite."""
    return f"{value:{form}}" if math.isfinite(value) else DASH


def p(value: float) -> str:
    """Write a p-value: 0.032, <0.001, – if there is none; one that rounding would put on the other side of 0.05 in
    full."""
    if math.isnan(value) or value < 0.001:
        return DASH if math.isnan(value) else "<0.001"
    return f"{value:.3f}" if (value <= 0.05) == (round(value, 3) <= 0.05) else f"{math.ceil(value * 1e4) / 1e4:.4f}"


def delta(difference: Interval | None, form: str = "+.4f") -> str:
    """Write the mean of paired differences; a dash where there are none."""
    return DASH if difference is None or math.isnan(difference.mean) else f"{difference.mean:{form}}"


def interval(difference: Interval | None, form: str = "+.4f") -> str:
    """Write the interval of a mean; a dash where fewer than two values give none."""
    return DASH if difference is None or difference.n < 2 else bounds(difference.low, difference.high, form)


def bounds(low: float, high: float, form: str) -> str:
    """Write both ends of an interval: [low, high]."""
    return f"[{low:{form}}, {high:{form}}]"


def seeds(finished: int, outcomes: dict[str, int]) -> str:
    """Write how many seeds a mean is over: '3', or '2 + 1 diverged' where not all finished."""
    others = [f"{count} {name}" for name, count in outcomes.items() if name != "finished"]
    return " + ".join([str(finished), *others])


def signed(value: float) -> str:
    """Write a difference in a sentence, with a minus sign that is not a hyphen."""
    return f"{value:+.4f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Write a time: 5 s, 3 min 20 s, 2 h 05 min, 3.2 days; a dash for None."""
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{seconds / 86400:.1f} days"


def quantity(value: float, unit: str = "") -> str:
    """Write a large number: 1.23 k, 4.56 M, … with a unit."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {suffix}{unit}"
    return f"{value:.3g} {unit}".strip()
