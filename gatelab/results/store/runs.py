"""Results as Arrow frames, read from journals or from MLflow: the same frame either way.

`runs` has a row for each trial of a study, those not run yet included. The record of a study (study.json, also an
artifact of its MLflow run) says which trials there are; journals and outcomes, or MLflow runs, what came of them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import filelock
import pyarrow as pa

from gatelab.results.store.journal import read_journal
from gatelab.results.store.layout import RunsFolder, TrialFolder, read_json
from gatelab.results.store.metric_specs import sums_up

SUMMARY = (
    "validation/loss",
    "validation/bits_per_byte",
    "train/final_loss",
    "train/mean_tokens_per_second",
    "train/seconds",
    "memory/peak_bytes",
)
"""Metrics that every trial's outcome sums up in one number, each a column of `runs`. Others that there are follow."""


PROVENANCE = ("code", "commit", "data", "device", "precision", "threads", "torch", "python", "host")
"""Where a number comes from: recorded with each trial, each a column of `runs`."""


OUTCOMES = ("finished", "diverged", "failed", "running", "interrupted", "waiting")
"""interrupted: begun, and nobody is at work on it; it goes on from its checkpoint when the study is run again."""


AXIS = "axis/"
"""Begins the column of an axis in `runs`."""


SUMMED_UP = ("finished", "diverged")
"""Outcomes with summary metrics."""


Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Trial -> what it answered after its training, the newest last."""


Descriptions = Mapping[str, Mapping[str, Any]]
"""Trial that has begun -> what it says of itself: configuration and attempts."""


States = Mapping[str, Mapping[str, Any]]
"""Trial -> its outcome, or its status where there is none yet."""


def runs_schema(axes: list[str], also: Iterable[str] = ()) -> pa.Schema:
    """Columns of `runs` for a study with these axes, whose trials have these metrics beside those of `SUMMARY`."""
    return pa.schema(
        [
            ("study", pa.utf8()),
            ("study_hash", pa.utf8()),
            ("trial", pa.utf8()),  # id
            ("variant", pa.utf8()),
            ("baseline", pa.utf8()),  # the variant to compare with; null: none
            ("seed", pa.int64()),
            ("outcome", pa.utf8()),  # one of OUTCOMES
            ("reason", pa.utf8()),  # why it diverged or failed
            ("step", pa.int64()),  # optimiser steps done
            ("steps", pa.int64()),  # optimiser steps planned
            ("parameters", pa.int64()),
            ("added_parameters", pa.int64()),  # over the baseline
            ("flops_per_token", pa.int64()),  # to train on a token
            ("tokens", pa.int64()),  # to train on
            *((AXIS + axis, pa.utf8()) for axis in axes),  # its level; null: makes no difference to this variant
            *((name, pa.float64()) for name in (*SUMMARY, *sorted(set(also) - set(SUMMARY)))),
            *((name, pa.utf8()) for name in PROVENANCE),
        ]
    )


def axes_of(runs: pa.Table) -> tuple[str, ...]:
    """The axes of a `runs` frame."""
    return tuple(name.removeprefix(AXIS) for name in runs.column_names if name.startswith(AXIS))


def short_axes(axes: Iterable[str]) -> dict[str, str]:
    """Axis -> its last part, where no other axis ends alike."""
    ends = {axis: axis.rpartition(".")[2] for axis in axes}
    counts = Counter(ends.values())
    return {axis: end if counts[end] == 1 else axis for axis, end in ends.items()}


def arm_of(trial: Mapping[str, Any], without: Collection[str]) -> str:
    """The label of a row of `runs` by its levels on all axes but some: which of the compared changes it is."""
    every = {name.removeprefix(AXIS): level for name, level in trial.items() if name.startswith(AXIS)}
    short = short_axes(every)
    # An axis that makes no difference to it has no level.
    levels = {name: level for name, level in every.items() if level is not None and name not in without}
    return ", ".join(f"{short[name]}={level}" for name, level in levels.items()) or "base"


def metrics_of(runs: pa.Table) -> tuple[str, ...]:
    """The metrics that sum up the trials of a `runs` frame."""
    return tuple(field.name for field in runs.schema if field.type == pa.float64())


def run_row(
    record: Mapping[str, Any], trial: Mapping[str, Any], outcome: Mapping[str, Any], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of `runs`, from the study's record, its entry for a trial, the trial's outcome and provenance."""
    variant = record["variants"][trial["variant"]]
    metrics = {name: value for name, value in outcome.get("metrics", {}).items() if sums_up(name)}
    return {
        "study": record["name"],
        "study_hash": record["hash"],
        "trial": trial["id"],
        "variant": trial["variant"],
        "baseline": variant["baseline"],
        "seed": trial["seed"],
        "outcome": outcome["status"],
        "reason": outcome.get("reason") or None,
        "step": outcome.get("step", 0),
        "steps": variant["steps"],
        "parameters": variant["parameters"],
        "added_parameters": variant["added_parameters"],
        "flops_per_token": variant["flops_per_token"],
        "tokens": variant.get("tokens"),
        **{AXIS + axis: variant["levels"].get(axis) for axis in record["axes"]},
        **metrics,
        **{name: origin.get(name) or None for name in PROVENANCE},
    }


def runs_from_journals(folder: RunsFolder, study: str) -> pa.Table:
    """`runs` of a study from its trials' own files. Raises NotFound."""
    return runs_of_record(folder, folder.study(study).read())


def runs_of_record(
    folder: RunsFolder,
    record: Mapping[str, Any],
    answers: Answers | None = None,
    descriptions: Descriptions | None = None,
    states: States | None = None,
) -> pa.Table:
    """`runs` of the trials that a study's record names. What they say is read, as far as it has not been."""
    answers = study_answers(folder, record) if answers is None else answers
    rows = []
    for trial in record["trials"]:
        files = folder.trial(trial["id"])
        outcome = dict(trial_state(files) if states is None else states[trial["id"]])
        description = read_json(files.description) if descriptions is None else descriptions.get(trial["id"])
        if outcome["status"] in ("running", "interrupted"):
            outcome["step"] = max(read_journal(files.journal)["step"].to_pylist(), default=0)
        if outcome["status"] in SUMMED_UP:
            outcome["metrics"] = {**outcome.get("metrics", {}), **_newest(answers[trial["id"]])}
        rows.append(run_row(record, trial, outcome, _provenance(description)))
    return runs_frame(record, rows)


def runs_frame(record: Mapping[str, Any], rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a frame, with a column for every metric that some trial has."""
    fixed = runs_schema(record["axes"]).names
    return pa.Table.from_pylist(rows, runs_schema(record["axes"], {name for row in rows for name in row} - set(fixed)))


def evaluations(files: TrialFolder) -> dict[str, float]:
    """What evaluations of a trial after its training found, by metric; the newest where several found the same."""
    return _newest(answers(files))


def _newest(found: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    return {name: value for answer in found for name, value in answer["metrics"].items()}


def answers(files: TrialFolder) -> list[dict[str, Any]]:
    """The answers that a trained trial has given, each with its question and provenance, the newest last."""
    found = [answer for path in files.evaluations.glob("*.json") if (answer := read_json(path)) is not None]
    return sorted(found, key=lambda answer: float(answer["evaluated"]))


def study_answers(folder: RunsFolder, record: Mapping[str, Any]) -> Answers:
    """The answers of the trials that a study's record names."""
    return {trial["id"]: answers(folder.trial(trial["id"])) for trial in record["trials"]}


def trial_state(files: TrialFolder) -> dict[str, Any]:
    """A trial's outcome, or where there is none yet, only its status."""
    outcome = read_json(files.outcome)
    if outcome is not None:
        return outcome
    if not files.description.exists():
        return {"status": "waiting"}
    return {"status": "running" if _is_locked(files) else "interrupted"}


def study_descriptions(folder: RunsFolder, record: Mapping[str, Any]) -> Descriptions:
    """The descriptions of the trials that a study's record names."""
    found = {trial["id"]: read_json(folder.trial(trial["id"]).description) for trial in record["trials"]}
    return {trial: description for trial, description in found.items() if description is not None}


def study_states(folder: RunsFolder, record: Mapping[str, Any]) -> States:
    """The states of the trials that a study's record names."""
    return {trial["id"]: trial_state(folder.trial(trial["id"])) for trial in record["trials"]}


def provenance(files: TrialFolder) -> dict[str, str]:
    """Where a trial's numbers come from. What its attempts differ in is joined by " then "."""
    return _provenance(read_json(files.description))


def _provenance(description: Mapping[str, Any] | None) -> dict[str, str]:
    known = [attempt["provenance"] for attempt in (description or {"attempts": []})["attempts"]]
    return {name: " then ".join(dict.fromkeys(origin[name] for origin in known)) for name in PROVENANCE if known}


def _is_locked(files: TrialFolder) -> bool:
    """Whether a process is at work on a trial."""
    lock = filelock.FileLock(files.lock, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return True
    lock.release()
    return False


EVALUATIONS = pa.schema(
    [("trial", pa.utf8()), ("variant", pa.utf8()), ("seed", pa.int64()), ("name", pa.utf8()), ("value", pa.float64())]
)
"""Columns of answers in long form."""


def evaluations_of_record(record: Mapping[str, Any], answers: Answers) -> pa.Table:
    """All answers of the trials that a study's record names in long form, in `EVALUATIONS`."""
    rows = [
        {"trial": trial["id"], "variant": trial["variant"], "seed": trial["seed"], "name": name, "value": value}
        for trial in record["trials"]
        for name, value in _newest(answers[trial["id"]]).items()
    ]
    return pa.Table.from_pylist(rows, EVALUATIONS)
