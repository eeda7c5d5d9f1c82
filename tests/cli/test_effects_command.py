"""gatelab effects on a study that was run and on one made up: tables, files, MLflow, and messages."""

import csv
import itertools
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

AXES = {"model.gate.position": ("sdpa", "value"), "model.gate.granularity": ("elementwise", "headwise")}
LOSS = {"sdpa": 1.0, "value": 3.0, "elementwise": 0.0, "headwise": 0.5}
SCATTER = ((0.01, -0.01), (-0.01, 0.01), (0.01, -0.01), (-0.01, 0.01))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process."""
    monkeypatch.setattr(console, "quiet", False)  # put back at the end

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})

    return run


def write_study(root: Path, name: str, variants: int = 4, status: str = "finished") -> Path:
    """A study of two axes and two seeds with the outcomes of its trials; the folder of all."""
    folder = RunsFolder(root)
    common = {"baseline": None, "steps": 1, "parameters": 1, "added_parameters": 0, "flops_per_token": 1}
    record = {"name": name, "hash": "h", "axes": list(AXES), "variants": {}, "trials": []}
    for number, levels in enumerate([*itertools.product(*AXES.values())][:variants]):
        variant = ", ".join(levels)
        record["variants"][variant] = {"levels": dict(zip(AXES, levels, strict=True)), **common}
        for seed in range(2):
            trial = f"{name}-{number}-{seed}"
            record["trials"].append({"id": trial, "variant": variant, "seed": seed})
            loss = sum(LOSS[level] for level in levels) + 2.0 * seed + SCATTER[number][seed]
            outcome = {"status": status, "step": 1, "metrics": {"validation/loss": loss, "train/seconds": 1.0}}
            write_json(folder.trial(trial).outcome, {**outcome, "reason": "", "ended": 0.0})
    write_json(folder.study(name).record, record)
    return root


def test_effects_of_two_axes_are_shown_and_written(command: Command, tmp_path: Path) -> None:
    """On the terminal, as Markdown, LaTeX, CSV and JSON, as figures where they are asked for."""
    root = write_study(tmp_path / "runs", "made-up")
    shown = command("effects", "made-up", "--runs", root, "-o", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    for said in ("position × granularity", "error: variants × seeds", "made-up: levels", "grand mean, 3.2"):
        assert said in shown.stdout
    assert not list((root / "studies" / "made-up").glob("effects*"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {f"effects.{suffix}" for suffix in ("md", "tex", "csv", "json", "png", "svg")}
    for stem in ("effects", "effects-interaction"):
        assert matplotlib.image.imread(tmp_path / "out" / f"{stem}.png").std() > 0.01

    report = json.loads(command("effects", "made-up", "--runs", root, "--json").stdout)
    terms = {term["name"]: term for term in report["factorial"]["terms"]}
    assert terms["position"]["ss"] == pytest.approx(8 * 1.0**2)
    assert terms["granularity"]["ss"] == pytest.approx(8 * 0.25**2)
    assert terms["position × granularity"]["ss"] == pytest.approx(0, abs=1e-12)
    assert report["factorial"]["errors"][0]["ms"] == pytest.approx(8 * 0.01**2 / 3)
    rows = list(csv.DictReader(command("effects", "made-up", "--runs", root, "--format", "csv").stdout.splitlines()))
    level = next(row for row in rows if (row["what"], row["level"]) == ("level", "headwise"))
    assert (float(level["effect"]), level["verdict"]) == (pytest.approx(0.25), "worse")
    assert command("effects", "made-up", "--runs", root, "-f", "md").stdout.startswith("**made-up: effects")
    assert r"\begin{tabular}" in command("effects", "made-up", "--runs", root, "-f", "tex").stdout

    other = command("effects", "made-up", "--runs", root, "--metric", "train/seconds")
    assert "do not differ beyond" in other.stdout
    assert (root / "studies" / "made-up" / "effects-train-seconds.md").exists()


def test_effects_of_a_study_that_was_run_reach_mlflow(command: Command, finished_study: Path) -> None:
    """One axis: its main effect, in the study's folder and beside its record."""
    shown = command("effects", "tiny.yaml")
    assert shown.exit_code == 0, shown.output
    assert "position" in shown.stdout
    client = MlflowClient(RunsFolder(finished_study / "gatelab-runs").tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [study] = client.search_runs([experiment.experiment_id], "tags.`gatelab.kind` = 'study'")
    kept = {file.path for kind in ("figures", "tables") for file in client.list_artifacts(study.info.run_id, kind)}
    assert kept >= {f"tables/effects.{suffix}" for suffix in ("md", "tex", "csv", "json")}
    assert kept >= {f"figures/effects.{suffix}" for suffix in ("png", "svg")}


def test_where_there_are_no_effects_it_says_so(command: Command, tmp_path: Path) -> None:
    """No such study, nothing finished, an unknown metric: a line, exit code 2, no traceback and no file."""
    root = write_study(tmp_path, "made-up")
    write_study(tmp_path, "diverged", status="diverged")
    for arguments, said in (
        (("unheard-of",), "no study 'unheard-of'"),
        (("diverged",), "diverged: effects are differences between variants: two must have finished (got 0 of 4)"),
        (("made-up", "--metric", "validation/los"), "no trial has 'validation/los', but for example validation/loss"),
    ):
        result = command("effects", *arguments, "--runs", root)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 2
        assert said in result.stderr
        assert not result.stdout
    assert [path.name for path in RunsFolder(root).study("diverged").path.iterdir()] == ["study.json"]


def test_help_has_an_example() -> None:
    """The command shows how it is typed."""
    assert "Example: gatelab effects" in CliRunner().invoke(app, ["effects", "--help"]).stdout
