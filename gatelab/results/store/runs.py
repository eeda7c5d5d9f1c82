"""The `runs` frame: a row for each trial of a study, those not run yet included.

The record of a study says which trials there are; their outcomes and descriptions, or their runs in MLflow, what came
of them. The frame is the same either way.
"""

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from gatelab.metrics import Specs, find_spec
from gatelab.results.store.journal import read_journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metric_specs import SPECS_KEY, specs_json, specs_of_trials
from gatelab.results.store.records import Outcome, StudyRecord, TrialRecord
from gatelab.results.store.trials import (
    PROVENANCE,
    Descriptions,
    EvaluationResults,
    Outcomes,
    newest_values,
    provenance,
    study_descriptions,
    study_evaluations,
    study_outcomes,
)
from gatelab.status import Status

SUMMARY = (
    "validation/loss",
    "validation/bits_per_byte",
    "train/final_loss",
    "train/mean_tokens_per_second",
    "train/seconds",
    "memory/peak_bytes",
)
"""Metrics that every trial's outcome sums up in one number, each a column of `runs`. Others that there are follow."""

STATUSES = (
    Status.FINISHED,
    Status.DIVERGED,
    Status.FAILED,
    Status.RUNNING,
    Status.INTERRUPTED,
    Status.WAITING,
)
"""Values of the column `outcome`."""

AXIS = "axis/"
"""Begins the column of an axis in `runs`."""


def runs_schema(axes: list[str], also: Iterable[str] = ()) -> pa.Schema:
    """Return the schema of `runs` for a study with these axes, whose trials have these metrics beside those of
    `SUMMARY`.
    """
    return pa.schema(
        [
            ("study", pa.utf8()),
            ("study_hash", pa.utf8()),
            ("trial", pa.utf8()),  # id
            ("variant", pa.utf8()),
            ("baseline", pa.utf8()),  # the variant to compare with; null: none
            ("seed", pa.int64()),
            ("outcome", pa.utf8()),  # one of STATUSES
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
    """Return the axes of a `runs` frame."""
    return tuple(name.removeprefix(AXIS) for name in runs.column_names if name.startswith(AXIS))


def short_axes(axes: Iterable[str]) -> dict[str, str]:
    """Map each axis to its last part, where no other axis ends alike."""
    ends = {axis: axis.rpartition(".")[2] for axis in axes}
    counts = Counter(ends.values())
    return {axis: end if counts[end] == 1 else axis for axis, end in ends.items()}


_short_axes = functools.cache(short_axes)  # the same for every row of a frame


def arm_of(trial: Mapping[str, Any], without: Collection[str]) -> str:
    """Label a row of `runs` by its levels on all axes but some: which of the compared changes it is."""
    every = {name.removeprefix(AXIS): level for name, level in trial.items() if name.startswith(AXIS)}
    short = _short_axes(tuple(every))
    # An axis that makes no difference to it has no level.
    levels = {name: level for name, level in every.items() if level is not None and name not in without}
    return ", ".join(f"{short[name]}={level}" for name, level in levels.items()) or "base"


def metrics_of(runs: pa.Table) -> tuple[str, ...]:
    """Return the metrics that sum up the trials of a `runs` frame."""
    return tuple(field.name for field in runs.schema if field.type == pa.float64())


def run_row(record: StudyRecord, trial: TrialRecord, outcome: Outcome, origin: Mapping[str, str]) -> dict[str, Any]:
    """Return a trial's row of `runs`; `origin` is where its numbers come from. `runs_frame` picks the metrics in it."""
    variant = record.variants[trial.variant]
    return {
        "study": record.name,
        "study_hash": record.hash,
        "trial": trial.id,
        "variant": trial.variant,
        "baseline": variant.baseline,
        "seed": trial.seed,
        "outcome": outcome.status,
        "reason": outcome.reason or None,
        "step": outcome.step,
        "steps": variant.steps,
        "parameters": variant.parameters,
        "added_parameters": variant.added_parameters,
        "flops_per_token": variant.flops_per_token,
        "tokens": variant.tokens,
        **{AXIS + axis: variant.levels.get(axis) for axis in record.axes},
        **outcome.metrics,
        **{name: origin.get(name) or None for name in PROVENANCE},
    }


def runs_from_journals(folder: RunsFolder, study: str) -> pa.Table:
    """Read `runs` of a study from its trials' own files. Raises NotFound."""
    return runs_of_record(folder, folder.study(study).read())


def runs_of_record(
    folder: RunsFolder,
    record: StudyRecord,
    evaluations: EvaluationResults | None = None,
    descriptions: Descriptions | None = None,
    outcomes: Outcomes | None = None,
) -> pa.Table:
    """Return `runs` of the trials of a study. What they say is read, as far as it has not been."""
    evaluations = study_evaluations(folder, record) if evaluations is None else evaluations
    descriptions = study_descriptions(folder, record) if descriptions is None else descriptions
    outcomes = study_outcomes(folder, record) if outcomes is None else outcomes
    rows = []
    for trial in record.trials:
        outcome = outcomes[trial.id]
        if outcome.status in (Status.RUNNING, Status.INTERRUPTED):
            reached = max(read_journal(folder.trial(trial.id).journal)["step"].to_pylist(), default=0)
            outcome = outcome.model_copy(update={"step": reached})
        if outcome.status.is_over:
            values = newest_values(evaluations[trial.id])
            outcome = outcome.model_copy(update={"metrics": {**outcome.metrics, **values}})
        rows.append(run_row(record, trial, outcome, provenance(descriptions.get(trial.id))))
    return runs_frame(record, rows, specs_of_trials(descriptions.values()))


def runs_frame(record: StudyRecord, rows: list[dict[str, Any]], specs: Specs) -> pa.Table:
    """Return rows as a frame, with a column for every metric that sums up some trial, and what the metrics are.

    See `specs_of` for the latter.
    """
    others = {name for row in rows for name in row} - set(runs_schema(record.axes).names)
    schema = runs_schema(record.axes, {name for name in others if find_spec(name, specs).sums_up})
    return pa.Table.from_pylist(rows, schema.with_metadata({SPECS_KEY: specs_json(specs)}))


EVALUATIONS = pa.schema(
    [("trial", pa.utf8()), ("variant", pa.utf8()), ("seed", pa.int64()), ("name", pa.utf8()), ("value", pa.float64())]
)
"""Columns of what trained models answered, in long form."""


def evaluations_frame(record: StudyRecord, evaluations: EvaluationResults) -> pa.Table:
    """Return what the trained models of a study answered in long form, in `EVALUATIONS`."""
    rows = [
        {"trial": trial.id, "variant": trial.variant, "seed": trial.seed, "name": name, "value": value}
        for trial in record.trials
        for name, value in newest_values(evaluations[trial.id]).items()
    ]
    return pa.Table.from_pylist(rows, EVALUATIONS)
