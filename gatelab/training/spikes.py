"""Spikes of a series, counted as it comes: robustly, and with non-finite values as a class of their own.

A value is a spike where it exceeds the median of the last 128 values that were none by more than 6 robust standard
deviations (1.4826 x the median absolute deviation). Medians are not moved by the spikes themselves, as a mean and a
standard deviation are; and a comparison with NaN, which is always false, hides nothing: non-finite values are counted
apart and enter no window.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from gatelab.thresholds import MAD_SCALE, MIN_VALUES, NOISE_FLOOR

WINDOW = 128
THRESHOLD = 6.0


class SpikeCounter:
    """Counts the spikes of one series."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {"window": [], "spikes": 0, "spike_steps": 0, "nonfinite_steps": 0, "run": 0}
        self._window: deque[float] = deque(state["window"], maxlen=WINDOW)
        self.spikes: int = state["spikes"]
        """Spikes: runs of consecutive values above the bound."""
        self.spike_steps: int = state["spike_steps"]
        """Values above the bound."""
        self.nonfinite_steps: int = state["nonfinite_steps"]
        """Values that were not finite."""
        self._run: int = state["run"]  # values above the bound, up to now

    def state(self) -> dict[str, Any]:
        """Return what a counter that goes on from here is made from, as JSON."""
        return {
            "window": list(self._window),
            "spikes": self.spikes,
            "spike_steps": self.spike_steps,
            "nonfinite_steps": self.nonfinite_steps,
            "run": self._run,
        }

    def count(self, values: Iterable[float]) -> None:
        """Count what comes next."""
        for value in values:
            self._count(value)

    def _count(self, value: float) -> None:
        if not np.isfinite(value):
            self.nonfinite_steps += 1
        elif value > self._bound():
            self.spike_steps += 1
            self.spikes += self._run == 0
            self._run += 1
            if self._run == WINDOW:  # no spike any more, but the new level: judge by it
                self._window.clear()
                self._run = 0
        else:
            self._window.append(value)
            self._run = 0

    def _bound(self) -> float:
        if len(self._window) < MIN_VALUES:
            return float("inf")
        window = np.array(self._window)
        median = np.median(window)
        deviation = MAD_SCALE * np.median(np.abs(window - median))
        return float(median + THRESHOLD * max(deviation, NOISE_FLOOR * abs(median)))
