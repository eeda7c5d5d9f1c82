"""The project as a whole: its arrows, its documents, the files that it ships."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

import gatelab
from gatelab.ablations.presets import bases, study_files
from gatelab.ablations.schema import render, study_schema
from gatelab.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_imports_point_one_way() -> None:
    """The rooms stay rooms, in the order of docs/architecture.md."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_results_and_kernels_stand_alone() -> None:
    """Tables can be made on a machine without torch or Ray, and kernels used without Ray or MLflow."""
    for module, foreign in (
        ("gatelab.results.report.write", ("torch", "ray", "mlflow")),
        ("gatelab.kernels.attention", ("ray", "mlflow", "pyarrow")),
        ("gatelab.training.loop", ("ray", "mlflow", "lm_eval")),
        ("gatelab.training.config", ("torch", "numpy")),
    ):
        code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in {foreign}))"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, module


def test_editors_see_the_schema_that_studies_follow() -> None:
    """studies/study.schema.json is what the code says (else: make schema), and every shipped study follows it."""
    assert (ROOT / "studies/study.schema.json").read_text(encoding="utf-8") == render()
    validator = jsonschema.Draft202012Validator(study_schema())
    for path in study_files().values():
        validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    for base in bases().values():
        validator.validate({"name": "x", "base": base.tree})
    wrong = {"name": "x", "base": {"model": {"layrs": 2}}}
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A reader who follows a link to a file of the project finds it."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_documented_study_is_the_shipped_one() -> None:
    """The study in the README runs as it is printed there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(name: gate-position.*?)```", text, re.DOTALL)
    assert block is not None
    shipped = yaml.safe_load((ROOT / "studies/gate-position.yaml").read_text())
    del shipped["question"]
    assert yaml.safe_load(block[1]) == shipped


def test_one_version_everywhere() -> None:
    """Who cites, reads what changed, or asks the package is told the same."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == gatelab.__version__ == citation["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changes, re.MULTILINE)[:2] == ["Unreleased", PROJECT["version"]]


def test_licence_is_one_and_whole() -> None:
    """The text, its name in the metadata and in the citation."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert PROJECT["authors"] == citation["authors"] == [{"name": "The gatelab authors"}]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_exist(page: Path) -> None:
    """So do the options that they are shown with, and the targets of make."""
    text = page.read_text(encoding="utf-8")
    commands = get_command(app).commands  # type: ignore[attr-defined]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shown = re.findall(r"^\$ (.*)$", text, re.MULTILINE) + re.findall(r"`((?:gatelab|make) [^`]*)`", text)
    for line in shown:
        program, *words = line.partition("#")[0].split() or [""]
        if program == "make":
            assert {word for word in words if word.isalpha()} <= set(targets), line
        elif program == "gatelab" and words and words[0].startswith("-"):
            assert words[0] in ("--help", "--version", "--install-completion", "--show-completion"), line
        elif program == "gatelab" and re.fullmatch("[a-z-]+", words[0]):
            assert words[0] in commands, line
            known = {name for parameter in commands[words[0]].params for name in (*parameter.opts, "--help")}
            flags = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
            assert flags <= known | {name for each in commands[words[0]].params for name in each.secondary_opts}, line


@pytest.mark.parametrize("chosen", [None, "false"])
def test_nobody_is_told_of_what_is_run(chosen: str | None) -> None:
    """MLflow sends no statistics, unless who runs it has said so; here as where nothing tells of a test."""
    code = (
        "import os, gatelab.results.tracking.sync; from mlflow.telemetry import utils\n"
        "print(os.environ['MLFLOW_DISABLE_TELEMETRY'], utils.is_telemetry_disabled())"
    )
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
    if chosen is None:  # the other is asked without loading MLflow, which would open a connection
        output = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
        assert output.stdout.split() == ["true", "True"]
    else:
        code = "import os, gatelab.results.tracking; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
        kept |= {"MLFLOW_DISABLE_TELEMETRY": chosen}
        output = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
        assert output.stdout.split() == [chosen]
