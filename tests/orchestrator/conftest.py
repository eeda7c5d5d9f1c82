"""A Ray for this folder's tests, and studies small enough to run in seconds."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatelab.ablations.loading import make_study
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.paths import flatten
from gatelab.orchestrator import ray_connection
from gatelab.orchestrator.planning import plan_study
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.trials import read_description

TINY = {
    "model": {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_size": 16},
    "training": {"tokens": 1280, "sequence_length": 16, "batch_size": 4},
    "evaluation": {"tokens": 256, "points": 2},
}


def count_attempts(folder: RunsFolder) -> int:
    """Count the attempts at all trials of a folder: how often one of them was begun, or gone on with."""
    known = [read_description(folder.trial(path.name)) for path in folder.root.glob("trials/*")]
    return sum(len(description.attempts) for description in known if description is not None)


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for temporary files whose path is too long for a Unix socket in it."""
    return tmp_path_factory.mktemp("a-folder-deep-down-as-schedulers-give-it-to-a-job-of-theirs")


@pytest.fixture(scope="session")
def own_ray(long_folder: Path) -> Iterator[None]:
    """One Ray with two CPUs for all tests that share it, started where temporary files have a long path."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(long_folder))
            patch.delenv("RAY_TMPDIR", raising=False)
            stack.enter_context(ray_connection.own_ray(cpus=2))
        yield


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
        start = {**dict(flatten(TINY)), "data.source": str(corpus), **(first or {})}
        study = {"base": start, "axes": {"model.gate.position": ["none", "sdpa"]}, "seeds": 2, **fields}
        Path("first.yaml").write_text(yaml.safe_dump(study))
        Path("next.yaml").write_text(yaml.safe_dump({"continues": "first.yaml", "base": base}))
        return Path("next.yaml")

    return write
