"""A study: one question as a base configuration, axes, exclusions, a baseline and seeds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from gatelab.ablations.claims import Claim
from gatelab.ablations.errors import Problem, StudyError
from gatelab.ablations.identity import digest
from gatelab.ablations.labels import join_levels, short_names
from gatelab.ablations.learning_rates import RateRule, ToleranceConfig
from gatelab.ablations.paths import UnknownPath, check_value, level_label
from gatelab.ablations.source import Source
from gatelab.configuration import Config, Count
from gatelab.names import SEARCH_SUFFIX, STUDY_NAME

DEFAULT_BASE = "tiny-dense"

ADDED_LATER = ("learning_rate", "tolerance", "claims", "imported")
"""Fields that the first studies had not: a study without them keeps its hash."""

SIZES = frozenset(
    {
        *(f"model.{name}" for name in ("layers", "hidden_size", "query_heads", "kv_heads", "head_dim", "ffn_size")),
        "training.tokens",
    }
)
"""What an axis along which models and their training grow sets: see `ladder`."""

AUTO_SEEDS = 6
"""Seeds of each variant where they are `auto`: the fewest with which an exact sign-flip test can give p < 0.05."""


MOST_SEEDS = 100_000
"""Seeds that a count may ask for."""
LARGEST_SEED = 2**63 - 1
"""Tables keep seeds as 64-bit integers."""
LONGEST_NAME = 80
"""Characters of a study's name: file systems allow 255 in that of a file, and names of files begin with it."""


def _parse_seeds(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError("expected at least one seed")
        if value > MOST_SEEDS:
            raise ValueError(f"a number is how many seeds, at most {MOST_SEEDS:,}: for one of this number write [SEED]")
        return list(range(value))
    if not isinstance(value, list) or not value or len(set(map(repr, value))) != len(value):
        raise ValueError("expected how many (3), which ([0, 1, 5], each once) or auto")
    return value


def _check_name(name: str) -> str:
    if not re.fullmatch(STUDY_NAME, name) or not re.search("[A-Za-z]", name):
        # Where all are digits, Parquet's readers take it for a number.
        like = re.sub("[^A-Za-z0-9._-]+", "-", name).strip("-._")
        such_as = f", such as {like}" if like != name and re.search("[A-Za-z]", like) and like.isascii() else ""
        raise ValueError(f"a name has letters (A-Z, a-z, at least one), digits and . _ - within{such_as}")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters (this one {len(name):,})")
    if name.lower() == "default":
        raise ValueError("MLflow has an experiment of this name: choose another")
    if name.endswith((".yaml", ".yml")):
        raise ValueError("a name that ends like a file's would be taken for one by commands")
    if name.endswith(SEARCH_SUFFIX):
        raise ValueError(f"names that end in {SEARCH_SUFFIX} are those of searches of learning rates")
    return name


def _parse_base(value: Any) -> Any:
    if isinstance(value, str | Mapping):
        return value
    raise ValueError(
        "expected the name of a base (gatelab presets lists them), or what differs: {preset: BASE, PATH: VALUE}"
    )


def _parse_levels(value: Any) -> Any:
    if isinstance(value, Mapping) and all(isinstance(values, Mapping) for values in value.values()):
        return {level_label(label): values for label, values in value.items()}
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError("expected a list of levels, [A, B], or names of levels with what each sets, {NAME: {PATH: VALUE}}")


Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED, strict=True)]
StudyName = Annotated[
    str, AfterValidator(_check_name), WithJsonSchema({"type": "string", "pattern": f"^{STUDY_NAME}$"})
]
AxisLevels = Annotated[list[Any] | dict[str, dict[str, Any]], BeforeValidator(_parse_levels)]
ClaimName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]  # a line of text


class Budget(Config):
    """Limits on a study: one that would exceed them is refused before it starts."""

    trials: Count | None = Field(None, ge=1)
    """Most trials."""
    hours: float | None = Field(None, gt=0)
    """Most estimated device-hours of the trials that are still to run."""


class Study(Config):
    """What a study file holds."""

    name: StudyName
    """Names the study's folder and its MLflow experiment."""
    question: str = ""
    """What the study is to answer, in words."""
    continues: str | None = None
    """The file of another study, or the name of one that comes with gatelab: each trial starts from the final weights
    of that study's trial with the same levels and seed. What is not said here is taken from there."""
    imported: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of weights that `gatelab import-model` brought in: its trials have them, and are not trained."""
    base: Annotated[str | dict[str, Any], BeforeValidator(_parse_base)] = DEFAULT_BASE
    """A named base, or a configuration, or both: a configuration whose `preset` names the base that it overrides.
    In a study that continues another: what differs from its base."""
    axes: dict[str, AxisLevels] = {}
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

    def label(self, value: Any) -> str | None:
        """Return the label of the level that a value names: as it is written or as its field reads it; None: of none.

        1M and 1000000 are one and the same token budget.
        """
        written = level_label(value)
        if any(level.label == written for level in self.levels):
            return written
        try:
            read = check_value(self.name, value)
        except UnknownPath:  # an axis with named levels
            return None
        same = (level.label for level in self.levels if self.name in level.values and level.values[self.name] == read)
        return next(same, None)


@dataclass(frozen=True)
class StudyPlan:
    """A study that has been read and checked: its base resolved, its axes spelled out."""

    study: Study
    source: Source
    base: dict[str, Any]
    axes: tuple[Axis, ...]
    parent: "StudyPlan | None" = None
    """The study that it continues."""
    overrides: tuple[str, ...] = ()
    """Paths of its base that the command line sets."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what was asked, wherever it was written."""
        asked = self.study.model_dump(mode="json", exclude={"base", "continues"})
        for name in ADDED_LATER:
            if getattr(self.study, name) == Study.model_fields[name].default:
                del asked[name]
        before = {} if self.parent is None else {"continues": self.parent.hash}
        return digest({**asked, "base": jsonable(self.base), **before})

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and those of the studies that it continues."""
        return (self.study.name, *(self.parent.names if self.parent else ()))

    @property
    def baseline(self) -> dict[str, str]:
        """Axis -> label of the baseline's level, for the axes that it names."""
        if self.study.baseline is None:
            scientific = [axis for axis in self.axes if axis.name not in self.study.nuisance]
            # Sizes are compared level by level, unless they are all there is to compare.
            compared = [axis for axis in scientific if not axis.paths & SIZES] or scientific
            return {axis.name: axis.levels[0].label for axis in compared}
        return {name: self.level(name, value) or level_label(value) for name, value in self.study.baseline.items()}

    def level(self, axis: str, value: Any) -> str | None:
        """Return the label of the level of an axis that a value names; None where there is none."""
        return next((each.label(value) for each in self.axes if each.name == axis), None)

    @cached_property
    def short_names(self) -> dict[str, str]:
        """Axis -> its short name, which labels use."""
        return short_names([axis.name for axis in self.axes])

    def label(self, levels: Mapping[str, str]) -> str:
        """Label a variant or a combination by its levels on some of the axes."""
        return join_levels({self.short_names[axis]: level for axis, level in levels.items()})

    def varies(self, path: str) -> bool:
        """Return whether an axis sets a configuration path."""
        return any(path in axis.paths for axis in self.axes)

    def problem(self, path: str, message: str, value: Any) -> Problem:
        """Describe what is wrong with a configuration path, at what sets it: an axis, --set, or else the base."""
        for axis in self.axes:
            if path in axis.paths:
                return self.source.problem(("axes", axis.name), message, value)
        if path in self.overrides:
            return Problem(f"--set {path}", message, value)
        return self.source.problem(("base", *path.split(".")), message, value)

    def error(self, *problems: Problem) -> StudyError:
        """Return a StudyError about this study."""
        return self.source.error(*problems)


def jsonable(tree: Any) -> Any:
    """Return a configuration as JSON values."""
    if isinstance(tree, Mapping):
        return {str(key): jsonable(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [jsonable(value) for value in tree]
    return tree if isinstance(tree, str | int | float | bool | None) else str(tree)
