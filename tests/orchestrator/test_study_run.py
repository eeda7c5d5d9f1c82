"""Running studies on a real Ray, with real training and a real MLflow store."""

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from gatelab.ablations.matrix import Matrix
from gatelab.errors import DataError, WrongRequest
from gatelab.orchestrator.executor import CannotRun
from gatelab.orchestrator.inline import InlineExecutor
from gatelab.orchestrator.progress import Progress
from gatelab.orchestrator.ray_executor import RayExecutor
from gatelab.orchestrator.study_run import RunOptions, run_matrix, run_trial
from gatelab.results.analyses.comparison import compare
from gatelab.results.store.journal import read_journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import acquire
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.records import read_json, read_part
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.trials import read_description
from gatelab.results.tracking.runs import runs_from_mlflow
from tests.orchestrator.conftest import count_attempts

pytestmark = pytest.mark.usefixtures("own_ray")

Build = Callable[..., Matrix]


def counts(progress: Progress) -> dict[str, int]:
    states = [entry.state for entry in progress.trials.values()]
    return {state: states.count(state) for state in set(states)}


def assert_mlflow_agrees(folder: RunsFolder) -> tuple[pa.Table, pa.Table]:
    ours, theirs = runs_from_journals(folder, "tiny"), runs_from_mlflow(folder.tracking_uri, "tiny")
    assert repr(ours.to_pylist()) == repr(theirs.to_pylist())  # by repr: nan is nan
    return ours, theirs


def test_study_runs_once_and_grows(tiny_study: Build, tmp_path: Path) -> None:
    """Finished trials are never run again; a study that grew by seeds and a level runs only what is new."""
    folder = RunsFolder(tmp_path / "runs")
    assert counts(run_matrix(tiny_study(seeds=2), folder, RayExecutor(), RunOptions())) == {"finished": 4}
    assert count_attempts(folder) == 4
    assert counts(run_matrix(tiny_study(seeds=2), folder, RayExecutor(), RunOptions())) == {"finished": 4}
    assert count_attempts(folder) == 4
    grown = tiny_study(seeds=3, axes={"model.gate.position": ["none", "sdpa", "value"]})
    assert counts(run_matrix(grown, folder, RayExecutor(), RunOptions())) == {"finished": 9}
    assert count_attempts(folder) == 9
    assert len(list(folder.study("tiny").path.glob("study-*.json"))) == 2  # what was launched before is kept


def test_journal_and_mlflow_give_the_same_frame_and_table(tiny_study: Build, tmp_path: Path) -> None:
    """MLflow is a copy of the journals that tables can be made from."""
    folder = RunsFolder(tmp_path / "runs")
    run_matrix(tiny_study(seeds=2), folder, RayExecutor(), RunOptions())
    ours, theirs = assert_mlflow_agrees(folder)
    assert compare(ours) == compare(theirs)
    assert ours["outcome"].to_pylist() == ["finished"] * 4


def test_the_same_work_in_two_studies_is_done_once(tiny_study: Build, tmp_path: Path) -> None:
    """Trials belong to no study: another one that asks for the same work takes the result."""
    folder = RunsFolder(tmp_path / "runs")
    run_matrix(tiny_study(), folder, RayExecutor(), RunOptions())
    other = tiny_study(
        name="other", axes={"model.gate.position": ["sdpa", "none"]}, baseline={"model.gate.position": "none"}
    )
    run_matrix(other, folder, RayExecutor(), RunOptions())
    assert count_attempts(folder) == 2
    assert runs_from_mlflow(folder.tracking_uri, "other")["outcome"].to_pylist() == ["finished"] * 2


def test_divergence_is_a_result(tiny_study: Build, tmp_path: Path) -> None:
    """A diverged trial is over, counted and explained; it is not retried and does not stop others."""
    folder = RunsFolder(tmp_path / "runs")
    axes = {"training.optimizer.learning_rate": [0.01, 1e30]}
    matrix = tiny_study({"training.optimizer.clip_norm": None, "training.tokens": 3200}, axes=axes)
    progress = run_matrix(matrix, folder, RayExecutor(), RunOptions())
    assert counts(progress) == {"finished": 1, "diverged": 1}
    assert count_attempts(folder) == 2
    frame = runs_from_journals(folder, "tiny")
    assert_mlflow_agrees(folder)
    diverged = frame.filter([outcome == "diverged" for outcome in frame["outcome"].to_pylist()])
    assert "training loss" in diverged["reason"][0].as_py()
    assert counts(run_matrix(matrix, folder, RayExecutor(), RunOptions())) == {"finished": 1, "diverged": 1}
    assert count_attempts(folder) == 2


def test_failure_is_retried_then_reported(tiny_study: Build, tmp_path: Path) -> None:
    """A trial that cannot be carried out fails after its retry, with the error and a log; when mended, it runs."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study()
    in_the_way = folder.trial(matrix.trials[1].id).path / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()  # where a folder must be
    progress = run_matrix(matrix, folder, RayExecutor(), RunOptions(retries=1))
    assert counts(progress) == {"finished": 1, "failed": 1}
    entry = progress.trials[matrix.trials[1].id]
    assert "FileExistsError" in entry.reason
    assert Path(entry.log).read_text().count("the trial failed") == 2  # the attempt and its retry
    assert runs_from_journals(folder, "tiny")["outcome"].to_pylist() == ["finished", "failed"]
    assert_mlflow_agrees(folder)
    in_the_way.unlink()
    assert counts(run_matrix(matrix, folder, RayExecutor(), RunOptions())) == {"finished": 2}
    assert runs_from_mlflow(folder.tracking_uri, "tiny")["outcome"].to_pylist() == ["finished"] * 2


def test_killed_worker_is_replaced_and_its_trial_goes_on(tiny_study: Build, tmp_path: Path) -> None:
    """kill -9 of a worker costs nothing: the trial goes on and gives what an undisturbed one gives, bit for bit."""
    long = {"training.tokens": 64_000, "training.log_every": 5}
    undisturbed, disturbed = RunsFolder(tmp_path / "a"), RunsFolder(tmp_path / "b")
    run_matrix(tiny_study(long), undisturbed, RayExecutor(), RunOptions())

    def kill_one_worker() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            journals = list(disturbed.root.glob("trials/*/checkpoints/*.safetensors"))
            workers = [
                int(p.parent.name)
                for p in Path("/proc").glob("[0-9]*/cmdline")
                if b"TrialWorker.run" in _read(p) and _is_ours(p.parent)
            ]
            if journals and workers:
                os.kill(workers[0], signal.SIGKILL)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    progress = run_matrix(tiny_study(long), disturbed, RayExecutor(), RunOptions(checkpoint_seconds=0.2))
    killer.join()
    assert counts(progress) == {"finished": 2}
    assert count_attempts(disturbed) == 3
    for name in ("train/loss", "validation/loss"):
        assert _values(undisturbed, name) == _values(disturbed, name)


def _is_ours(process: Path) -> bool:
    """Whether a process (/proc/PID) descends from this one: other studies may be running on this machine."""
    while process.name not in ("0", "1", str(os.getpid())):
        status = _read(process / "status").decode()
        process = process.parent / (status.partition("PPid:")[2].split() or ["0"])[0]
    return process.name == str(os.getpid())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _values(folder: RunsFolder, name: str) -> list[tuple[str, int, float]]:
    rows = metrics_from_journals(folder, "tiny").to_pylist()
    return [(row["trial"], row["step"], row["value"]) for row in rows if row["name"] == name]


def test_what_is_no_tracking_store_is_refused_before_anything_is_done(tiny_study: Build, tmp_path: Path) -> None:
    """A typing mistake in an address must not be found out after hours of training; nothing is written."""
    folder = RunsFolder(tmp_path / "runs")
    with pytest.raises(WrongRequest, match="tracking URI 'htp://foo'"):
        run_matrix(tiny_study(), folder, InlineExecutor(), RunOptions(tracking_uri="htp://foo"))
    assert not folder.root.exists()


def test_mlflow_away_does_not_stop_training_and_is_caught_up(tiny_study: Build, tmp_path: Path) -> None:
    """A tracking store that cannot be reached costs a message; the next run brings it up to date."""
    folder = RunsFolder(tmp_path / "runs")
    progress = run_matrix(tiny_study(), folder, RayExecutor(), RunOptions(tracking_uri="http://127.0.0.1:9"))
    assert counts(progress) == {"finished": 2}
    assert progress.tracking_problem.startswith("MLflow is not up to date")
    assert run_matrix(tiny_study(), folder, RayExecutor(), RunOptions()).tracking_problem == ""
    assert_mlflow_agrees(folder)


def test_one_study_is_run_by_one_process(tiny_study: Build, tmp_path: Path) -> None:
    """A second `run` of a study that is being run is refused, and says so."""
    folder = RunsFolder(tmp_path / "runs")
    with acquire(folder.study("tiny").path), pytest.raises(CannotRun, match="being run by another"):
        run_matrix(tiny_study(), folder, RayExecutor(), RunOptions())


def test_data_too_small_is_refused_before_anything_starts(tiny_study: Build, tmp_path: Path) -> None:
    """Bad input never starts half a study: no record, no trial, no journal."""
    folder = RunsFolder(tmp_path / "runs")
    with pytest.raises(DataError, match=r"too small for training\.sequence_length 100000"):
        run_matrix(tiny_study({"training.sequence_length": 100_000}), folder, RayExecutor(), RunOptions())
    assert not folder.study("tiny").record.exists()
    assert count_attempts(folder) == 0


def test_cores_are_shared_out(tiny_study: Build, tmp_path: Path) -> None:
    """Parallel trials do not fight for cores: each has its share, and it is recorded with the result."""
    for concurrency, threads in ((1, "2"), (2, "1")):
        folder = RunsFolder(tmp_path / str(concurrency))
        run_matrix(tiny_study(), folder, RayExecutor(concurrency=concurrency), RunOptions())
        assert set(runs_from_journals(folder, "tiny")["threads"].to_pylist()) == {threads}


def test_more_trials_at_a_time_than_cores(tiny_study: Build, tmp_path: Path) -> None:
    """Any --concurrency runs to the end: workers then share cores, and none waits for one that never comes."""
    folder = RunsFolder(tmp_path / "runs")
    assert counts(run_matrix(tiny_study(seeds=2), folder, RayExecutor(concurrency=3), RunOptions())) == {"finished": 4}


def test_gpus_that_are_not_there_are_refused(tiny_study: Build, tmp_path: Path) -> None:
    """Asking for a GPU where there is none is an error, not a study that waits for ever."""
    with pytest.raises(CannotRun, match="--gpus-per-trial 1: this Ray has no GPUs"):
        run_matrix(tiny_study(), RunsFolder(tmp_path / "runs"), RayExecutor(gpus_per_trial=1.0), RunOptions())


def test_training_in_process_is_the_same_trial(tiny_study: Build, tmp_path: Path) -> None:
    """`gatelab train` gives the journal that `gatelab run` gives, and its result counts as done."""
    matrix, shown = tiny_study(), []
    by_ray, by_hand = RunsFolder(tmp_path / "ray"), RunsFolder(tmp_path / "hand")
    run_matrix(matrix, by_ray, RayExecutor(), RunOptions())
    for trial in matrix.trials:
        outcome = run_trial(trial, by_hand, "cpu", 60.0, lambda step, values: shown.append((step, values)))
        expected = read_json(by_ray.trial(trial.id).outcome)
        assert expected is not None
        assert outcome.metrics["validation/loss"] == expected["metrics"]["validation/loss"]
    assert [step for step, _ in shown] == [10, 20] * 2
    assert counts(run_matrix(matrix, by_hand, RayExecutor(), RunOptions())) == {"finished": 2}
    assert count_attempts(by_hand) == 2


def test_budgets_share_a_trunk(tiny_study: Build, tmp_path: Path) -> None:
    """Shorter budgets go on from the longest one's checkpoints, and give the table that they give alone."""
    schedule = {"kind": "wsd", "warmup": 4, "decay": 0.5}
    wsd = {"training.log_every": 2, **{f"training.schedule.{name}": value for name, value in schedule.items()}}
    together, apart = RunsFolder(tmp_path / "together"), RunsFolder(tmp_path / "apart")
    matrix = tiny_study(wsd, axes={"training.tokens": [1280, 640, 2560]})
    assert counts(run_matrix(matrix, together, RayExecutor(), RunOptions())) == {"finished": 3}
    for tokens in (640, 1280, 2560):
        run_matrix(
            tiny_study(wsd, name=f"only-{tokens}", axes={"training.tokens": [tokens]}),
            apart,
            RayExecutor(),
            RunOptions(),
        )
    for trial in matrix.trials:
        ours, theirs = (read_json(each.trial(trial.id).outcome) for each in (together, apart))
        assert ours is not None and theirs is not None
        for name in ("validation/loss", "train/final_loss", "train/initial_loss"):
            assert ours["metrics"][name] == theirs["metrics"][name]
        curves = [read_journal(each.trial(trial.id).journal).to_pylist() for each in (together, apart)]
        losses = [[(row["step"], row["value"]) for row in rows if row["name"] == "train/loss"] for rows in curves]
        assert losses[0] == losses[1]
    by_tokens = {trial.config.training.tokens: trial.id for trial in matrix.trials}
    told = {tokens: read_part(together.trial(id).outcome, "description") or {} for tokens, id in by_tokens.items()}
    assert "branch" not in told[2560]
    assert told[1280]["branch"] == {"trunk": by_tokens[2560], "step": 10}
    assert told[1280]["attempts"][0] == told[2560]["attempts"][0]  # a result is of all code and devices that made it
    assert len(told[1280]["attempts"]) == 2
    trained = {trial.config.training.tokens: own_steps(together, trial.id) for trial in matrix.trials}
    assert trained == {640: 6, 1280: 10, 2560: 40}  # of 10, 20 and 40


def own_steps(folder: RunsFolder, trial: str) -> int:
    """Steps that a trial's own, last attempt trained."""
    description = read_description(folder.trial(trial))
    assert description is not None
    begun = datetime.fromtimestamp(description.attempts[-1].started, UTC).replace(tzinfo=None)
    rows = read_journal(folder.trial(trial).journal).to_pylist()
    return sum(row["name"] == "train/loss" and row["time"] >= begun for row in rows)
