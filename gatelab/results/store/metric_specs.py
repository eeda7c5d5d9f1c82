"""What the metrics of a study are, as its trials recorded it: unit, direction, axis, and whether they sum a trial up.

A metric is described where it is measured, and each trial keeps that description in its trial.json. `runs` carries it
in the metadata of its schema, whichever store it is read from.
"""

import json
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from gatelab.metrics import BITS, NATS, SHARE, SIZE, MetricSpec, Specs, dump_specs, load_specs
from gatelab.results.store.records import TrialDescription

SPECS_KEY = "gatelab.metrics"
"""Key of the specs, as JSON, in the metadata of a schema."""

_COUNT = MetricSpec("", "lower", kind="outcome")
_CURVE = MetricSpec("nats/token", "lower", kind="detail")

BEFORE_SPECS: Specs = {
    "*bits_per_byte*": BITS,
    "*lost_bytes*": SHARE,
    "validation/position/*": _CURVE,
    "validation/*": NATS,
    "train/loss": MetricSpec("nats/token", "lower", kind="series"),
    "train/gradient_norm": MetricSpec(kind="series"),
    "train/learning_rate": MetricSpec(kind="series"),
    "train/tokens_per_second": MetricSpec("tokens/s", "higher", kind="series"),
    "train/final_loss": MetricSpec("nats/token", "lower", kind="outcome"),
    "train/initial_loss": MetricSpec("nats/token", kind="outcome"),
    "train/*tokens_per_second": MetricSpec("tokens/s", "higher", kind="outcome"),
    "train/seconds": MetricSpec("s", "lower", kind="outcome"),
    "train/*_spikes": _COUNT,
    "train/*_steps": _COUNT,
    "memory/peak_bytes": MetricSpec("bytes", "lower", kind="outcome"),
    "system/*_percentage": MetricSpec("%", kind="series"),
    "system/*_megabytes": MetricSpec("MB", kind="series"),
    "system/*_watts": MetricSpec("W", kind="series"),
    "attention/entropy": MetricSpec("nats", floor="attention/entropy_uniform"),
    "attention/entropy_uniform": MetricSpec("nats"),
    "attention/max_logit": MetricSpec(logarithmic=True, mirrored_by_layer=True),
    "attention/logit_bound": SIZE,
    "attention/sequence_length": MetricSpec("tokens"),
    "attention/first_token_share": MetricSpec(
        "share", mirrored_by_layer=True, floor="attention/first_token_share_uniform"
    ),
    "attention/first_token_share_late": MetricSpec("share", floor="attention/first_token_share_late_uniform"),
    "attention/first_token_share_top_head": MetricSpec("share", floor="attention/first_token_share_uniform"),
    "attention/*": SHARE,
    "activation/ffn_residual": MetricSpec(logarithmic=True, mirrored_by_layer=True),
    "activation/*": SIZE,
    "sdpa*/mean_abs": SIZE,
    "gate/*/mean": MetricSpec(mirrored_by_layer=True),
    "histogram/*": MetricSpec(kind="detail"),
    "*/below_*": SHARE,
    "gradient_norm": MetricSpec(mirrored_by_layer=True),
    "*_norm/*": SIZE,
    "length/*/position/*": _CURVE,
    "length/*": NATS,
    "retrieval/*/accuracy": MetricSpec("share", "higher"),
    "retrieval/*/gain": MetricSpec("nats/token", "higher"),
    "retrieval/*/loss": NATS,
}
"""What the metrics were in versions whose trials did not record it. Only for reading these: a new metric is described
where it is measured."""


def specs_of_trials(descriptions: Collection[TrialDescription]) -> Specs:
    """Return what the metrics of trials are: as they recorded it, and `BEFORE_SPECS` where some recorded nothing."""
    recorded: dict[str, dict[str, Any]] = {}
    for description in descriptions:
        for pattern, spec in (description.metrics or {}).items():
            recorded.setdefault(pattern, spec)
    specs = load_specs(recorded)
    if specs and all(description.metrics for description in descriptions):
        return specs
    return specs | {pattern: spec for pattern, spec in BEFORE_SPECS.items() if pattern not in specs}


def specs_of(runs: pa.Table) -> Specs:
    """Return what the metrics of a `runs` frame are. One without a word of it is of an older version."""
    known = (runs.schema.metadata or {}).get(SPECS_KEY.encode())
    return BEFORE_SPECS if known is None else load_specs(json.loads(known))


def specs_json(specs: Specs) -> str:
    """Return specs as the metadata of a schema holds them under `SPECS_KEY`."""
    return json.dumps(dump_specs(specs))
