"""How a study is read, from YAML or from flags: completed, checked, and every problem reported with its place."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gatelab.ablations.axes import axis_problems, make_axes, value_problems
from gatelab.ablations.claims import Claim
from gatelab.ablations.errors import Problem, nearest
from gatelab.ablations.learning_rates import RateRule, ToleranceConfig
from gatelab.ablations.paths import leaf_paths, merge, readable
from gatelab.ablations.presets import bases
from gatelab.ablations.references import reference_problems
from gatelab.ablations.source import Source, dotted
from gatelab.ablations.study import DEFAULT_BASE, Budget, Study, StudyPlan
from gatelab.ablations.warm_start import (
    find_study,
    inherit,
    inherited_lines,
    level_problems,
    restrict_levels,
    warm_start_problems,
)
from gatelab.ablations.yaml_source import load_yaml
from gatelab.configuration import INVALID_COMBINATION, Config
from gatelab.errors import Unavailable
from gatelab.training.config import TrialConfig

Files = tuple[Path, ...]
"""The file that is being read, after those that continue it, directly or not."""


def load_study(path: Path, overrides: Mapping[str, Any] | None = None, **fields: Any) -> StudyPlan:
    """Read a study file.

    Args:
        path: the file.
        overrides: values for dotted paths of its base.
        fields: values for fields of the study; axes are added to those of the file.

    Raises StudyError with all that is wrong, by file, line, key and value.
    """
    return _load(path, overrides or {}, fields, ())


def make_study(
    raw: Mapping[str, Any], source: str, overrides: Mapping[str, Any] | None = None, **fields: Any
) -> StudyPlan:
    """Check a study given as a mapping; `source` names it in errors. See `load_study`."""
    return _make(raw, Source(source), overrides or {}, fields, ())


def _load(path: Path, overrides: Mapping[str, Any], fields: Mapping[str, Any], above: Files) -> StudyPlan:
    raw, source = load_yaml(path)
    if not isinstance(raw, dict):
        raise source.error(Problem("file", "expected a mapping with name, axes, …"))
    return _make({"name": path.stem, **raw}, source, overrides, fields, (*above, path.resolve()))


def _make(
    raw: Mapping[str, Any], source: Source, overrides: Mapping[str, Any], fields: Mapping[str, Any], files: Files
) -> StudyPlan:
    said = _with_fields(raw, fields)
    parent = _parent(said.get("continues"), source, files)
    if parent is not None:
        source = inherited_lines(said, source)
    study, problems = _read_study(said, parent, source)
    if study is None:
        raise source.error(*problems)
    problems += _start_problems(study, parent, source)
    wrong_overrides = list(_override_problems(overrides))
    problems += wrong_overrides
    base = _resolve_base(study, parent, {} if wrong_overrides else overrides)
    axes = make_axes(study)
    problems += axis_problems(study, source)
    if parent is not None:
        problems += level_problems(axes, parent, source)
        axes = restrict_levels(axes, parent)
    plan = StudyPlan(study, source, base, axes, parent)
    problems += _base_problems(base, source)
    problems += reference_problems(plan)
    if parent is not None:
        problems += warm_start_problems(plan, parent, overrides)
    if problems:
        raise source.error(*problems)
    return plan


def _with_fields(raw: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replace fields of a study as it was written; axes and what is said of a search are merged."""
    given = {name: value for name, value in fields.items() if value is not None}
    written = raw.get("axes") or {}
    if "axes" in given:
        # What is no mapping stays, for the check of the study to refuse.
        given["axes"] = {**written, **given["axes"]} if isinstance(written, Mapping) else written
    if "tolerance" in given and isinstance(raw.get("tolerance"), Mapping):
        given["tolerance"] = {**raw["tolerance"], **given["tolerance"]}
    return {**raw, **given}


def _parent(given: Any, source: Source, files: Files) -> StudyPlan | None:
    """Read the study that another continues, if it names one. Raises StudyError."""
    if not isinstance(given, str):  # none, or what the check of the study refuses
        return None
    path = find_study(given, files[-1].parent if files else Path())
    if isinstance(path, Unavailable):
        raise source.error(source.problem(("continues",), path.reason, given))
    if path.resolve() in files:
        message = "that study itself continues this one: neither could be first"
        raise source.error(source.problem(("continues",), message, given))
    return _load(path, {}, {}, files)


def _read_study(
    said: Mapping[str, Any], parent: StudyPlan | None, source: Source
) -> tuple[Study | None, list[Problem]]:
    """Read a study and its problems; keys that are wrong count as not said, so that the others are checked, too."""

    def read(raw: Mapping[str, Any]) -> Study:
        return Study.model_validate(raw if parent is None else inherit(raw, parent))

    try:
        return read(said), []
    except ValidationError as error:
        problems = list(_study_problems(error, source))
        wrong = {detail["loc"][0] for detail in error.errors()}
    rest = {key: value for key, value in said.items() if key not in wrong}
    try:
        return read({"name": "unnamed", **rest}), problems
    except ValidationError:
        return None, problems


_NO_KEYS = ("str", "function-before", "word", "rule", "which", "auto")
_SECTIONS: dict[str, type[Config]] = {"budget": Budget, "tolerance": ToleranceConfig, "learning_rate": RateRule}


def _study_problems(error: ValidationError, source: Source) -> Iterator[Problem]:
    for detail in error.errors():
        # Union members appear in the location as words that are no keys; a claim's name may be any words.
        names = 2 if detail["loc"][0] == "claims" else 0
        rest = (part for part in detail["loc"][names:] if part not in _NO_KEYS and "[" not in str(part))
        location = (*detail["loc"][:names], *rest)
        if detail["type"] == "extra_forbidden":
            section = Claim if location[0] == "claims" and len(location) > 2 else _SECTIONS.get(str(location[0]), Study)
            yield source.problem(location, f"unknown key; {nearest(str(location[-1]), section.model_fields)}")
        elif detail["type"] == "missing":
            yield Problem(dotted(location), "required")
        else:
            yield source.problem(location, readable(detail["msg"]), detail["input"])


def _start(study: Study, parent: StudyPlan | None) -> dict[str, Any] | Unavailable:
    """Return the configuration that a study's own is merged over: of its parent, or of a named base."""
    if parent is not None:
        return parent.base
    name, known = _preset(study), bases()
    if not isinstance(name, str) or name not in known:
        return Unavailable(f"no such base; {nearest(str(name), known)}")
    return known[name].tree


def _preset(study: Study) -> Any:
    return study.base if isinstance(study.base, str) else study.base.get("preset", DEFAULT_BASE)


def _start_problems(study: Study, parent: StudyPlan | None, source: Source) -> Iterator[Problem]:
    named, start = isinstance(study.base, str), _start(study, parent)
    key = "base" if named else "base.preset"
    if parent is not None and (named or "preset" in study.base):
        message = f"the base is that of {parent.study.name}, which this study continues: say only what differs"
        yield source.problem(("base", "preset"), message, _preset(study), key=key)
    elif isinstance(start, Unavailable):
        yield source.problem(("base", "preset"), start.reason, _preset(study), key=key)


def _override_problems(overrides: Mapping[str, Any]) -> Iterator[Problem]:
    for path, value in overrides.items():
        yield from value_problems(path, value, partial(Problem, f"--set {path}"))


def _resolve_base(study: Study, parent: StudyPlan | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge defaults < preset, or the base of the study that is continued < the own mapping < the command line."""
    own = {} if isinstance(study.base, str) else {k: v for k, v in study.base.items() if k != "preset"}
    start = _start(study, parent)
    return own if isinstance(start, Unavailable) else merge(merge(start, own), overrides)


def _base_problems(base: dict[str, Any], source: Source) -> Iterator[Problem]:
    """Find fields of the base that are wrong by themselves. Impossible combinations are the matrix's to report."""
    if "seed" in base:
        yield source.problem(("base", "seed"), "seeds are not part of the base: use seeds", base["seed"])
    try:
        TrialConfig.model_validate(base)
    except ValidationError as error:
        for detail in error.errors():
            place = ("base", *detail["loc"])
            if detail["type"] == "extra_forbidden":
                yield source.problem(place, f"unknown key; {nearest(dotted(detail['loc']), leaf_paths())}")
            elif detail["type"] != INVALID_COMBINATION:
                yield source.problem(place, readable(detail["msg"]), detail["input"])
