"""`gatelab lr-tolerance` as a user types it: what it prints, what it writes, and what it says to what cannot be."""

import csv
import json
import math
import queue
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gatelab.ablations.learning_rate_grid import learning_rate_grid
from gatelab.ablations.loading import load_study
from gatelab.cli.console import console
from gatelab.cli.live import LiveView
from gatelab.cli.main import app
from gatelab.orchestrator.planning import plan_search
from gatelab.orchestrator.progress import Progress
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import write_json
from tests.cli.conftest import FOREIGN, STUDY, at_work

RATES = [0.003, 0.03, 0.3]
HOW = ("--rates", "0.003,0.03,0.3", "--extend", "0", "--resolution", "2")  # one round
FILES = [f"tolerance.{suffix}" for suffix in ("md", "tex", "csv", "json", "png", "svg", "pdf")]

Curve = Callable[[float, int], dict[str, Any]]
"""Decimal logarithm of a learning rate, and a seed -> an outcome."""


@pytest.fixture(scope="module")
def searched_study(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Iterator[Path]:
    """The current folder, with a study whose learning rates have been searched."""
    folder = tmp_path_factory.mktemp("searched")
    with at_work(folder, queue, shlex, textwrap):
        result = gatelab("lr-tolerance", "tiny.yaml", *HOW)
        assert result.exit_code == 0, result.output
        (folder / "printed.txt").write_text(result.stdout, encoding="utf-8")
        yield folder


@pytest.fixture
def study(searched_study: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the study in it and nothing run; its tracking store was made before, to save time."""
    (tmp_path / "gatelab-runs").mkdir()
    shutil.copy(searched_study / "gatelab-runs/mlflow.db", tmp_path / "gatelab-runs")
    (tmp_path / "tiny.yaml").write_text(STUDY.format(tokens=1280, corpus=corpus))
    monkeypatch.chdir(tmp_path)
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    quiet = console.quiet
    yield tmp_path
    console.quiet = quiet


def gatelab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def carry_out(curve: Curve, variant: str = "") -> None:
    """Carry the window's trials of the study in the current folder out by hand, or those of one variant."""
    matrix = plan_search(load_study(Path("tiny.yaml")))
    cells = learning_rate_grid(matrix, {variant.label: RATES for variant in matrix.variants})
    for trial in cells.trials:
        if trial.variant.startswith(variant):
            outcome = curve(math.log10(trial.config.training.optimizer.learning_rate), trial.seed)
            whole = {"step": 20, "reason": "", "ended": 1.0, **outcome}
            write_json(RunsFolder(Path("gatelab-runs")).trial(trial.id).outcome, whole)


def finished(loss: float) -> dict[str, Any]:
    return {"status": "finished", "metrics": {"validation/loss": loss, "train/initial_loss": 5.5}}


def diverged(x: float, seed: int) -> dict[str, Any]:
    return {"status": "diverged", "metrics": {"train/initial_loss": 5.5}, "reason": "the training loss was nan"}


def test_a_search_prints_and_writes_what_it_found(searched_study: Path) -> None:
    """One command: a table in the terminal, the same in files, a plot, an account in Optuna."""
    printed = (searched_study / "printed.txt").read_text(encoding="utf-8")
    for said in ("round 1: 6 learning rates to try, of 6 in all", "tiny-lr-tolerance: learning rates", "position=sdpa"):
        assert said in printed
    for said in ("optimal learning rate", "sensitivity S, window", "upper edge", "95 % t-interval", "optuna.log"):
        assert said in printed
    assert "position=sdpa against position=none: " in printed
    folder = searched_study / "gatelab-runs/studies/tiny-lr-tolerance"
    for name in (*FILES, "optuna.log"):
        assert (folder / name).stat().st_size > 100
    assert (folder / "tolerance.png").read_bytes().startswith(b"\x89PNG")
    whole = json.loads((folder / "tolerance.json").read_text(encoding="utf-8"))
    assert whole["window"] == RATES
    assert [(arm["arm"], arm["rates"]) for arm in whole["arms"]] == [
        ("position=none", RATES), ("position=sdpa", RATES),
    ]  # fmt: skip
    with (folder / "tolerance.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    losses = {(row["arm"], row["learning_rate"], row["seed"]): float(row["loss"]) for row in rows}
    assert losses["position=sdpa", "0.03", "1"] == whole["arms"][1]["losses"][1][1]


def test_again_it_trains_nothing_and_programs_can_read_it(
    searched_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --json there is nothing but JSON on standard output, and it is what the file holds, the stamp included."""
    monkeypatch.setattr(console, "quiet", False)  # put back afterwards
    before = {path: path.stat().st_mtime_ns for path in searched_study.glob("gatelab-runs/trials/*/journal/*")}
    result = gatelab("lr-tolerance", "tiny.yaml", *HOW, "--json")
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in searched_study.glob("gatelab-runs/trials/*/journal/*")} == before
    whole = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    written = (searched_study / "gatelab-runs/studies/tiny-lr-tolerance/tolerance.json").read_text(encoding="utf-8")
    assert result.stdout == written
    assert (whole["stamp"]["study"], whole["stamp"]["table"]) == ("tiny-lr-tolerance", "tolerance")


def test_what_was_found_is_beside_the_studys_runs_in_mlflow(searched_study: Path) -> None:
    """Whoever looks in MLflow finds the tables and the plot there."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(RunsFolder(searched_study / "gatelab-runs").tracking_uri)
    [experiment] = [each for each in client.search_experiments() if each.name == "tiny-lr-tolerance"]
    runs = client.search_runs([experiment.experiment_id])
    folders = [(run.info.run_id, artifact.path) for run in runs for artifact in client.list_artifacts(run.info.run_id)]
    artifacts = {Path(artifact.path).name for run, path in folders for artifact in client.list_artifacts(run, path)}
    assert set(FILES) <= artifacts


def test_a_window_that_is_too_narrow_gives_a_partial_answer(study: Path) -> None:
    """Told not to look further, it says what it does not know instead of guessing it."""
    carry_out(lambda x, seed: finished(3 - x / 2 + seed / 64))  # the higher the better
    result = gatelab("lr-tolerance", "tiny.yaml", *HOW)
    assert result.exit_code == 0, result.output
    for said in ("≥ 0.3", "the lowest loss is at 0.3, the end of what was tried", "tolerance.extend"):
        assert said in result.stdout
    [row] = [line for line in result.stdout.splitlines() if line.startswith("optimal learning rate")]
    assert row.count("≥ 0.3") == 2


def test_where_all_diverged_that_is_said(study: Path) -> None:
    """Little can be said of learning rates that are all too high: the table says it, and what to do."""
    carry_out(diverged)
    result = gatelab("lr-tolerance", "tiny.yaml", "--rates", "0.003,0.03,0.3", "--extend", "0", "--resolution", "0.2")
    assert result.exit_code == 0, result.output
    assert "position=none: no trial finished below its initial loss: lower tolerance.rates" in result.stdout
    assert "6, 6" in result.stdout  # trials, and how many of them diverged
    assert not list(study.glob("gatelab-runs/trials/*/journal"))  # nor is anything trained between two that diverged


def test_one_variant_that_always_diverges_is_a_finding(study: Path) -> None:
    """The others have their table, and it its column."""
    carry_out(lambda x, seed: finished(2 + (x + 1.5) ** 2), "position=none")
    carry_out(diverged, "position=sdpa")
    result = gatelab("lr-tolerance", "tiny.yaml", *HOW)
    assert result.exit_code == 0, result.output
    assert "position=sdpa: no trial finished below its initial loss" in result.stdout


def test_an_interrupt_before_anything_is_known_is_an_interrupt(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the first minute is no wrong request: exit code 130, and the word that the command goes on."""

    def interrupt(self: LiveView, progress: Progress) -> None:
        if not progress.stopping:
            raise KeyboardInterrupt

    monkeypatch.setattr(LiveView, "__call__", interrupt)
    result = gatelab("lr-tolerance", "tiny.yaml", *HOW, "--set", "training.tokens=64k", "--concurrency", "1")
    assert result.exit_code == 130, result.output
    assert "interrupted: the same command goes on from here" in result.stdout


def test_what_a_study_continues_comes_first(study: Path) -> None:
    """Its trials start from another study's: either that is run, or it is asked for; none fails for the lack of it."""
    Path("next.yaml").write_text("continues: tiny.yaml\nbase: {training.tokens: 128}\nseeds: [0]\n")
    result = gatelab("lr-tolerance", "next.yaml", *HOW)
    outcomes = [json.loads(path.read_text()) for path in study.glob("gatelab-runs/trials/*/outcome.json")]
    assert [outcome["reason"] for outcome in outcomes if outcome["status"] == "failed"] == []
    assert result.exit_code == 0 or "tiny" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--axis", "training.optimizer.learning_rate=0.1,0.2"],
            "axes.training.optimizer.learning_rate: varies the learning rate, which is to be searched",
        ),
        (["--rates", "0.1,0.2"], "tolerance.rates = [0.1, 0.2]: expected at least three learning rates"),
        (["--rates", "0.3,0.2,0.1"], "tolerance.rates = [0.3, 0.2, 0.1]: expected at least three learning rates, asc"),
        (["--rates", "0.1,fast,0.3"], "tolerance.rates.1 = 'fast': expected a number"),
        (["--rates", "0.1,-0.2,0.3"], "tolerance.rates.1 = -0.2: expected more than 0"),
        (["--rates", "0.1,nan,0.3"], "tolerance.rates.1 = nan: expected a finite number"),
        (["--rates", ""], "tolerance.rates"),
        (["--margin", "2"], "tolerance.margin = 2.0: expected less than 1"),
        (["--extend", "-1"], "tolerance.extend = -1: expected 0 or more"),
        (["--set", "data.source=/nowhere"], "no such file or folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests_exit_2_and_say_why(study: Path, arguments: list[str], said: str) -> None:
    """What cannot be searched is refused in a line, before anything is written."""
    result = gatelab("lr-tolerance", "tiny.yaml", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert not list(study.glob("gatelab-runs/studies/*"))


def test_a_study_takes_what_its_search_found(searched_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`learning_rate: search` in the file, and `gatelab plan` shows the learning rate of each; before, a hint."""
    monkeypatch.setattr(console, "quiet", False)  # put back afterwards
    text = (searched_study / "tiny.yaml").read_text() + "learning_rate: search\n"
    (searched_study / "later.yaml").write_text(text)
    whole = json.loads(
        (searched_study / "gatelab-runs/studies/tiny-lr-tolerance/tolerance.json").read_text(encoding="utf-8")
    )
    bounds = [
        next(quantity["bound"] for quantity in arm["quantities"] if "optimal" in quantity["name"])
        for arm in whole["arms"]
    ]
    planned = gatelab("plan", "later.yaml", "--no-estimate")
    assert planned.exit_code == 0, planned.output
    # An optimum at the end of what was tried is none that one may train at.
    assert ("its search found only a bound" in planned.stdout) == any(bounds)
    elsewhere = gatelab("plan", "later.yaml", "--no-estimate", "--name", "elsewhere")
    assert "learning rates are not known yet, and shown as given: it has not been searched for" in elsewhere.stdout
    refused = gatelab("run", "later.yaml", "--name", "elsewhere")
    assert refused.exit_code == 2
    assert "no optimum for position=none; position=sdpa: it has not been searched for: gatelab lr-" in refused.stderr


def test_flags_of_a_study_need_its_file(searched_study: Path) -> None:
    """A name shows what was run: flags that say something else must not be passed over."""
    result = gatelab("lr-tolerance", "tiny", "--margin", "0.3", "--seeds", "5")
    assert result.exit_code == 2
    assert "--seeds, --margin: needs the file of the study; 'tiny' is the name of one" in result.stderr


def test_help_has_examples() -> None:
    """The command shows how it is typed."""
    shown = gatelab("lr-tolerance", "--help").stdout
    assert "Example: gatelab lr-tolerance" in shown
