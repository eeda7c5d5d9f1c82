"""MLflow follows a study that grows, renames a level or loses a variant: its runs say what their trials are now."""

from collections.abc import Mapping

from mlflow.entities import Param, RunTag
from mlflow.tracking import MlflowClient

from gatelab.results.store.records import StudyRecord, TrialRecord
from gatelab.results.tracking.client import LEFT, Run, RunIndex
from gatelab.status import Status

VERDICT_TAG = "gatelab.verdict"

CURRENT = "gatelab.current."
"""Beginning of tags with what a parameter is now, where it has changed: MLflow keeps parameters as they were."""


def follow(index: RunIndex, record: StudyRecord) -> None:
    """Bring names, tags and parameters of all runs up to date. Raises what MLflow raises."""
    trials = {trial.id: trial for trial in record.trials}
    for trial_id, run in index.runs.items():
        trial = trials.get(trial_id)
        if trial is None:
            _let_go(index.client, run)
        else:
            _update(index.client, run, record, trial)


def run_name(trial: TrialRecord) -> str:
    """Return what the run of a trial is called."""
    return f"{trial.variant}, seed={trial.seed}"


def params_of(record: StudyRecord, trial: TrialRecord) -> dict[str, str]:
    """Return the parameters of a trial's run."""
    variant = record.variants[trial.variant]
    params = {
        **variant.levels,
        "seed": trial.seed,
        "variant": trial.variant,
        "parameters": variant.parameters,
        "flops_per_token": variant.flops_per_token,
    }
    return {name: str(value) for name, value in params.items()}


def missing_params(run: Run, record: StudyRecord, trial: TrialRecord) -> dict[str, str]:
    """Return the parameters of a trial that its run does not have yet."""
    return {name: value for name, value in params_of(record, trial).items() if name not in run.params}


def _let_go(client: MlflowClient, run: Run) -> None:
    """Say that a study no longer has a trial: nothing compares it, and nobody works on it."""
    if VERDICT_TAG in run.tags:
        client.delete_tag(run.run_id, VERDICT_TAG)
        del run.tags[VERDICT_TAG]
    if run.outcome != LEFT:
        if run.outcome in (None, Status.RUNNING):
            client.update_run(run.run_id, "KILLED")
        client.set_tag(run.run_id, "gatelab.outcome", LEFT)
        run.tags["gatelab.outcome"] = LEFT


def _update(client: MlflowClient, run: Run, record: StudyRecord, trial: TrialRecord) -> None:
    name, params, missing = run_name(trial), params_of(record, trial), missing_params(run, record, trial)
    if run.name != name:
        client.update_run(run.run_id, name=name)
        run.name = name
    if not run.params:
        return  # it was only just created, and gets all of it with its values
    wanted = {"gatelab.variant": trial.variant, **_renamed(run, params)}
    changed = {tag: value for tag, value in wanted.items() if run.tags.get(tag) != value}
    if changed or missing:
        client.log_batch(
            run.run_id,
            params=[Param(*item) for item in missing.items()],
            tags=[RunTag(*item) for item in changed.items()],
        )
    for tag in [tag for tag in run.tags if tag.startswith(CURRENT) and tag not in wanted]:
        client.delete_tag(run.run_id, tag)
        del run.tags[tag]
    run.tags |= changed
    run.params |= missing


def _renamed(run: Run, params: Mapping[str, str]) -> dict[str, str]:
    """Return tags for the parameters that are not what MLflow keeps of them."""
    return {f"{CURRENT}{name}": value for name, value in params.items() if run.params.get(name, value) != value}
