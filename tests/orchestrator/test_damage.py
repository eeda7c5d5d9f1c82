"""What a bad disk or a careless hand does to a trial's files costs steps at most: it is mended, or it is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gatelab.ablations.loading import make_study
from gatelab.ablations.matrix import Matrix
from gatelab.checksums import with_checksum
from gatelab.cli.main import app
from gatelab.errors import DamagedFile, DataError
from gatelab.orchestrator.evaluation import EvalRequest, assign, eval_jobs, run_evals, unanswered
from gatelab.orchestrator.inline import InlineExecutor
from gatelab.orchestrator.planning import plan_study
from gatelab.orchestrator.study_manifest import changed_since, study_record, write_record
from gatelab.orchestrator.worker import Task, run_task
from gatelab.results.store.journal import Journal, JournalTail
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.records import DamagedRecord, read_json, write_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.trials import PROVENANCE, whole_description
from gatelab.status import Status
from gatelab.training.preparation import prepare
from tests.orchestrator.conftest import TINY

Damage = Callable[[TrialFolder], object]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Matrix, RunsFolder]:
    """A study of one trial of 30 steps, a look every 5 and an evaluation every 10, run to its end."""
    root = tmp_path_factory.mktemp("damage")
    (root / "corpus.txt").write_bytes(Path(json.__file__).read_bytes() * 4)
    training = {**TINY["training"], "tokens": 30 * 64, "log_every": 5}
    base = {**TINY, "training": training, "data": {"source": str(root / "corpus.txt")}}
    base["evaluation"] = {"tokens": 256, "points": 3}
    matrix = plan_study(make_study({"name": "tiny", "base": base, "axes": {"model.gate.position": ["none"]}}, "test"))
    folder = RunsFolder(root / "runs")
    prepare(matrix.trials[0].config.data, folder.data, matrix.trials[0].data_id)
    write_record(folder, study_record(matrix))
    assert run(matrix, folder) == Status.FINISHED
    return matrix, folder


def run(matrix: Matrix, folder: RunsFolder, stop_after: int = 99) -> Status:
    """Carry the trial out with a checkpoint at each look, to its end or up to the n-th look."""
    trial, looks = matrix.trials[0], iter(range(1, 100))
    task = Task(trial.id, trial.config, trial.data_id, folder, folder.root / "never", checkpoint_seconds=0.0)
    return run_task(task, "cpu", should_stop=lambda: next(looks) >= stop_after, raise_errors=True).status


def recorded(files: TrialFolder) -> list[tuple[Any, ...]]:
    """What a trial's journal holds that does not depend on time, and what it lost."""
    tail = JournalTail(files.journal)
    rows = tail.read().drop_columns("time").to_pylist()
    assert tail.lost == []
    return [tuple(row.values()) for row in rows if "per_second" not in row["name"]]


def change(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x20
    path.write_bytes(content)


def first(folder: Path) -> Path:
    return min(folder.iterdir())


@pytest.fixture
def stopped(study: tuple[Matrix, RunsFolder], tmp_path: Path) -> tuple[Matrix, RunsFolder, TrialFolder]:
    """The same trial, stopped at step 20 of 30."""
    matrix, folder = study[0], RunsFolder(tmp_path / "runs")
    folder.root.mkdir()
    shutil.copytree(study[1].data, folder.data)
    shutil.copytree(study[1].root / "studies", folder.root / "studies")
    assert run(matrix, folder, 4) == Status.STOPPED
    return matrix, folder, folder.trial(matrix.trials[0].id)


JOURNALS: dict[str, Damage] = {
    "early": lambda files: flip(first(files.journal), 0.2),
    "late": lambda files: flip(first(files.journal), 0.9),
    "cut": lambda files: first(files.journal).write_bytes(first(files.journal).read_bytes()[:3000]),
    "head": lambda files: flip(first(files.journal), 0.001),
    "gone": lambda files: first(files.journal).unlink(),
    "newest checkpoint": lambda files: flip(max(files.checkpoints.iterdir()), 0.5),
    "its state": lambda files: flip(max(files.checkpoints.iterdir()), 0.01),
    "all checkpoints": lambda files: shutil.rmtree(files.checkpoints),
    "journal and checkpoint": lambda files: [
        flip(max(files.checkpoints.iterdir()), 0.5),
        flip(first(files.journal), 0.9),
    ],
    "trial.json": lambda files: files.description.write_bytes(b""),
    "its id": lambda files: write_json(files.description, {**(read_json(files.description) or {}), "id": "another"}),
    "its content": lambda files: change(files.description, '"seed": 0', '"seed": 1'),
}


@pytest.mark.parametrize("damage", JOURNALS.values(), ids=JOURNALS.keys())
def test_a_damaged_trial_goes_on_to_the_undisturbed_end(
    study: tuple[Matrix, RunsFolder], stopped: tuple[Matrix, RunsFolder, TrialFolder], damage: Damage
) -> None:
    """Every curve has every point, every number is the undisturbed one; nothing fails for good."""
    matrix, folder, files = stopped
    damage(files)
    assert run(matrix, folder) == Status.FINISHED
    calm = study[1].trial(matrix.trials[0].id)
    assert recorded(files) == recorded(calm)
    metrics = [(read_json(each.outcome) or {})["metrics"] for each in (files, calm)]
    assert {name for name in metrics[0] if metrics[0][name] != metrics[1][name]} <= {
        "train/mean_tokens_per_second",
        "train/seconds",
        "memory/peak_bytes",
    }
    assert not list(files.path.rglob("*.tmp"))
    description = whole_description(files)
    assert description is not None
    assert (description.id, len(description.attempts)) == (matrix.trials[0].id, 2)


def test_a_description_that_is_damaged_during_training_costs_nothing(
    stopped: tuple[Matrix, RunsFolder, TrialFolder],
) -> None:
    """The process that trains knows what it wrote: the trial ends as always, and says where it comes from."""
    matrix, folder, files = stopped
    trial = matrix.trials[0]

    def damage(journal: Journal) -> Journal:
        files.description.write_bytes(b"")
        return journal

    task = Task(trial.id, trial.config, trial.data_id, folder, folder.root / "never", checkpoint_seconds=60.0)
    assert run_task(task, "cpu", damage, raise_errors=True).status == Status.FINISHED
    description = whole_description(files)
    assert description is not None
    assert (description.id, len(description.attempts)) == (trial.id, 2)


@pytest.fixture
def finished(study: tuple[Matrix, RunsFolder], tmp_path: Path) -> tuple[Matrix, RunsFolder, TrialFolder]:
    """A copy of the finished trial."""
    shutil.copytree(study[1].root, tmp_path / "copy")
    folder = RunsFolder(tmp_path / "copy")
    return study[0], folder, folder.trial(study[0].trials[0].id)


OUTCOMES: dict[str, Damage] = {
    "another number": lambda files: change(files.outcome, '"validation/loss": ', '"validation/loss": 1'),
    "another step": lambda files: change(files.outcome, '"step": 30', '"step": 20'),
    "another trial": lambda files: write_json(files.outcome, {**(read_json(files.outcome) or {}), "trial": "another"}),
    "empty": lambda files: files.outcome.write_bytes(b""),
    "{}": lambda files: files.outcome.write_text("{}"),
    "null": lambda files: files.outcome.write_text("null"),
    "deep": lambda files: files.outcome.write_text("[" * 100_000),
    "without status": lambda files: files.outcome.write_text('{"step": 3}'),
}


@pytest.mark.parametrize("damage", OUTCOMES.values(), ids=OUTCOMES.keys())
def test_a_damaged_outcome_is_named_and_made_again(
    finished: tuple[Matrix, RunsFolder, TrialFolder], damage: Damage
) -> None:
    """It is no other number in a table and no silent gap; a run makes it again without training."""
    matrix, folder, files = finished
    before = read_json(files.outcome) or {}
    damage(files)
    shown = CliRunner().invoke(app, ["status", "tiny", "--runs", str(folder.root)])
    assert (shown.exit_code, shown.output.count("outcome.json is damaged")) == (0, 2)
    assert "1 interrupted" in shown.output
    assert run(matrix, folder) == Status.FINISHED
    after = read_json(files.outcome) or {}
    former, attempts = before.pop("description")["attempts"], after.pop("description")["attempts"]
    assert {**after, "ended": 0} == {**before, "ended": 0}
    forgotten = dict.fromkeys(PROVENANCE, "unknown")  # better than that the new attempt had trained it
    assert attempts[0]["provenance"] in (former[0]["provenance"], forgotten)
    assert len(attempts) == len(former) + 1


def test_lost_values_of_a_finished_trial_are_named_where_they_are_read(
    finished: tuple[Matrix, RunsFolder, TrialFolder],
) -> None:
    """The command says which file, which steps and what to do; what it says to do restores every value."""
    matrix, folder, files = finished
    expected = recorded(files)
    flip(first(files.journal), 0.5)
    shown = CliRunner().invoke(app, ["curves", "tiny", "--runs", str(folder.root), "-o", str(folder.root / "out")])
    assert shown.exit_code == 0, shown.output
    assert "damaged" in shown.stderr
    assert f"remove {files.outcome} and run the study" in shown.stderr
    files.outcome.unlink()
    assert run(matrix, folder) == Status.FINISHED
    assert recorded(files) == expected


def test_a_damaged_description_is_named_and_the_results_stay(
    finished: tuple[Matrix, RunsFolder, TrialFolder],
) -> None:
    """Only where the numbers come from is lost; a table of them can still be made."""
    _, folder, files = finished
    description = whole_description(files)
    assert description is not None
    write_json(files.description, description.to_json())  # as earlier versions left it
    change(files.description, '"seed": 0', '"seed": 1')
    with pytest.warns(DamagedFile, match=r"trial\.json is damaged: code, data and machine"):
        (row,) = runs_from_journals(folder, "tiny").to_pylist()
    assert (row["outcome"], row["code"]) == ("finished", None)


def test_a_damaged_study_is_a_sentence_and_a_run_mends_it(finished: tuple[Matrix, RunsFolder, TrialFolder]) -> None:
    """One changed letter must not compare other variants; the next run writes the record anew."""
    matrix, folder, _ = finished
    path = folder.study("tiny").record
    for damage in ("", "{}", path.read_text().replace('"baseline"', '"basel1ne"', 1)):
        path.write_text(damage)
        shown = CliRunner().invoke(app, ["compare", "tiny", "--runs", str(folder.root)])
        assert (shown.exit_code, "study.json" in shown.stderr, "gatelab run" in shown.stderr) == (2, True, True)
        assert changed_since(folder, matrix) == []
        write_record(folder, study_record(matrix))
        assert folder.study("tiny").read() == study_record(matrix)
    write_json(path, {**study_record(matrix).to_json(), "name": "another"})
    with pytest.raises(DamagedRecord, match="is of the study 'another'"):
        folder.study("tiny").read()


def test_a_damaged_answer_is_left_out_and_asked_for_again(finished: tuple[Matrix, RunsFolder, TrialFolder]) -> None:
    """It is named, and neither another number nor a question that is never answered."""
    _, folder, files = finished
    jobs, _ = assign(folder, eval_jobs(folder, "tiny"), EvalRequest(lengths=(16,), tokens=256))
    assert run_evals(folder, jobs, InlineExecutor(device="cpu")).answered == 1
    (answer,) = files.evaluations.iterdir()
    kept = read_json(answer) or {}
    change(answer, "length/", "lenght/")
    with pytest.warns(DamagedFile, match=f"{answer.name} is damaged"):
        assert "length/16/plain/loss" not in runs_from_journals(folder, "tiny").column_names
    assert len(unanswered(files, jobs[0].questions)) == 1
    assert run_evals(folder, jobs, InlineExecutor(device="cpu")).answered == 1
    assert (read_json(answer) or {})["metrics"] == kept["metrics"]


def test_a_configuration_of_another_form_is_named_with_its_key(
    finished: tuple[Matrix, RunsFolder, TrialFolder],
) -> None:
    """A trial that somebody edited, or that a later version wrote, cannot be evaluated: why is said."""
    _, folder, files = finished
    description = whole_description(files)
    assert description is not None
    edited = description.model_copy(update={"config": {**description.config, "data": {"sourc": "x"}}})
    write_json(files.outcome, (read_json(files.outcome) or {}) | {"description": with_checksum(edited.to_json())})
    with pytest.raises(DataError, match=r"cannot be read here: data\.sourc: "):
        eval_jobs(folder, "tiny")


def test_what_killed_writers_left_is_swept_by_the_next_attempt(
    stopped: tuple[Matrix, RunsFolder, TrialFolder],
) -> None:
    """It would fill the disk for good; what another process may be writing just now stays."""
    matrix, folder, files = stopped
    old, fresh = (files.path / f".outcome.json.{number}.tmp" for number in (77, 78))
    of_checkpoint = files.checkpoints / ".step-000000025.safetensors.77.tmp"
    for path in (old, fresh, of_checkpoint):
        path.write_text("{")
    os.utime(old, (0, 0))
    assert run(matrix, folder) == Status.FINISHED
    assert list(files.path.rglob("*.tmp")) == [fresh]
