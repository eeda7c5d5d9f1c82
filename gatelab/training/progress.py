"""How far a trial is, and the numbers that sum it up: what its checkpoints keep beside model and optimiser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from gatelab.metrics import MetricSpec
from gatelab.training.spikes import SpikeCounter

COUNT = MetricSpec("", "lower", kind="outcome")
SPECS = {
    "train/initial_loss": MetricSpec("nats/token", kind="outcome"),
    "train/final_loss": MetricSpec("nats/token", "lower", kind="outcome"),
    "train/mean_tokens_per_second": MetricSpec("tokens/s", "higher", kind="outcome"),
    "train/seconds": MetricSpec("s", "lower", kind="outcome"),
    "memory/peak_bytes": MetricSpec("bytes", "lower", kind="outcome"),
    "train/*_spikes": COUNT,
    "train/*_steps": COUNT,
}
"""Metrics that `Progress.summarise` measures."""


class _Counter(BaseModel):
    window: list[float]
    spikes: int
    spike_steps: int
    nonfinite_steps: int
    run: int


class _Spikes(BaseModel):
    loss: _Counter
    gradient: _Counter


class _State(BaseModel):
    """The form of what `Progress.state` returns."""

    seconds: float
    metrics: dict[str, float]
    spikes: _Spikes


@dataclass
class Progress:
    """How far a trial is."""

    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time of training, over all attempts, without evaluation and checkpoints."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics that sum the trial up so far: see `Outcome`."""
    losses: SpikeCounter = field(default_factory=SpikeCounter)
    gradients: SpikeCounter = field(default_factory=SpikeCounter)

    def summarise(self, losses: Sequence[float], tokens_per_step: int, peak_bytes: int) -> float:
        """Bring the metrics up to date after some steps, given their losses; return the mean of these.

        The mean is NaN unless all losses are finite.
        """
        mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.nan
        self.metrics.setdefault("train/initial_loss", losses[0])
        self.metrics |= {
            "train/final_loss": mean,
            "train/mean_tokens_per_second": self.step * tokens_per_step / self.seconds,
            "train/seconds": self.seconds,
            "memory/peak_bytes": float(peak_bytes),
        }
        for name, counter in self._counters().items():
            self.metrics[f"train/{name}_spikes"] = float(counter.spikes)
            self.metrics[f"train/{name}_spike_steps"] = float(counter.spike_steps)
            self.metrics[f"train/{name}_nonfinite_steps"] = float(counter.nonfinite_steps)
        return mean

    def state(self) -> dict[str, Any]:
        """Return what survives in a checkpoint, as JSON; the step is the checkpoint's own."""
        spikes = {name: counter.state() for name, counter in self._counters().items()}
        return {"seconds": self.seconds, "metrics": self.metrics, "spikes": spikes}

    @classmethod
    def restored(cls, step: int, state: dict[str, Any]) -> "Progress":
        """Make the progress that a checkpoint of `step` keeps. Raises ValueError where it keeps none."""
        _State.model_validate(state)
        spikes = {name: SpikeCounter(kept) for name, kept in state["spikes"].items()}
        return cls(step, state["seconds"], state["metrics"], spikes["loss"], spikes["gradient"])

    def _counters(self) -> dict[str, SpikeCounter]:
        return {"loss": self.losses, "gradient": self.gradients}
