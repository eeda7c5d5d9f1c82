"""A study: one question as a base configuration, axes, exclusions, a baseline and seeds. Read from YAML or flags."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from gatelab.ablations.errors import Problem, StudyError, nearest
from gatelab.ablations.identity import digest
from gatelab.ablations.paths import UnknownPath, check_value, flatten, leaf_paths, merge, readable
from gatelab.ablations.presets import bases
from gatelab.ablations.yaml_source import KeyPath, load_yaml
from gatelab.configuration import IMPOSSIBLE, Config, Count
from gatelab.training.config import TrialConfig

DEFAULT_BASE = "tiny-dense"

AXIS_NAME = r"[A-Za-z0-9][A-Za-z0-9_. -]*"
RESERVED = ("variant", "parameters", "flops_per_token")
"""What tables and MLflow call other things: no axis has these names."""


def _parse_seeds(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError("expected at least one seed")
        return list(range(value))
    if not isinstance(value, list) or not value or len(set(map(repr, value))) != len(value):
        raise ValueError("expected how many (3) or which ([0, 1, 5], each once)")
    return value


class Budget(Config):
    """Limits on a study: one that would exceed them is refused before it starts."""

    trials: Count | None = Field(None, ge=1)
    """Most trials."""
    hours: float | None = Field(None, gt=0)
    """Most estimated device-hours of the trials that are still to run."""


class Study(Config):
    """What a study file holds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the study's folder and its MLflow experiment."""
    question: str = ""
    """What the study is to answer, in words."""
    base: str | dict[str, Any] = DEFAULT_BASE
    """A named base, or a configuration, or both: a configuration whose `preset` names the base that it overrides."""
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]] = {}
    """Dotted path -> its levels; or a name -> named levels, each of which sets several paths together."""
    exclude: list[dict[str, Any]] = []
    """Combinations to leave out: each entry maps axes or paths to a value or a list of values, all of which match."""
    baseline: dict[str, Any] | None = None
    """Axis -> level of the variant to compare with. Axes that are not named are compared level by level. By default
    the first level of every axis that is not a nuisance."""
    match: Literal["none", "parameters", "flops"] = "none"
    """Narrow or widen the feed-forward layer until every variant has its baseline's parameters, or FLOPs per token."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], BeforeValidator(_parse_seeds)] = [0]
    """How many (0, 1, …), or which."""
    nuisance: list[str] = []
    """Axes that must be tuned for a fair comparison but are not what is asked; every other axis is scientific."""
    fixed: list[str] = []
    """Paths deliberately held at one value: a caveat on the conclusion, and an answer to the plan's questions."""
    budget: Budget = Budget()


@dataclass(frozen=True)
class Level:
    """One value of an axis."""

    label: str
    values: dict[str, Any]  # dotted path -> value


@dataclass(frozen=True)
class Axis:
    """A factor of a study and its levels."""

    name: str
    levels: tuple[Level, ...]

    @property
    def paths(self) -> set[str]:
        """All paths that it sets."""
        return {path for level in self.levels for path in level.values}


@dataclass(frozen=True)
class StudyPlan:
    """A study that has been read and checked: its base resolved, its axes spelled out."""

    study: Study
    source: str
    base: dict[str, Any]
    axes: tuple[Axis, ...]
    lines: dict[KeyPath, int]

    @property
    def hash(self) -> str:
        """SHA-256 of what was asked, wherever it was written."""
        asked = self.study.model_dump(mode="json", exclude={"base"})
        return digest({**asked, "base": _jsonable(self.base)})

    @property
    def baseline(self) -> dict[str, str]:
        """Axis -> label of the baseline's level, for the axes that it names."""
        if self.study.baseline is None:
            return {a.name: a.levels[0].label for a in self.axes if a.name not in self.study.nuisance}
        return {name: level_label(value) for name, value in self.study.baseline.items()}

    def error(self, *problems: Problem) -> StudyError:
        """A StudyError about this study."""
        return StudyError(problems, self.source)


def load_study(path: Path, overrides: Mapping[str, Any] | None = None, **fields: Any) -> StudyPlan:
    """Read a study file. `overrides` set dotted paths of its base; `fields` replace fields of the study, axes merge.

    Raises StudyError with all that is wrong, by file, line, key and value.
    """
    raw, lines = load_yaml(path)
    if not isinstance(raw, dict):
        raise StudyError([Problem("file", "expected a mapping with name, axes, …")], str(path))
    return make_study({"name": path.stem, **raw}, str(path), lines, overrides, **fields)


def make_study(
    raw: Mapping[str, Any],
    source: str,
    lines: dict[KeyPath, int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    **fields: Any,
) -> StudyPlan:
    """Check a study given as a mapping; `source` names it in errors. See `load_study`."""
    lines = lines or {}
    given = {name: value for name, value in fields.items() if value is not None}
    axes_of_file = raw.get("axes") or {}
    if "axes" in given:
        # What is no mapping stays, for the check below to refuse.
        given["axes"] = {**axes_of_file, **given["axes"]} if isinstance(axes_of_file, Mapping) else axes_of_file
    study, problems = _read_study({**raw, **given}, lines)
    if study is None:
        raise StudyError(problems, source)
    base = _resolve_base(study, overrides or {}, lines, problems)
    axes = tuple(_axes(study, lines, problems))
    plan = StudyPlan(study, source, base, axes, lines)
    problems += _base_problems(base, lines)
    problems += _reference_problems(plan)
    if problems:
        raise StudyError(problems, source)
    return plan


def level_label(value: Any) -> str:
    """How a level is written in tables: as in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value)


def _read_study(raw: dict[str, Any], lines: dict[KeyPath, int]) -> tuple[Study | None, list[Problem]]:
    """The study and its problems; keys that are wrong take their defaults, so that the others are checked, too."""
    try:
        return Study.model_validate(raw), []
    except ValidationError as error:
        problems = list(_study_problems(error, lines))
        wrong = {detail["loc"][0] for detail in error.errors()}
    rest = {key: value for key, value in raw.items() if key not in wrong}
    try:
        return Study.model_validate({"name": "unnamed", **rest}), problems
    except ValidationError:
        return None, problems


def _study_problems(error: ValidationError, lines: dict[KeyPath, int]) -> Iterator[Problem]:
    for detail in error.errors():
        # Union members appear in the location as words that are no keys.
        location = tuple(
            part for part in detail["loc"] if part not in ("str", "function-before") and "[" not in str(part)
        )
        key = ".".join(map(str, location))
        if detail["type"] == "extra_forbidden":
            fields = Budget.model_fields if location[0] == "budget" else Study.model_fields
            yield Problem(key, f"unknown key; {nearest(str(location[-1]), fields)}", line=_line(lines, location))
        elif detail["type"] == "missing":
            yield Problem(key, "required", line=None)
        else:
            yield Problem(key, readable(detail["msg"]), detail["input"], _line(lines, location))


def _line(lines: dict[KeyPath, int], path: Sequence[str | int]) -> int | None:
    """The line of a key, or of the nearest key above it. Dotted keys of a file stand for nested ones."""
    dotted = {".".join(map(str, key)): line for key, line in lines.items()}
    wanted = ".".join(map(str, path))
    while wanted and wanted not in dotted:
        wanted = wanted.rpartition(".")[0]
    return dotted.get(wanted)


def _resolve_base(
    study: Study, overrides: Mapping[str, Any], lines: dict[KeyPath, int], problems: list[Problem]
) -> dict[str, Any]:
    """Defaults < preset < the study's mapping < the command line."""
    own = {} if isinstance(study.base, str) else {k: v for k, v in study.base.items() if k != "preset"}
    name = study.base if isinstance(study.base, str) else study.base.get("preset", DEFAULT_BASE)
    known = bases()
    if not isinstance(name, str) or name not in known:
        key = "base" if isinstance(study.base, str) else "base.preset"
        problems.append(
            Problem(key, f"no such base; {nearest(str(name), known)}", name, _line(lines, ("base", "preset")))
        )
        return own
    for path in overrides:
        try:
            _, expected = check_value(path, overrides[path])
        except UnknownPath as error:
            problems.append(Problem(f"--set {path}", str(error)))
        else:
            if expected:
                problems.append(Problem(f"--set {path}", expected, overrides[path]))
    return merge(merge(known[name].tree, own), overrides if not problems else {})


def _axes(study: Study, lines: dict[KeyPath, int], problems: list[Problem]) -> Iterator[Axis]:
    owners: dict[str, str] = {}
    for name, levels in study.axes.items():
        key, line = f"axes.{name}", _line(lines, ("axes", name))
        if name == "seed":
            problems.append(Problem(key, "seeds are not an axis: use seeds", line=line))
            continue
        if name in RESERVED or not re.fullmatch(AXIS_NAME, name):
            rule = "an axis is named in letters, digits, spaces and . _ -, and not as what tables call other things"
            problems.append(Problem(key, rule, line=line))
            continue
        if not levels:
            problems.append(Problem(key, "expected at least one level", levels, line))
            continue
        named = levels if isinstance(levels, dict) else {level_label(value): {name: value} for value in levels}
        if isinstance(levels, list) and len(named) != len(levels):
            problems.append(Problem(key, "names a level twice", levels, line))
        checked = []
        for index, (label, values) in enumerate(named.items()):
            place = ("axes", name, label if isinstance(levels, dict) else index)
            checked.append(_check_level(name, label, values, key, _line(lines, place), problems))
        axis = Axis(name, tuple(checked))
        for path in sorted(axis.paths):
            if path in owners:
                problems.append(Problem(key, f"sets {path}, which axis {owners[path]} sets too", line=line))
            owners[path] = name
        yield axis


def _check_level(
    name: str, label: str, values: dict[str, Any], key: str, line: int | None, problems: list[Problem]
) -> Level:
    """A level whose values are as their fields read them."""
    checked = {}
    for path, value in flatten(values):
        if path == "seed":
            problems.append(Problem(key, "seeds are not an axis: use seeds", line=line))
            continue
        try:
            checked[path], expected = check_value(path, value)
        except UnknownPath as error:
            problems.append(Problem(key if path == name else f"{key}.{label}.{path}", str(error), line=line))
        else:
            if expected:
                problems.append(Problem(key if path == name else f"{key}.{label}.{path}", expected, value, line))
    return Level(label, checked)


def _base_problems(base: dict[str, Any], lines: dict[KeyPath, int]) -> Iterator[Problem]:
    """Fields of the base that are wrong by themselves. Impossible combinations are the matrix's to report."""
    if "seed" in base:
        yield Problem(
            "base.seed", "seeds are not part of the base: use seeds", base["seed"], _line(lines, ("base", "seed"))
        )
    try:
        TrialConfig.model_validate(base)
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] == IMPOSSIBLE:
                continue
            path = ".".join(map(str, detail["loc"]))
            line = _line(lines, ("base", *detail["loc"]))
            if detail["type"] == "extra_forbidden":
                yield Problem(f"base.{path}", f"unknown key; {nearest(path, leaf_paths())}", line=line)
            else:
                yield Problem(f"base.{path}", readable(detail["msg"]), detail["input"], line)


def _reference_problems(plan: StudyPlan) -> Iterator[Problem]:
    """Names in `baseline`, `exclude`, `nuisance` and `fixed` that lead nowhere."""
    study, by_name = plan.study, {axis.name: axis for axis in plan.axes}
    for name, value in (study.baseline or {}).items():
        line = _line(plan.lines, ("baseline", name))
        if name not in by_name:
            yield Problem(f"baseline.{name}", f"no such axis; {nearest(name, by_name)}", line=line)
        elif (label := level_label(value)) not in {level.label for level in by_name[name].levels}:
            labels = ", ".join(level.label for level in by_name[name].levels)
            yield Problem(f"baseline.{name}", f"not a level of this axis (it has {labels})", label, line)
    paths = set(leaf_paths())
    for index, rule in enumerate(study.exclude):
        for name in rule:
            if name not in by_name and name not in paths:
                hint = nearest(name, paths | set(by_name))
                line = _line(plan.lines, ("exclude", index, name))
                yield Problem(
                    f"exclude[{index}].{name}", f"neither an axis nor a configuration field; {hint}", line=line
                )
    for name in study.nuisance:
        if name not in by_name:
            yield Problem("nuisance", f"no such axis; {nearest(name, by_name)}", name, _line(plan.lines, ("nuisance",)))
    for path in study.fixed:
        if path not in paths:
            yield Problem(
                "fixed", f"no such configuration field; {nearest(path, paths)}", path, _line(plan.lines, ("fixed",))
            )
        elif any(path in axis.paths for axis in plan.axes):
            yield Problem("fixed", "an axis varies it", path, _line(plan.lines, ("fixed",)))
    if study.match != "none" and any("model.ffn_size" in axis.paths for axis in plan.axes):
        yield Problem("match", "sets model.ffn_size, which an axis varies", study.match, _line(plan.lines, ("match",)))


def _jsonable(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _jsonable(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_jsonable(value) for value in tree]
    return tree if isinstance(tree, str | int | float | bool | None) else str(tree)
