"""Names for work: equal configurations on equal data have equal ids, everywhere."""

import hashlib
import json
from typing import Any

from gatelab.training.config import TrialConfig

SCHEMA_VERSION = 1
"""Part of every trial id. Raised when equal configurations would mean other work."""


def canonical_json(value: Any) -> str:
    """Write JSON in which equal values have equal texts: sorted keys, no spaces.

    Raises ValueError for NaN and infinities.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Hash a value's canonical JSON: SHA-256, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_variant(config: TrialConfig, data_identity: str) -> dict[str, Any]:
    """Collect what decides a trial's result, seed aside.

    Data enter by their identity: where they lie does not matter.
    """
    return {
        "schema": SCHEMA_VERSION,
        "data": data_identity,
        "config": config.model_dump(mode="json", exclude={"data", "seed"}),
    }


def trial_id(variant: dict[str, Any], seed: int, parent: str | None = None) -> str:
    """Hash a trial's canonical variant, its seed and the id of the trial that it continues: its id, in full length."""
    return digest({**variant, "seed": seed, **({} if parent is None else {"parent": parent})})
