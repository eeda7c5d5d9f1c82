"""MLflow follows a study that changes: it grows, a level is renamed, a variant leaves and comes back."""

from collections.abc import Mapping
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from gatelab.orchestrator.study_manifest import write_record
from gatelab.orchestrator.tracking import add_to_mlflow
from gatelab.results.store.layout import NotFound
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.tracking.runs import runs_from_mlflow


def changed(record: StudyRecord, labels: Mapping[str, str], also: Mapping[str, str]) -> StudyRecord:
    """The record of a study in which variants have other names, and more levels; those without a name are gone."""
    variants = {
        labels[label]: variant.model_copy(
            update={"levels": variant.levels | dict(also), "baseline": labels.get(variant.baseline or "")}
        )
        for label, variant in record.variants.items()
        if label in labels
    }
    trials = [
        trial.model_copy(update={"variant": labels[trial.variant]})
        for trial in record.trials
        if trial.variant in labels
    ]
    axes = list(dict.fromkeys([*record.axes, *also]))
    return record.model_copy(
        update={
            "variants": variants,
            "trials": trials,
            "axes": axes,
            "hash": f"{record.hash} then {sorted(labels.values())}",
        }
    )


def launch(lab: Any, record: StudyRecord) -> dict[str, Any]:
    """Run a study as it is now, and return its runs in MLflow by trial."""
    write_record(lab.folder, record)
    verdicts = dict.fromkeys(record.variants, "undecided")
    assert add_to_mlflow(lab.folder, lab.name, None, [], verdicts) == ""
    assert runs_from_mlflow(lab.folder.tracking_uri, lab.name).equals(runs_from_journals(lab.folder, lab.name))
    client = MlflowClient(lab.folder.tracking_uri)
    experiment = client.get_experiment_by_name(lab.name)
    runs = client.search_runs([experiment.experiment_id], "tags.`gatelab.trial` != ''")
    assert len({run.data.tags["gatelab.trial"] for run in runs}) == len(runs)
    return {run.data.tags["gatelab.trial"]: run for run in runs}


@pytest.fixture
def finished(tracked: Any) -> Any:
    """A study of two variants, all trained, in MLflow."""
    lab = tracked(("none", "sdpa"), seeds=2, steps=5)
    for variant in (0, 1):
        for seed in (0, 1):
            lab.finish(variant, seed)
    launch(lab, lab.record)
    return lab


def test_a_study_that_grows_by_an_axis_has_it_on_all_its_runs(finished: Any) -> None:
    """Trials from before are found by the new axis, too, and are called as the new ones are."""
    none, sdpa = finished.variants
    names = {none: f"{none}, qk_norm=true", sdpa: f"{sdpa}, qk_norm=true"}
    runs = launch(finished, changed(finished.record, names, {"model.qk_norm": "true"}))
    for seed in (0, 1):
        run = runs[finished.id(1, seed)]
        assert run.info.run_name == f"position=sdpa, qk_norm=true, seed={seed}"
        assert run.data.tags["gatelab.variant"] == "position=sdpa, qk_norm=true"
        assert run.data.params["model.qk_norm"] == "true"
        assert run.data.tags["gatelab.current.variant"] == "position=sdpa, qk_norm=true"  # no parameter can change
        assert run.data.tags["gatelab.verdict"] == "undecided"
        assert run.info.status == "FINISHED"
    before = launch(finished, finished.record)[finished.id(1, 0)]
    assert before.info.run_name == "position=sdpa, seed=0"
    assert "gatelab.current.variant" not in before.data.tags


def test_a_variant_that_leaves_is_marked_and_comes_back(finished: Any) -> None:
    """What the study no longer has keeps its values, but no verdict; once it has it again all is as it was."""
    none, _ = finished.variants
    before = launch(finished, finished.record)
    without = changed(finished.record, {none: none}, {})
    for _ in range(2):
        runs = launch(finished, without)
        for seed in (0, 1):
            tags = runs[finished.id(1, seed)].data.tags
            assert tags["gatelab.outcome"] == "left"
            assert "gatelab.verdict" not in tags
            assert runs[finished.id(1, seed)].data.metrics == before[finished.id(1, seed)].data.metrics
            assert runs[finished.id(0, seed)].data.tags == before[finished.id(0, seed)].data.tags
    after = launch(finished, finished.record)
    assert {trial: run.data.tags for trial, run in after.items()} == {
        trial: run.data.tags for trial, run in before.items()
    }
    assert {trial: run.info.status for trial, run in after.items()} == dict.fromkeys(before, "FINISHED")
    assert {trial: run.data.metrics for trial, run in after.items()} == {
        trial: run.data.metrics for trial, run in before.items()
    }


def test_a_trial_that_leaves_before_its_end_is_over_in_mlflow(tracked: Any) -> None:
    """Nobody works on it: it is not shown as running for ever, and goes on when it is back."""
    lab = tracked(("none", "sdpa"), seeds=1, steps=5)
    lab.finish(0, 0)
    lab.begin(1, 0)
    lab.write(1, 0, range(1, 3))
    with lab.hold(1, 0):
        assert launch(lab, lab.record)[lab.id(1, 0)].info.status == "RUNNING"
    runs = launch(lab, changed(lab.record, {lab.variants[0]: lab.variants[0]}, {}))
    assert (runs[lab.id(1, 0)].info.status, runs[lab.id(1, 0)].data.tags["gatelab.outcome"]) == ("KILLED", "left")
    with lab.hold(1, 0):
        back = launch(lab, lab.record)[lab.id(1, 0)]
    assert (back.info.status, back.data.tags["gatelab.outcome"]) == ("RUNNING", "running")


def test_what_is_deleted_in_mlflow_is_told_and_comes_back(finished: Any) -> None:
    """The run of the study, or its experiment: reading says what happened and what helps; a run brings it back."""
    client = MlflowClient(finished.folder.tracking_uri)
    experiment = client.get_experiment_by_name(finished.name).experiment_id
    [study] = client.search_runs([experiment], "tags.`gatelab.kind` = 'study'")
    client.delete_run(study.info.run_id)
    with pytest.raises(NotFound, match=r"deleted there, and the next `gatelab run` brings it back"):
        runs_from_mlflow(finished.folder.tracking_uri, finished.name)
    launch(finished, finished.record)
    client.delete_experiment(experiment)
    with pytest.raises(NotFound, match=r"was deleted there: the next `gatelab run`"):
        runs_from_mlflow(finished.folder.tracking_uri, finished.name)
    launch(finished, finished.record)
    assert len(client.search_runs([experiment], "tags.`gatelab.kind` = 'study'")) == 1


def test_a_run_that_comes_back_beside_its_replacement_is_deleted(finished: Any) -> None:
    """MLflow brings back all runs of an experiment at once, also one that was deleted and made again since."""
    client = MlflowClient(finished.folder.tracking_uri)
    run = launch(finished, finished.record)[finished.id(0, 0)].info
    client.delete_run(run.run_id)
    launch(finished, finished.record)
    client.delete_experiment(run.experiment_id)
    assert len(launch(finished, finished.record)) == 4


def test_trials_of_which_nothing_changed_are_not_read(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later process sees by the run in MLflow that a trial is over and sent; an evaluation since then is sent."""
    read = []
    from gatelab.results.tracking import sync

    read_outcome = sync.read_outcome
    monkeypatch.setattr(sync, "read_outcome", lambda files: read.append(files) or read_outcome(files))
    launch(finished, finished.record)
    assert read == []
    finished.answer(0, 1, "length", 1.0, {"length/64": 2.5})
    runs = launch(finished, finished.record)
    assert read == [finished.trial(0, 1)]
    assert runs[finished.id(0, 1)].data.metrics["length/64"] == 2.5
