"""A study as it was resolved, flags included, written as a study file that says the same."""

from pathlib import Path
from typing import Any

from gatelab.ablations.loading import load_study
from gatelab.ablations.paths import flatten, set_path
from gatelab.ablations.study import DEFAULT_BASE, StudyPlan, jsonable
from gatelab.ablations.yaml_source import dump_yaml


def study_files(plan: StudyPlan, name: str) -> dict[str, str]:
    """Return files that make a study again, by name: its own, called `name`, and one for each that it continues.

    `load_study` of the first has the hash of the plan.
    """
    content, parent = _content(plan), plan.parent
    if parent is None:
        return {name: dump_yaml(content)}
    beside = f"continues-{parent.study.name}.yaml"
    whole = {"name": plan.study.name, "continues": beside, **content}
    return {name: dump_yaml(whole), **study_files(parent, beside)}


def _content(plan: StudyPlan) -> dict[str, Any]:
    study, parent = plan.study, plan.parent
    if parent is None:
        preset = study.base if isinstance(study.base, str) else study.base.get("preset", DEFAULT_BASE)
        said = study.model_dump(mode="json", exclude_defaults=True, exclude={"base"})
        return {"name": study.name, **said, "base": {"preset": preset, **jsonable(plan.base)}}
    # What is not said is taken from the parent: all is said, but for what is added to the parent's.
    said = study.model_dump(mode="json", exclude={"base", "continues", "exclude"})
    before = dict(flatten(jsonable(parent.base)))
    base: dict[str, Any] = {}
    for path, value in flatten(jsonable(plan.base)):
        if path not in before or before[path] != value:
            base = set_path(base, path, value)
    own = len(study.exclude) - len(parent.study.exclude)
    return {**said, "exclude": study.model_dump(mode="json")["exclude"][:own], "base": base}


def differences(file: Path, now: StudyPlan) -> list[str]:
    """Name the fields in which a study differs from the one in a file. Raises StudyError."""
    before = load_study(file)
    fields = [plan.study.model_dump(mode="json", exclude={"base", "continues"}) for plan in (before, now)]
    bases = [{f"base.{path}": value for path, value in flatten(jsonable(plan.base))} for plan in (before, now)]
    old, new = ({**own, **base} for own, base in zip(fields, bases, strict=True))
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
