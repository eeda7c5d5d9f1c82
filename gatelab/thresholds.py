"""Thresholds by which training records and results read: both must mean the same."""

HISTORY_STEPS = 256
"""Last steps of a trial whose measurements are kept, layer by layer, and recorded at a divergence or a loss spike."""
MIN_VALUES = 32
"""Values of a series before any of them is judged."""
MAD_SCALE = 1.4826
"""The standard deviation of normal values over their median absolute deviation."""
NOISE_FLOOR = 1e-3
"""The least noise of a series, as a share of its median: no series is calmer than this."""
