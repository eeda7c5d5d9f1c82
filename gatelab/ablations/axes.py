"""How the axes of a study are read: names, levels, and their values as the fields of a trial read them."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from gatelab.ablations.errors import Problem
from gatelab.ablations.paths import UnknownPath, check_value, flatten, level_label
from gatelab.ablations.source import KeyPath, Source
from gatelab.ablations.study import Axis, Level, Study
from gatelab.errors import Unavailable

NAME = r"[A-Za-z0-9][A-Za-z0-9_. -]*"
RESERVED = ("variant", "parameters", "flops_per_token")
"""Names that no axis may have, since tables and MLflow call other things by them."""
NO_SEED = "seeds are not an axis: use seeds"

Levels = list[Any] | dict[str, dict[str, Any]]
"""Levels as a study writes them: a list of values, or names and the values that each sets together."""


def make_axes(study: Study) -> tuple[Axis, ...]:
    """Make the axes of a study as far as they can be made; see `axis_problems`."""
    made = (_axis(name, levels) for name, levels in study.axes.items())
    return tuple(axis for axis in made if isinstance(axis, Axis))


def axis_problems(study: Study, source: Source) -> Iterator[Problem]:
    """Find what is wrong with the axes of a study."""
    owners: dict[str, str] = {}
    for name, levels in study.axes.items():
        place, axis = ("axes", name), _axis(name, levels)
        if isinstance(axis, Unavailable):
            yield source.problem(place, axis.reason, *([] if levels else [levels]))
            continue
        if isinstance(levels, list) and len(axis.levels) != len(levels):
            yield source.problem(place, "names a level twice", levels)
        for index, (label, values) in enumerate(_by_label(name, levels).items()):
            of_level = (*place, label if isinstance(levels, dict) else index)
            yield from _level_problems(name, label, values, of_level, source)
        for path in sorted(axis.paths):
            if path in owners:
                yield source.problem(place, f"sets {path}, which axis {owners[path]} sets too")
            owners[path] = name


def value_problems(path: str, value: Any, problem: Callable[..., Problem]) -> Iterator[Problem]:
    """Find what is wrong with a value for a configuration path.

    `problem` makes one from a message, and from the value where it is the value that is wrong.
    """
    try:
        read = check_value(path, value)
    except UnknownPath as error:
        yield problem(str(error))
    else:
        if isinstance(read, Unavailable):
            yield problem(read.reason, value)


def _axis(name: str, levels: Levels) -> Axis | Unavailable:
    if name == "seed":
        return Unavailable(NO_SEED)
    if name in RESERVED or not re.fullmatch(NAME, name):
        return Unavailable(
            "an axis is named in letters, digits, spaces and . _ -, and not as what tables call other things"
        )
    if not levels:
        return Unavailable("expected at least one level")
    return Axis(name, tuple(_level(label, values) for label, values in _by_label(name, levels).items()))


def _by_label(name: str, levels: Levels) -> dict[str, dict[str, Any]]:
    return levels if isinstance(levels, dict) else {level_label(value): {name: value} for value in levels}


def _level(label: str, values: Mapping[str, Any]) -> Level:
    """Make a level whose values are as their fields read them, where they can be read."""
    checked = {}
    for path, value in flatten(values):
        with suppress(UnknownPath):
            if path != "seed":
                read = check_value(path, value)
                checked[path] = value if isinstance(read, Unavailable) else read
    return Level(label, checked)


def _level_problems(
    name: str, label: str, values: Mapping[str, Any], place: KeyPath, source: Source
) -> Iterator[Problem]:
    for path, value in flatten(values):
        if path == "seed":
            yield source.problem(place, NO_SEED, key=f"axes.{name}")
            continue
        key = f"axes.{name}" if path == name else f"axes.{name}.{label}.{path}"
        yield from value_problems(path, value, partial(source.problem, place, key=key))
