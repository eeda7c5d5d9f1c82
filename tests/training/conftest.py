"""A trial small enough to train in a blink."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.training.config import TrialConfig


@pytest.fixture
def tiny(corpus: Path) -> Callable[..., TrialConfig]:
    """Make a trial of 20 steps of 4 x 16 tokens on the small corpus; sections given are merged into it."""
    base: dict[str, Any] = {
        "model": {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_size": 16},
        "training": {
            "tokens": 20 * 64,
            "sequence_length": 16,
            "batch_size": 4,
            "log_every": 3,
            "optimizer": {"learning_rate": 1e-2},
        },
        "data": {"source": str(corpus)},
        "evaluation": {"tokens": 256, "points": 3},
    }

    def make(seed: int = 0, **sections: dict[str, Any]) -> TrialConfig:
        merged = {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
        return TrialConfig.model_validate({**merged, "seed": seed})

    return make
