"""Fuzz what a runs folder holds: journals, checkpoints, records and Parquet, in every way that a disk or a hand spoils.

`python -m tests.fuzz.store --cases 40000 --seed 0` from the root of the repository. A case is a seed: it spoils one or
two files and reads everything that rests on them. It passes if what was read is as it was written, or if it is named
that it is not; other values, exceptions that are not gatelab's, and crashes fail. Cases run in processes of their own.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch

from gatelab.errors import GatelabError
from gatelab.results.report.parquet import export_study, runs_from_parquet
from gatelab.results.store.journal import Journal, JournalTail, mend
from gatelab.results.store.records import read_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.segment import SCHEMA
from gatelab.results.store.trials import lost_values, read_description, read_evaluations, read_outcome
from gatelab.training.checkpoint import save_checkpoint, whole_checkpoints
from gatelab.training.progress import Progress
from tests.results.conftest import Laboratory

STEPS = 40
CHUNK = 5000  # cases in a process
KINDS = ("journal", "older journal", "checkpoint", "older checkpoint", "record", "parquet", "exchange")
SHAPES = (
    "{}",
    "[]",
    "null",
    "3",
    '""',
    "[[[[]]]]",
    '{"version": "x"}',
    '{"metrics": [1]}',
    "NaN",
    "[" * 5000,
    "\ufeff{}",
)


class Subject:
    """A runs folder with one finished trial, and what is read of it undamaged."""

    def __init__(self, root: Path) -> None:
        self.lab = Laboratory(root / "runs", ("none", "sdpa"), 1, STEPS)
        self.lab.begin(0, 0)
        self.files = self.lab.trial(0, 0)
        trial = self.files.path.name
        for steps in (range(1, 26), range(21, STEPS + 1)):
            with Journal(self.files.journal, trial=trial) as journal:
                _record(journal, steps)
        metrics = {"validation/loss": 2.5, "validation/bits_per_byte": 3.25}
        self.lab.end(0, 0, "finished", STEPS, metrics=metrics)
        self.lab.answer(0, 0, "length", 1.0, {"length/64/plain/loss": 2.75})
        self.lab.answer(0, 0, "retrieval", 2.0, {"retrieval/64/plain/accuracy": 0.5})
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        for step in (20, STEPS):
            self.model(torch.ones(4)).sum().backward()
            self.optimizer.step()
            state = Progress(step, step / 7, {"validation/loss": step / 3}).state()
            save_checkpoint(self.files.checkpoints, step, self.model, self.optimizer, state)
        self.older = root / "older"
        _write_older_journal(self.older / "journal")
        _write_older_checkpoints(self.files.checkpoints, self.older / "checkpoints")
        self.out = root / "out"
        export_study(self.lab.folder, self.lab.name, self.out)
        self.root = root
        self.places = {
            "journal": self.files.journal,
            "older journal": self.older / "journal",
            "checkpoint": self.files.checkpoints,
            "older checkpoint": self.older / "checkpoints",
            "record": root / "runs",
            "parquet": self.out / "runs",
            "exchange": root / "runs",
        }
        self.pristine = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self.rows = _rows(JournalTail(self.files.journal).read())
        self.saved = {each.step: _content(each) for each in whole_checkpoints(self.files.checkpoints)}
        self.said = self.records()
        self.exported = repr(runs_from_parquet(self.out, self.lab.name).to_pylist())
        assert len(self.saved) == 2
        assert [step for step, *_ in self.rows] == sorted(step for step in range(1, STEPS + 1) for _ in range(2))

    def files_of(self, kind: str) -> list[Path]:
        """The files that cases of a kind spoil."""
        suffix = {"record": ".json", "exchange": ""}.get(kind, "")
        return sorted(
            path for path in self.pristine if path.is_relative_to(self.places[kind]) and path.name.endswith(suffix)
        )

    def restore(self) -> None:
        """Undo a case."""
        for path in self.root.rglob("*"):
            if path.is_file() and path not in self.pristine:
                path.unlink()
        for path, content in self.pristine.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    def records(self) -> dict[str, Any]:
        """What the records of the study say."""
        outcome, description = read_outcome(self.files), read_description(self.files)
        return {
            "study": self.lab.folder.study(self.lab.name).read(),
            "outcome": outcome,
            "description": description,
            "answers": read_evaluations(self.files),
            "runs": repr(runs_from_journals(self.lab.folder, self.lab.name).to_pylist()),
        }


def _record(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.record(step, {"train/loss": 5 / step})
        journal.record(step, {"gradient_norm": step / 3}, layer=1)
        if step % 3 == 0:
            journal.commit()


def _write_older_journal(folder: Path) -> None:
    folder.mkdir(parents=True)
    schema = SCHEMA.with_metadata({"gatelab.journal": "1"})
    with pa.ipc.new_stream(
        folder / "0000.arrows", schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        for begin in range(1, STEPS, 4):
            rows = [
                {"step": step, "layer": layer, "name": "train/loss", "value": 5 / step, "time": step}
                for step in range(begin, begin + 4)
                for layer in (None, 1)
            ]
            stream.write_batch(pa.RecordBatch.from_pylist(rows, schema))


def _write_older_checkpoints(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for found in whole_checkpoints(source):
        content = safetensors.torch.save(found.tensors)
        path = folder / f"step-{found.step:09d}.safetensors"
        path.write_bytes(content)
        said = {"step": found.step, "sha256": hashlib.sha256(content).hexdigest(), "state": found.state}
        path.with_suffix(".json").write_text(json.dumps(said))


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    """Without times: two attempts record the same step at different ones."""
    return [tuple(row.values()) for row in table.drop_columns("time").to_pylist()]


def _content(checkpoint: Any) -> tuple[dict[str, Any], bytes]:
    return checkpoint.state, safetensors.torch.save(checkpoint.tensors)


def mutated(content: bytes, rng: random.Random, is_json: bool) -> bytes:
    """Spoil the content of a file."""
    size = max(len(content), 1)
    begin = rng.randrange(size)
    end = min(size, begin + rng.choice((1, 2, 8, 64, 512, 4096)))
    match rng.choice(("flip", "flip", "flip", "cut", "zero", "repeat", "copy", "noise", "drop", "shape", "value")):
        case "flip":
            spoilt = bytearray(content)
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                spoilt[rng.randrange(size)] ^= 1 << rng.randrange(8)
            return bytes(spoilt)
        case "cut":
            return content[:begin]
        case "zero":
            return content[:begin] + bytes(end - begin) + content[end:]
        case "repeat":
            return content[:end] + content[begin:]
        case "copy":
            other = rng.randrange(size)
            part = content[begin:end]
            return content[:other] + part + content[other + len(part) :]
        case "noise":
            return content[:begin] + rng.randbytes(end - begin) + content[end:]
        case "drop":
            return content[:begin] + content[end:]
        case "value" if is_json:
            return _with_another_value(content, rng)
        case _:
            return rng.choice(SHAPES).encode() if is_json else bytes(size) + content[begin:end]


def _with_another_value(content: bytes, rng: random.Random) -> bytes:
    """Change one value of JSON, somewhere, or leave it out."""
    whole = json.loads(content)
    node: Any = whole
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return content[:-1]
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = rng.choice((None, -1, 0.5, "x", [], {}, [1], {"a": 1}, 10**30, True))
        return json.dumps(whole).encode()


def spoil(subject: Subject, seed: int) -> str:
    """Spoil files as a seed says; return the kind of the case."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    files = subject.files_of(kind)
    if kind == "exchange":
        one, other = rng.sample(files, 2)
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return kind
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2)))):
        path.write_bytes(mutated(path.read_bytes(), rng, path.suffix == ".json"))
    return kind


@contextlib.contextmanager
def _naming() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as named:
        warnings.simplefilter("always")
        yield named


def check(subject: Subject, kind: str) -> str:
    """Read what rests on the files of a case; return how it came out. Raises AssertionError, or what should not be."""
    if kind in ("journal", "exchange"):
        return "; ".join(
            dict.fromkeys((_check_journal(subject), *([_check_rest(subject)] if kind == "exchange" else [])))
        )
    if kind == "older journal":
        rows = _rows(JournalTail(subject.older / "journal").read())  # may be other values: nothing tells
        mend(subject.older / "journal")
        return "read" if rows else "nothing left"
    if kind == "parquet":
        try:
            assert repr(runs_from_parquet(subject.out, subject.lab.name).to_pylist()) == subject.exported
        except GatelabError:
            return "refused"
        return "same"
    if kind == "older checkpoint":
        return _check_older_checkpoints(subject)
    return _check_checkpoints(subject) if kind == "checkpoint" else _check_records(subject)


def _check_rest(subject: Subject) -> str:
    found = {_check_checkpoints(subject), _check_records(subject)}
    return next(iter(found - {"same"}), "same")


def _check_journal(subject: Subject) -> str:
    tail = JournalTail(subject.files.journal)
    rows = _rows(tail.read())
    try:
        named = lost_values(subject.files, tail)
    except GatelabError:
        named = ["another record is damaged"]
    assert set(rows) <= set(subject.rows)
    assert rows == sorted(rows, key=lambda row: row[0])
    outcome = read_json(subject.files.outcome)
    assert rows == subject.rows or named or outcome is None or not outcome.get("status")
    whole = mend(subject.files.journal, subject.files.path.name)
    tail = JournalTail(subject.files.journal)
    mended = _rows(tail.read())
    assert tail.lost == []
    assert mended == [row for row in subject.rows if row[0] <= whole]
    return "same" if rows == subject.rows else "named"


def _check_checkpoints(subject: Subject) -> str:
    count = 0
    for found in whole_checkpoints(subject.files.checkpoints):
        assert _content(found) == subject.saved[found.step]
        found.restore(subject.model, subject.optimizer)
        count += 1
    return "same" if count == 2 else "earlier one" if count else "from the start"


def _check_older_checkpoints(subject: Subject) -> str:
    count = 0
    for found in whole_checkpoints(subject.older / "checkpoints"):
        assert _content(found)[1] == subject.saved[found.step][1]
        with contextlib.suppress(ValueError):
            Progress.restored(found.step, found.state)
            found.restore(subject.model, subject.optimizer)
            count += 1
    return "read" if count else "from the start"


def _check_records(subject: Subject) -> str:
    with _naming() as named:
        try:
            found = subject.records()
        except GatelabError:
            return "refused"
    if found == subject.said:
        return "same"
    # Without its checksum a record is one of an older version, of which nothing tells that it was changed.
    if any(
        read_json(path) is not None and b'"checksum"' not in path.read_bytes() for path in subject.files_of("record")
    ):
        return "as an older record"
    assert named, "other values"
    assert found["outcome"] == subject.said["outcome"] or found["outcome"].reason
    assert found["description"] in (subject.said["description"], None)
    assert all(answer in subject.said["answers"] for answer in found["answers"])
    return "named"


def run(first: int, count: int, progress: Path) -> None:
    """Run cases in this process; say of each that it begins, and at the end how all came out."""
    found: Counter[str] = Counter()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder))
        for seed in range(first, first + count):
            progress.write_text(json.dumps({"case": seed, "reason": "", "found": found}))
            kind = spoil(subject, seed)
            try:
                found[f"{kind}: {check(subject, kind)}"] += 1
            except BaseException as error:
                reason = f"{kind}: {error!r}"
                progress.write_text(json.dumps({"case": seed, "reason": reason, "found": found}))
                return
            subject.restore()
    progress.write_text(json.dumps({"case": first + count, "reason": "", "found": found}))


def run_apart(first: int, count: int) -> tuple[Counter[str], list[str]]:
    """Run cases in another process; return how they came out, and the failures. After one it goes on behind it."""
    total: Counter[str] = Counter()
    failures = []
    end = first + count
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress.json"
        while first < end:
            # A fork has imported everything already.
            child = multiprocessing.get_context("fork").Process(target=run, args=(first, end - first, progress))
            child.start()
            child.join()
            said = json.loads(progress.read_text())
            total.update(said["found"])
            if child.exitcode or said["reason"]:
                failures.append(f"case {said['case']}: {said['reason'] or f'exit code {child.exitcode}'}")
            first = said["case"] + 1
    return total, failures


def main() -> None:
    """Run many cases and print how they came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    for first in range(arguments.seed, arguments.seed + arguments.cases, CHUNK):
        found, failed = run_apart(first, min(CHUNK, arguments.seed + arguments.cases - first))
        total += found
        failures += failed
    for name, number in sorted(total.items()):
        print(f"{number:7} {name}")
    print(f"{arguments.cases} cases, {len(failures)} failures, {time.monotonic() - began:.0f} s")
    print(*failures, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
