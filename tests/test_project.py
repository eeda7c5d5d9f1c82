"""The project as a whole: its arrows, its documents, the files that it ships."""

import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from gatelab.ablations.presets import bases, study_files
from gatelab.ablations.schema import render, study_schema

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])


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
        ("gatelab.training.loop", ("ray", "mlflow")),
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
