"""What a study may be made of: text, numbers, lists and mappings, each field said once."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gatelab.ablations.errors import Problem
from gatelab.ablations.paths import level_label
from gatelab.ablations.source import KeyPath, Source, dotted
from gatelab.text import control_character

MOST_DEPTH = 32
"""Levels of nesting. A configuration has four."""
MOST_BITS = 64
"""Bits of a whole number: more could be neither stored nor counted up to."""


def plain(said: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Copy what is said, mappings as dicts with text for keys, lists as lists. Raises StudyError if it has no end."""

    def copy(value: Any, depth: int) -> Any:
        if depth > MOST_DEPTH:
            raise source.error(Problem("study", f"nested more than {MOST_DEPTH} levels deep"))
        if isinstance(value, Mapping):
            return {level_label(key): copy(inner, depth + 1) for key, inner in value.items()}
        return [copy(inner, depth + 1) for inner in value] if isinstance(value, list | tuple) else value

    return {level_label(key): copy(value, 1) for key, value in said.items()}


def text_problems(tree: Mapping[str, Any], source: Source, prefix: str = "") -> Iterator[Problem]:
    """Find text that would steer a terminal, and numbers that are none or too long, anywhere in a tree.

    `prefix` begins the keys of problems.
    """
    for path, value in _entries(tree, ()):
        key, many_lines = f"{prefix}{dotted(path)}", path == ("question",)
        if (name := _control_character(str(path[-1]))) is not None:
            yield source.problem(path, f"holds {name} in its name: write text without it", key=key)
        elif isinstance(value, str):
            if (name := _control_character(value.replace("\n", " ") if many_lines else value)) is not None:
                yield source.problem(path, f"holds {name}: write a line of text without it", value, key=key)
        elif isinstance(value, float) and not math.isfinite(value):
            yield source.problem(path, "expected a finite number", value, key=key)
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            yield source.problem(path, f"expected a number of at most {MOST_BITS} bits", value, key=key)


def twice_given(tree: Any, place: KeyPath, source: Source, prefix: str = "") -> Iterator[Problem]:
    """Find fields that a tree sets twice, with dots in its keys and without; `place` is where it is in its source."""
    by_name = sorted(_leaves(tree, ()), key=lambda path: dotted(path).split("."))
    for one, other in itertools.pairwise(by_name):
        if f"{dotted(other)}.".startswith(f"{dotted(one)}."):
            lines = {path: source.lines.get((*place, *path)) for path in (one, other)}
            first, later = sorted((one, other), key=lambda path: lines[path] or 0)
            before = f"already given in line {lines[first]}" if lines[first] else "given twice"
            spelled = " and as ".join(" > ".join(map(str, path)) for path in (first, later))
            key, message = f"{prefix}{dotted((*place, *later))}", f"{before}: as {spelled}, which mean the same"
            yield Problem(key, message, line=lines[later])


def _entries(tree: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the keys and the value of each entry of a tree, of what is inside mappings and lists, too."""
    inner = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*path, key), value
        yield from _entries(value, (*path, key))


def _leaves(tree: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path


def _control_character(text: str) -> str | None:
    found = control_character(text)
    return None if found is None else f"the control character U+{ord(found):04X}"
