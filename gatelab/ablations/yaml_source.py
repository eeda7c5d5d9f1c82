"""YAML that remembers its lines, refuses duplicate keys, and reads 1e-3 as a number and `no` as a word."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gatelab.ablations.errors import Problem
from gatelab.ablations.source import KeyPath, Source, dotted


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


def load_yaml(path: Path) -> tuple[Any, Source]:
    """Read a YAML file: its content, and the source that knows the line of each of its keys and entries.

    Raises StudyError if the file cannot be read, is not YAML or names a key twice.
    """
    unread = Source(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise unread.error(Problem("file", f"cannot be read ({reason})")) from error
    try:
        return _parse(text, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise unread.error(Problem("YAML", what, line=line)) from error


def _parse(text: str, path: Path) -> tuple[Any, Source]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, Source(str(path))
        lines: dict[KeyPath, int] = {}
        problems = list(_note_lines(node, (), lines))
        source = Source(str(path), lines)
        if problems:
            raise source.error(*problems)
        return loader.construct_document(node), source
    finally:
        loader.dispose()


def parse_scalar(text: str) -> Any:
    """Read a value as in a study file; used for values on the command line. Raises ValueError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError("not a YAML value (quote it?)") from error


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Iterator[Problem]:
    """Add the line of each key and entry to `lines`; yield a problem for each key that is given twice."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                yield Problem(dotted((*path, name)), f"already given in line {seen[name]}", line=line)
            seen[name] = line
            lines[(*path, name)] = line
            yield from _note_lines(value, (*path, name), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            yield from _note_lines(value, (*path, index), lines)
