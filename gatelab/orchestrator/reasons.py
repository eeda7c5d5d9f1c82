"""Why a trial will run, or will not: never begun, interrupted, failed, changed, over."""

from dataclasses import dataclass
from typing import Any

from gatelab.ablations.matrix import Matrix, Trial
from gatelab.ablations.paths import flatten
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.lease import holder_of
from gatelab.results.store.records import Outcome, StudyRecord
from gatelab.results.store.trials import has_begun, read_description

SHOWN = 3
"""Changed fields that are named."""


@dataclass(frozen=True)
class Reason:
    """Why a trial runs when its study is run, or does not."""

    trial: Trial
    runs: bool
    text: str


def why_each_runs(matrix: Matrix, folder: RunsFolder) -> list[Reason]:
    """Say of each trial of a matrix why it will run, or will not. Raises NewerRecord, DamagedRecord."""
    before = StudyRecord.read(folder.study(matrix.plan.study.name).record)
    ids = {(trial.variant, trial.seed): trial.id for trial in before.trials} if before else {}
    return [_reason(trial, folder, ids.get((trial.variant, trial.seed))) for trial in matrix.trials]


def _reason(trial: Trial, folder: RunsFolder, former: str | None) -> Reason:
    files = folder.trial(trial.id)
    outcome = Outcome.read(files.outcome)
    if outcome is not None and outcome.status.is_over:
        return Reason(trial, False, f"{outcome.status} already, at step {outcome.step}")
    if (holder := holder_of(files.path)) is not None:
        return Reason(trial, False, f"is being trained by {holder}")
    if outcome is not None:
        first = (outcome.reason.strip().splitlines() or ["no reason was recorded"])[-1]
        kind = f" ({outcome.kind})" if outcome.kind else ""
        return Reason(trial, True, f"failed{kind}: {first}; goes on {_from(files)}")
    if has_begun(files):
        return Reason(trial, True, f"was interrupted; goes on {_from(files)}")
    if former is not None and former != trial.id:
        return Reason(trial, True, f"changed since the study was last run: {_changes(trial, folder, former)}")
    return Reason(trial, True, "never ran")


def _from(files: TrialFolder) -> str:
    """Say from where a trial goes on. By the names of its checkpoints: to open them takes torch."""
    steps = [path.stem.rpartition("-")[2] for path in files.checkpoints.glob("step-*")]
    found = [int(step) for step in steps if step.isdecimal()]
    return f"from step {max(found)}" if found else "from its start"


def _changes(trial: Trial, folder: RunsFolder, former: str) -> str:
    """Name the fields in which a trial differs from that of the same name before."""
    description = read_description(folder.trial(former))
    if description is None:
        return "what it was is not known: it had not begun, or its files are gone"
    old, new = dict(flatten(description.config)), dict(flatten(trial.config.model_dump(mode="json")))
    fields = [
        f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if not fields:
        return "its data, or the trial that it continues"
    return ", ".join(fields[:SHOWN]) + (f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else "")


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)
