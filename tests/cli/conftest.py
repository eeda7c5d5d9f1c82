"""Running the command line as a user does."""

import bisect
import heapq
import inspect
import os
import queue
import shlex
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from gatelab.cli.console import console
from gatelab.cli.main import app

STUDY = """\
name: tiny
question: Is it alive?
base:
  model: {{layers: 1, hidden_size: 16, query_heads: 2, kv_heads: 2, head_dim: 8, ffn_size: 16}}
  training: {{tokens: {tokens}, sequence_length: 16, batch_size: 4}}
  evaluation: {{tokens: 256, points: 2}}
  data: {{source: {corpus}}}
axes:
  model.gate.position: [none, sdpa]
seeds: 2
"""

FOREIGN = ("GATELAB_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")

Gatelab = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def at_work(folder: Path, *modules: ModuleType) -> Iterator[None]:
    """Be in a folder that holds tiny.yaml and the text that it trains on: the source of modules."""
    (folder / "text").mkdir()
    for module in modules:
        (folder / "text" / f"{module.__name__}.py").write_text(inspect.getsource(module), encoding="utf-8")
    (folder / "tiny.yaml").write_text(STUDY.format(tokens=1280, corpus=folder / "text"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def study_file(tmp_path: Path, corpus: Path) -> Path:
    """A study of four trials that take a moment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.format(tokens=1280, corpus=corpus))
    return path


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """For all commands that are run in this process: each would start its own."""
    import ray

    if ray.is_initialized():  # by tests of another folder
        yield
        return
    from gatelab.orchestrator.ray_connection import own_ray

    with own_ray(cpus=2):
        yield


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Iterator[Path]:
    """The current folder, in which that study has been run: for commands that look at what came out."""
    folder = tmp_path_factory.mktemp("finished")
    with at_work(folder, bisect, heapq, queue, shlex, textwrap):
        result = CliRunner().invoke(app, ["run", "tiny.yaml"])
        assert result.exit_code == 0, result.output
        yield folder


@pytest.fixture(scope="session")
def older_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with studies of an earlier version, that finished or were stopped, and their files; without data."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(Path(__file__).parent.parent / "fixtures" / "runs-9fce4f8.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def desk(older_runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one, for commands that are run in this process."""
    monkeypatch.chdir(older_runs)
    monkeypatch.setattr(console, "quiet", False)
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    return older_runs


@pytest.fixture
def gatelab(tmp_path: Path) -> Gatelab:
    """Runs the command in an empty folder and returns what it printed and its exit code."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gatelab", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment())

    return run


def environment() -> dict[str, str]:
    """Without the settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if name not in FOREIGN} | {"COLUMNS": "200"}
