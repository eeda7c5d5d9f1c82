"""What the recorded metrics are: their units, their directions, and which of them tables and MLflow show.

docs/diagnostics.md and docs/results.md define each one.
"""

import fnmatch
import functools
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A kind of metric."""

    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    """Which way is better; '': neither by itself, as a share of attention."""
    logarithmic: bool = False
    """Whether plots show it on a logarithmic axis."""


NATS, BITS, SPEED = Measure("nats/token", "lower"), Measure("bits/byte", "lower"), Measure("tokens/s", "higher")


SHARE, COUNT, SIZE = Measure("share"), Measure("", "lower"), Measure("", "", logarithmic=True)


MEASURES: dict[str, Measure] = {
    # Pattern of a name -> what it is; the first that fits holds.
    "*bits_per_byte*": BITS,
    "validation/*": NATS,
    "train/loss": NATS,
    "train/final_loss": NATS,
    "train/initial_loss": Measure("nats/token"),
    "train/*tokens_per_second": SPEED,
    "train/seconds": Measure("s", "lower"),
    "train/*_spikes": COUNT,
    "train/*_steps": COUNT,
    "memory/peak_bytes": Measure("bytes", "lower"),
    "system/*_percentage": Measure("%"),
    "system/*_megabytes": Measure("MB"),
    "system/*_watts": Measure("W"),
    "attention/entropy*": Measure("nats"),
    "attention/max_logit": SIZE,
    "attention/logit_bound": SIZE,
    "attention/sequence_length": Measure("tokens"),
    "attention/*": SHARE,
    "activation/*": SIZE,
    "sdpa*/mean_abs": SIZE,
    "*/below_*": SHARE,
    "*_norm/*": SIZE,
    "length/*": NATS,
    "retrieval/*/accuracy": Measure("share", "higher"),
    "retrieval/*/gain": Measure("nats/token", "higher"),
    "retrieval/*/loss": NATS,
}


PER_STEP = ("train/loss", "train/gradient_norm", "train/learning_rate", "train/tokens_per_second")
"""Metrics of the whole model that no single number sums up."""


SYSTEM = "system/"
"""Begins the names of what a trial's machine was doing, sampled now and then: no single number sums it up either."""


OF_LAYERS = (
    "gradient_norm",
    "attention/first_token_share",
    "attention/max_logit",
    "activation/ffn_residual",
    "gate/*/mean",
)
"""Metrics of a layer that MLflow gets. Journals and Parquet have all; its pages would be lost in them."""


def measure(name: str) -> Measure:
    """What a metric is; one without a unit or a direction where nothing is known of it."""
    return next((kind for pattern, kind in MEASURES.items() if fnmatch.fnmatchcase(name, pattern)), Measure())


def with_unit(name: str) -> str:
    """A metric and its unit, for the head of a column or the side of a plot."""
    unit = measure(name).unit
    return f"{name} [{unit}]" if unit else name


def sums_up(name: str) -> bool:
    """Whether a metric of the whole model is one number for each trial: a column of `runs`."""
    return name not in PER_STEP and not name.startswith(SYSTEM) and not _is_detail(name)


@functools.cache
def is_mirrored(name: str, layer: int | None) -> bool:
    """Whether MLflow gets a metric."""
    if layer is None:
        return not _is_detail(name)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in OF_LAYERS)


def _is_detail(name: str) -> bool:
    """Whether a metric is a point of a curve or a bar of a histogram, which plots show as a whole."""
    return "/position/" in name or name.startswith("histogram/")
