"""gatelab stability on a study that was run: the table, its files, MLflow, and messages."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from gatelab.cli.console import console
from gatelab.cli.main import app
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import write_json

Command = Callable[..., Result]


@pytest.fixture
def command(finished_study: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in the folder of the finished study, in this process."""
    monkeypatch.setattr(console, "quiet", False)  # put back at the end

    def run(*arguments: str | Path) -> Result:
        console.quiet = False  # after a command with --json
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})

    return run


def test_stability_shows_every_variant(command: Command, finished_study: Path) -> None:
    """On the terminal, as JSON and CSV, as figures where they are asked for, and in MLflow."""
    shown = command("stability", "tiny")
    assert shown.exit_code == 0, shown.output
    for said in (
        "trials diverged",
        "0 of 2",
        "position=sdpa",
        "attention/max_logit: largest",
        "stability-training.{png,svg,pdf}",
    ):
        assert said in shown.stdout
    assert "weight_norm/gate_sdpa: last evaluation" in shown.stdout

    report = json.loads(command("stability", "tiny.yaml", "--json", "-o", "plots").stdout)
    assert report["autopsies"] == []
    variants = {one["variant"]: one for one in report["variants"]}
    assert set(variants) == {"position=none", "position=sdpa"}
    assert variants["position=sdpa"]["scores"]["attention/max_logit"]["n"] == 2
    assert "weight_norm/gate_sdpa" not in variants["position=none"]["scores"]
    assert matplotlib.image.imread(finished_study / "plots" / "stability-training.png").std() > 0.01
    rows = list(csv.DictReader(command("stability", "tiny", "--format", "csv").stdout.splitlines()))
    assert {row["variant"] for row in rows} == set(variants)
    assert command("stability", "tiny", "--format", "md").stdout.startswith("**tiny: stability**")

    client = MlflowClient(RunsFolder(finished_study / "gatelab-runs").tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [study] = client.search_runs([experiment.experiment_id], "tags.`gatelab.kind` = 'study'")
    kept = {file.path for kind in ("figures", "tables") for file in client.list_artifacts(study.info.run_id, kind)}
    assert kept >= {f"tables/stability.{suffix}" for suffix in ("md", "tex", "csv", "json")}
    assert kept >= {f"figures/stability-training.{suffix}" for suffix in ("png", "svg", "pdf")}


def test_where_there_is_nothing_to_show_it_says_so(command: Command, tmp_path: Path) -> None:
    """An unknown study and one that has not begun: a line, exit code 2, no traceback and no file."""
    record = {"name": "idle", "hash": "h", "axes": [], "variants": {}, "trials": []}
    variant = {"levels": {}, "baseline": None, "steps": 1, "parameters": 1, "added_parameters": 0, "flops_per_token": 1}
    record |= {"variants": {"v": variant}, "trials": [{"id": "t", "variant": "v", "seed": 0}]}
    write_json(RunsFolder(tmp_path).study("idle").record, record)
    for name, said in (("unheard-of", "no study 'unheard-of'"), ("idle", "idle: no trial has trained yet")):
        result = command("stability", name, "--runs", tmp_path)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 2
        assert said in result.stderr
        assert not result.stdout
    assert [path.name for path in RunsFolder(tmp_path).study("idle").path.iterdir()] == ["study.json"]


def test_help_has_an_example() -> None:
    """The command shows how it is typed."""
    assert "Example: gatelab stability" in CliRunner().invoke(app, ["stability", "--help"]).stdout
