"""YAML that remembers its lines, refuses duplicate keys, and reads 1e-3 as a number and `no` as a word."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gatelab.ablations.errors import Problem, StudyError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's view of booleans and floats, where PyYAML has 1.1's."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """A YAML file's content, and the line of each of its keys and entries by path.

    Raises StudyError if the file cannot be read, is not YAML or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise StudyError([Problem("file", f"cannot be read ({reason})")], str(path)) from error
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[KeyPath, int] = {}
            problems: list[Problem] = []
            if node is not None:
                _note_lines(node, (), lines, problems)
            if problems:
                raise StudyError(problems, str(path))
            return (None if node is None else loader.construct_document(node)), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StudyError([Problem("YAML", what, line=line)], str(path)) from error


def line_of(lines: dict[KeyPath, int], path: Sequence[str | int]) -> int | None:
    """The line of a key, or of the nearest key above it. Dotted keys of a file stand for nested ones."""
    dotted = {".".join(map(str, key)): line for key, line in lines.items()}
    wanted = ".".join(map(str, path))
    while wanted and wanted not in dotted:
        wanted = wanted.rpartition(".")[0]
    return dotted.get(wanted)


def parse_scalar(text: str) -> Any:
    """A value as it would be read from a study file; used for values on the command line. Raises ValueError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError("not a YAML value (quote it?)") from error


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                problems.append(
                    Problem(".".join(map(str, (*path, name))), f"already given in line {seen[name]}", line=line)
                )
            seen[name] = line
            lines[(*path, name)] = line
            _note_lines(value, (*path, name), lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _note_lines(value, (*path, index), lines, problems)
