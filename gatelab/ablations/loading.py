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
from gatelab.ablations.paths import flatten, merge, nearest_path
from gatelab.ablations.plain import plain, text_problems, twice_given
from gatelab.ablations.presets import bases
from gatelab.ablations.references import reference_problems
from gatelab.ablations.source import KeyPath, Source, dotted
from gatelab.ablations.study import DEFAULT_BASE, Budget, Study, StudyPlan
from gatelab.ablations.warm_start import (
    find_study,
    inherit,
    inherited_lines,
    level_problems,
    restrict_levels,
    warm_start_problems,
)
from gatelab.ablations.wording import readable
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
    if raw is None:
        raise source.error(Problem("file", f"is empty: a study is {_STUDY}, and gatelab init writes one"))
    if not isinstance(raw, dict):
        raise source.error(Problem("file", f"expected {_STUDY} (got a {'list' if isinstance(raw, list) else 'word'})"))
    if {"variants", "trials"} <= raw.keys():
        message = "is the record of a study that was run, not a study file: name the file that was run"
        raise source.error(Problem("file", message))
    return _make({"name": path.stem, **raw}, source, overrides, fields, (*above, path.resolve()))


_STUDY = "a mapping with name, base, axes, seeds, …"


def _make(
    raw: Mapping[str, Any], source: Source, overrides: Mapping[str, Any], fields: Mapping[str, Any], files: Files
) -> StudyPlan:
    said = plain(_with_fields(raw, fields), source)
    if problems := [*text_problems(said, source), *text_problems(plain(overrides, source), source, "--set ")]:
        raise source.error(*problems)
    parent = _parent(said.get("continues"), source, files)
    if parent is not None:
        source = inherited_lines(said, source)
    study, problems, wrong = _read_study(said, parent, source)
    problems += _doubles(said, overrides, source)
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
    plan = StudyPlan(study, source, base, axes, parent, tuple(path for path, _ in flatten(overrides)))
    problems += _base_problems(base, source)
    if "axes" not in wrong:  # else names of axes would be wrong because the axes are
        problems += reference_problems(plan)
    if parent is not None:
        problems += warm_start_problems(plan, parent, overrides)
    if problems:
        raise source.error(*problems)
    return plan


def _doubles(said: Mapping[str, Any], overrides: Mapping[str, Any], source: Source) -> Iterator[Problem]:
    """Find configuration fields that are set twice in one place, with dots in their keys and without."""
    yield from twice_given(said.get("base"), ("base",), source)
    axes = said.get("axes")
    for name, levels in axes.items() if isinstance(axes, Mapping) else ():
        for label, values in levels.items() if isinstance(levels, Mapping) else ():
            yield from twice_given(values, ("axes", name, label), source)
    yield from twice_given(overrides, (), Source("command line"), "--set ")


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
) -> tuple[Study | None, list[Problem], set[str]]:
    """Read a study, its problems and the fields that have any.

    What is wrong counts as not said, so that everything else is checked, too.
    """
    problems: list[Problem] = []
    wrong: set[str] = set()
    rest = dict(said)
    while True:
        try:
            return Study.model_validate(rest if parent is None else inherit(rest, parent)), problems, wrong
        except ValidationError as error:
            problems += _study_problems(error, source)
            fields = [_field(detail["loc"]) for detail in error.errors()]
        wrong |= {str(field[0]) for field in fields if field}
        before = rest
        for field in fields:
            rest = _without(rest, field)
        rest = {"name": "unnamed", **rest}
        if rest == before:
            return None, problems, wrong


def _field(location: KeyPath) -> KeyPath:
    """Return the part of the location of an error that can be left out: a field of the study, or of a claim."""
    return location[: 3 if location[:1] == ("claims",) and location[2:] != ("[key]",) else 1]


def _without(tree: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
    """Copy a mapping without the entry at a path."""
    if len(path) > 1 and isinstance(inner := tree.get(str(path[0])), Mapping):
        return {**tree, str(path[0]): _without(inner, path[1:])}
    return {key: value for key, value in tree.items() if key != path[0]}


_TAGS = {"seeds": ("which", "auto"), "learning_rate": ("rule", "word")}
"""Fields of several forms -> how Pydantic names these, which are no keys."""
_SECTIONS: dict[str, type[Config]] = {"budget": Budget, "tolerance": ToleranceConfig, "learning_rate": RateRule}


def _study_problems(error: ValidationError, source: Source) -> Iterator[Problem]:
    unknown = False
    for detail in error.errors():
        field = detail["loc"][0]
        location = tuple(part for part in detail["loc"] if part not in (*_TAGS.get(str(field), ()), "[key]"))
        if detail["type"] == "extra_forbidden":
            section = Claim if field == "claims" else _SECTIONS.get(str(field), Study)
            hint = nearest(str(location[-1]), Study.model_fields if len(location) == 1 else section.model_fields)
            # The names that there are, once: a file of something else has many keys, all of them unknown.
            yield source.problem(
                location, "unknown key" if unknown and hint.startswith("known") else f"unknown key; {hint}"
            )
            unknown = unknown or hint.startswith("known")
        elif detail["type"] == "missing":
            yield source.problem(location, "required")
        else:
            is_of_file = (
                location == ("name",) and not source.line(location) and detail["input"] == Path(source.name).stem
            )
            hint = " (it is the file's, which says none: add name: …)" if is_of_file else ""
            yield source.problem(location, readable(detail) + hint, detail["input"])


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
    if parent is not None and study.imported is not None:
        message = f"its models start from those of {parent.study.name}, which this study continues"
        yield source.problem(("imported",), message, study.imported)


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
                yield source.problem(place, f"unknown key; {nearest_path(dotted(detail['loc']))}")
            elif detail["type"] != INVALID_COMBINATION:
                yield source.problem(place, readable(detail), detail["input"])
