"""What commands load: those that only read and reckon must answer without Ray, PyTorch and MLflow."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.pipeline import build_matrix
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import write_json
from tests.cli.conftest import environment

HEAVY = ("ray", "torch", "mlflow")

SCRIPT = f"""\
import sys
from gatelab.cli.main import app
try:
    app(sys.argv[1:])
finally:
    print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""

Loaded = Callable[..., tuple[str, str]]


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    """Runs a command that succeeds in a process of its own: what it printed, and the heavy modules that it loaded."""

    def run(*arguments: str) -> tuple[str, str]:
        command = [sys.executable, "-c", SCRIPT, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.strip()

    return run


def test_a_plan_is_made_without_ray_and_torch(loaded: Loaded, study_file: Path) -> None:
    """Planning is arithmetic: it must not take the seconds that their imports take."""
    printed, modules = loaded("plan", str(study_file), "--no-estimate", "--json")
    assert len(json.loads(printed)["trials"]) == 4
    assert modules == ""


def test_the_power_of_claims_is_computed_without_ray_and_torch(loaded: Loaded, study_file: Path) -> None:
    """Nor do claims need them: power is arithmetic on the noise of earlier studies."""
    study_file.write_text(study_file.read_text(encoding="utf-8") + "claims: {it helps: {}}\n", encoding="utf-8")
    printed, modules = loaded("plan", str(study_file), "--no-estimate", "--json")
    assert [power["claim"] for power in json.loads(printed)["claims"]] == ["it helps"]
    assert modules == ""


def test_results_are_compared_without_ray_and_torch(loaded: Loaded, study_file: Path, tmp_path: Path) -> None:
    """Tables are made of files: a machine that only looks at results needs nothing that trains."""
    matrix, folder = build_matrix(study_from_flags(study_file), lambda data: "x"), RunsFolder(tmp_path / "gatelab-runs")
    write_record(folder, study_record(matrix))
    for place, trial in enumerate(matrix.trials):
        metrics = {"validation/loss": 3.0 + place / 8}
        write_json(folder.trial(trial.id).outcome, {"status": "finished", "step": 20, "metrics": metrics})
    printed, modules = loaded("compare", "tiny", "--json")
    assert [row["value"]["mean"] for row in json.loads(printed)["rows"]] == [3.125, 3.25]
    assert modules == ""


def test_a_driver_does_not_load_the_compiler() -> None:
    """It takes a second and 150 MB; a worker needs it, the process that only hands out trials does not."""
    script = (
        "import sys, gatelab.orchestrator.workflow; print([m for m in ('torch', 'torch._dynamo') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert (done.stdout.strip(), done.stderr) == ("['torch']", "")
