"""A Ray for this folder's tests, and studies small enough to run in seconds."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from gatelab.ablations.loading import make_study
from gatelab.ablations.matrix import Matrix
from gatelab.orchestrator.planning import plan_study

TINY = {
    "model": {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_size": 16},
    "training": {"tokens": 1280, "sequence_length": 16, "batch_size": 4},
    "evaluation": {"tokens": 256, "points": 2},
}


@pytest.fixture(scope="session")
def own_ray() -> Iterator[None]:
    """One Ray with two CPUs for all tests that share it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def tiny_study(corpus: Path) -> Callable[..., Matrix]:
    """Builds the matrix of a tiny study: two gate positions unless told otherwise."""

    def build(overrides: dict[str, Any] | None = None, **fields: Any) -> Matrix:
        raw = {"name": "tiny", "base": TINY, "axes": {"model.gate.position": ["none", "sdpa"]}, **fields}
        return plan_study(make_study(raw, "test", {"data.source": str(corpus), **(overrides or {})}))

    return build


@pytest.fixture
def two_studies(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes first.yaml, a tiny study, and next.yaml, which continues it with `base`, into what becomes the current
    folder; `first` changes the base of the one, `fields` its other keys."""
    monkeypatch.chdir(tmp_path)

    def write(base: dict[str, Any], first: dict[str, Any] | None = None, **fields: Any) -> Path:
        start = {**TINY, "data.source": str(corpus), **(first or {})}
        study = {"base": start, "axes": {"model.gate.position": ["none", "sdpa"]}, "seeds": 2, **fields}
        Path("first.yaml").write_text(yaml.safe_dump(study))
        Path("next.yaml").write_text(yaml.safe_dump({"continues": "first.yaml", "base": base}))
        return Path("next.yaml")

    return write
