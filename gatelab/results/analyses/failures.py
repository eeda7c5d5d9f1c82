"""Trials that failed, grouped by what ended them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gatelab.results.analyses.analysis import tidy, to_jsonable
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import Outcome, StudyRecord
from gatelab.results.store.trials import study_outcomes
from gatelab.status import Status

SCHEMA = pa.schema(
    [
        ("kind", pa.utf8()),
        ("cause", pa.utf8()),
        ("trials", pa.int64()),
        ("first", pa.utf8()),
        ("reason", pa.utf8()),
        ("log", pa.utf8()),
    ]
)


@dataclass(frozen=True)
class FailureGroup:
    """Trials that the same thing has ended."""

    kind: str
    """A value of `FailureKind`; "" in records of versions that did not say."""
    cause: str
    """Which error it was and where it was raised, or ''."""
    trials: tuple[str, ...]
    """Variant and seed of each, the first to fail first."""
    reason: str
    """The reason of the first: the end of its traceback."""
    log: str
    """The log of the first."""


@dataclass(frozen=True)
class Failures:
    """All trials of a study that failed."""

    groups: tuple[FailureGroup, ...]
    """The largest first."""

    def frame(self) -> pa.Table:
        """Return a row for each group."""
        rows = [{**vars(group), "trials": len(group.trials), "first": group.trials[0]} for group in self.groups]
        return tidy(rows, SCHEMA)

    def to_dict(self) -> dict[str, Any]:
        """Return the groups as JSON values."""
        return {"failures": to_jsonable(self.groups)}


def read_failures(folder: RunsFolder, study: str) -> Failures:
    """Group the failed trials of a study. Raises NotFound."""
    record = folder.study(study).read()
    return group_failures(record, study_outcomes(folder, record))


def group_failures(record: StudyRecord, outcomes: Mapping[str, Outcome]) -> Failures:
    """Group failed trials by kind and cause, or where no cause is known by the last line of the reason."""
    failed = [trial for trial in record.trials if outcomes[trial.id].status is Status.FAILED]
    groups: dict[tuple[str, str], list[tuple[str, Outcome]]] = {}
    for trial in sorted(failed, key=lambda trial: outcomes[trial.id].ended or 0.0):
        outcome = outcomes[trial.id]
        last = (outcome.reason.strip().splitlines() or [""])[-1]
        groups.setdefault((outcome.kind, outcome.cause or last), []).append(
            (f"{trial.variant}, seed={trial.seed}", outcome)
        )
    found = [
        FailureGroup(kind, members[0][1].cause, tuple(name for name, _ in members), first.reason, first.log)
        for (kind, _), members in groups.items()
        for first in (members[0][1],)
    ]
    return Failures(tuple(sorted(found, key=lambda group: -len(group.trials))))
