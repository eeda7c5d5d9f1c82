"""YAML that remembers its lines, refuses duplicate keys, and reads 1e-3 as a number, `no` as a word, 1:30 as text.

Scalars are those of YAML 1.2 with underscores in whole numbers. A file's keys are names: they are read as text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from gatelab.ablations.errors import Problem
from gatelab.ablations.plain import MOST_DEPTH
from gatelab.ablations.source import KeyPath, Source, dotted

MOST_DIGITS = 400
"""Digits of a whole number: the largest float has 309."""
MOST_REPEATED = 20_000
"""Entries that aliases may add to a file by naming a part of it again."""

_TAG = "tag:yaml.org,2002:"
_READ = ("null", "bool", "int", "float", "str", "seq", "map")
_RESOLVED = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's view of scalars, where PyYAML has 1.1's: dates, octal 010 and 1:30 in base 60 among them."""

    yaml_implicit_resolvers: Any = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar[Any] = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _READ
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value. Raises a YAML error with its place for a scalar that is not what its tag says."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            kind = node.tag.removeprefix(_TAG)
            raise yaml.constructor.ConstructorError(
                None, None, f"not a value of type {kind}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are text as it is written: 1, true and null are names, too."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "not a mapping", node.start_mark)
        self.flatten_mapping(node)
        return {_name(key): self.construct_object(value, deep) for key, value in node.value}


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    if len(text) > MOST_DIGITS:
        problem = f"a number of {len(text):,} digits: at most {MOST_DIGITS} are read"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    prefix = text.lstrip("+-")[:2].lower()
    return int(text, {"0x": 16, "0o": 8}.get(prefix, 10))


for _kind, (_pattern, _first) in _RESOLVED.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(f"{_TAG}int", _whole_number)


def load_yaml(path: Path) -> tuple[Any, Source]:
    """Read a YAML file: its content, and the source that knows the line of each of its keys and entries.

    Raises StudyError if the file cannot be read, is not YAML or names a key twice.
    """
    unread = Source(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        if isinstance(error, IsADirectoryError):
            reason = "a folder: name a file in it"
        raise unread.error(Problem("file", f"cannot be read ({reason})")) from error
    return read_yaml(text, str(path))


def read_yaml(text: str, name: str) -> tuple[Any, Source]:
    """Read YAML from a text that `name` names in errors; see `load_yaml`."""
    try:
        lines: dict[KeyPath, int] = {}
        problems, content = _parse(text, lines)
    except yaml.YAMLError as error:
        line, what = _explain(error, text)
        raise Source(name).error(Problem("YAML", what, line=line)) from error
    source = Source(name, lines)
    if problems:
        raise source.error(*problems)
    return content, source


def parse_scalar(text: str) -> Any:
    """Read a value as in a study file; used for values on the command line. Raises ValueError."""
    try:
        problems, content = _parse(text, {})
    except yaml.YAMLError as error:
        is_grammar = isinstance(
            error, yaml.scanner.ScannerError | yaml.parser.ParserError | yaml.composer.ComposerError
        )
        hint = f"; {QUOTE}" if is_grammar else ""
        raise ValueError(f"not a value in YAML: {_explain(error, text)[1]}{hint}") from error
    if problems:
        raise ValueError(f"{problems[0].key}: {problems[0].message}")
    if not text.strip():
        raise ValueError("expected a value (null for none)")
    if re.search(r"(^|\s)#", _QUOTED.sub("", text)):
        raise ValueError(f"what follows # would be a comment; {QUOTE}")
    return content


QUOTE = "quote text for YAML, within the quotes of the shell: 'data.source=\"a,b.txt\"'"
_QUOTED = re.compile(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"")


def _parse(text: str, lines: dict[KeyPath, int]) -> tuple[list[Problem], Any]:
    """Return what keeps a text from being read, and its content if there is nothing; note the lines of its keys."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return [], None
            _measure(node)
            problems = list(_note_lines(node, (), lines))
            return problems, None if problems else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise yaml.YAMLError(f"nested more than {MOST_DEPTH} levels deep") from error


def _measure(root: yaml.Node) -> None:
    """Raise a YAML error if what aliases stand for contains itself, is nested too deeply or adds up to too much."""
    sizes: dict[int, int] = {}  # entries of a node, all that it stands for included; 0: not all seen yet
    repeated = 0

    def size(node: yaml.Node, depth: int) -> int:
        nonlocal repeated
        if depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MOST_DEPTH} levels deep", problem_mark=node.start_mark
            )
        if (known := sizes.get(id(node))) is not None:
            repeated += known
            if known and repeated <= MOST_REPEATED:
                return known
            problem = (
                f"aliases (*) stand for more than {MOST_REPEATED:,} entries" if known else "an alias (*) of itself"
            )
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        sizes[id(node)] = 0
        sizes[id(node)] = 1 + sum(size(inner, depth + 1) for inner in _inner(node))
        return sizes[id(node)]

    size(root, 0)


def _inner(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _name(key: yaml.Node) -> str:
    if isinstance(key, yaml.ScalarNode):
        return str(key.value)
    problem = "a key is a word or a number, not a list or a mapping"
    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Iterator[Problem]:
    """Add the line of each key and entry to `lines`; yield a problem for each key that is given twice."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = _name(key), key.start_mark.line + 1
            if name in seen:
                yield Problem(dotted((*path, name)), f"already given in line {seen[name]}", line=line)
            seen[name] = line
            lines[(*path, name)] = line
            yield from _note_lines(value, (*path, name), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            yield from _note_lines(value, (*path, index), lines)


_OPENED = {
    "while scanning a quoted scalar": "a quote (' or \") that begins here is not closed",
    "while parsing a flow sequence": "a list that begins here with [ is not closed",
    "while parsing a flow mapping": "a mapping that begins here with { is not closed",
}
_MEANT = {
    r"found character '\\t' that cannot start any token": "a tab: indent with spaces",
    r"found character ('.+') that cannot start any token": r"quote a value that begins with \1",
    "found undefined alias ('.+')": r"no &-anchor named \1: quote a value that begins with *",
    "could not determine a constructor": "an unknown tag (!…): write the value without it",
    "mapping values are not allowed here": "a second ': ' in an entry, or a key that is indented by mistake",
    "could not find expected ':'": "a key without its ': '",
    "expected the node content, but found ('.+')": r"nothing where a value is due, before \1",
    "expected <block end>": "an entry that is indented unlike the others of its list or mapping",
    "expected a single document in the stream": "a second document (---): a file holds one study",
    "but found another document": "a second document (---): a file holds one study",
}
"""What a parser says -> what it means; regular expressions."""


def _explain(error: yaml.YAMLError, text: str) -> tuple[int | None, str]:
    """Return the line of what keeps a text from being YAML, and what it is, in words."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"the control character U+{error.character:04X}: write text without it"
    if not isinstance(error, yaml.MarkedYAMLError):
        return None, str(error).splitlines()[0]
    what, mark, context, began = error.problem or "not YAML", error.problem_mark, error.context, error.context_mark
    if began is not None and (context in _OPENED or what == "could not find expected ':'"):
        opened = _OPENED.get(context or "")
        if opened is None or "end of stream" in what:
            what, mark = opened or what, began
        elif "expected ',' or" in what:
            what = f"{opened.replace('here', f'in line {began.line + 1}')}, or a comma is missing"
    for said, meant in _MEANT.items():
        what = re.sub(f"^{said}.*", meant, what)
    return None if mark is None else mark.line + 1, what


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as the text that it is."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump_yaml(content: Any) -> str:
    """Write YAML that `load_yaml` reads as the same content."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
