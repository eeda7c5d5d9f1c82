"""gatelab report on a study that was run: the page, its figures, MLflow, and messages."""

import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from gatelab.cli.console import console
from gatelab.cli.main import app
from gatelab.results.store.layout import RunsFolder

Command = Callable[..., Result]


@pytest.fixture
def command(finished_study: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in the folder of the finished study, in this process."""
    monkeypatch.setattr(console, "quiet", False)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})

    return run


def test_a_study_becomes_one_page(command: Command, finished_study: Path) -> None:
    """In its folder, with the figures beside it, and in MLflow, where pages have a folder of their own."""
    result = command("report", "tiny.yaml")
    assert result.exit_code == 0, result.output
    folder = RunsFolder(finished_study / "gatelab-runs")
    page = folder.study("tiny").path / "report.html"
    assert result.stdout.split() == ["gatelab-runs/studies/tiny/report.html"]
    html = page.read_text(encoding="utf-8")
    assert "Is it alive?" in html
    for section in ("comparison", "curves", "stability", "diagnostics", "provenance"):
        assert f'<section id="{section}"' in html
    figures = ("curves-validation-loss", "curves-train-loss", "stability-training", "diagnostics-layers")
    for stem in figures:
        assert all((page.parent / f"{stem}.{suffix}").stat().st_size > 1000 for suffix in ("png", "svg", "pdf"))

    client = MlflowClient(folder.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [study] = client.search_runs([experiment.experiment_id], "tags.`gatelab.kind` = 'study'")
    kept = {file.path for kind in ("figures", "report") for file in client.list_artifacts(study.info.run_id, kind)}
    assert kept >= {f"figures/{stem}.{suffix}" for stem in figures for suffix in ("png", "svg", "pdf")}
    assert "report/report.html" in kept


def test_the_file_the_metric_and_the_browser_can_be_chosen(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is written where it is asked for, by another metric, and opened."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    page = tmp_path / "to send" / "page.html"
    result = command("report", "tiny", "-o", page, "--metric", "train/final_loss", "--open")
    assert result.exit_code == 0, result.output
    assert "tiny: train/final_loss" in page.read_text(encoding="utf-8")
    assert opened == [page.as_uri()]


def test_what_cannot_be_reported_is_told(command: Command, tmp_path: Path) -> None:
    """An unknown study and an unknown metric: a line, exit code 2, no traceback and no file."""
    page = tmp_path / "page.html"
    for arguments, said in (
        (("unheard-of",), "no study 'unheard-of'"),
        (("tiny", "--metric", "validation/lost"), "--metric: no trial has 'validation/lost'"),
    ):
        result = command("report", *arguments, "-o", page)
        assert result.exit_code == 2
        assert isinstance(result.exception, SystemExit), result.exception
        assert said in result.stderr
    assert not page.exists()


def test_help_has_an_example() -> None:
    """The command shows how it is typed."""
    assert "Example: gatelab report" in CliRunner().invoke(app, ["report", "--help"]).stdout
