"""What a user asks of trained models: diagnose, evaluate, attention-map, and the tables and stores that hold it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pyarrow.parquet as pq
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
    monkeypatch.setattr(console, "quiet", False)  # put back at the end

    def run(*arguments: str | Path) -> Result:
        console.quiet = False  # after a command with --json
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})

    return run


def artifacts(folder: RunsFolder) -> set[str]:
    """What MLflow has beside the study's record."""
    client = MlflowClient(folder.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [study] = client.search_runs([experiment.experiment_id], "tags.`gatelab.kind` = 'study'")
    return {file.path for kind in ("figures", "tables") for file in client.list_artifacts(study.info.run_id, kind)}


def files(kind: str, stem: str) -> set[str]:
    suffixes = {"figures": ("png", "svg", "pdf"), "tables": ("md", "tex", "html", "csv", "json")}[kind]
    return {f"{kind}/{stem}.{suffix}" for suffix in suffixes}


def test_diagnose_shows_what_run_wrote(command: Command, finished_study: Path) -> None:
    """The same table on the terminal, as CSV and as JSON, figures where they are asked for, all of it in MLflow."""
    folder = RunsFolder(finished_study / "gatelab-runs")
    shown = command("diagnose", "tiny")
    assert shown.exit_code == 0, shown.output
    for said in (
        "attention/first_token_share [share]",
        "gate/sdpa/mean",
        "position=none",
        "diagnostics-layers.{png,svg,pdf}",
    ):
        assert said in shown.stdout
    assert "Attention uniform over the past would show" in shown.stdout

    table = json.loads(command("diagnose", "tiny.yaml", "--json", "-o", "plots").stdout)
    values = {(c["metric"], row["variant"]): row["value"]["mean"] for c in table["comparisons"] for row in c["rows"]}
    assert 0 < values["attention/first_token_share", "position=sdpa"] < 1
    assert values["gate/sdpa/mean", "position=none"] is None
    stems = ("diagnostics-layers", "diagnostics-training", "diagnostics-gates", "loss-by-position")
    for stem in stems:
        assert matplotlib.image.imread(finished_study / "plots" / f"{stem}.png").std() > 0.01
    rows = csv.DictReader((finished_study / "plots" / "diagnostics.csv").read_text(encoding="utf-8").splitlines())
    assert {(row["metric"], row["variant"]): float(row["mean"]) if row["mean"] else None for row in rows} == values
    compared = json.loads(command("compare", "tiny", "--metric", "attention/entropy", "--json").stdout)
    assert {row["variant"]: row["value"]["mean"] for row in compared["rows"]} == {
        label: mean for (metric, label), mean in values.items() if metric == "attention/entropy"
    }
    mirrored = command("compare", "tiny", "--metric", "attention/entropy", "--json", "--from", "mlflow")
    assert json.loads(mirrored.stdout) == compared

    assert artifacts(folder) >= {
        *(name for stem in (*stems, "curves-validation-loss") for name in files("figures", stem)),
        *(name for stem in ("comparison", "diagnostics") for name in files("tables", stem)),
    }


def test_evaluate_asks_once_and_keeps_the_answers(command: Command, finished_study: Path) -> None:
    """A table, figures and files in the study's folder, in MLflow and in Parquet; again costs nothing."""
    folder = RunsFolder(finished_study / "gatelab-runs")
    asked = (
        "evaluate",
        "tiny",
        "--lengths",
        "16,32",
        "--ropes",
        "plain,yarn",
        "--tokens",
        "256",
        "--retrieval",
        "none",
    )
    first = command(*asked)
    assert first.exit_code == 0, first.output
    assert "16 of 16 evaluations done" in first.stdout
    for said in ("length/000016/plain/loss [nats/token]", "length/000032/yarn/loss", "loss-by-length.{png,svg,pdf}"):
        assert said in first.stdout
    kept = {path: path.read_bytes() for path in folder.root.glob("trials/*/evaluations/*.json")}
    assert len(kept) == 16

    again = command(*asked, "--json")
    assert again.exit_code == 0, again.output
    assert {path: path.read_bytes() for path in folder.root.glob("trials/*/evaluations/*.json")} == kept
    table = {c["metric"]: {row["variant"]: row for row in c["rows"]} for c in json.loads(again.stdout)["comparisons"]}
    assert set(table) == {
        f"length/{length}/{rope}/loss" for length in ("000016", "000032") for rope in ("plain", "yarn")
    }
    trained = json.loads(command("compare", "tiny", "--json").stdout)
    for row in trained["rows"]:  # the very loss that training ended with
        found = table["length/000016/plain/loss"][row["variant"]]["value"]
        assert (found["mean"], found["n"]) == (pytest.approx(row["value"]["mean"], rel=1e-6), 2)
    assert table["length/000016/yarn/loss"] == table["length/000016/plain/loss"]
    assert table["length/000032/yarn/loss"] != table["length/000032/plain/loss"]

    study = folder.study("tiny").path
    assert json.loads((study / "evaluation.json").read_text()) == json.loads(again.stdout)
    stems = ("loss-by-length", "loss-by-position-beyond")
    assert artifacts(folder) >= {
        *(name for stem in stems for name in files("figures", stem)),
        *files("tables", "evaluation"),
    }
    here, there = (
        command("compare", "tiny", "--metric", "length/000032/yarn/loss", "--json", "--from", source)
        for source in ("journal", "mlflow")
    )
    assert json.loads(here.stdout) == json.loads(there.stdout)
    assert command("export", "tiny", "-o", "frames").exit_code == 0
    assert "length/000032/yarn/loss" in pq.read_table("frames/runs").column_names


def test_attention_maps_are_drawn(command: Command, finished_study: Path) -> None:
    """PNG, SVG and PDF of all variants side by side, of a text or a file, of chosen layers and heads."""
    (finished_study / "notes.txt").write_text("def heap(a, b):\n    return a")
    for number, chosen in enumerate((["--text", "def heap"], ["--file", "notes.txt", "--heads", "all", "--seed", "1"])):
        result = command("attention-map", "tiny", *chosen, "--layers", "0", "--tokens", "12", "-o", f"maps{number}")
        assert result.exit_code == 0, result.output
        assert result.stdout.split() == [f"maps{number}/attention-map.{{png,svg,pdf}}"]
        assert matplotlib.image.imread(finished_study / f"maps{number}" / "attention-map.png").std() > 0.05
    svg = (finished_study / "maps1" / "attention-map.svg").read_text()
    assert all(f"position={position}, seed=1" in svg for position in ("none", "sdpa"))
    assert "layer 0, head 1" in svg


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("evaluate tiny --retrieval none --lengths 16,1m", "length/1000000/plain: "),
        ("evaluate tiny --lengths many", "--lengths: expected a count such as"),
        ("evaluate tiny --lengths 1", "--lengths: expected at least 2"),
        ("evaluate tiny --ropes linear", "--ropes: expected plain, ntk, yarn or base=NUMBER (got 'linear')"),
        ("evaluate tiny --tokens some", "--tokens: expected a count"),
        ("evaluate tiny --tokens none", "--tokens: expected a count"),
        ("evaluate tiny --retrieval hay", "--retrieval: expected none, or some of needle, needles"),
        ("evaluate tiny --retrieval needle --lengths 16", "too short for task 'needle'"),
        ("evaluate tiny --variant position=spda", "did you mean position=sdpa?"),
        ("evaluate unheard-of", "no study 'unheard-of'"),
        ("evaluate tiny --tasks mine --include nowhere", "--tasks: "),
        ("diagnose unheard-of", "no study 'unheard-of'"),
        ("attention-map tiny", "give --text or --file"),
        ("attention-map tiny --text ab --file notes.txt", "give --text or --file"),
        ("attention-map tiny --text a", "expected at least two tokens"),
        ("attention-map tiny --file nowhere.txt", "--file nowhere.txt: "),
        ("attention-map tiny --text ab --layers 1", "--layers: expected numbers from 0 to 0, or all (got '1')"),
        ("attention-map tiny --text ab --layers none", "--layers: "),
        ("attention-map tiny --text ab --heads 0,x", "--heads: expected numbers from 0 to 1"),
        ("attention-map tiny --text ab --seed 7", "--seed 7: finished are 0, 1"),
        ("attention-map tiny --text ab --variant position=spda", "did you mean position=sdpa?"),
        ("compare tiny --metric attention/entropie", "'attention/entropie', but for example attention/entropy"),
    ],
)
def test_wrong_requests_exit_2_and_say_why(command: Command, arguments: str, said: str) -> None:
    """What cannot be asked is refused in a line, before anything starts, without a traceback."""
    result = command(*arguments.split())
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert said in result.stderr
    assert not result.stdout


def test_help_has_examples() -> None:
    """Every command shows how it is typed."""
    for name in ("diagnose", "evaluate", "attention-map"):
        assert "Example: gatelab" in CliRunner().invoke(app, [name, "--help"]).stdout


def test_a_lost_checkpoint_is_told(command: Command, finished_study: Path) -> None:
    """Weights may be deleted to save space: a map of them is refused with the place where they are missed."""
    runs = finished_study / "gatelab-runs"
    for checkpoints in runs.glob("trials/*/checkpoints"):
        checkpoints.rename(checkpoints.with_name("elsewhere"))
    try:
        result = command("attention-map", "tiny", "--text", "abc")
    finally:
        for checkpoints in runs.glob("trials/*/elsewhere"):
            checkpoints.rename(checkpoints.with_name("checkpoints"))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert "position=none, seed=0: there is no whole checkpoint in" in result.stderr
