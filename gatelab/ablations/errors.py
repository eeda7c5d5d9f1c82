"""How a request that cannot be met is reported: every problem at once, each with its place."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gatelab.errors import GatelabError

NO_VALUE = object()
"""Stands for the value of a problem that is about no value."""
MOST_NAMES = 16  # listed in a hint
LONGEST_VALUE = 60  # characters of a value that are shown


@dataclass(frozen=True, eq=False)
class Problem:
    """One thing that is wrong with a study."""

    key: str
    message: str
    value: Any = NO_VALUE
    line: int | None = None

    def __str__(self) -> str:
        value = "" if self.value is NO_VALUE else f" = {_short(self.value)}"
        return printable(f"{self.key}{value}: {self.message}")


class StudyError(GatelabError, ValueError):
    """A study cannot be run as it is written."""

    def __init__(self, problems: Iterable[Problem], source: str) -> None:
        self.problems = list({(problem.line, str(problem)): problem for problem in problems}.values())
        self.source = source
        name = printable(source)
        lines = [
            f"{name}:{problem.line}: {problem}" if problem.line else f"{name}: {problem}" for problem in self.problems
        ]
        super().__init__("\n".join(lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint at the known name that is nearest to `name`, or, where none is near, at the known names if they are few."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if matches:
        return f"did you mean {matches[0]}?"
    if not known:
        return "there are none"
    return f"known: {', '.join(known)}" if len(known) <= MOST_NAMES else f"not one of the {len(known)} known names"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = f"a {type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def printable(text: str) -> str:
    """Escape what would steer a terminal, or turn the direction of writing, in a text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
