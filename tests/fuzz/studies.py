"""Damaged study files: what a study may hold by mistake, and what must become of it.

Run long: python -m tests.fuzz.studies [COUNT [FIRST_SEED]]
"""

import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from gatelab.ablations.loading import load_study
from gatelab.ablations.paths import leaf_paths
from gatelab.ablations.presets import study_files
from gatelab.ablations.study import Study
from gatelab.errors import GatelabError
from gatelab.orchestrator.planning import given_rate, plan_study
from gatelab.orchestrator.study_manifest import study_record

WHOLE = """\
name: whole
question: Does it help?
base: {preset: tiny-dense, model: {layers: 2, gate.position: sdpa}, training.tokens: 20k, data: {source: stdlib}}
axes:
  model.gate.activation: [sigmoid, tanh]
  size:
    small: {model.hidden_size: 32}
    large: {model.hidden_size: 64, model: {ffn_size: 96}}
exclude:
  - {size: small, model.gate.activation: tanh}
baseline: {model.gate.activation: sigmoid}
match: none
seeds: [0, 1, 5]
learning_rate: {per: hidden_size, exponent: -0.5, reference: 64}
tolerance: {rates: [0.001, 0.01, 0.1], extend: 2, margin: 0.02, resolution: 0.15}
nuisance: [size]
fixed: [training.optimizer.beta1]
claims:
  it helps: {metric: validation/loss, variant: {size: [large]}, direction: lower, margin: 0.01, test: t, alpha: 0.05}
budget: {trials: 100, hours: 5}
"""
CONTINUED = "continues: quickstart\nbase: {training.tokens: 10k, model.rope_base: 100000}\nseeds: [0, 1]\n"

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**63 - 1, 2**63, 10**21, -(10**18), 0.0, -0.0, 1.5, 1e308, 1e-320),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "x", "none", "auto", "search", "given", "stdlib", "bytes"),
    *("bpe:300", "bpe:99999999999999999999", "bpe:²", "no.json", "300k", "1e3", "1.5B", "9" * 30 + "T", "=", "1:30"),
    *("010", "2024-05-01", date(2024, 5, 1), "a\x1bb", "\u202ex", "two\nlines", "$\\foo$", "<b>", "[key]", "a.b", "."),
    *("model", "model.layers", "seed", "quickstart", "é", "🦆", "x" * 300, "9" * 5000, "validation/loss", "gate/*"),
    *([], [[]], [None], ["none", "sdpa"], [1, 2], [1, 1], ["1", 1, 1.0, True], list(range(300)), [{"a": 1}], [{}]),
    *({}, {"": 1}, {"a": {}}, {"a": {"b": 1}}, {"model.layers": 2}, {"model": {"layers": 1}, "model.layers": 2}),
    *({"preset": "tiny-dense"}, {1: 2}, {None: None}, {"a": {"model.layers": 1}, "b": {}}, {"see[x]": 3}),
)
TOKENS = (
    *(
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        ": ",
        "- ",
        "? ",
        "#",
        "&x ",
        "*x",
        "<<: *x",
        "!!int ",
        "!!str ",
        "!!timestamp ",
        "!a ",
    ),
    *(
        "|",
        ">",
        "'",
        '"',
        "\t",
        "\n",
        "\n  ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "0x1F",
        "0o17",
        "0b1",
        "1_000",
        "~",
        "=",
        ".",
    ),
    *(
        "none",
        "null",
        "true",
        "1",
        "-1",
        "1e400",
        ".nan",
        "model.layers: 3",
        "\x00",
        "\x07",
        "\u2028",
        "\ufeff",
        "\\x1b",
    ),
)
FOREIGN = re.compile(
    "Traceback|pydantic|[Ii]nput should|[Vv]alue error|should match pattern|Extra inputs|Field required|"
    "valid (dictionary|list|string|integer)"
)
"""What no message may hold: traces of the code, and words that are not ours."""

Change = Callable[[random.Random, str], str]


def mutated(seed: int) -> str:
    """Return a study with one to three things changed; bytes that are not UTF-8 are surrogates."""
    chance = random.Random(seed)
    text = chance.choice(
        [WHOLE, WHOLE, CONTINUED, *(path.read_text(encoding="utf-8") for path in study_files().values())]
    )
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        text = chance.choice([_bytes, _tokens, _tree, _tree, _tree, _field, _field])(chance, text)
    return text


def check(text: str) -> str:
    """Read and plan a study; return 'planned', or 'refused'. Whatever else is raised is a bug."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_bytes(text.encode("utf-8", "surrogateescape" if _is_escaped(text) else "replace"))
        try:
            matrix = plan_study(load_study(path), given_rate, lambda data: "x")
            study_record(matrix).to_json()
        except GatelabError as error:
            message = str(error).replace(folder, "")
            if found := FOREIGN.search(message):
                raise AssertionError(f"{found[0]!r} in {message}") from error
            if unprintable := [char for char in message if not char.isprintable() and char != "\n"]:
                raise AssertionError(f"{unprintable} in {message}") from error
            return "refused"
    return "planned"


def _is_escaped(text: str) -> bool:
    return all(0xDC80 <= ord(char) <= 0xDCFF for char in text if 0xD800 <= ord(char) <= 0xDFFF)


def _bytes(chance: random.Random, text: str) -> str:
    content = bytearray(text.encode("utf-8", "surrogateescape" if _is_escaped(text) else "replace"))
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.randint(1, 30))
        what = chance.randrange(4)
        if what == 0:
            content[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 3)))
        elif what == 1:
            del content[at:end]
        elif what == 2:
            content[at:at] = content[at:end]
        elif at < len(content):
            content[at] ^= 1 << chance.randrange(8)
    return content.decode("utf-8", "surrogateescape")


def _tokens(chance: random.Random, text: str) -> str:
    words = re.findall(r"\s+|[\w.]+|.", text, re.DOTALL) or [""]
    for _ in range(chance.randint(1, 3)):
        at, other = chance.randrange(len(words)), chance.randrange(len(words))
        what = chance.randrange(4)
        if what == 0:
            words[at], words[other] = words[other], words[at]
        elif what == 1:
            words.insert(at, chance.choice(TOKENS))
        elif what == 2:
            words[at] = chance.choice(TOKENS)
        else:
            words.insert(at, words[other])
    return "".join(words)


def _tree(chance: random.Random, text: str) -> str:
    """Replace, remove, rename, wrap, move or double an entry anywhere in the tree."""
    tree = _load(text)
    places = list(_places(tree))
    if not places:
        return text
    holder, key = chance.choice(places)
    what = chance.randrange(7)
    if what <= 2:
        holder[key] = _copy(chance.choice(VALUES))
    elif what == 3:
        del holder[key]
    elif what == 4:
        holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, [holder[key]] * 2))
    elif what == 5:
        other, at = chance.choice(places)
        holder[key] = _copy(other[at]) if at in other or (isinstance(other, list) and at < len(other)) else None
    elif isinstance(holder, dict):
        name = chance.choice(
            ("x", "see[x]", f"{key}s", str(key)[:-1], f"model.{key}", "", "a\x1b", 3, chance.choice(PATHS))
        )
        holder[name] = holder.pop(key)
    return _dump(tree)


def _field(chance: random.Random, text: str) -> str:
    """Give a field of the study, of its base or of a level another value, of any kind."""
    tree = _load(text)
    if not isinstance(tree, dict):
        return text
    value, path = _copy(chance.choice(VALUES)), chance.choice(PATHS)
    what = chance.randrange(5)
    inner = {0: "base", 1: "axes", 2: "baseline"}.get(what)
    if inner is not None:
        holder = tree.get(inner)
        tree[inner] = {**(holder if isinstance(holder, dict) else {}), path: value}
    elif what == 3:
        tree["exclude"] = [{path: value}]
    else:
        tree[chance.choice(list(Study.model_fields))] = value
    return _dump(tree)


PATHS = tuple(leaf_paths())


def _load(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, LookupError, RecursionError, OverflowError):
        return yaml.safe_load(WHOLE)


def _dump(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError, ValueError):  # a set, say, or a number of more digits than Python writes
        return WHOLE


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _places(tree: Any, depth: int = 0) -> Any:
    """Yield (mapping or list, key or index) of each entry."""
    entries = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in entries:
        yield tree, key
        if depth < 8:
            yield from _places(tree[key], depth + 1)


def main(count: int = 1000, first: int = 0) -> int:
    """Check many; print what became of them, and each bug with the seed that shows it. Return how many bugs."""
    became, slowest, bugs = Counter[str](), (0.0, 0), 0
    for seed in range(first, first + count):
        started = time.perf_counter()
        try:
            became[check(mutated(seed))] += 1
        except Exception as error:
            bugs += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]!r}", flush=True)
        slowest = max(slowest, (time.perf_counter() - started, seed))
    print(f"{count} studies: {dict(became)}, {bugs} bugs; slowest {slowest[0]:.1f} s (seed {slowest[1]})")
    return bugs


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
