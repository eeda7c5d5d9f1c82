"""Frames: the same from journals and from MLflow, whatever has become of the trials."""

import fnmatch
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.results.analyses.comparison import compare
from gatelab.results.report.write import write_study
from gatelab.results.store import metrics, records
from gatelab.results.store.journal import Journal, read_journal
from gatelab.results.store.layout import NotFound, RunsFolder
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.metrics import METRICS, each_journal, metrics_from_journals, named, split, together
from gatelab.results.store.records import TrialRecord
from gatelab.results.store.runs import SUMMARY, axes_of, runs_from_journals, runs_schema
from gatelab.results.store.trials import PROVENANCE
from gatelab.results.tracking.runs import runs_from_mlflow
from gatelab.results.tracking.sync import Mirror
from gatelab.results.views.comparison import comparison_table
from gatelab.results.views.table import to_csv, to_markdown


def agreed(lab: Any) -> list[dict[str, Any]]:
    """The rows of `runs`, once it is clear that journals and MLflow give the same frame and the same tables."""
    here, there = runs_from_journals(lab.folder, lab.name), runs_from_mlflow(lab.folder.tracking_uri, lab.name)
    assert here.schema == there.schema == runs_schema(lab.record.axes)
    assert specs_of(here) == specs_of(there)
    for own, mirrored in zip(here.to_pylist(), there.to_pylist(), strict=True):
        assert {name: repr(value) for name, value in own.items()} == {
            name: repr(value) for name, value in mirrored.items()
        }
    for metric in SUMMARY:
        own, mirrored = compare(here, metric), compare(there, metric)
        assert json.dumps(own.to_dict()) == json.dumps(mirrored.to_dict())
        assert to_csv(own.frame()) == to_csv(mirrored.frame())
        assert to_markdown(comparison_table(own)) == to_markdown(comparison_table(mirrored))
    return here.to_pylist()


def finished(lab: Any) -> None:
    lab.finish(1, 0)


def diverged(lab: Any) -> None:
    lab.begin(1, 0)
    lab.write(1, 0, range(1, 14), {13: math.nan})
    last = {"validation/loss": lab.loss(1, 0, 10) + 0.125, "validation/bits_per_byte": lab.loss(1, 0, 10) * 1.5}
    lab.end(1, 0, "diverged", 13, "the training loss was nan at step 13", {**last, "train/final_loss": math.nan})


def diverged_before_it_was_evaluated(lab: Any) -> None:
    lab.begin(1, 0)
    lab.write(1, 0, range(1, 4), {3: math.inf})
    metrics = {"train/final_loss": math.inf, "train/seconds": 1.5}
    lab.end(1, 0, "diverged", 3, "the training loss was inf at step 3", metrics)


def failed(lab: Any) -> None:
    lab.begin(1, 0)
    lab.write(1, 0, range(1, 13))
    lab.end(1, 0, "failed", 12, "Traceback\n  lost\nOutOfMemory: sorry")


def failed_at_once(lab: Any) -> None:
    lab.begin(1, 0)  # before it had a journal: no device, no data
    lab.end(1, 0, "failed", 0, "no such device")


def running(lab: Any) -> None:
    lab.begin(1, 0)
    lab.write(1, 0, range(1, 8))
    lab.lease = lab.hold(1, 0)


def running_again(lab: Any) -> None:
    lab.begin(1, 0, host="second host")
    lab.write(1, 0, range(6, 15))
    lab.lease = lab.hold(1, 0)


def begun(lab: Any) -> None:
    lab.begin(1, 0)
    lab.write(1, 0, [])
    lab.lease = lab.hold(1, 0)


def interrupted(lab: Any) -> None:
    lab.begin(1, 0)
    lab.write(1, 0, range(1, 8))


def interrupted_at_once(lab: Any) -> None:
    lab.begin(1, 0)


def resumed(lab: Any) -> None:
    lab.begin(1, 0, host="first host")
    lab.write(1, 0, range(1, 8))
    lab.finish(1, 0, host="second host")


def waiting(lab: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("state", "outcome", "step"),
    [
        pytest.param(state, outcome, step, id=state.__name__)
        for state, outcome, step in (
            (finished, "finished", 20),
            (diverged, "diverged", 13),
            (diverged_before_it_was_evaluated, "diverged", 3),
            (failed, "failed", 12),
            (failed_at_once, "failed", 0),
            (running, "running", 7),
            (begun, "running", 0),
            (interrupted, "interrupted", 7),
            (interrupted_at_once, "interrupted", 0),
            (resumed, "finished", 20),
            (waiting, "waiting", 0),
        )
    ],
)
def test_journals_and_mlflow_agree(state: Callable[[Any], None], outcome: str, step: int, tracked: Any) -> None:
    """Whoever reads from the tracking store must see the table that whoever has the files sees, to the last digit."""
    lab = tracked(seeds=1)
    lab.finish(0, 0)
    state(lab)
    Mirror(lab.folder, lab.record, lab.folder.tracking_uri).sync()
    row = agreed(lab)[1]
    assert (row["variant"], row["seed"], row["outcome"], row["step"]) == ("position=sdpa", 0, outcome, step)
    if outcome != "finished":  # a value of a trial that did not finish is in no column that a table could average
        assert row["validation/loss"] is None or outcome == "diverged"


@pytest.mark.parametrize(
    ("first", "then", "same_process"),
    [
        pytest.param(
            first, then, same, id=f"{first.__name__}, then {then.__name__}{'' if same else ' in a new process'}"
        )
        for first, then, same in (
            (waiting, running, True),
            (begun, finished, True),
            (running, interrupted, False),
            (running, running_again, False),
            (interrupted, resumed, True),
            (failed, running_again, True),
            (failed, failed_at_once, False),
            (failed_at_once, finished, True),
        )
    ],
)
def test_they_agree_again_when_a_trial_goes_on(
    first: Callable[[Any], None], then: Callable[[Any], None], same_process: bool, tracked: Any
) -> None:
    """What MLflow was told before must not stay when it is no longer true: trials fail, resume, fail otherwise."""
    lab = tracked(seeds=1)
    lab.finish(0, 0)
    first(lab)
    mirror = Mirror(lab.folder, lab.record, lab.folder.tracking_uri)
    mirror.sync()
    agreed(lab)
    if hasattr(lab, "lease"):
        lab.lease.release()
    lab.trial(1, 0).outcome.unlink(missing_ok=True)
    then(lab)
    (mirror if same_process else Mirror(lab.folder, lab.record, lab.folder.tracking_uri)).sync()
    agreed(lab)


def test_the_step_of_a_long_running_trial_agrees(tracked: Any) -> None:
    """How far a trial is must not depend on where one looks, although its curve is sent in thinned spans."""
    lab = tracked(("none",), seeds=1, steps=2_500)
    lab.begin(0, 0)
    lab.write(0, 0, range(1, 1_005))
    lab.lease = lab.hold(0, 0)
    Mirror(lab.folder, lab.record, lab.folder.tracking_uri).sync()
    assert agreed(lab)[0]["step"] == 1_004


def test_runs_say_everything_about_each_trial(laboratory: Any) -> None:
    """One row for each trial that was planned, in the order of the plan, with levels, sizes, outcome and origin."""
    lab = laboratory(("none", "sdpa"), seeds=[4, 6], match="parameters")
    lab.finish(1, 6)
    frame = runs_from_journals(lab.folder, lab.name)
    assert axes_of(frame) == ("model.gate.position",)
    rows = frame.to_pylist()
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("position=none", 4),
        ("position=sdpa", 4),
        ("position=none", 6),
        ("position=sdpa", 6),
    ]
    for row in rows:
        assert (row["study"], row["study_hash"], row["baseline"]) == (lab.name, lab.record.hash, "position=none")
        assert row["axis/model.gate.position"] == row["variant"].removeprefix("position=")
        assert (row["steps"], row["added_parameters"]) == (20, row["parameters"] - rows[0]["parameters"])
    last = rows[-1]
    assert (last["trial"], last["outcome"], last["step"], last["reason"]) == (lab.id(1, 6), "finished", 20, None)
    assert {name: last[name] for name in PROVENANCE} == {name: f"this {name}" for name in PROVENANCE}
    assert all(last[name] is not None for name in SUMMARY)
    assert all(rows[0][name] is None for name in (*SUMMARY, *PROVENANCE))


def test_an_axis_that_means_nothing_to_a_variant_has_no_level_there(laboratory: Any) -> None:
    """The ungated variant has no granularity: null, so that nobody groups it with one."""
    axes = {"model.gate.position": ["none", "sdpa"], "model.gate.granularity": ["elementwise", "headwise"]}
    lab = laboratory(seeds=1, axes=axes)
    rows = runs_from_journals(lab.folder, lab.name).to_pylist()
    assert [row["axis/model.gate.granularity"] for row in rows] == [None, "elementwise", "headwise"]


def test_a_resumed_trial_names_both_machines(laboratory: Any) -> None:
    """A number that two machines made must not be passed off as one's."""
    lab = laboratory(seeds=1)
    resumed(lab)
    row = runs_from_journals(lab.folder, lab.name).to_pylist()[1]
    assert (row["host"], row["threads"]) == ("first host then second host", "this threads")


def test_metrics_are_the_journals_in_long_form(laboratory: Any) -> None:
    """Every value of every trial, with the trial, variant and seed that it belongs to."""
    lab = laboratory(seeds=2)
    lab.finish(0, 0)
    lab.write(1, 1, range(1, 6))
    frame = metrics_from_journals(lab.folder, lab.name)
    names = ["trial", "variant", "seed", "step", "layer", "name", "value", "time"]
    assert frame.column_names == names
    assert len(frame) == (20 + 4 * 3) + (5 + 3)
    rows = frame.to_pylist()
    assert {(row["trial"], row["variant"], row["seed"]) for row in rows} == {
        (lab.id(0, 0), "position=none", 0),
        (lab.id(1, 1), "position=sdpa", 1),
    }
    [layer] = [row for row in rows if row["trial"] == lab.id(1, 1) and row["layer"] is not None]
    assert (layer["step"], layer["layer"], layer["name"]) == (5, 1, "gradient_norm")
    untouched = laboratory(seeds=1)
    assert metrics_from_journals(untouched.folder, untouched.name).schema == frame.schema


def test_a_study_that_is_not_there_is_named(tracked: Any, tracked_root: Any) -> None:
    """A typing mistake in a study's name is answered with what there is, from either source."""
    lab = tracked(seeds=1)
    with pytest.raises(NotFound, match=rf"no study '{lab.name}x'.*did you mean {lab.name}\?"):
        runs_from_journals(lab.folder, f"{lab.name}x")
    with pytest.raises(NotFound, match="no MLflow experiment 'nothing'"):
        runs_from_mlflow(lab.folder.tracking_uri, "nothing")


NAMES = ("train/loss", "gate/sdpa/mean", "gate/sdpa/below_0.1", "attention/entropy", "histogram/gate/sdpa/00")
PATTERNS = st.lists(st.sampled_from([*NAMES, "gate/*", "*/gate/*", "train/*", "none"]), max_size=3)
ROWS = st.lists(  # segments of commits of values
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from(NAMES), st.none() | st.integers(0, 2), st.floats(width=32)),
            max_size=6,
        ),
        max_size=4,
    ),
    max_size=3,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=3), PATTERNS | st.just(["*"]), st.sampled_from([None, True, False]))
def test_what_is_left_out_while_reading_is_what_a_filter_leaves_out(
    journals: list[list[list[list[tuple[int, str, int | None, float]]]]], names: list[str], layers: bool | None
) -> None:
    """Any journals, attempts that overlap included, in parts of any size: the values are those of the whole, filtered,
    in their order."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "AT_ONCE", 3)
        folder = RunsFolder(Path(root))
        trials = [TrialRecord(id=f"t{i}", variant=f"v{i % 2}", seed=i) for i in range(len(journals))]
        expected = []
        for trial, segments in zip(trials, journals, strict=True):
            for segment in segments:
                with Journal(folder.trial(trial.id).journal) as journal:
                    step = 1
                    for commit in segment:
                        for later, name, layer, value in commit:
                            step += later
                            journal.record(step, {name: value}, layer)
                        step += 1  # a batch never ends within a step
                        journal.commit()
            expected += [
                {"trial": trial.id, "variant": trial.variant, "seed": trial.seed, **row}
                for row in read_journal(folder.trial(trial.id).journal).to_pylist()
                if any(fnmatch.fnmatchcase(row["name"], pattern) for pattern in names)
                and layers in (None, row["layer"] is not None)
            ]
        tables = list(each_journal(folder, trials, names, layers))
        assert [table.schema for table in tables] == [METRICS] * len(trials)
        found = together(tables)
        assert repr(found.to_pylist()) == repr(expected)
        everything = together(each_journal(folder, trials))
        mask = named(everything, *names)
        assert sum(mask.to_pylist()) == sum(table.num_rows for table in each_journal(folder, trials, names))
        found.group_by(["trial", "name"]).aggregate([("value", "count")])  # Arrow refuses differing dictionaries


def test_values_of_trials_share_their_texts(laboratory: Any) -> None:
    """A study of many values holds each name and each trial's id once, not once a value."""
    lab = laboratory(seeds=2)
    for seed in (0, 1):
        lab.finish(0, seed)
        lab.finish(1, seed)
    table = metrics_from_journals(lab.folder, lab.name, keep=lambda rows: rows.filter(pc.greater(rows["step"], 15)))
    for name in ("trial", "variant", "name"):
        assert pa.types.is_dictionary(table.schema.field(name).type)
        assert len({tuple(chunk.dictionary.to_pylist()) for chunk in table[name].chunks}) == 1
    assert set(table["step"].to_pylist()) == set(range(16, 21))
    assert set(table["trial"].to_pylist()) == {lab.id(variant, seed) for variant in (0, 1) for seed in (0, 1)}


def test_answers_are_read_once(laboratory: Any, monkeypatch: Any) -> None:
    """A study that is published opens each answer of its models once, for its rows, its values and its files."""
    lab = laboratory(seeds=1)
    for variant in (0, 1):
        lab.finish(variant, 0)
        lab.answer(variant, 0, "far", 1.0, {"length/000064/plain/loss": 2.0})
    opened: list[Path] = []
    read_json = records.read_json
    monkeypatch.setattr(records, "read_json", lambda path: opened.append(path) or read_json(path))
    write_study(lab.folder, lab.name)
    assert sorted(path for path in opened if path.parent.name == "evaluations") == sorted(
        lab.trial(variant, 0).evaluations / "far.json" for variant in (0, 1)
    )


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=4), max_size=6))
@settings(max_examples=60, deadline=None)
def test_splitting_is_a_filter_for_each_value(chunks: list[list[tuple[str, int]]]) -> None:
    """Whatever the chunks, and whether texts are encoded: the same rows in the same order."""
    schema = pa.schema([("name", metrics.TEXT), ("seed", pa.int64()), ("row", pa.int64())])
    count, parts = 0, [schema.empty_table()]
    for chunk in chunks:
        rows = [{"name": name, "seed": seed, "row": count + at} for at, (name, seed) in enumerate(chunk)]
        parts.append(pa.Table.from_pylist(rows, schema))
        count += len(chunk)
    rows = pa.concat_tables(parts)
    for column in ("name", "seed"):
        found = split(rows, column)
        assert sum(map(len, found.values())) == count
        for value, part in found.items():
            assert part.to_pylist() == rows.filter(pc.equal(rows[column], value)).to_pylist() != []


def test_many_short_trials_are_in_few_chunks(laboratory: Any) -> None:
    """A question asked of a column is not asked of thousands of chunks, and texts are those of all trials."""
    lab = laboratory(seeds=4)
    for variant in (0, 1):
        for seed in range(4):
            lab.finish(variant, seed)
    rows = metrics_from_journals(lab.folder, lab.name)
    assert {rows[name].num_chunks for name in rows.column_names} == {1}
    assert set(rows["trial"].to_pylist()) == {trial.id for trial in lab.record.trials}
