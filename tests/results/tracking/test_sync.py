"""MLflow gets what the journals hold: all of it, once, whatever happens on the way."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_dataset_inputs

from gatelab.orchestrator.tracking import add_to_mlflow
from gatelab.results.store.journal import read_journal
from gatelab.results.store.layout import NotFound
from gatelab.results.store.lease import acquire
from gatelab.results.store.records import write_json
from gatelab.results.store.runs import SUMMARY, runs_from_journals
from gatelab.results.store.segment import SCHEMA
from gatelab.results.tracking.address import StoreUnavailable
from gatelab.results.tracking.runs import runs_from_mlflow
from gatelab.results.tracking.sync import Mirror
from gatelab.results.tracking.thinning import thin
from gatelab.results.tracking.ui import VIEW_TAG, dataset_input, study_pages

Points = dict[str, list[tuple[int, float, int]]]  # metric -> (step, value, time)


@pytest.fixture
def mirror() -> Callable[..., Mirror]:
    """A new mirror of a laboratory, as a new process has it."""
    return lambda lab, uri=None: Mirror(lab.folder, lab.record, uri or lab.folder.tracking_uri)


def runs_in(lab: Any, uri: str | None = None) -> dict[str, Any]:
    """Trial id -> MLflow run, as a user of MLflow finds them."""
    client = MlflowClient(uri or lab.folder.tracking_uri)
    experiment = client.get_experiment_by_name(lab.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`gatelab.trial` != ''")
    assert len({run.data.tags["gatelab.trial"] for run in runs}) == len(runs)
    return {run.data.tags["gatelab.trial"]: run for run in runs}


def points_in(lab: Any, trial: str, uri: str | None = None) -> Points:
    """What MLflow has of a trial, summaries left out: points in the order of their steps."""
    client, run = MlflowClient(uri or lab.folder.tracking_uri), runs_in(lab, uri)[trial]
    names = [name for name in run.data.metrics if name.startswith("validation/") or name not in SUMMARY]
    return {
        name: sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name))
        for name in names
    }


def journal_points(lab: Any, variant: int, seed: int) -> Points:
    """What MLflow should have of a trial that is not thinned."""
    rows = read_journal(lab.trial(variant, seed).journal)
    points: Points = {}
    for row, time in zip(rows.to_pylist(), rows["time"].cast(pa.int64()).to_pylist(), strict=True):
        name = row["name"] if row["layer"] is None else f"layer/{row['layer']:02d}/{row['name']}"
        points.setdefault(name, []).append((row["step"], row["value"], time))
    return points


def test_every_value_is_sent_once(tracked: Any, mirror: Any) -> None:
    """A second sync, or a second process, has nothing to send; MLflow has each point of each journal, no more."""
    lab = tracked()
    for variant in (0, 1):
        for seed in (0, 1):
            lab.finish(variant, seed)
    first = mirror(lab)
    assert first.sync() == 4 * (20 + 4 * 3)
    assert first.sync() == 0
    assert mirror(lab).sync() == 0
    assert len(runs_in(lab)) == 4
    for variant in (0, 1):
        for seed in (0, 1):
            assert points_in(lab, lab.id(variant, seed)) == journal_points(lab, variant, seed)


def test_a_running_trial_can_be_watched(tracked: Any, mirror: Any) -> None:
    """Each sync brings what is new, from the same or a new process, and the end brings the summary."""
    lab = tracked(seeds=1)
    lab.begin(0, 0)
    lock = lab.hold(0, 0)
    keeper = mirror(lab)
    assert keeper.sync() == 0
    for last, current in ((7, keeper), (12, keeper), (17, mirror(lab)), (20, keeper)):
        lab.write(0, 0, range(1, last + 1))  # an attempt that trains all steps again
        current.sync()
        assert points_in(lab, lab.id(0, 0)) == journal_points(lab, 0, 0)
        run = runs_in(lab)[lab.id(0, 0)]
        assert (run.info.status, run.data.tags["gatelab.outcome"]) == ("RUNNING", "running")
        assert run.data.tags["gatelab.step"] == str(last)
    lab.end(0, 0, "finished", 20)
    lock.release()
    keeper.sync()
    run = runs_in(lab)[lab.id(0, 0)]
    assert (run.info.status, run.data.tags["gatelab.outcome"]) == ("FINISHED", "finished")
    assert points_in(lab, lab.id(0, 0)) == journal_points(lab, 0, 0)


@pytest.mark.parametrize("same_process", [True, False], ids=["same process", "new process"])
def test_a_sync_that_broke_off_is_made_up_for(
    same_process: bool, tracked: Any, mirror: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails between two batches raises, and later gets what it has missed and nothing twice."""
    monkeypatch.setattr("gatelab.results.tracking.sync.BATCH", 50)
    lab = tracked(("none",), seeds=1, steps=100)
    lab.finish(0, 0)
    log_batch, calls = MlflowClient.log_batch, []

    def fail_once(self: MlflowClient, run_id: str, metrics: Iterable[Any] = (), *args: Any, **rest: Any) -> Any:
        calls.append(bool(metrics))
        if sum(calls) == 2 and calls[-1]:
            raise ConnectionError("the store is away")
        return log_batch(self, run_id, metrics, *args, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_once)
    first = mirror(lab)
    with pytest.raises(ConnectionError):
        first.sync()
    assert 0 < sum(map(len, points_in(lab, lab.id(0, 0)).values())) < 160
    second = first if same_process else mirror(lab)
    second.sync()
    assert points_in(lab, lab.id(0, 0)) == journal_points(lab, 0, 0)
    assert mirror(lab).sync() == 0


def test_a_store_that_is_away_is_an_error_and_costs_nothing(tracked: Any, mirror: Any) -> None:
    """Whoever runs the mirror must learn of it; the journals wait until a store is there."""
    lab = tracked(("none",), seeds=1)
    lab.finish(0, 0)
    absent = mirror(lab, "http://127.0.0.1:9")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="Connection refused"):
            absent.sync()
    mirror(lab).sync()
    assert points_in(lab, lab.id(0, 0)) == journal_points(lab, 0, 0)


@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_what_was_deleted_is_back_after_a_sync(deleted: str, tracked: Any, mirror: Any) -> None:
    """Deleting a trial in MLflow, or the whole experiment, loses nothing for good."""
    lab = tracked(("none",), seeds=2)
    for seed in (0, 1):
        lab.finish(0, seed)
    mirror(lab).sync()
    client = MlflowClient(lab.folder.tracking_uri)
    if deleted == "run":
        client.delete_run(runs_in(lab)[lab.id(0, 0)].info.run_id)
    else:
        client.delete_experiment(client.get_experiment_by_name(lab.name).experiment_id)
    mirror(lab).sync()
    assert len(runs_in(lab)) == 2
    for seed in (0, 1):
        assert points_in(lab, lab.id(0, seed)) == journal_points(lab, 0, seed)


def test_another_store_gets_everything(
    tracked: Any, mirror: Any, blank_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store that was deleted, or a team's store beside the own one, is filled from the journals alone."""
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts of a store without a place for them
    lab = tracked(("none",), seeds=1)
    lab.finish(0, 0)
    assert mirror(lab).sync() == mirror(lab, blank_store).sync()
    assert points_in(lab, lab.id(0, 0), blank_store) == journal_points(lab, 0, 0)
    assert runs_from_mlflow(blank_store, lab.name).equals(runs_from_mlflow(lab.folder.tracking_uri, lab.name))


def test_a_long_trial_is_thinned_the_same_way_however_it_was_watched(
    tracked: Any, mirror: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves in MLflow stay small, and hold the same points whether they were sent live or at the end."""
    monkeypatch.setattr("gatelab.results.tracking.sync.BUCKETS", 100)
    steps = 650
    also = {201: 50.0, 202: math.nan, 403: math.inf, 577: -4.0}
    live, late = tracked(("none",), seeds=1, steps=steps), tracked(("none",), seeds=1, steps=steps)
    keeper = mirror(live)
    for first, last in ((1, 100), (101, 104), (105, 403), (404, steps)):
        live.write(0, 0, range(first, last + 1), also)
        (mirror(live) if first == 105 else keeper).sync()
    late.write(0, 0, range(1, steps + 1), also)
    for lab in (live, late):
        lab.end(0, 0, "finished", steps)
    keeper.sync()
    mirror(late).sync()

    def sent(lab: Any) -> set[tuple[str, int, str]]:
        points = points_in(lab, lab.id(0, 0))
        return {(name, step, repr(value)) for name, found in points.items() for step, value, _ in found}

    assert sent(live) == sent(late)
    losses = {step: value for step, value, _ in points_in(live, live.id(0, 0))["train/loss"]}
    assert 93 <= len(losses) <= 300  # spans of 7 steps
    assert losses[201] == 50.0
    assert math.isnan(losses[202])
    assert losses[403] > 1e300
    assert losses[577] == -4.0
    assert steps in losses


ROWS = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.sampled_from([("a", None), ("a", 0), ("b", None)]),
        st.integers(-3, 3).map(float) | st.sampled_from([math.nan, math.inf, -math.inf]),
    ),
    unique_by=lambda row: row[:2],
).map(lambda rows: sorted(rows, key=lambda row: row[0]))


@settings(deadline=None, max_examples=150)
@given(ROWS, st.integers(1, 15))
def test_thinning_keeps_what_a_curve_is_read_for(
    rows: list[tuple[int, tuple[str, int | None], float]], span: int
) -> None:
    """Of each span the extremes, the end and a divergence survive, and hardly more; nothing is made up or averaged."""
    columns = [
        [step for step, _, _ in rows],
        [layer for _, (_, layer), _ in rows],
        [name for _, (name, _), _ in rows],
        [value for *_, value in rows],
        [1000 + index for index in range(len(rows))],
    ]
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
    kept = thin(table, span)
    given_points = [
        (name if layer is None else f"layer/{layer:02d}/{name}", step, repr(value), 1000 + index)
        for index, (step, (name, layer), value) in enumerate(rows)
    ]
    kept_points = [(metric.key, metric.step, repr(metric.value), metric.timestamp) for metric in kept]
    assert [point for point in given_points if point in set(kept_points)] == kept_points
    for key, bucket in {(point[0], (point[1] - 1) // span) for point in given_points}:
        before, after = (
            [float(p[2]) for p in points if (p[0], (p[1] - 1) // span) == (key, bucket)]
            for points in (given_points, kept_points)
        )
        finite = [value for value in before if math.isfinite(value)]
        assert repr(after[-1]) == repr(before[-1])
        if finite:
            assert {min(finite), max(finite)} <= set(after)
        if len(finite) < len(before):
            assert any(not math.isfinite(value) for value in after)
        assert len(after) <= 4
        assert len(finite) < len(before) or len(after) <= 3
        assert span > 1 or len(after) == len(before)


def test_runs_can_be_found_by_what_they_are(tracked: Any, mirror: Any) -> None:
    """In MLflow's own search, trials answer to their variant, seed, levels and outcome, and say how they came to be."""
    lab = tracked(("none", "sdpa"), seeds=[3, 8])
    lab.finish(1, 8)
    lab.begin(0, 3)
    lab.write(0, 3, range(1, 4))
    lab.end(0, 3, "failed", 3, "out of memory")
    mirror(lab).sync()
    client = MlflowClient(lab.folder.tracking_uri)
    experiment = client.get_experiment_by_name(lab.name)

    def search(query: str) -> list[Any]:
        return list(client.search_runs([experiment.experiment_id], query))

    [run] = search("params.`model.gate.position` = 'sdpa' and params.seed = '8'")
    tags = run.data.tags
    assert tags["gatelab.trial"] == lab.id(1, 8)
    assert (tags["gatelab.study"], tags["gatelab.variant"], tags["gatelab.seed"]) == (lab.name, "position=sdpa", "8")
    assert json.loads(tags["gatelab.config"])["model"]["gate"]["position"] == "sdpa"
    assert json.loads(tags["gatelab.provenance"])["code"] == "this code"
    assert run.data.params["variant"] == "position=sdpa"
    assert int(run.data.params["parameters"]) == lab.matrix.variants[1].parameters
    assert int(run.data.params["flops_per_token"]) == lab.matrix.variants[1].flops_per_token
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1_700_000_100_000)
    [failed] = search("tags.`gatelab.outcome` = 'failed'")
    assert (failed.info.status, failed.data.tags["gatelab.reason"]) == ("FAILED", "out of memory")
    [study] = search("tags.`gatelab.kind` = 'study'")
    assert study.data.tags["mlflow.note.content"] == "Which gate?"
    assert study.data.tags["gatelab.study_hash"] == lab.record.hash
    assert [file.path for file in client.list_artifacts(study.info.run_id)] == ["study.json"]


def test_a_study_that_is_being_run_is_left_to_the_process_that_runs_it(tracked: Any) -> None:
    """Two writers would each create a run for the same trial: a look at the results waits for its turn."""
    lab = tracked(seeds=1)
    lab.finish(0, 0)
    uri = lab.folder.tracking_uri
    with acquire(lab.folder.study(lab.name).path):
        assert "the study is being run" in add_to_mlflow(lab.folder, lab.name, uri, [])
    with pytest.raises(NotFound):
        runs_from_mlflow(uri, lab.name)
    assert add_to_mlflow(lab.folder, lab.name, uri, []) == ""
    assert runs_from_mlflow(uri, lab.name)["outcome"].to_pylist() == ["finished", "waiting"]


def dataset_of(run: Any) -> Any:
    """The one dataset of a run."""
    [used] = run.inputs.dataset_inputs
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "train")]
    return used.dataset


def test_a_trial_names_the_data_it_trains_on(tracked: Any, mirror: Any) -> None:
    """MLflow can find the trials of a dataset: by its source, and by an identity that fits into its column."""
    lab = tracked(("none",), seeds=1)
    identity = "0f" * 32
    write_json(
        lab.folder.data / identity / "manifest.json",
        {"train": {"tokens": 70, "bytes": 60}, "validation": {"tokens": 7}, "vocab_size": 257},
    )
    lab.finish(0, 0, data=identity)
    mirror(lab).sync()
    dataset = dataset_of(runs_in(lab)[lab.id(0, 0)])
    assert (dataset.name, dataset.digest) == ("stdlib", identity[:12])
    assert (dataset.source_type, json.loads(dataset.source)) == ("local", {"uri": "stdlib"})
    assert json.loads(dataset.profile) == {
        "identity": identity,
        "train tokens": 70,
        "train bytes": 60,
        "validation tokens": 7,
        "vocab_size": 257,
    }


@pytest.mark.parametrize(
    ("source", "kind", "where"),
    [
        ("hf:a/name:part", "hugging_face", {"path": "a/name:part"}),
        ("/corpora/" + "x" * 600, "local", {"uri": "/corpora/" + "x" * 600}),
    ],
)
def test_any_source_is_a_dataset_that_mlflow_takes(source: str, kind: str, where: dict[str, str]) -> None:
    """A name that is too long, or data that are gone, must not keep a study from MLflow."""
    used = dataset_input(Path("gone"), "ab" * 32, source)
    _validate_dataset_inputs([used])
    assert (used.dataset.source_type, json.loads(used.dataset.source)) == (kind, where)
    assert used.dataset.name == source[-500:]
    assert json.loads(used.dataset.profile or "") == {"identity": "ab" * 32}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"train": 5}', '{"vocab_size": "many"}', '{"vocab_size": 9, "checksum": "0"}']
)
def test_a_damaged_manifest_keeps_no_study_from_mlflow(content: str, tmp_path: Path) -> None:
    """What it says is left out, whether or not it is JSON."""
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "manifest.json").write_text(content)
    assert json.loads(dataset_input(tmp_path, "ab", "stdlib").dataset.profile or "") == {"identity": "ab"}


@pytest.mark.parametrize("method", ["log_batch", "log_inputs"])
def test_a_run_that_was_left_bare_gets_its_parameters_and_its_data(
    method: str, tracked: Any, mirror: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails right after it has created a run must not leave that without its axes for good."""
    lab = tracked(("sdpa",), seeds=1)
    lab.finish(0, 0)

    def fail(*arguments: Any, **rest: Any) -> Any:
        raise ConnectionError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, fail)
        with pytest.raises(ConnectionError):
            mirror(lab).sync()
    assert len(runs_in(lab)) == 1
    mirror(lab).sync()
    run = runs_in(lab)[lab.id(0, 0)]
    assert run.data.params["model.gate.position"] == "sdpa"
    assert dataset_of(run).digest == "this data"
    assert points_in(lab, lab.id(0, 0)) == journal_points(lab, 0, 0)


def test_verdicts_are_tags_of_trials_and_follow_the_comparison(tracked: Any) -> None:
    """A search for what is worse finds each trial of such a variant, and no longer once more seeds have changed it."""
    lab = tracked(("none", "sdpa", "value"), seeds=2)
    for variant, seed in ((0, 0), (0, 1), (1, 0), (1, 1)):
        lab.finish(variant, seed)

    def write_study(*words: str) -> dict[tuple[str, str], str | None]:
        assert add_to_mlflow(lab.folder, lab.name, None, [], dict(zip(lab.variants, words, strict=True))) == ""
        found = [run.data.tags for run in runs_in(lab).values()]
        return {(tags["gatelab.variant"], tags["gatelab.seed"]): tags.get("gatelab.verdict") for tags in found}

    none, sdpa, _ = lab.variants
    first = write_study("baseline", "undecided", "no pairs")
    assert first == {
        (none, "0"): "baseline",
        (none, "1"): "baseline",
        (sdpa, "0"): "undecided",
        (sdpa, "1"): "undecided",
    }
    assert write_study("baseline", "worse", "no pairs") == first | {(sdpa, "0"): "worse", (sdpa, "1"): "worse"}
    assert add_to_mlflow(lab.folder, lab.name, None, []) == ""  # by a command that compares nothing
    assert {run.data.tags["gatelab.verdict"] for run in runs_in(lab).values()} == {"baseline", "worse"}


def test_the_comparison_is_what_a_study_opens_on(tracked: Any, tmp_path: Path) -> None:
    """The question and the table; a table that is longer than MLflow takes is left to the artifacts."""
    lab = tracked(("none",), seeds=1)
    lab.finish(0, 0)
    table = tmp_path / "comparison.md"

    def description(text: str) -> str:
        table.write_text(text, encoding="utf-8")
        assert add_to_mlflow(lab.folder, lab.name, None, [table]) == ""
        client = MlflowClient(lab.folder.tracking_uri)
        experiment = client.get_experiment_by_name(lab.name)
        [study] = client.search_runs([experiment.experiment_id], "tags.`gatelab.kind` = 'study'")
        assert [file.path for file in client.list_artifacts(study.info.run_id, "tables")] == ["tables/comparison.md"]
        return str(study.data.tags["mlflow.note.content"])

    assert description("| a |\n|---|\n") == "Which gate?\n\n| a |\n|---|\n"
    assert description("x" * 8000) == "Which gate?"


def test_what_people_make_of_an_experiment_stays(tracked: Any, mirror: Any) -> None:
    """Its view and its description are written with the study, not at each look; another study's replace them."""
    lab = tracked(("none", "sdpa"), seeds=1)
    lab.finish(0, 0)
    mirror(lab).sync()
    client = MlflowClient(lab.folder.tracking_uri)
    experiment = client.get_experiment_by_name(lab.name)
    assert experiment.tags["mlflow.note.content"] == "Which gate?"
    columns = json.loads(json.loads(experiment.tags[VIEW_TAG])["state"])["selectedColumns"]
    assert "params.`model.gate.position`" in columns
    for tag in (VIEW_TAG, "mlflow.note.content"):
        client.set_experiment_tag(experiment.experiment_id, tag, "mine")
    mirror(lab).sync()
    known = client.get_experiment(experiment.experiment_id).tags
    assert (known[VIEW_TAG], known["mlflow.note.content"]) == ("mine", "mine")
    lab.record = lab.record.model_copy(update={"hash": "another"})
    mirror(lab).sync()
    assert client.get_experiment(experiment.experiment_id).tags == experiment.tags
    assert study_pages(lab.folder.tracking_uri)[lab.name].startswith(f"/#/experiments/{experiment.experiment_id}/runs?")


def test_system_metrics_reach_mlflow_and_no_table(tracked: Any, mirror: Any) -> None:
    """What a machine was doing is to be seen in MLflow; `runs` is the same from there and from the journals."""
    lab = tracked(("none",), seeds=1)
    lab.plant(
        0, 0, {step: {None: {"train/loss": 2.0, "system/cpu_utilization_percentage": 9.0 * step}} for step in (1, 2)}
    )
    lab.end(0, 0, "finished", 2, metrics={"train/final_loss": 2.0})
    mirror(lab).sync()
    points = points_in(lab, lab.id(0, 0))["system/cpu_utilization_percentage"]
    assert [(step, value) for step, value, _ in points] == [(1, 9.0), (2, 18.0)]
    from_store = runs_from_mlflow(lab.folder.tracking_uri, lab.name)
    assert from_store.equals(runs_from_journals(lab.folder, lab.name))
    assert not any(name.startswith("system/") for name in from_store.column_names)
