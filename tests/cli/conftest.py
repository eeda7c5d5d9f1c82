"""Running the command line as a user does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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

Gatelab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def study_file(tmp_path: Path, corpus: Path) -> Path:
    """A study of four trials that take a moment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.format(tokens=1280, corpus=corpus))
    return path


@pytest.fixture
def gatelab(tmp_path: Path) -> Gatelab:
    """Runs the command in an empty folder and returns what it printed and its exit code."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gatelab", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment())

    return run


def environment() -> dict[str, str]:
    """Without the settings of whoever runs the tests."""
    foreign = ("GATELAB_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    return {name: value for name, value in os.environ.items() if name not in foreign} | {"COLUMNS": "200"}
