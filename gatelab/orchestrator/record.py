"""A study's record: what was launched, in a form that tables can read without knowing what a study is."""

from typing import Any

from gatelab.ablations.identity import digest
from gatelab.ablations.matrix import Matrix, Trial
from gatelab.results.folders import RunsFolder, read_json, write_json

RECORD_VERSION = 1


def study_record(matrix: Matrix) -> dict[str, Any]:
    """The record of a matrix: its study, its variants by label, its trials."""
    plan = matrix.plan
    return {
        "version": RECORD_VERSION,
        "name": plan.study.name,
        "question": plan.study.question,
        "hash": plan.hash,
        **({"continues": plan.earlier.study.name} if plan.earlier else {}),
        "axes": [axis.name for axis in plan.axes],
        "match": plan.study.match,
        "variants": {
            variant.label: {
                "levels": variant.levels,
                "baseline": variant.baseline,
                "steps": variant.config.training.steps,
                "parameters": variant.parameters,
                "added_parameters": variant.added_parameters,
                "flops_per_token": variant.flops_per_token,
            }
            for variant in matrix.variants
        },
        "trials": [trial_entry(trial) for trial in matrix.trials],
        "excluded": matrix.excluded,
        "impossible": matrix.impossible,
    }


def trial_entry(trial: Trial) -> dict[str, Any]:
    """What a record says of a trial."""
    entry = {"id": trial.id, "variant": trial.variant, "seed": trial.seed}
    return entry if trial.parent is None else {**entry, "parent": trial.parent}


def write_record(folder: RunsFolder, record: dict[str, Any]) -> None:
    """Make this the study's current record. Earlier ones are kept beside it under their hashes."""
    study = folder.study(record["name"])
    if read_json(study.record) == record:
        return
    write_json(study.path / f"study-{digest(record)[:12]}.json", record)
    write_json(study.record, record)
