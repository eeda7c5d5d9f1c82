"""What a page says of how to run its study again does run it again."""

import html
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.learning_rate_grid import learning_rate_grid
from gatelab.ablations.loading import load_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.cli.main import app
from gatelab.orchestrator.study_manifest import study_record, write_record, write_study_file
from gatelab.results.report.page import write_report
from gatelab.results.store.layout import RunsFolder

FILE = """\
question: "Does it help: 'yes', no or $?"
base: {data: {source: text, tokenizer: bytes}, training: {tokens: 2k}}
axes:
  gate: {none: {model.gate.position: none}, "1e-3": {model.gate.position: value}, "no": {model.gate.position: sdpa}}
  model.norm_eps: [1e-6, 1e-5]
exclude: [{gate: "no", model.norm_eps: 1e-5}]
baseline: {gate: none}
seeds: auto
claims: {it helps: {variant: {gate: "1e-3"}, direction: lower, margin: 1e-3}}
"""
LONGER = "continues: gates.yaml\nbase: {training: {tokens: 4k}}\nexclude: [{gate: '1e-3'}]\nclaims: {}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunsFolder:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the quick brown fox " * 500)
    (tmp_path / "gates.yaml").write_text(FILE)
    (tmp_path / "longer.yaml").write_text(LONGER)
    return RunsFolder(tmp_path / "runs")


def listings(page: Path) -> dict[str, str]:
    """The texts of a page that are shown as they are, by title."""
    found = re.findall(r'<pre [^>]*aria-label="([^"]*)">(.*?)</pre>', page.read_text(encoding="utf-8"), re.DOTALL)
    return {title: html.unescape(text) for title, text in found}


@pytest.mark.parametrize(
    "flags",
    [
        {"path": Path("gates.yaml")},
        {"path": Path("gates.yaml"), "sets": ["training.tokens=4k", "training.optimizer.learning_rate=1e-5"]},
        {"path": Path("gates.yaml"), "axes": ["model.layers=1,2"], "seeds": "0,5", "name": "other", "match": "none"},
        {"axes": ["model.gate.position=none,sdpa"], "sets": ["data.source=text"], "seeds": "2"},
        {"path": Path("longer.yaml"), "name": "even-longer"},
    ],
    ids=["a file", "with values", "with axes and a name", "flags alone", "a study that continues another"],
)
def test_the_printed_command_runs_the_same_study(
    flags: dict[str, object], folder: RunsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are in the page; saved under their titles, they plan the hash that the page names."""
    plan = study_from_flags(**flags)  # type: ignore[arg-type]
    record = study_record(build_matrix(plan, lambda config: "data"))
    write_record(folder, record)
    write_study_file(folder, plan)
    assert load_study(folder.study(plan.study.name).file).hash == plan.hash

    texts = listings(write_report(folder, plan.study.name)[0])
    [command] = [line for line in texts["How to reproduce it"].splitlines() if line.startswith("gatelab run")]
    again = tmp_path / "again"
    again.mkdir()
    for title, text in texts.items():
        if title.endswith(".yaml"):
            (again / title).write_text(text + "\n", encoding="utf-8")
    (again / "text").symlink_to(tmp_path / "text")
    monkeypatch.chdir(again)
    file = command.partition("#")[0].split()[2]
    planned = CliRunner().invoke(app, ["plan", file, "--json", "--no-estimate"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["hash"] == record.hash == plan.hash


def test_a_search_is_run_again_by_the_study_that_it_searches(folder: RunsFolder) -> None:
    """Its file is that of the study, which the command of the search takes."""
    plan = study_from_flags(Path("gates.yaml"), seeds="2")
    matrix = build_matrix(plan, lambda config: "data")
    grid = learning_rate_grid(matrix, {variant.label: [1e-3, 1e-2] for variant in matrix.variants})
    write_record(folder, study_record(grid))
    write_study_file(folder, grid.plan)
    kept = load_study(folder.study("gates-lr-tolerance").file)
    again = build_matrix(kept, lambda config: "data")
    rates = {variant.label: [1e-3, 1e-2] for variant in again.variants}
    assert learning_rate_grid(again, rates).plan.hash == grid.plan.hash
    texts = listings(write_report(folder, "gates-lr-tolerance")[0])
    assert "gatelab lr-tolerance gates.yaml" in texts["How to reproduce it"]
    assert "name: gates\n" in texts["gates.yaml"]


def test_what_differs_from_the_run_is_named(folder: RunsFolder, tmp_path: Path) -> None:
    """By field, wherever it was typed: in the file, or as a flag of the run."""
    plan = study_from_flags(Path("gates.yaml"), sets=["training.tokens=4k"], seeds="3")
    write_record(folder, study_record(build_matrix(plan, lambda config: "data")))
    write_study_file(folder, plan)
    result = CliRunner().invoke(app, ["status", "gates.yaml", "--runs", str(folder.root)])
    assert result.exit_code == 0, result.output
    assert "it differs in seeds, base.training.tokens" in result.stderr
