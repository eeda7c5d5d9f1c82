"""`gatelab init`, `gatelab --version`, completion: what a newcomer types first."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import gatelab
from gatelab.ablations.loading import load_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.ablations.template import study_template
from gatelab.cli.main import app

Gatelab = Callable[..., subprocess.CompletedProcess[str]]

OPTIONAL = re.compile(r"^( *)# ([\w.]+:.*)$", re.MULTILINE)
"""A line of the template that is a choice left at its default."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_written_study_plans_without_change(folder: Path) -> None:
    """A newcomer's second command works: five variants, none impossible, and what to do next is said."""
    result = CliRunner().invoke(app, ["init"])
    assert result.exit_code == 0, result.output
    assert "gatelab plan study.yaml" in result.output
    assert "gatelab run study.yaml" in result.output
    matrix = build_matrix(load_study(folder / "study.yaml"), lambda config: "data")
    assert (matrix.plan.study.name, len(matrix.variants), len(matrix.trials)) == ("study", 5, 15)
    assert not matrix.impossible
    planned = CliRunner().invoke(app, ["plan", "study.yaml", "--no-estimate"])
    assert planned.exit_code == 0, planned.output
    assert "15 trials" in planned.output


@pytest.mark.parametrize("line", [match[2] for match in OPTIONAL.finditer(study_template("x"))])
def test_every_choice_that_is_left_out_can_be_made(line: str, folder: Path) -> None:
    """A line of the file that is a comment works as soon as it is none."""
    text = OPTIONAL.sub(lambda match: match[1] + match[2] if match[2] == line else match[0], study_template("x"))
    assert text != study_template("x")
    (folder / "corpus").mkdir()
    (folder / "corpus/a.txt").write_text("a text " * 2000)
    (folder / "x.yaml").write_text(text)
    assert load_study(folder / "x.yaml").study.name == "x"


@pytest.mark.parametrize("name", ["gates-2", "1e5", "0o17", "true"])
def test_a_study_has_the_name_that_it_was_given(name: str, folder: Path) -> None:
    """Also one that YAML would read as a number or a truth."""
    assert CliRunner().invoke(app, ["init", "some/file.yaml", "--name", name]).exit_code == 0
    assert load_study(folder / "some/file.yaml").study.name == name


def test_nothing_is_overwritten_and_no_bad_name_accepted(folder: Path) -> None:
    """A study that somebody has written is worth more than a template."""
    (folder / "study.yaml").write_text("name: mine\n")
    for arguments, said in (
        (["study.yaml"], "study.yaml exists already"),
        (["study.txt"], "ends in .yaml"),
        (["other.yaml", "--name", "a b"], "name = 'a b'"),
    ):
        result = CliRunner().invoke(app, ["init", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr
    assert (folder / "study.yaml").read_text() == "name: mine\n"
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


def test_template_says_all_in_comments_beside_what_it_sets() -> None:
    """Every key is explained or explains itself; nothing is set twice."""
    tree = yaml.safe_load(study_template("x"))
    assert list(tree) == ["name", "question", "base", "axes", "baseline", "match", "seeds", "fixed", "claims"]


def test_version_is_said_at_once() -> None:
    """Without loading what takes seconds."""
    code = (
        "import sys; from gatelab.cli.main import app\n"
        "try: app(['--version'])\n"
        "except SystemExit: print(*{'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout == f"gatelab {gatelab.__version__}\n\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str, gatelab: Gatelab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What --install-completion installs works: the script, and what it asks for."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = gatelab("--show-completion", shell)
    assert script.returncode == 0
    assert f"complete_{shell}" in script.stdout
    assert gatelab("--help").stdout.count("--install-completion") == 1


def test_commands_are_completed(gatelab: Gatelab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bash asks: `gatelab in<TAB>`."""
    code = "import sys; sys.argv = ['gatelab']; from gatelab.cli.main import app; app(prog_name='gatelab')"
    monkeypatch.setenv("_GATELAB_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "gatelab in")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["init"]
