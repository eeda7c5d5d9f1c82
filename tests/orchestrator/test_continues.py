"""Running a study that continues another: real training, real checkpoints, the commands as they are typed."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from gatelab.ablations.loading import load_study
from gatelab.ablations.matrix import Matrix
from gatelab.cli.console import console
from gatelab.cli.live import LiveView
from gatelab.cli.main import app
from gatelab.orchestrator.planning import plan_study
from gatelab.orchestrator.progress import Progress
from gatelab.orchestrator.ray_executor import RayExecutor
from gatelab.orchestrator.study_run import RunOptions, run_matrix
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.records import read_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.trials import read_description
from gatelab.results.tracking.runs import runs_from_mlflow
from tests.orchestrator.conftest import count_attempts

pytestmark = pytest.mark.usefixtures("own_ray")

Build = Callable[..., Matrix]

# A rate so small that a step leaves float32 weights where they are.
STILL = {"training": {"tokens": 128, "sequence_length": 32, "optimizer": {"learning_rate": 1e-12}}}


@pytest.fixture
def build(two_studies: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Build:
    """The matrix of next.yaml in the current folder, which continues first.yaml there."""
    monkeypatch.setattr(console, "quiet", False)  # put back after a command with --json
    return lambda base=STILL, **fields: plan_study(load_study(two_studies(base, **fields)))


def gatelab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def weights(folder: RunsFolder, trial: str) -> dict[str, Tensor]:
    newest = max((folder.trial(trial).path / "checkpoints").glob("*.safetensors"))
    tensors = safetensors.torch.load_file(newest)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}


def test_each_trial_starts_from_the_final_weights_of_its_own(build: Build, tmp_path: Path) -> None:
    """Training goes on, at another length, where the trial with the same levels and seed ended, and is recorded so."""
    matrix, folder = build(), RunsFolder(tmp_path / "runs")
    for each in matrix.chain:
        assert run_matrix(each, folder, RayExecutor(), RunOptions()).count("finished") == 4
    for trial in matrix.trials:
        assert trial.parent is not None
        before, after = weights(folder, trial.parent), weights(folder, trial.id)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9)
    ends = {trial.id: weights(folder, trial.id)["model.embedding.weight"] for trial in matrix.trials}
    assert len({tensor.sum().item() for tensor in ends.values()}) == 4

    rows = metrics_from_journals(folder, "next").to_pylist()
    first_losses = {row["trial"]: row["value"] for row in rows if row["name"] == "train/loss" and row["step"] == 1}
    for trial in matrix.trials:
        outcome = read_json(folder.trial(trial.parent or "").outcome)
        assert outcome is not None
        assert abs(first_losses[trial.id] - outcome["metrics"]["train/final_loss"]) < 0.3
        assert first_losses[trial.id] < math.log(257) - 0.5  # far from a model that knows nothing

    first, last = folder.study("first").read(), folder.study("next").read()
    assert (last.continues, "continues" in first.to_json()) == ("first", False)
    assert not any("parent" in trial.to_json() for trial in first.trials)
    known = {trial.id: (trial.variant, trial.seed) for trial in first.trials}
    for entry in last.trials:
        assert known[entry.parent or ""] == (entry.variant, entry.seed)
        description = read_description(folder.trial(entry.id))
        assert description is not None
        assert description.parent == entry.parent


def test_what_it_continues_diverged_or_has_not_finished(build: Build, tmp_path: Path) -> None:
    """There are no weights to go on from: the one is a result, the other a failure that the next run mends."""
    first = {"training.optimizer.clip_norm": None, "training.tokens": 3200}
    axes = {"training.optimizer.learning_rate": [0.01, 1e30]}
    matrix = build({"training.tokens": 128}, first=first, axes=axes, seeds=1)
    folder = RunsFolder(tmp_path / "runs")
    assert matrix.parent is not None
    progress = run_matrix(matrix, folder, RayExecutor(), RunOptions(retries=0))
    assert {entry.reason for entry in progress.trials.values()} == {"the trial it continues has not finished"}
    assert progress.count("failed") == 2

    earlier = run_matrix(matrix.parent, folder, RayExecutor(), RunOptions())
    assert (earlier.count("finished"), earlier.count("diverged")) == (1, 1)
    progress = run_matrix(matrix, folder, RayExecutor(), RunOptions())
    assert (progress.count("finished"), progress.count("diverged")) == (1, 1)
    ours, theirs = runs_from_journals(folder, "next"), runs_from_mlflow(folder.tracking_uri, "next")
    assert repr(ours.to_pylist()) == repr(theirs.to_pylist())
    [wild] = [row for row in ours.to_pylist() if row["outcome"] == "diverged"]
    assert (wild["variant"], wild["step"]) == ("learning_rate=1e+30", 0)
    assert wild["reason"].startswith("the trial it continues diverged: the training loss ")
    assert count_attempts(folder) == 3  # one that has nothing to start from writes nothing


def test_one_command_runs_what_must_be_run(build: Build, tmp_path: Path) -> None:
    """The earlier study is run first, as a study of its own; what is finished is not run again, what changed is."""
    build()
    folder = RunsFolder(tmp_path / "gatelab-runs")
    refused = gatelab("train", "next.yaml", "--variant", "position=sdpa", "--seed", "1")
    assert refused.exit_code == 2
    assert "it continues position=sdpa, seed=1 of first, which has not finished" in refused.stderr

    planned = gatelab("plan", "next.yaml", "--no-estimate")
    assert "continues first: 4 of its 4 trials still to run" in planned.stdout
    done = gatelab("run", "next.yaml")
    assert done.exit_code == 0, done.output
    for name in ("first", "next"):
        assert (folder.study(name).path / "comparison.md").exists()
        assert runs_from_mlflow(folder.tracking_uri, name)["outcome"].to_pylist() == ["finished"] * 4
    assert count_attempts(folder) == 8

    plan = json.loads(gatelab("plan", "next.yaml", "--no-estimate", "--json").stdout)
    assert plan["continues"] == [{"study": "first", "trials": 4, "remaining_trials": 0}]
    again = json.loads(gatelab("run", "next.yaml", "--json").stdout)
    assert (again["study"], again["finished"]) == ("next", 4)
    assert (again["continues"]["study"], again["continues"]["finished"]) == ("first", 4)
    assert count_attempts(folder) == 8

    changed = build(first={"training.tokens": 1344})
    assert not {trial["id"] for trial in plan["trials"]} & {trial.id for trial in changed.trials}


def test_an_interrupt_of_the_first_part_is_the_end(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C stops the command, not one of its studies; the same command goes on, and then to the second."""
    build(first={"training.tokens": 6400}, axes={"model.gate.position": ["sdpa"]}, seeds=1)
    folder = RunsFolder(tmp_path / "gatelab-runs")

    def interrupt(self: LiveView, progress: Progress) -> None:
        if progress.running and not progress.stopping:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LiveView, "__call__", interrupt)
        result = gatelab("run", "next.yaml")
    assert result.exit_code == 130, result.output
    assert folder.study("first").record.exists()
    assert not folder.study("next").path.exists()
    assert gatelab("run", "next.yaml").exit_code == 0
    assert runs_from_journals(folder, "next")["outcome"].to_pylist() == ["finished"]


def test_data_that_the_second_part_lacks_are_missed_before_the_first(build: Build, tmp_path: Path) -> None:
    """Hours of training must not end in a corpus that is too small for the length that was their aim."""
    build({"training.sequence_length": 100_000})
    result = gatelab("run", "next.yaml")
    assert result.exit_code == 2
    assert "too small for training.sequence_length 100000" in result.stderr
    assert not list(tmp_path.glob("gatelab-runs/trials/*"))
