"""A collaborator who has neither torch, Ray nor MLflow opens the tables of a study, and is told what the rest needs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.extras import EXTRAS, MissingExtra, missing_extra, require

TRAINING = ("torch", "safetensors", "tokenizers", "psutil", "ray", "mlflow", "optuna", "sklearn")

HIDE = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {TRAINING} else find(name, *rest)
listed = PathFinder.find_distributions
PathFinder.find_distributions = lambda context: [] if context.name in {TRAINING} else listed(context)
"""

Bare = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    """Runs a command in which the packages of the extras cannot be imported, as if they were not installed."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", HIDE + "from gatelab.cli.main import main; main()", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_tables_and_plots_need_no_extra(bare: Bare, laboratory: Callable[..., Any]) -> None:
    """A runs folder is read as where it was made, and a MLflow store that comes with it is left as it is."""
    lab = laboratory()
    for variant in range(2):
        for seed in range(2):
            lab.finish(variant, seed)
    lab.folder.database.touch()
    for command in ("compare", "report", "export", "curves", "effects", "status"):
        done = bare(command, lab.name, "--runs", lab.folder.root)
        assert done.returncode == 0, (command, done.stderr)
        if command == "report":
            assert "pip install 'gatelab[mlflow]'" in done.stdout
    assert (lab.folder.study(lab.name).path / "report.html").exists()
    assert lab.folder.database.stat().st_size == 0


def test_importance_is_left_out_where_its_packages_are(bare: Bare, laboratory: Callable[..., Any]) -> None:
    """An unbalanced study has its other effects, and a note."""
    axes = {"model.gate.position": ["value", "sdpa"], "model.gate.granularity": ["elementwise", "headwise"]}
    left_out = [{"model.gate.position": "value", "model.gate.granularity": "headwise"}]
    lab = laboratory(axes=axes, exclude=left_out)
    for variant in range(3):
        for seed in range(2):
            lab.finish(variant, seed)
    done = bare("effects", lab.name, "--runs", lab.folder.root)
    assert done.returncode == 0, done.stderr
    assert "The importance of axes is left out" in done.stdout
    assert "pip install 'gatelab[importance]'" in done.stdout


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("all", ("run", "--axis", "model.gate.position=none,sdpa")),
        ("train", ("doctor",)),
        ("mlflow", ("compare", "study", "--from", "mlflow", "--tracking-uri", "http://localhost:1")),
        ("mlflow", ("ui", "--tracking-uri", "http://localhost:1")),
    ],
    ids=["run", "doctor", "compare-mlflow", "ui"],
)
def test_what_needs_an_extra_names_the_command_that_installs_it(
    extra: str, arguments: tuple[str, ...], bare: Bare
) -> None:
    """And is a wrong request, not a traceback."""
    done = bare(*arguments)
    assert done.returncode == 2, done.stderr
    assert f"'gatelab[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_study_runs_without_mlflow_and_says_so(tmp_path: Path) -> None:
    """What keeps a store up to date ends with a message, not with a traceback in a thread."""
    code = """
from pathlib import Path
from gatelab.orchestrator.tracking import SyncThread
from gatelab.results.store.layout import RunsFolder
with SyncThread(RunsFolder(Path("runs")), {}, "sqlite:///runs/mlflow.db") as mirror:
    pass
print(mirror.problem)
"""
    done = subprocess.run([sys.executable, "-c", HIDE + code], cwd=tmp_path, capture_output=True, text=True)
    assert "pip install 'gatelab[mlflow]'" in done.stdout
    assert done.stderr == ""


def test_require_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there passes; other missing modules are bugs, not extras."""
    require("torch", "mlflow")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'gatelab\[ray\]'"):
        require("torch", "ray")
    with pytest.raises(ImportError) as caught:
        import ray.util  # noqa: F401
    assert isinstance(missing_extra(caught.value), MissingExtra)
    assert missing_extra(ModuleNotFoundError("No module named 'gatelab.x'", name="gatelab.x")) is None
    assert missing_extra(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None


def test_every_optional_package_is_in_the_extra_that_is_named() -> None:
    """Else the command would not help."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    distributions = {"sklearn": "scikit-learn", "lm_eval": "lm-eval"}
    for package, extra in EXTRAS.items():
        wanted = distributions.get(package, package)
        assert any(entry.startswith(wanted) for entry in project["optional-dependencies"][extra]), package
        assert not any(entry.startswith(wanted) for entry in project["dependencies"]), package
