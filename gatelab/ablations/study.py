"""A study: one question as a base configuration, axes, exclusions, a baseline and seeds. Read from YAML or flags."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError

from gatelab.ablations.claims import Claim
from gatelab.ablations.continuing import (
    continuing_problems,
    find_study,
    inherit,
    inherited_lines,
    narrow,
    no_such_study,
)
from gatelab.ablations.errors import Problem, StudyError, nearest
from gatelab.ablations.identity import digest
from gatelab.ablations.learning_rates import LEARNING_RATE, RateRule, ToleranceConfig
from gatelab.ablations.paths import UnknownPath, check_value, flatten, leaf_paths, level_label, merge, readable
from gatelab.ablations.presets import bases
from gatelab.ablations.yaml_source import KeyPath, line_of, load_yaml
from gatelab.configuration import INVALID_COMBINATION, Config, Count
from gatelab.training.config import TrialConfig

DEFAULT_BASE = "tiny-dense"

SIZES = frozenset(
    {
        *(f"model.{name}" for name in ("layers", "hidden_size", "query_heads", "kv_heads", "head_dim", "ffn_size")),
        "training.tokens",
    }
)
"""What an axis along which models and their training grow sets: see `ladder`."""

AXIS_NAME = r"[A-Za-z0-9][A-Za-z0-9_. -]*"
RESERVED = ("variant", "parameters", "flops_per_token")
"""What tables and MLflow call other things: no axis has these names."""


AUTO_SEEDS = 6
"""Seeds of each variant where they are `auto`: the fewest with which an exact sign-flip test can give p < 0.05."""


def _parse_seeds(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError("expected at least one seed")
        return list(range(value))
    if not isinstance(value, list) or not value or len(set(map(repr, value))) != len(value):
        raise ValueError("expected how many (3), which ([0, 1, 5], each once) or auto")
    return value


Seed = Annotated[int, Field(ge=0, strict=True)]


ClaimName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]  # a line of text


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
    continues: str | None = None
    """The file of another study, or the name of one that comes with gatelab: each trial starts from the final weights
    of that study's trial with the same levels and seed. What is not said here is taken from there."""
    base: str | dict[str, Any] = DEFAULT_BASE
    """A named base, or a configuration, or both: a configuration whose `preset` names the base that it overrides.
    In a study that continues another: what differs from its base."""
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]] = {}
    """Dotted path -> its levels; or a name -> named levels, each of which sets several paths together."""
    exclude: list[dict[str, Any]] = []
    """Combinations to leave out: each entry maps axes or paths to a value or a list of values, all of which match."""
    baseline: dict[str, Any] | None = None
    """Axis -> level of the variant to compare with. Axes that are not named are compared level by level. By default
    the first level of every axis that is not a nuisance; where others are varied, too, not of those that set sizes."""
    match: Literal["none", "parameters", "flops"] = "none"
    """Narrow or widen the feed-forward layer until every variant has its baseline's parameters, or FLOPs per token."""
    seeds: Annotated[
        Annotated[list[Seed], Tag("which")] | Annotated[Literal["auto"], Tag("auto")],
        Discriminator(lambda value: "auto" if value == "auto" else "which"),
        BeforeValidator(_parse_seeds),
    ] = [0]
    """How many (0, 1, …), which, or auto: six, and of a baseline with which k variants are compared sqrt(k) times as
    many, since its noise is in every difference."""
    learning_rate: Annotated[
        Annotated[Literal["given", "search"], Tag("word")] | Annotated[RateRule, Tag("rule")],
        Discriminator(lambda value: "rule" if isinstance(value, Mapping | RateRule) else "word"),
    ] = "given"
    """given: as the base and the axes say; a rule by which it follows the size of the model or its training; or
    search: for each variant the optimum that `gatelab lr-tolerance` found."""
    tolerance: ToleranceConfig = ToleranceConfig()
    """How that is searched for."""
    nuisance: list[str] = []
    """Axes that must be tuned for a fair comparison but are not what is asked; every other axis is scientific."""
    fixed: list[str] = []
    """Paths deliberately held at one value: a caveat on the conclusion, and an answer to the plan's questions."""
    claims: dict[ClaimName, Claim] = {}
    """What is expected, in words -> how it is judged. Locked when the study is first launched."""
    budget: Budget = Budget()

    @property
    def common_seeds(self) -> list[int]:
        """The seeds that every variant has."""
        return list(range(AUTO_SEEDS)) if self.seeds == "auto" else self.seeds


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
    earlier: "StudyPlan | None" = None  # the study that it continues

    @property
    def hash(self) -> str:
        """SHA-256 of what was asked, wherever it was written."""
        asked = self.study.model_dump(mode="json", exclude={"base", "continues"})
        for name in (
            "learning_rate",
            "tolerance",
            "claims",
        ):  # a study that does not mention them has the hash that it had
            if getattr(self.study, name) == Study.model_fields[name].default:
                del asked[name]
        before = {} if self.earlier is None else {"continues": self.earlier.hash}
        return digest({**asked, "base": _jsonable(self.base), **before})

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and those of the studies that it continues."""
        return (self.study.name, *(self.earlier.names if self.earlier else ()))

    @property
    def baseline(self) -> dict[str, str]:
        """Axis -> label of the baseline's level, for the axes that it names."""
        if self.study.baseline is None:
            scientific = [axis for axis in self.axes if axis.name not in self.study.nuisance]
            # Sizes are compared level by level, unless they are all there is to compare.
            compared = [axis for axis in scientific if not axis.paths & SIZES] or scientific
            return {axis.name: axis.levels[0].label for axis in compared}
        return {name: level_label(value) for name, value in self.study.baseline.items()}

    def place(self, path: str) -> tuple[str, int | None]:
        """(key, line) of what sets a configuration path in this study: an axis, or else the base."""
        for axis in self.axes:
            if path in axis.paths:
                return f"axes.{axis.name}", line_of(self.lines, ("axes", axis.name))
        return f"base.{path}", line_of(self.lines, ("base", *path.split(".")))

    def error(self, *problems: Problem) -> StudyError:
        """A StudyError about this study."""
        return StudyError(problems, self.source)


def load_study(path: Path, overrides: Mapping[str, Any] | None = None, **fields: Any) -> StudyPlan:
    """Read a study file. `overrides` set dotted paths of its base; `fields` replace fields of the study, axes merge.

    Raises StudyError with all that is wrong, by file, line, key and value.
    """
    return _load(path, overrides or {}, fields, ())


def make_study(
    raw: Mapping[str, Any],
    source: str,
    lines: dict[KeyPath, int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    **fields: Any,
) -> StudyPlan:
    """Check a study given as a mapping; `source` names it in errors. See `load_study`."""
    return _make(raw, source, lines or {}, overrides or {}, fields, ())


Files = tuple[Path, ...]
"""The file that is being read, after those that continue it, directly or not."""


def _load(path: Path, overrides: Mapping[str, Any], fields: Mapping[str, Any], above: Files) -> StudyPlan:
    raw, lines = load_yaml(path)
    if not isinstance(raw, dict):
        raise StudyError([Problem("file", "expected a mapping with name, axes, …")], str(path))
    return _make({"name": path.stem, **raw}, str(path), lines, overrides, fields, (*above, path.resolve()))


def _make(
    raw: Mapping[str, Any],
    source: str,
    lines: dict[KeyPath, int],
    overrides: Mapping[str, Any],
    fields: Mapping[str, Any],
    files: Files,
) -> StudyPlan:
    given = {name: value for name, value in fields.items() if value is not None}
    axes_of_file = raw.get("axes") or {}
    if "axes" in given:
        # What is no mapping stays, for the check below to refuse.
        given["axes"] = {**axes_of_file, **given["axes"]} if isinstance(axes_of_file, Mapping) else axes_of_file
    if "tolerance" in given and isinstance(raw.get("tolerance"), Mapping):
        given["tolerance"] = {**raw["tolerance"], **given["tolerance"]}
    said = {**raw, **given}
    earlier = _earlier(said.get("continues"), source, lines, files)
    if earlier is not None:
        lines = inherited_lines(said, lines)
    study, problems = _read_study(said, earlier, lines)
    if study is None:
        raise StudyError(problems, source)
    base = _resolve_base(study, earlier, overrides, lines, problems)
    axes = tuple(_axes(study, lines, problems))
    if earlier is not None:
        axes = tuple(narrow(axes, earlier, lines, problems))
    plan = StudyPlan(study, source, base, axes, lines, earlier)
    problems += _base_problems(base, lines)
    problems += _reference_problems(plan)
    if earlier is not None:
        problems += continuing_problems(plan, earlier, overrides)
    if problems:
        raise StudyError(problems, source)
    return plan


def _earlier(given: Any, source: str, lines: dict[KeyPath, int], files: Files) -> StudyPlan | None:
    """The study that another continues, if it names one. Raises StudyError."""
    if not isinstance(given, str):  # none, or what the check of the study refuses
        return None
    line = line_of(lines, ("continues",))
    path = find_study(given, files[-1].parent if files else Path())
    if path is None:
        raise StudyError([no_such_study(given, line)], source)
    if path.resolve() in files:
        raise StudyError(
            [Problem("continues", "that study itself continues this one: neither could be first", given, line)], source
        )
    return _load(path, {}, {}, files)


def _read_study(
    said: Mapping[str, Any], earlier: StudyPlan | None, lines: dict[KeyPath, int]
) -> tuple[Study | None, list[Problem]]:
    """The study and its problems; keys that are wrong count as not said, so that the others are checked, too."""

    def read(raw: Mapping[str, Any]) -> Study:
        return Study.model_validate(raw if earlier is None else inherit(raw, earlier))

    try:
        return read(said), []
    except ValidationError as error:
        problems = list(_study_problems(error, lines))
        wrong = {detail["loc"][0] for detail in error.errors()}
    rest = {key: value for key, value in said.items() if key not in wrong}
    try:
        return read({"name": "unnamed", **rest}), problems
    except ValidationError:
        return None, problems


_NO_KEYS = ("str", "function-before", "word", "rule", "which", "auto")
_SECTIONS: dict[str, type[Config]] = {"budget": Budget, "tolerance": ToleranceConfig, "learning_rate": RateRule}


def _study_problems(error: ValidationError, lines: dict[KeyPath, int]) -> Iterator[Problem]:
    for detail in error.errors():
        # Union members appear in the location as words that are no keys; a claim's name may be any words.
        names = 2 if detail["loc"][0] == "claims" else 0
        rest = (part for part in detail["loc"][names:] if part not in _NO_KEYS and "[" not in str(part))
        location = (*detail["loc"][:names], *rest)
        key = ".".join(map(str, location))
        if detail["type"] == "extra_forbidden":
            section = Claim if location[0] == "claims" and len(location) > 2 else _SECTIONS.get(str(location[0]), Study)
            fields = section.model_fields
            yield Problem(key, f"unknown key; {nearest(str(location[-1]), fields)}", line=line_of(lines, location))
        elif detail["type"] == "missing":
            yield Problem(key, "required", line=None)
        else:
            yield Problem(key, readable(detail["msg"]), detail["input"], line_of(lines, location))


def _resolve_base(
    study: Study,
    earlier: StudyPlan | None,
    overrides: Mapping[str, Any],
    lines: dict[KeyPath, int],
    problems: list[Problem],
) -> dict[str, Any]:
    """Defaults < preset, or the base of the study that this one continues < its mapping < the command line."""
    own = {} if isinstance(study.base, str) else {k: v for k, v in study.base.items() if k != "preset"}
    start = _start_of_base(study, earlier, lines, problems)
    if start is None:
        return own
    for path in overrides:
        try:
            _, expected = check_value(path, overrides[path])
        except UnknownPath as error:
            problems.append(Problem(f"--set {path}", str(error)))
        else:
            if expected:
                problems.append(Problem(f"--set {path}", expected, overrides[path]))
    return merge(merge(start, own), overrides if not problems else {})


def _start_of_base(
    study: Study, earlier: StudyPlan | None, lines: dict[KeyPath, int], problems: list[Problem]
) -> dict[str, Any] | None:
    """The configuration that a study's own is merged over; None, with a problem, if there is no such."""
    named = isinstance(study.base, str)
    key, line = "base" if named else "base.preset", line_of(lines, ("base", "preset"))
    name = study.base if isinstance(study.base, str) else study.base.get("preset", DEFAULT_BASE)
    if earlier is not None:
        if named or "preset" in study.base:
            message = f"the base is that of {earlier.study.name}, which this study continues: say only what differs"
            problems.append(Problem(key, message, name, line))
        return earlier.base
    known = bases()
    if not isinstance(name, str) or name not in known:
        problems.append(Problem(key, f"no such base; {nearest(str(name), known)}", name, line))
        return None
    return known[name].tree


def _axes(study: Study, lines: dict[KeyPath, int], problems: list[Problem]) -> Iterator[Axis]:
    owners: dict[str, str] = {}
    for name, levels in study.axes.items():
        key, line = f"axes.{name}", line_of(lines, ("axes", name))
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
            checked.append(_check_level(name, label, values, key, line_of(lines, place), problems))
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
            "base.seed", "seeds are not part of the base: use seeds", base["seed"], line_of(lines, ("base", "seed"))
        )
    try:
        TrialConfig.model_validate(base)
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] == INVALID_COMBINATION:
                continue
            path = ".".join(map(str, detail["loc"]))
            line = line_of(lines, ("base", *detail["loc"]))
            if detail["type"] == "extra_forbidden":
                yield Problem(f"base.{path}", f"unknown key; {nearest(path, leaf_paths())}", line=line)
            else:
                yield Problem(f"base.{path}", readable(detail["msg"]), detail["input"], line)


def _reference_problems(plan: StudyPlan) -> Iterator[Problem]:
    """Names in `baseline`, `exclude`, `nuisance` and `fixed` that lead nowhere."""
    study, by_name = plan.study, {axis.name: axis for axis in plan.axes}
    for name, value in (study.baseline or {}).items():
        line = line_of(plan.lines, ("baseline", name))
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
                line = line_of(plan.lines, ("exclude", index, name))
                yield Problem(
                    f"exclude[{index}].{name}", f"neither an axis nor a configuration field; {hint}", line=line
                )
    for name in study.nuisance:
        if name not in by_name:
            yield Problem(
                "nuisance", f"no such axis; {nearest(name, by_name)}", name, line_of(plan.lines, ("nuisance",))
            )
    for path in study.fixed:
        if path not in paths:
            yield Problem(
                "fixed", f"no such configuration field; {nearest(path, paths)}", path, line_of(plan.lines, ("fixed",))
            )
        elif any(path in axis.paths for axis in plan.axes):
            yield Problem("fixed", "an axis varies it", path, line_of(plan.lines, ("fixed",)))
    for name, claim in study.claims.items():
        for axis_name, levels in claim.variant.items():
            key, line = (
                f"claims.{name}.variant.{axis_name}",
                line_of(plan.lines, ("claims", name, "variant", axis_name)),
            )
            if axis_name not in by_name:
                yield Problem(key, f"no such axis; {nearest(axis_name, by_name)}", line=line)
                continue
            known = [level.label for level in by_name[axis_name].levels]
            for label in claim.labels(levels):
                if label not in known:
                    yield Problem(key, f"not a level of this axis (it has {', '.join(known)})", label, line)
    varied = [axis.name for axis in plan.axes if LEARNING_RATE in axis.paths]
    if study.learning_rate != "given" and varied:
        message = f"axis {varied[0]} varies the learning rate"
        yield Problem("learning_rate", message, str(study.learning_rate), line_of(plan.lines, ("learning_rate",)))
    # Along an axis that the baseline does not name, variant and baseline have the same width to begin with.
    compared = [axis for axis in plan.axes if axis.name in plan.baseline]
    if study.match != "none" and any("model.ffn_size" in axis.paths for axis in compared):
        yield Problem(
            "match", "sets model.ffn_size, which an axis varies", study.match, line_of(plan.lines, ("match",))
        )


def _jsonable(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _jsonable(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_jsonable(value) for value in tree]
    return tree if isinstance(tree, str | int | float | bool | None) else str(tree)
