"""Curves over steps: their means in bins, their extremes, each seed's own, paired differences."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Curve = tuple[npt.NDArray[Any], npt.NDArray[np.float64]]
"""Abscissae, ascending, and values."""


SPANS = 200
"""Points of a line over training: one that has more is thinned."""


def bin_means(curve: Curve, last: int) -> Curve:
    """Average a curve over spans of steps, `SPANS` up to step `last`, if it has more points than spans.

    A span that the curve has not finished is left out: curves that went on have more of it.
    """
    steps, values = curve
    span, last = max(1, math.ceil(last / SPANS)), max(last, int(steps[-1]))  # a trial may go on while it is read
    if len(steps) <= math.ceil(steps[-1] / span):
        return curve
    index = (steps - 1) // span
    counts = np.bincount(index)
    ends = np.minimum((np.flatnonzero(counts) + 1) * span, last)
    means = np.bincount(index, values)[counts > 0] / counts[counts > 0]
    over = ends <= steps[-1]
    return ends[over], means[over]


def bin_maxima(curve: Curve) -> Curve:
    """Return a curve of more than `SPANS` points as the largest of each span of steps, at the span's first step.

    What a mean would hide is what matters where a curve is looked at for its peaks. Spans begin at the same steps for
    all curves of one length, whatever a curve holds of them.
    """
    steps, values = curve
    if len(steps) <= SPANS:
        return curve
    span = math.ceil(int(steps[-1]) / SPANS)
    starts = np.flatnonzero(np.diff((steps - 1) // span, prepend=-1))
    return (steps[starts] - 1) // span * span + 1, np.maximum.reduceat(values, starts)


def extremes(curve: Curve, spans: int = SPANS) -> npt.NDArray[np.intp]:
    """Choose the points of a curve over steps that keep every extreme, ascending: of each of so many spans of its
    steps the lowest, the highest and the last value and the first that is not finite. All, if there are no more points
    than spans.
    """
    steps, values = curve
    places = np.arange(len(steps))
    if len(steps) <= spans:
        return places
    of_span = (steps - 1) // math.ceil(steps[-1] / spans)
    finite = np.isfinite(values)
    ordered = places[finite][np.lexsort((values[finite], of_span[finite]))]

    def first_of_spans(grouped: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return grouped[np.flatnonzero(np.diff(of_span[grouped], prepend=-2))]

    grouped = (ordered, ordered[::-1], places[::-1], places[~finite])
    return np.unique(np.concatenate([first_of_spans(each) for each in grouped]))


def differences_to_baselines(
    curves: dict[str, dict[int, Curve]], baselines: Mapping[str, str | None]
) -> dict[str, dict[int, Curve]]:
    """Return the paired differences of curves, for each variant that is compared with another."""
    return {
        variant: _paired_differences(curves[variant], curves[baseline])
        for variant, baseline in baselines.items()
        if baseline in curves and baseline != variant
    }


def _paired_differences(own: Mapping[int, Curve], baseline: Mapping[int, Curve]) -> dict[int, Curve]:
    """Return own less the baseline's value, at the seeds and abscissae that both have."""
    paired = {}
    for seed in own.keys() & baseline.keys():
        where, mine, others = np.intersect1d(own[seed][0], baseline[seed][0], return_indices=True)
        if len(where):
            paired[seed] = (where, own[seed][1][mine] - baseline[seed][1][others])
    return paired
