"""A study and its data: what it needs of them once they are prepared, and what it says of them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from gatelab.ablations.errors import StudyError
from gatelab.ablations.loading import make_study
from gatelab.cli.main import app
from gatelab.orchestrator.evaluation import eval_jobs, load_model
from gatelab.orchestrator.planning import plan_study, prepare_study
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.orchestrator.study_run import run_trial
from gatelab.results.analyses.comparison import compare
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.runs import runs_from_journals
from gatelab.status import Status
from gatelab.training.evals.spec import EvalSpec

RAW = {
    "name": "words",
    "base": {
        "model": {"layers": 1, "hidden_size": 8, "query_heads": 1, "kv_heads": 1, "head_dim": 8, "ffn_size": 8},
        "training": {"tokens": 64, "sequence_length": 16, "batch_size": 2},
        "evaluation": {"tokens": 64, "points": 1, "diagnostic_tokens": 0},
        "data": {"source": "."},
    },
    "axes": {"data.tokenizer": ["bytes", "narrow.json"]},
    "seeds": 2,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, a tokenizer that knows some of its words, and the runs of a study of both: trained once."""
    root = tmp_path_factory.mktemp("project")
    for index in range(20):
        (root / f"{index}.txt").write_text(f"the head of number {index} looks at the words before it\n" * 9)
    known = ["[UNK]", "the", "head", "of", "words", "at"]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "narrow.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        folder, matrix = RunsFolder(Path("gatelab-runs")), plan_study(make_study(RAW, "test"))
        write_record(folder, study_record(matrix))
        for trial in matrix.trials:
            assert run_trial(trial, folder, "cpu", 60.0, lambda step, values: None).status is Status.FINISHED
    return root


@pytest.fixture
def here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    monkeypatch.chdir(shutil.copytree(project, tmp_path / "project"))
    return Path()


def test_a_source_that_holds_the_runs_folder_resumes(here: Path) -> None:
    """What a study writes is no part of what it trains on: planned again it is the same study."""
    (here / "gatelab-runs" / "studies" / "words" / "comparison.md").write_text("a table")
    planned = {trial.id for trial in plan_study(make_study(RAW, "test")).trials}
    assert planned == {path.name for path in (here / "gatelab-runs" / "trials").iterdir()}


def test_what_is_trained_needs_no_file_of_its_tokenizer(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared data hold their tokenizer: models are loaded and asked from any folder, when the file has gone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project" / "narrow.json").unlink()
    folder = RunsFolder(Path("project") / "gatelab-runs")
    jobs = eval_jobs(folder, "words")
    assert len(jobs) == 4
    for job in jobs:
        model = load_model(folder, job, "cpu")
        assert model.evaluate(EvalSpec("length", 16, "plain", 64))["length/000016/plain/loss"] > 0
        assert model.dataset.tokenizer.text(model.dataset.tokenizer.tokens("the head").tolist()) == "the head"


def test_a_trial_is_trained_in_another_folder(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker need not be where the study was launched: relative paths are read before it begins."""
    matrix = plan_study(make_study({**RAW, "seeds": [7]}, "test"))
    folder = RunsFolder((here / "gatelab-runs").resolve())
    monkeypatch.chdir(tmp_path)
    for trial in matrix.trials:
        assert run_trial(trial, folder, "cpu", 60.0, lambda step, values: None).status is Status.FINISHED


def test_a_tokenizer_that_loses_text_wins_no_comparison(here: Path) -> None:
    """From the text to the table: what a tokenizer throws away is counted, recorded and judged."""
    runs = runs_from_journals(RunsFolder(here / "gatelab-runs"), "words")
    row = next(row for row in compare(runs, "validation/bits_per_byte").rows if not row.is_baseline)
    assert row.verdict == "not evaluable"
    assert "its tokenizer loses" in row.why
    assert compare(runs).rows[0].verdict != "not evaluable"
    study = here / "study.yaml"
    study.write_text(json.dumps(RAW))
    shown = CliRunner().invoke(app, ["data", str(study)])
    assert shown.exit_code == 0
    assert "lost bytes" in shown.output
    assert "the tokenizer loses" in shown.output


def test_data_that_are_damaged_are_prepared_anew_by_the_command_that_says_so(here: Path) -> None:
    """What the message of a damaged shard promises is what happens."""
    folder = RunsFolder(here / "gatelab-runs")
    shards = sorted(folder.data.glob("*/train-*.bin"))
    whole = [path.read_bytes() for path in shards]
    for path in shards:
        path.write_bytes(bytes(len(path.read_bytes())))
    os.utime(shards[0])
    prepare_study(make_study(RAW, "test"), folder)
    assert [path.read_bytes() for path in shards] == whole


@pytest.mark.parametrize("content", [None, "{", '{"version": "2.0", "model": {"vocab": {"a": 0}}}'])
def test_a_level_whose_tokenizer_cannot_be_used_is_refused_by_the_plan(here: Path, content: str | None) -> None:
    """A study is not run without the variant that it asks about; the message names the key and the file."""
    if content is not None:
        (here / "other.json").write_text(content)
    raw = {**RAW, "axes": {"data.tokenizer": ["bytes", "other.json"]}}
    with pytest.raises(StudyError, match=r"data\.tokenizer.*other\.json") as caught:
        plan_study(make_study(raw, "test"))
    assert len(str(caught.value).splitlines()) == 1
    assert "hidden_size" not in str(caught.value)


def test_a_corpus_too_small_for_its_vocabulary_is_noted(here: Path) -> None:
    """A model with 5,000 embeddings of which it sees some hundred is larger than it looks."""
    study = here / "study.yaml"
    study.write_text(json.dumps({**RAW, "axes": {}, "base": {**RAW["base"], "data.tokenizer": "bpe:5000"}}))
    shown = CliRunner().invoke(app, ["data", str(study)])
    assert "bpe:5000: the text is enough for" in shown.output
