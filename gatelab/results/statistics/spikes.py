"""Spike scores of a series, and when a series first leaves its band."""

import math

import numpy as np
import numpy.typing as npt

from gatelab.thresholds import MAD_SCALE, MIN_VALUES, NOISE_FLOOR

BAND = 10.0
"""Robust standard deviations from the median within which a measurement is in its band."""


LASTING = 4
"""Steps in a row out of its band after which a measurement has left it."""


def band_exit(values: npt.NDArray[np.float64], upwards: bool = False) -> tuple[int, float, float, float] | None:
    """Find where a series leaves the band of its older half, to be out in its newer one: (index, median, low, high).

    The band is the median ± 10 × 1.4826 × the median absolute deviation (at least 0.1 % of the median) of the older
    half's finite values; with `upwards` it has no lower end. A series that goes on rising or falling as it did stays
    within. It has left where 4 values in a row are out, or a run of them holds one that is not finite: that is out of
    any band. None if it does not, or if there are fewer than 32 values.
    """
    half = len(values) // 2
    older = values[:half][np.isfinite(values[:half])]
    if len(values) < MIN_VALUES or not len(older):
        return None
    usual = float(np.median(older))
    reach = BAND * max(MAD_SCALE * float(np.median(np.abs(older - usual))), NOISE_FLOOR * abs(usual))
    low, high = (-math.inf if upwards else usual - reach), usual + reach
    finite = np.isfinite(values)
    out = ~finite | (values > high) | (values < low)
    begin = half
    while begin and out[begin] and out[begin - 1]:  # it may have left earlier
        begin -= 1
    while begin < len(values):
        if not out[begin]:
            begin += 1
            continue
        within = np.flatnonzero(~out[begin:])
        end = begin + int(within[0]) if len(within) else len(values)
        if end - begin >= LASTING or not finite[begin:end].all():
            return begin, usual, low, high
        begin = end
    return None


Series = npt.NDArray[np.float64]


WINDOW = 1000
"""Values before one that OLMo 2's score judges it by."""


THRESHOLD = 7.0
"""Standard deviations from their mean at which it is a spike."""


CHUNK = 4096  # windows in memory at a time


def spike_score(values: Series) -> float:
    """Return OLMo 2's spike score (arXiv 2501.00656, section 3.1): the percentage of values that are at least 7
    standard deviations away from the mean of the last 1,000.

    The mean is taken over the last 1,000 finite values before each, or over all of them while there are 32 or more;
    before that no value is a spike. Values that are not finite are no spikes, count among all and enter no window. nan
    if there are no values.
    """
    if not len(values):
        return math.nan
    return 100.0 * float(_spikes(values[np.isfinite(values)]).sum()) / len(values)


def _spikes(values: Series) -> npt.NDArray[np.bool_]:
    """Mark the values, all finite, that are spikes."""
    means, deviations = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for end in _suspects(values[:WINDOW]):
        means[end], deviations[end] = values[:end].mean(), values[:end].std()
    if len(values) > WINDOW:
        # Sums that are carried along would lose all precision at the first huge value.
        windows = np.lib.stride_tricks.sliding_window_view(values, WINDOW)[:-1]
        for begin in range(0, len(windows), CHUNK):
            part = slice(WINDOW + begin, WINDOW + begin + CHUNK)
            means[part] = windows[begin : begin + CHUNK].mean(1)
            deviations[part] = windows[begin : begin + CHUNK].std(1)
    away = np.abs(values - means)
    spikes: npt.NDArray[np.bool_] = (away >= THRESHOLD * deviations) & (away > 0)  # false where nothing is judged
    return spikes


def _suspects(values: Series) -> npt.NDArray[np.intp]:
    """Return the places of values that may be spikes among all before them; the windows of all others need no check."""
    ends = np.arange(MIN_VALUES, len(values))
    if not len(ends):
        return ends
    offsets = values - np.median(values)
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.cumsum(offsets)[ends - 1] / ends
        squares = np.cumsum(offsets**2)[ends - 1] / ends
        variances = squares - means**2
        near = np.abs(offsets[ends] - means) < 0.9 * THRESHOLD * np.sqrt(np.maximum(variances, 0))
        exact = variances > 1e-9 * squares  # else rounding may have left nothing of it; neither if it is not a number
    return ends[~(near & exact)]
