"""Damaged data: prepared tokens, tokenizers and corpora as disks, copies and people spoil them.

Run long: python -m tests.fuzz.prepared_data [COUNT [FIRST_SEED]]
"""

import functools
import gzip
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from gatelab.errors import GatelabError
from gatelab.training import manifest
from gatelab.training.config import DataConfig, TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.preparation import data_identity, prepare

Files = dict[str, bytes]
"""Name -> content."""
TEXT = "def head(query, key, value):\n    return softmax(query @ key.T) @ value  # a café, 日本\n\n"
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        1,
        -1,
        7,
        256,
        2**31,
        2**64,
        10**21,
        1.5,
        -0.0,
        float("nan"),
        "",
        "x",
        "uint8",
        "uint16",
        "a\x1bb",
    ),
    *(
        [],
        [[]],
        [None],
        {},
        {"a": 1},
        {"a": {}},
        "bytes",
        "é",
        "x" * 300,
        "WordPiece",
        "Unigram",
        "BPE",
        "ByteLevel",
        "(",
    ),
)


@dataclass(frozen=True)
class Case:
    """Files of which some were damaged, and what they are."""

    kind: Literal["prepared", "older", "tokenizer", "corpus"]
    """prepared: tokens under checksums. older: tokens whose manifest has none."""
    files: Files


def mutated(seed: int) -> Case:
    """Return files with one to three things changed."""
    chance = random.Random(seed)
    kind: Any = chance.choice(("prepared", "prepared", "older", "tokenizer", "corpus"))
    files = dict(
        chance.choice({"prepared": prepared, "older": older, "tokenizer": own_tokenizers, "corpus": corpora}[kind]())
    )
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        name = chance.choice(sorted(files)) if files else ""
        if name:
            chance.choice([_bits, _cut, _pieces, _replace, _tree, _tree])(chance, files, name)
    return Case(kind, files)


def check(case: Case) -> str:
    """Read damaged files; return 'same', 'read' or 'refused'.

    Whatever is raised but GatelabError is a bug; so are other tokens than those that the checksums are of.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in case.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        manifest._known.clear()  # as in a new process: files of a moment have equal times
        try:
            return {"prepared": _read_prepared, "older": _read_older, "tokenizer": _use, "corpus": _prepare}[case.kind](
                folder
            )
        except GatelabError as error:
            message = str(error)
            assert message, repr(error)
            assert len(message) < 1000, message
            return "refused"


def _read_prepared(folder: Path) -> str:
    found = digest(Dataset(folder))
    assert found in {digest_of(index) for index in range(len(prepared()))}, "other tokens under the same checksums"
    return "same"


def _read_older(folder: Path) -> str:
    digest(Dataset(folder))
    return "read"


def _use(folder: Path) -> str:
    path = folder / "tokenizer.json"
    config = DataConfig(source=str(_text()), tokenizer=str(path), validation_fraction=0.3)
    try:
        trial = TrialConfig(data=config.model_dump())
    except ValidationError:  # a study turns it into a sentence
        return "refused"
    identity = data_identity(config)
    dataset = prepare(config, folder, identity)
    vocabulary = trial.model.vocab_size
    assert vocabulary is not None
    assert dataset.train.window(0, len(dataset.train)).max() < vocabulary, "a token beyond the vocabulary"
    digest(dataset)
    return "read"


def _prepare(folder: Path) -> str:
    config = DataConfig(source=str(folder / "corpus"), validation_fraction=0.3, domain_field="kind")
    dataset = prepare(config, folder / "data")
    digest(dataset)
    return "read"


def digest(dataset: Dataset) -> str:
    """Return a hash of all that a trial takes from prepared data."""
    parts: list[Any] = [dataset.manifest.train, dataset.manifest.validation, dataset.manifest.domains]
    for tokens in (dataset.train, dataset.validation):
        parts.append(hashlib.sha256(tokens.window(0, len(tokens)).tobytes()).hexdigest() if len(tokens) else "")
    dataset.require(4)
    parts.append(dataset.batch(0, 0, 2, 4).tolist())
    held_out = dataset.held_out(64, 4)
    parts += [held_out.windows.tolist(), held_out.domains.tolist(), held_out.names, held_out.bytes_per_token]
    parts += [held_out.lost_share, dataset.bytes_per_token, dataset.tokenizer.description()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def prepared() -> list[Files]:
    """Return whole prepared data: of bytes, and of a trained tokenizer on text of several domains."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        for kind in ("code", "prose"):
            (source / kind).mkdir(parents=True)
            for index in range(5):
                (source / kind / f"{index}.txt").write_text(f"{kind} {index} {TEXT}")
        for tokenizer in ("bytes", "bpe:270"):
            config = DataConfig(source=str(source), tokenizer=tokenizer, validation_fraction=0.3)
            folder = prepare(config, Path(name) / "data").folder
            found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    return found


@functools.cache
def digest_of(index: int) -> str:
    """Return the hash of whole prepared data."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in prepared()[index].items():
            (Path(name) / file).write_bytes(content)
        return digest(Dataset(Path(name)))


@functools.cache
def older() -> list[Files]:
    """Return the same as a version wrote it that knew no checksums."""
    found = []
    for files in prepared():
        content = json.loads(files["manifest.json"])
        del content["checksum"], content["checksums"]
        for counts in (content["train"], content["validation"], *content["domains"].values()):
            del counts["lost_bytes"]
        found.append({**files, "manifest.json": json.dumps(content, indent=1).encode()})
    return found


@functools.cache
def own_tokenizers() -> list[Files]:
    """Return files of tokenizers of each kind."""
    words = {
        word: id for id, word in enumerate(["[UNK]", "def", "head", "(", ")", "query", "key", "##y", "value", "a"])
    }
    kinds = [
        Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        Tokenizer(models.WordPiece(words, unk_token="[UNK]")),
        Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("def", -2.0), ("</s>", 0.0)], unk_id=0)),
        Tokenizer(models.BPE({"a": 0, "d": 1, "e": 2, "de": 3}, [("d", "e")])),
    ]
    for tokenizer in kinds:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
        tokenizer.add_special_tokens(["<|endoftext|>"])
    trained = prepared()[1]["tokenizer.json"]
    return [
        {"tokenizer.json": content} for content in (*(kind.to_str(pretty=True).encode() for kind in kinds), trained)
    ]


@functools.cache
def corpora() -> list[Files]:
    """Return corpora of text, of records, and of both."""
    records = [{"text": f"{index} {TEXT}", "kind": "code" if index % 2 else "prose"} for index in range(12)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    found = []
    for compression in ("snappy", "zstd", "none"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(records), sink, compression=compression, row_group_size=5)
        found.append({"corpus/a.parquet": sink.getvalue().to_pybytes()})
    texts = {f"corpus/{name}": TEXT.encode() for name in ("a.txt", "code/b.py", "code/c.md", "d.TXT")}
    found += [texts, {"corpus/a.jsonl": lines}, {"corpus/a.jsonl.gz": gzip.compress(lines, mtime=0)}]
    return [*found, {**texts, "corpus/prose/e.ndjson": lines, **found[0]}]


@functools.cache
def _text() -> Path:
    """Return a source that stays for the life of the process."""
    folder = Path(_kept.name)
    for index in range(6):
        (folder / f"{index}.txt").write_text(f"{index} {TEXT}")
    return folder


_kept = tempfile.TemporaryDirectory()


def _bits(chance: random.Random, files: Files, name: str) -> None:
    content = bytearray(files[name])
    for _ in range(chance.choice((1, 1, 1, 5, 50))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    files[name] = bytes(content)


def _cut(chance: random.Random, files: Files, name: str) -> None:
    content = files[name]
    files[name] = chance.choice((b"", content[: chance.randrange(len(content) + 1)], content[:-1], content + b"\0"))


def _pieces(chance: random.Random, files: Files, name: str) -> None:
    """Overwrite, double, move or leave out a piece, as a copy or a block of a disk that went wrong."""
    content = files[name]
    at, size = chance.randrange(len(content) + 1), chance.randint(1, 64)
    piece, rest = content[at : at + size], content[at + size :]
    if chance.randrange(2):
        piece = chance.choice((b"", bytes(len(piece)), b"\xff" * len(piece), piece * 2, chance.randbytes(len(piece))))
        files[name] = content[:at] + piece + rest
    else:
        to = chance.randrange(len(content) + 1)
        files[name] = (content[:to] + piece + content[to + len(piece) :])[: len(content)]


def _replace(chance: random.Random, files: Files, name: str) -> None:
    """Remove a file, add one, or give it the name or the content of another."""
    what = chance.randrange(4)
    if what == 0:
        del files[name]
    elif what == 1:
        files[chance.choice(("train-000001.bin", "validation-000001.bin", "corpus/x.json", f"{name}.tmp", "x.txt"))] = (
            b"\0\1"
        )
    elif what == 2:
        files[name] = files[chance.choice(sorted(files))]
    else:
        suffix = chance.choice((".txt", ".jsonl", ".parquet", ".gz", ".csv", ".JSON"))
        files[name.partition(".")[0] + suffix] = files.pop(name)


def _tree(chance: random.Random, files: Files, name: str) -> None:
    """Replace, remove, rename, wrap or move an entry of a JSON file, or of one of its lines."""
    lines = files[name].splitlines() if name.endswith(("jsonl", "ndjson")) else [files[name]]
    at = chance.randrange(len(lines)) if lines else 0
    try:
        tree = json.loads(lines[at])
    except (ValueError, IndexError, RecursionError):
        return _bits(chance, files, name)
    places = list(_places(tree))
    if places:
        holder, key = chance.choice(places)
        what = chance.randrange(6)
        if what <= 2:
            holder[key] = chance.choice(VALUES)
        elif what == 3:
            del holder[key]
        elif what == 4:
            holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, [holder[key]] * 2))
        elif isinstance(holder, dict):
            holder[chance.choice((f"{key}s", str(key)[:-1], "x", "type"))] = holder.pop(key)
    lines[at] = json.dumps(tree).encode()
    files[name] = b"\n".join(lines)
    return None


def _places(tree: Any, depth: int = 0) -> Any:
    """Yield (object or list, key or index) of each entry."""
    entries = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in entries:
        yield tree, key
        if depth < 5:
            yield from _places(tree[key], depth + 1)


def main(count: int = 1000, first: int = 0) -> int:
    """Check many; print what became of them, and each bug with the seed that shows it. Return how many bugs."""
    became, slowest, bugs = Counter[str](), (0.0, 0), 0
    for seed in range(first, first + count):
        started, case = time.perf_counter(), mutated(seed)
        try:
            became[f"{case.kind} {check(case)}"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            bugs += 1
            print(f"seed {seed}: {case.kind}: {type(error).__name__}: {str(error)[:300]!r}", flush=True)
        slowest = max(slowest, (time.perf_counter() - started, seed))
    print(f"{count} cases: {dict(sorted(became.items()))}, {bugs} bugs; slowest {slowest[0]:.1f} s (seed {slowest[1]})")
    return bugs


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
