"""Where a study was written: what names it in errors, and the line of each of its keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gatelab.ablations.errors import NO_VALUE, Problem, StudyError

KeyPath = tuple[str | int, ...]
"""Keys, and places in lists from 0, from the top of a file to one of its entries."""


@dataclass(frozen=True)
class Source:
    """A file, or what else a study was read from."""

    name: str
    """Names it in errors."""
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    """The line of each key and entry, from 1."""

    @cached_property
    def _lines_by_dotted_key(self) -> dict[str, int]:
        return {dotted(path): line for path, line in self.lines.items()}

    def line(self, path: KeyPath) -> int | None:
        """Return the line of a key, or of the nearest key above it. Dotted keys of a file stand for nested ones."""
        wanted = dotted(path)
        while wanted and wanted not in self._lines_by_dotted_key:
            wanted = wanted.rpartition(".")[0]
        return self._lines_by_dotted_key.get(wanted)

    def problem(self, path: KeyPath, message: str, value: Any = NO_VALUE, *, key: str | None = None) -> Problem:
        """Describe what is wrong with the entry at a path, with its line; `key` names it where its path does not."""
        return Problem(dotted(path) if key is None else key, message, value, self.line(path))

    def error(self, *problems: Problem) -> StudyError:
        """Return a StudyError about this source."""
        return StudyError(problems, self.name)


def dotted(path: KeyPath) -> str:
    """Write a path of keys with dots between them."""
    return ".".join(map(str, path))
