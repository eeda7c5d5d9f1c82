"""The manifest of a study: what was launched, in a form that tables can read without knowing what a study is."""

from dataclasses import replace
from typing import Any

from gatelab.ablations.identity import digest
from gatelab.ablations.ladder import ladder
from gatelab.ablations.learning_rates import LEARNING_RATE, ToleranceConfig
from gatelab.ablations.matrix import Matrix, Trial, claimed_of
from gatelab.ablations.study import StudyPlan
from gatelab.ablations.study_file import study_files
from gatelab.atomic import replacing
from gatelab.names import SEARCH_SUFFIX
from gatelab.orchestrator.preregistration import claim_changes
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import DamagedRecord, StudyRecord, read_json, write_json


def study_record(matrix: Matrix) -> StudyRecord:
    """Return the record of a matrix: its study, its variants by label, its trials."""
    plan = matrix.plan
    content = {
        "version": StudyRecord.VERSION,
        "name": plan.study.name,
        "question": plan.study.question,
        "hash": plan.hash,
        **({"continues": plan.parent.study.name} if plan.parent else {}),
        "axes": [axis.name for axis in plan.axes],
        "ladder": list(ladder(plan)),
        "learning_rate": str(plan.study.learning_rate),
        "tolerance": {**plan.study.tolerance.model_dump(mode="json"), "lattice": plan.study.tolerance.lattice},
        "match": plan.study.match,
        "variants": {
            variant.label: {
                "levels": variant.levels,
                "baseline": variant.baseline,
                "steps": variant.config.training.steps,
                "parameters": variant.parameters,
                "added_parameters": variant.added_parameters,
                "flops_per_token": variant.flops_per_token,
                "tokens": variant.config.training.steps * variant.config.training.tokens_per_step,
                "learning_rate": variant.config.training.optimizer.learning_rate,
            }
            for variant in matrix.variants
        },
        "trials": [trial_entry(trial) for trial in matrix.trials],
        "claims": [
            {"name": name, **claim.model_dump(mode="json"), "variants": claimed_of(matrix, claim)}
            for name, claim in plan.study.claims.items()
        ],
        "excluded": matrix.excluded,
        "impossible": matrix.impossible,
    }
    return StudyRecord.from_json(content, plan.source.name)


def trial_entry(trial: Trial) -> dict[str, Any]:
    """Return what a record says of a trial."""
    entry = {"id": trial.id, "variant": trial.variant, "seed": trial.seed}
    return entry if trial.parent is None else {**entry, "parent": trial.parent}


def write_record(folder: RunsFolder, record: StudyRecord) -> None:
    """Make this the study's current record. Earlier ones are kept beside it under their hashes."""
    study, content = folder.study(record.name), record.to_json()
    if read_json(study.record) == content:
        return
    write_json(study.path / f"study-{digest(content)[:12]}.json", content)
    write_json(study.record, content)


def write_study_file(folder: RunsFolder, plan: StudyPlan) -> None:
    """Keep what was asked, flags included, as files that can be run again; of a search, the study that it searches."""
    study = folder.study(plan.study.name)
    searched = plan.study.name.removesuffix(SEARCH_SUFFIX)
    asked = replace(plan, study=plan.study.model_copy(update={"name": searched}))
    for name, text in study_files(asked, study.file.name).items():
        with replacing(study.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def changed_since(folder: RunsFolder, matrix: Matrix) -> list[str]:
    """List how a study differs from when it was last launched, for people. Nothing that was run is lost."""
    try:
        before = StudyRecord.read(folder.study(matrix.plan.study.name).record)
    except DamagedRecord:  # a run writes it anew
        return []
    return [] if before is None else _changes(before, study_record(matrix))


def _changes(before: StudyRecord, now: StudyRecord) -> list[str]:
    found = []
    old, new = (sorted({trial.seed for trial in record.trials}) for record in (before, now))
    if old != new:
        found.append(f"seeds: {', '.join(map(str, old))} -> {', '.join(map(str, new))}")
    gone, added = _levels(before) - _levels(now), _levels(now) - _levels(before)
    for what, levels in (("without", gone), ("new", added)):
        if levels:
            found.append(f"{what}: {', '.join(sorted(f'{axis}={level}' for axis, level in levels))}")
    changed = claim_changes(*(_claims(record) for record in (before, now)))
    found += [f"claim {name}: {change}" for name, change in changed.items()]
    rules, rules_now = (record.tolerance.to_json() if record.tolerance else {} for record in (before, now))
    for name in ToleranceConfig.model_fields:
        if name in rules and name in rules_now and rules[name] != rules_now[name]:
            found.append(f"tolerance.{name}: {rules[name]} -> {rules_now[name]}")
    ids = {(trial.variant, trial.seed): trial.id for trial in before.trials}
    others = {trial.variant for trial in now.trials if ids.get((trial.variant, trial.seed)) not in (None, trial.id)}
    if others:
        more = ", …" if len(others) > 3 else ""
        found.append(f"another configuration or other data of {', '.join(sorted(others)[:3])}{more}")
    return found


def _claims(record: StudyRecord) -> dict[str, Any]:
    """Return the claims of a record as they were written."""
    rest = ("name", "variants")
    return {
        claim.name: {key: value for key, value in claim.to_json().items() if key not in rest} for claim in record.claims
    }


def _levels(record: StudyRecord) -> set[tuple[str, str]]:
    """Return (axis, level) of all variants, without the learning rates that a search chose."""
    every = {item for variant in record.variants.values() for item in variant.levels.items()}
    return {(axis, level) for axis, level in every if axis != LEARNING_RATE}
