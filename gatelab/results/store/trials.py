"""What the files of trials say: how each stands, where its numbers come from, what its trained model answered."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gatelab.checksums import with_checksum
from gatelab.errors import DamagedFile
from gatelab.results.store.journal import JournalTail, Loss, segments
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.lease import holder_of
from gatelab.results.store.records import (
    DESCRIPTION,
    Attempt,
    DamagedRecord,
    EvaluationResult,
    Outcome,
    StudyRecord,
    TrialDescription,
    read_part,
    write_json,
)
from gatelab.status import Status

PROVENANCE = ("code", "commit", "data", "device", "precision", "threads", "torch", "python", "host")
"""Provenance of a number: recorded with each trial, each a column of `runs`."""

EvaluationResults = Mapping[str, Sequence[EvaluationResult]]
"""Trial -> what its trained model answered, the newest last."""

Descriptions = Mapping[str, TrialDescription]
"""Trial that has begun -> what it says of itself."""

Outcomes = Mapping[str, Outcome]
"""Trial -> how it stands."""


def read_outcome(files: TrialFolder) -> Outcome:
    """Read how a trial stands. Of one that is not over only the status is known.

    One whose outcome is damaged is to be run again, and says so. Raises NewerRecord.
    """
    reason = ""
    try:
        outcome = Outcome.whole(files.outcome)
    except DamagedRecord:
        outcome = None
        reason = f"{files.outcome} is damaged: run the study, and it is made again from the last checkpoint"
        _warn(reason)
    if outcome is not None:
        return outcome
    if not has_begun(files) and not reason:
        return Outcome(status=Status.WAITING)
    return Outcome(status=Status.RUNNING if holder_of(files.path) else Status.INTERRUPTED, reason=reason)


def has_begun(files: TrialFolder) -> bool:
    """Return whether a process has worked on a trial that is not over. Its outcome may have been removed."""
    return files.description.exists() or files.journal.is_dir()


def is_over(files: TrialFolder) -> bool:
    """Return whether a trial has finished or diverged, and need not run again. Loads nothing but its outcome."""
    outcome = Outcome.read(files.outcome)
    return outcome is not None and outcome.status.is_over


def read_description(files: TrialFolder) -> TrialDescription | None:
    """Read what a trial says of itself; None where it has not begun, or where that is damaged, with a warning.

    Raises NewerRecord.
    """
    try:
        description = whole_description(files)
    except DamagedRecord:
        description = None
        _warn(f"{files.description} is damaged: code, data and machine of its trial are not known; its results are")
    return description


def reopened_description(files: TrialFolder) -> TrialDescription | None:
    """Read the same for a new attempt, which writes it anew; a damaged one is set aside. Raises NewerRecord."""
    try:
        return whole_description(files)
    except DamagedRecord:
        if files.description.exists():
            files.description.rename(files.description.with_name(f"{files.description.name}.damaged"))
        return None


def forgotten_attempts(files: TrialFolder) -> list[Attempt]:
    """Return, of a trial whose description is lost, what is known of the attempts that wrote its journal: when."""
    return [
        Attempt(started=path.stat().st_mtime, provenance=dict.fromkeys(PROVENANCE, "unknown"))
        for path in segments(files.journal)[:1]
    ]


def lost_values(files: TrialFolder, journal: JournalTail) -> list[str]:
    """Say which values of a trial are lost, given its journal, read to its end; and how they are made again."""
    losses = journal.lost
    if not losses and journal.torn is not None:
        outcome = Outcome.read(files.outcome)
        if outcome is not None and outcome.status.is_over and outcome.step > journal.whole_steps:
            losses = [Loss(journal.torn, journal.whole_steps + 1, None)]
    return [f"{loss}; to train them again, remove {files.outcome} and run the study" for loss in losses]


def whole_description(files: TrialFolder) -> TrialDescription | None:
    """Read the same. Raises NewerRecord, DamagedRecord."""
    path = files.description
    description = TrialDescription.read(path)
    if description is None:
        path = files.outcome
        said = read_part(path, DESCRIPTION)
        description = None if said is None else TrialDescription.from_json(said, str(path))
    if description is not None and description.id != files.path.name:
        raise DamagedRecord(f"{path}: is of another trial, {description.id}")
    return description


def write_end(files: TrialFolder, outcome: Outcome, description: TrialDescription) -> None:
    """Write the outcome of a trial that is over: what it says of itself goes with it, into one file.

    A kill leaves both files at worst, and they say the same. Each part has a checksum of its own.
    """
    write_json(files.outcome, {**outcome.to_json(), DESCRIPTION: with_checksum(description.to_json())})
    files.description.unlink(missing_ok=True)


def provenance(description: TrialDescription | None) -> dict[str, str]:
    """Return where a trial's numbers come from. What its attempts differ in is joined by " then "."""
    known = [attempt.provenance for attempt in description.attempts] if description else []
    return {name: " then ".join(dict.fromkeys(origin[name] for origin in known)) for name in PROVENANCE if known}


def read_evaluations(files: TrialFolder) -> list[EvaluationResult]:
    """Read what a trained model answered, the newest last; what is damaged is left out with a warning.

    Raises NewerRecord.
    """
    found = []
    for path in files.evaluations.glob("*.json"):
        answer = read_evaluation(path)
        if answer is not None:
            found.append(answer)
        elif path.exists():
            _warn(f"{path} is damaged: `gatelab evaluate` asks its question again")
    return sorted(found, key=lambda result: result.evaluated)


def read_evaluation(path: Path) -> EvaluationResult | None:
    """Read one answer; None where there is no whole one. Raises NewerRecord."""
    try:
        answer = EvaluationResult.read(path)
    except DamagedRecord:
        return None
    return answer if answer is not None and answer.trial in ("", path.parent.parent.name) else None


def _warn(text: str) -> None:
    warnings.warn(text, DamagedFile, stacklevel=3)


def newest_values(results: Iterable[EvaluationResult]) -> dict[str, float]:
    """Return what evaluations found, by metric; the newest value where several found the same."""
    return {name: value for result in results for name, value in result.metrics.items()}


def study_outcomes(folder: RunsFolder, record: StudyRecord) -> Outcomes:
    """Read how the trials of a study stand."""
    return {trial.id: read_outcome(folder.trial(trial.id)) for trial in record.trials}


def study_descriptions(folder: RunsFolder, record: StudyRecord) -> Descriptions:
    """Read what the trials of a study that have begun say of themselves."""
    found = {trial.id: read_description(folder.trial(trial.id)) for trial in record.trials}
    return {trial: description for trial, description in found.items() if description is not None}


def study_evaluations(folder: RunsFolder, record: StudyRecord) -> EvaluationResults:
    """Read what the trained models of a study answered."""
    return {trial.id: read_evaluations(folder.trial(trial.id)) for trial in record.trials}
