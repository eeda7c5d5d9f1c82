"""What the recorded metrics are: their units, their directions, and which of them tables and MLflow show.

docs/diagnostics.md and docs/results.md define each one.
"""

import fnmatch
import functools

from gatelab.metrics import BITS, NATS, SHARE, SIZE, SPEED, MetricSpec, find_spec

COUNT = MetricSpec("", "lower")

MEASURES: dict[str, MetricSpec] = {
    # Pattern of a name -> what it is; the first that fits holds.
    "*bits_per_byte*": BITS,
    "validation/*": NATS,
    "train/loss": NATS,
    "train/final_loss": NATS,
    "train/initial_loss": MetricSpec("nats/token"),
    "train/*tokens_per_second": SPEED,
    "train/seconds": MetricSpec("s", "lower"),
    "train/*_spikes": COUNT,
    "train/*_steps": COUNT,
    "memory/peak_bytes": MetricSpec("bytes", "lower"),
    "system/*_percentage": MetricSpec("%"),
    "system/*_megabytes": MetricSpec("MB"),
    "system/*_watts": MetricSpec("W"),
    "attention/entropy*": MetricSpec("nats"),
    "attention/max_logit": SIZE,
    "attention/logit_bound": SIZE,
    "attention/sequence_length": MetricSpec("tokens"),
    "attention/*": SHARE,
    "activation/*": SIZE,
    "sdpa*/mean_abs": SIZE,
    "*/below_*": SHARE,
    "*_norm/*": SIZE,
    "length/*": NATS,
    "retrieval/*/accuracy": MetricSpec("share", "higher"),
    "retrieval/*/gain": MetricSpec("nats/token", "higher"),
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


def measure(name: str) -> MetricSpec:
    """Return unit, direction and axis of a metric; none of them where nothing is known of it."""
    return find_spec(name, MEASURES)


def with_unit(name: str) -> str:
    """Return a metric and its unit, for the head of a column or the side of a plot."""
    unit = measure(name).unit
    return f"{name} [{unit}]" if unit else name


def sums_up(name: str) -> bool:
    """True if a metric of the whole model is one number for each trial: a column of `runs`."""
    return name not in PER_STEP and not name.startswith(SYSTEM) and not _is_detail(name)


@functools.cache
def is_mirrored(name: str, layer: int | None) -> bool:
    """True if MLflow gets a metric."""
    if layer is None:
        return not _is_detail(name)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in OF_LAYERS)


def _is_detail(name: str) -> bool:
    """True if a metric is a point of a curve or a bar of a histogram, which plots show as a whole."""
    return "/position/" in name or name.startswith("histogram/")
