"""A study is the same study wherever it runs: in this process, without Ray, or on Ray."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from gatelab.ablations.loading import load_study
from gatelab.ablations.matrix import Matrix
from gatelab.orchestrator.chaos.history import leftovers
from gatelab.orchestrator.evaluation import EvalProgress, EvalRequest, assign, eval_jobs, load_model, run_evals
from gatelab.orchestrator.inline import InlineExecutor
from gatelab.orchestrator.progress import Progress
from gatelab.orchestrator.ray_executor import RayExecutor
from gatelab.orchestrator.reporting import AnalysisReport
from gatelab.orchestrator.study_run import RunOptions, run_matrix
from gatelab.orchestrator.worker import Task, run_task
from gatelab.orchestrator.workflow import make_executor, run_study, search_learning_rates
from gatelab.results.analyses.comparison import compare
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.records import read_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.tracking.runs import runs_from_mlflow
from tests.orchestrator.conftest import TINY

Build = Callable[..., Matrix]

OF_THE_MACHINE = ("train/mean_tokens_per_second", "train/seconds", "memory/peak_bytes", "train/tokens_per_second")

WITHOUT_RAY = """\
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from gatelab.ablations.loading import load_study
from gatelab.orchestrator.study_run import RunOptions
from gatelab.orchestrator.reporting import AnalysisReport
from gatelab.orchestrator.workflow import make_executor, run_study, search_learning_rates
from gatelab.results.store.layout import RunsFolder

executor = make_executor("inline")
result = run_study(load_study(Path("tiny.yaml")), RunsFolder(Path("inline")), executor, RunOptions())
assert not (result.interrupted or result.failed)
assert [path.name for path in result.studies[0].written.tables if path.suffix == ".md"]
assert result.studies[0].tracking_problem == ""
assert "ray" not in sys.modules
"""


def values(folder: RunsFolder) -> dict[tuple[str, str, int, int | None], float]:
    """What was measured of training, by trial, name, step and layer."""
    return {
        (row["trial"], row["name"], row["step"], row["layer"]): row["value"]
        for row in metrics_from_journals(folder, "tiny").to_pylist()
        if row["name"] not in OF_THE_MACHINE
    }


@pytest.mark.usefixtures("own_ray")
def test_inline_needs_no_ray_and_gives_the_same_table(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many threads every digit is the same: of each step, of the table, in MLflow."""
    monkeypatch.chdir(tmp_path)
    base = {**TINY, "data": {"source": str(corpus)}}
    raw = {"name": "tiny", "base": base, "axes": {"model.gate.position": ["none", "sdpa"]}, "seeds": 2}
    Path("tiny.yaml").write_text(yaml.safe_dump(raw))
    subprocess.run([sys.executable, "-c", WITHOUT_RAY], check=True, timeout=300)
    inline, ray = RunsFolder(tmp_path / "inline"), RunsFolder(tmp_path / "ray")
    result = run_study(load_study(Path("tiny.yaml")), ray, RayExecutor(concurrency=2), RunOptions())
    assert [study.progress.count("finished") for study in result.studies] == [4]
    assert (found := values(inline)) == values(ray)
    assert {name for _, name, *_ in found} >= {"train/loss", "train/gradient_norm", "validation/loss"}
    tables = [runs_from_journals(folder, "tiny") for folder in (inline, ray)]
    assert {*tables[0]["threads"].to_pylist(), *tables[1]["threads"].to_pylist()} == {"1"}
    rows, others = ([replace(row, tokens_per_second=0) for row in compare(table).rows] for table in tables)
    assert rows == others
    assert repr(tables[0].to_pylist()) == repr(runs_from_mlflow(inline.tracking_uri, "tiny").to_pylist())


def test_a_log_is_there_once_there_is_something_to_say(tiny_study: Build, tmp_path: Path) -> None:
    """Thousands of empty files cost a shared disk; and a failure names a log only where there is one."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study()
    run_matrix(matrix, folder, InlineExecutor(), RunOptions())
    trial = matrix.trials[0]
    assert folder.trial(trial.id).outcome.exists() and not folder.trial(trial.id).log.exists()
    task = Task("ab", trial.config, trial.data_id, folder, folder.root / "never", 60.0, parent="not trained")
    outcome = run_task(task, "cpu")
    assert (outcome.status, outcome.log) == ("failed", "")


def test_a_failure_is_an_outcome_unless_it_is_to_be_raised(tiny_study: Build, tmp_path: Path) -> None:
    """As on Ray: retried, recorded with its traceback and log, no obstacle to others. A debugger wants it raised."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study()
    in_the_way = folder.trial(matrix.trials[0].id).path / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()  # where a folder must be
    progress = run_matrix(matrix, folder, InlineExecutor(), RunOptions(retries=1))
    assert [entry.state for entry in progress.trials.values()] == ["failed", "finished"]
    entry = progress.trials[matrix.trials[0].id]
    assert "FileExistsError" in entry.reason
    assert Path(entry.log).read_text().count("the trial failed") == 2  # the attempt and its retry
    record = read_json(folder.trial(matrix.trials[0].id).outcome)
    assert record is not None
    assert record.keys() - {"checksum"} == {"trial", "step", "status", "reason", "kind", "cause", "log", "ended"}
    with pytest.raises(FileExistsError):
        run_matrix(matrix, folder, InlineExecutor(raise_errors=True), RunOptions())
    in_the_way.unlink()
    assert run_matrix(matrix, folder, InlineExecutor(raise_errors=True), RunOptions()).count("finished") == 2


def test_an_interrupted_trial_goes_on_from_its_checkpoint(tiny_study: Build, tmp_path: Path) -> None:
    """Ctrl-C ends the trial at once; the next run gives what an undisturbed one gives."""
    long = {"training.tokens": 64_000, "training.log_every": 5}
    matrix = tiny_study(long)
    folder, undisturbed = RunsFolder(tmp_path / "runs"), RunsFolder(tmp_path / "undisturbed")
    seen: list[int] = []

    def interrupt(progress: Progress) -> None:
        seen.extend(entry.step for entry in progress.running)
        if not progress.stopping and list(folder.root.glob("trials/*/checkpoints/*.safetensors")):
            raise KeyboardInterrupt

    progress = run_matrix(matrix, folder, InlineExecutor(), RunOptions(checkpoint_seconds=0.1), interrupt)
    assert progress.stopping
    assert {entry.state for entry in progress.trials.values()} <= {"waiting", "finished"}
    assert progress.count("waiting") >= 1
    assert seen  # the progress of a trial is shown while it runs in this process
    assert not folder.study("tiny").stop_files
    assert run_matrix(matrix, folder, InlineExecutor(), RunOptions()).count("finished") == 2
    assert "resumed from the checkpoint of step" in folder.trial(matrix.trials[0].id).log.read_text()
    run_matrix(matrix, undisturbed, InlineExecutor(), RunOptions())
    assert values(folder) == values(undisturbed)


def test_what_a_driver_left_that_was_killed_is_removed(tiny_study: Build, tmp_path: Path) -> None:
    """Its request to stop, and half-written files once nobody can be writing them: the next driver finds both."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study()
    stop = folder.study("tiny").stop_file("4194304-1")
    half = stop.with_name(".study.json.4194304.tmp")
    stop.parent.mkdir(parents=True)
    stop.touch()
    half.touch()
    os.utime(half, (time.time() - 4000,) * 2)
    assert leftovers(folder) == ["studies/tiny/.study.json.4194304.tmp", "studies/tiny/stop-4194304-1"]
    assert run_matrix(matrix, folder, InlineExecutor(), RunOptions()).count("finished") == 2
    assert leftovers(folder) == []


def test_models_are_evaluated_in_this_process(tiny_study: Build, tmp_path: Path) -> None:
    """The pool of evaluation is that of training: inline it asks the same questions once and keeps the answers."""
    folder = RunsFolder(tmp_path / "runs")
    run_matrix(tiny_study(), folder, InlineExecutor(device="cpu"), RunOptions())
    jobs, refused = assign(folder, eval_jobs(folder, "tiny"), EvalRequest(lengths=(16, 32), tokens=256))
    assert not refused
    assert run_evals(folder, jobs, InlineExecutor(device="cpu")) == EvalProgress(asked=4, answered=4)
    assert run_evals(folder, jobs, InlineExecutor()) == EvalProgress(asked=4, known=4)
    [answer, *_] = sorted(folder.trial(jobs[0].trial_id).evaluations.glob("*.json"))
    kept = read_json(answer)
    assert kept is not None
    assert kept["metrics"] == load_model(folder, jobs[0], "cpu").evaluate(jobs[0].questions[0])
    folder.trial(jobs[1].trial_id).checkpoints.rename(tmp_path / "elsewhere")
    again = assign(folder, jobs, EvalRequest(lengths=(64,), tokens=256))[0]
    progress = run_evals(folder, again, InlineExecutor())
    assert (progress.answered, progress.failed) == (1, 1)
    [(trial, reason)] = progress.failures
    assert trial == "position=sdpa, seed=0"
    assert reason.startswith("FileNotFoundError: there is no whole checkpoint")
    with pytest.raises(FileNotFoundError):
        run_evals(folder, again, InlineExecutor(raise_errors=True))


def test_learning_rates_are_searched_in_this_process(tiny_study: Build, tmp_path: Path) -> None:
    """A search is one call, too: it returns what was found and which files hold it, and prints nothing."""
    folder, rates = RunsFolder(tmp_path / "runs"), [0.003, 0.03, 0.3]
    plan = tiny_study(tolerance={"rates": rates, "extend": 0, "resolution": 2}).plan
    report = search_learning_rates(plan, folder, InlineExecutor(), RunOptions())
    assert report.search is not None
    assert (report.search.unfinished, report.interrupted, report.parents.studies) == ("", False, ())
    assert len(report.search.progress.trials) == 6
    assert isinstance(report.found, AnalysisReport)
    assert report.found.tracking_problem == ""
    assert all(path.exists() for path in [*report.found.written.tables, *report.found.written.plots])
    assert [arm.sweep.rates.tolist() for arm in report.found.written.result.arms] == [rates, rates]


def test_executors_have_names() -> None:
    """What is no executor's name is refused with those that are."""
    assert make_executor("inline") == InlineExecutor()
    assert make_executor("ray") == RayExecutor()
    mine = RayExecutor(concurrency=3)
    assert make_executor(mine) is mine
    with pytest.raises(ValueError, match="executor 'slurm': expected 'inline', 'ray'"):
        make_executor("slurm")  # type: ignore[arg-type]


def test_inline_uses_the_threads_of_this_process(tiny_study: Build, tmp_path: Path) -> None:
    """Nothing is set behind the caller's back."""
    torch.set_num_threads(2)
    folder = RunsFolder(tmp_path / "runs")
    run_matrix(tiny_study(), folder, InlineExecutor(), RunOptions())
    assert torch.get_num_threads() == 2
    assert set(runs_from_journals(folder, "tiny")["threads"].to_pylist()) == {"2"}
