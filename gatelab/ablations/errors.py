"""How a request that cannot be met is reported: every problem at once, each with its place."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_NO_VALUE = object()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a study."""

    key: str
    message: str
    value: Any = _NO_VALUE
    line: int | None = None

    def __str__(self) -> str:
        value = "" if self.value is _NO_VALUE else f" = {_short(self.value)}"
        return f"{self.key}{value}: {self.message}"


class StudyError(ValueError):
    """A study that cannot be run as it is written."""

    def __init__(self, problems: Iterable[Problem], source: str) -> None:
        self.problems, self.source = list(problems), source
        lines = [
            f"{source}:{problem.line}: {problem}" if problem.line else f"{source}: {problem}"
            for problem in self.problems
        ]
        super().__init__("\n".join(lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' for a name that is almost a known one, else what is known."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if matches:
        return f"did you mean {matches[0]}?"
    return f"known: {', '.join(known)}" if known else "none is known"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
