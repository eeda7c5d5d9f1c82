"""What comes with gatelab works as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from gatelab.ablations.loading import load_study, make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.ablations.presets import bases, study_files
from gatelab.training.config import TrialConfig


@pytest.mark.parametrize("path", study_files().values(), ids=study_files())
def test_every_study_plans(path: Path) -> None:
    """A shipped study must run as it is, without holes or rules that do nothing, and answer its question."""
    matrix = build_matrix(
        load_study(path), lambda config: "x", lambda plan, variant: 1e-2
    )  # as if one was searched for
    study = matrix.plan.study
    assert study.name == path.stem
    assert study.question
    assert len(study.seeds) >= 3
    assert len(matrix.trials) == len(matrix.variants) * len(study.seeds)
    assert not matrix.impossible
    assert not matrix.notes
    assert all(variant.baseline is not None for variant in matrix.variants)


def test_the_gate_position_study_is_table_1() -> None:
    """Rows 5 to 11 of the paper's table 1, and its baseline."""
    matrix = build_matrix(load_study(study_files()["gate-position"]), lambda config: "x")
    gates = {(v.config.model.gate.position, v.config.model.gate.granularity) for v in matrix.variants}
    elementwise = ("none", "query", "key", "value", "sdpa", "output")
    assert gates == {*((name, "elementwise") for name in elementwise), ("value", "headwise"), ("sdpa", "headwise")}


@pytest.mark.parametrize("name", bases())
def test_every_base_plans(name: str) -> None:
    """A base must be usable by name, say what it is, and set nothing that it does not mean to set."""
    base = bases()[name]
    assert base.description
    TrialConfig.model_validate(base.tree)
    matrix = build_matrix(make_study({"name": "a", "base": name}, "test"), lambda config: "x")
    assert len(matrix.trials) == 1


def test_planning_loads_neither_torch_nor_ray_nor_mlflow() -> None:
    """Their imports take seconds: a plan must be instant, also on a machine where they are not installed."""
    code = (
        "import sys, gatelab.ablations.pipeline, gatelab.ablations.flags; "
        "print(*sorted({'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
