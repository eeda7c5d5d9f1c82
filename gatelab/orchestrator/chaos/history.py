"""The history checker: whether what a disturbed study left behind is what an undisturbed one leaves.

Both are read as facts, each a key and a value, from the files themselves: a fact that only one of them has was lost,
came from nowhere or was changed, and one that is there twice is told apart from one that is there once. Times, and what
depends on the speed and the memory of the machine, are left out; all else must agree in every bit.
"""

import contextlib
import fnmatch
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gatelab.errors import GatelabError
from gatelab.results.analyses.analysis import to_jsonable
from gatelab.results.analyses.comparison import SPEED, compare
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.lease import holder_of
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.records import DamagedRecord, Outcome, read_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.trials import whole_description
from gatelab.status import Status
from gatelab.training.checkpoint import whole_checkpoints

OF_THE_MACHINE = ("train/seconds", "train/*tokens_per_second", "memory/*", "system/*")
"""Metrics that differ between two runs of the same trial."""
TIMES = ("at", "ended", "evaluated", "hash", "time", "started")
"""Keys of records that say when."""
SHOWN = 10
"""Most violations of a kind that are listed one by one."""

Key = tuple[str, ...]
Facts = dict[str, Counter[tuple[Key, str]]]
"""Kind of fact -> how often each (key, value) is there."""


@dataclass(frozen=True)
class Violation:
    """Something that is not as it would be without a kill."""

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.what}"


class Sightings:
    """What was seen of results while a study ran: none that was there once may change or go."""

    def __init__(self, folder: RunsFolder) -> None:
        self._folder = folder
        self.seen: dict[Path, str] = {}
        """Path in the runs folder -> SHA-256 of the result that was first seen there."""

    def look(self) -> None:
        """Note the results that are new."""
        for pattern in ("trials/*/outcome.json", "trials/*/evaluations/*.json"):
            for path in self._folder.root.glob(pattern):
                name = path.relative_to(self._folder.root)
                if name not in self.seen and _is_result(path):
                    self.seen[name] = _digest(path.read_bytes())


def compare_facts(
    right: Facts, found: Facts, folder: RunsFolder, seen: Mapping[Path, str] | None = None
) -> list[Violation]:
    """Return what is wrong with a runs folder.

    Args:
        right: the facts of one in which the same commands have come to their end without a kill.
        found: its own.
        folder: where it lies.
        seen: results that were there while it was written (see `Sightings`).
    """
    violations = [*_differences(right, found), *_of_folder(folder, right, seen or {})]
    for key, value in found["trial in the table"] - found["run in MLflow"]:
        violations.append(Violation("table from MLflow", " ".join(key), f"is not {value[:200]}, as in the journals"))
    return violations


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of what a runs folder holds, without times and what depends on the machine."""

    trials: str
    """Of the table with a row for each trial."""
    comparison: str
    """Of the table that compares the variants."""
    journals: str
    checkpoints: str
    """Of the final weights and the state of the optimiser."""
    tracking: str

    @classmethod
    def of(cls, facts: Facts) -> "Hashes":
        """Hash the facts of a folder."""
        kinds = {
            "trials": "trial in the table",
            "comparison": "comparison",
            "journals": "journal row",
            "checkpoints": "final checkpoint",
            "tracking": "value in MLflow",
        }
        lines = {name: sorted(map(repr, facts[kind].items())) for name, kind in kinds.items()}
        return cls(**{name: _digest("\n".join(each).encode()) for name, each in lines.items()})


def read_facts(folder: RunsFolder, tracking_uri: str) -> Facts:
    """Read all that a runs folder and its tracking store hold."""
    readers = {
        "study": _studies,
        "prepared data": _data,
        "trial": _trials,
        "outcome": _outcomes,
        "journal row": _journal_rows,
        "final checkpoint": _final_checkpoints,
        "evaluation": _evaluations,
        "trial in the table": _table,
        "comparison": _comparisons,
        "noise ledger": _noise,
    }
    facts: Facts = {kind: Counter(read(folder)) for kind, read in readers.items()}
    return facts | _tracking(folder, tracking_uri)


Found = Iterator[tuple[Key, str]]


def _studies(folder: RunsFolder) -> Found:
    for name in _names(folder.root / "studies"):
        study = folder.study(name)
        for path in (study.record, study.claims, study.located):
            if path.exists():
                for key, value in _leaves(read_json(path)):
                    yield (name, path.name, key), value


def _data(folder: RunsFolder) -> Found:
    for identity in _names(folder.data):
        for path in sorted((folder.data / identity).iterdir()):
            if not path.name.startswith("."):
                yield (identity, path.name), _digest(path.read_bytes())


def _trials(folder: RunsFolder) -> Found:
    for files in _trial_folders(folder):
        try:
            description = whole_description(files)
        except DamagedRecord as error:
            yield (files.path.name, "id"), str(error)
            continue
        if description is not None:
            said = description.to_json()
            for key in ("id", "config", "parent", "branch"):
                yield (files.path.name, key), json.dumps(said.get(key), sort_keys=True)


def _outcomes(folder: RunsFolder) -> Found:
    for files in _trial_folders(folder):
        outcome = Outcome.read(files.outcome)
        if outcome is None:
            yield (files.path.name, "status"), "none"
            continue
        yield (files.path.name, "status"), outcome.status
        yield (files.path.name, "step"), str(outcome.step)
        yield (files.path.name, "reason"), outcome.reason
        for name, value in outcome.metrics.items():
            if not _of_the_machine(name):
                yield (files.path.name, name), _exact(value)


def _journal_rows(folder: RunsFolder) -> Found:
    """Yield the rows as every table and figure reads them."""
    for study in _names(folder.root / "studies"):
        rows = metrics_from_journals(folder, study)
        columns = (rows[name].to_pylist() for name in ("trial", "step", "layer", "name", "value"))
        for trial, step, layer, name, value in zip(*columns, strict=True):
            if not _of_the_machine(name):
                yield (study, trial, str(step), str(layer), name), _exact(value)


def _final_checkpoints(folder: RunsFolder) -> Found:
    for files in _trial_folders(folder):
        outcome = Outcome.read(files.outcome)
        kept = {"fork": sorted((files.path / "milestones").glob("*"))}
        if outcome is not None and outcome.status is Status.FINISHED:
            kept["final"] = [files.checkpoints]
        for kind, places in kept.items():
            for place in places:
                newest = next(whole_checkpoints(place), None)
                digest = hashlib.sha256()
                for name, tensor in sorted(newest.tensors.items()) if newest else ():
                    if name.startswith(("model.", "optimizer.")):
                        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
                value = f"step {newest.step}, {digest.hexdigest()}" if newest else "none is whole"
                yield (files.path.name, kind, place.name), value


def _evaluations(folder: RunsFolder) -> Found:
    for files in _trial_folders(folder):
        for path in sorted(files.evaluations.glob("*.json")):
            for key, value in _leaves(read_json(path)):
                yield (files.path.name, path.name, key), value


def _table(folder: RunsFolder) -> Found:
    for study in _names(folder.root / "studies"):
        yield from _table_rows(study, runs_from_journals(folder, study))


def _table_rows(study: str, runs: pa.Table) -> Found:
    for row in runs.to_pylist():
        for name, value in row.items():
            if not _of_the_machine(name):
                yield (study, row["trial"], name), _exact(value)


def _comparisons(folder: RunsFolder) -> Found:
    for study in _names(folder.root / "studies"):
        try:
            found = to_jsonable(compare(runs_from_journals(folder, study)))
        except GatelabError as error:
            found = {"none": str(error)}
        for key, value in _leaves(found):
            if not key.endswith("tokens_per_second"):
                yield (study, key), value


def _noise(folder: RunsFolder) -> Found:
    if folder.noise.exists():
        for row in pq.read_table(folder.noise).to_pylist():
            if not _of_the_machine(row["metric"]):
                said = {name: _exact(value) for name, value in row.items() if name != "written"}
                yield (row["study"], row["baseline"], row["metric"]), json.dumps(said, sort_keys=True)


def _tracking(folder: RunsFolder, tracking_uri: str) -> Facts:
    from gatelab.results.tracking.runs import runs_from_mlflow
    from gatelab.results.tracking.values import stored_runs

    trials, runs, values = (Counter[tuple[Key, str]]() for _ in range(3))
    for study in _names(folder.root / "studies"):
        try:
            runs.update(_table_rows(study, runs_from_mlflow(tracking_uri, study)))
            stored = stored_runs(tracking_uri, study)
        except Exception as error:  # whatever a store may raise
            runs[(study,), f"{type(error).__name__}: {error}"] += 1
            continue
        for run in stored:
            trials[(study, run.trial), "a run"] += 1
            tags = {name: run.tags.get(f"gatelab.{name}") for name in ("outcome", "step", "variant", "seed", "verdict")}
            said = {"status": run.status, **tags, **run.params}
            runs.update(((study, run.trial, "tag or parameter", name), str(value)) for name, value in said.items())
            for name, step, value in run.values:
                if not _of_the_machine(name):
                    values[(study, run.trial, name, str(step)), _exact(value)] += 1
    return {"trial in MLflow": trials, "run in MLflow": runs, "value in MLflow": values}


def _differences(right: Facts, found: Facts) -> Iterator[Violation]:
    """Yield what the facts of two folders differ in."""
    for kind in right:
        wanted, given = right[kind] - found[kind], found[kind] - right[kind]
        known, there = ({key for key, _ in facts[kind]} for facts in (right, found))
        told = []
        for (key, value), count in given.items():
            if key not in known:
                told.append((key, f"from nowhere: {value[:200]}"))
            elif (key, value) in right[kind]:
                told.append((key, f"there {count + right[kind][key, value]} times"))
            else:
                before = next((other for own, other in right[kind] if own == key), "nothing")
                changed = (key, before) in wanted
                told.append((key, f"{before[:200]} {'became' if changed else 'has beside it'} {value[:200]}"))
        for (key, value), count in wanted.items():
            if key not in there:
                told.append((key, f"lost: {value[:200]}"))
            elif not any(other == key for other, _ in given):
                told.append((key, f"lost, {count} of {right[kind][key, value]}"))
        yield from (Violation(kind, " ".join(key), what) for key, what in told[:SHOWN])
        if len(told) > SHOWN:
            yield Violation(kind, "all in all", f"{len(told)} differences")


def _of_folder(folder: RunsFolder, right: Facts, seen: Mapping[Path, str]) -> Iterator[Violation]:
    """Yield what is wrong with a folder by itself."""
    for name, digest in seen.items():
        path = folder.root / name
        if not path.exists():
            yield Violation("result", str(name), "was there once, and is not any more")
        elif _digest(path.read_bytes()) != digest:
            yield Violation("result", str(name), "was there once with another content: it was made again")
    known: dict[str, dict[tuple[str, str, str], set[str]]] = {}
    for (_, trial, *place), value in right["journal row"]:
        known.setdefault(trial, {}).setdefault((place[0], place[1], place[2]), set()).add(value)
    for files in _trial_folders(folder):
        yield from _of_trial(files, known.get(files.path.name, {}))


def _of_trial(files: TrialFolder, known: Mapping[tuple[str, str, str], set[str]]) -> Iterator[Violation]:
    trial = files.path.name
    if (holder := holder_of(files.path)) is not None:
        yield Violation("lease", trial, f"still held by {holder}")
    outcome, description = Outcome.read(files.outcome), None
    with contextlib.suppress(DamagedRecord):  # as it was said of its id
        description = whole_description(files)
    segments = sorted(files.journal.glob("*.arrows"))
    if outcome is not None and outcome.ended is not None and description is not None:
        for number, attempt in enumerate(description.attempts, 1):
            if attempt.started > outcome.ended:
                yield Violation("attempt", trial, f"attempt {number} began after the trial was over")
        late = [path.name for path in segments if path.stat().st_mtime > files.outcome.stat().st_mtime]
        if late:
            yield Violation("attempt", trial, f"written after the trial was over: {', '.join(late)}")
    for path in segments:
        last = -1
        for step, layer, name, value in segment_rows(path):
            if step < last:
                yield Violation("journal", f"{trial} {path.name}", f"step {step} comes after step {last}")
            last = step
            place = str(step), str(layer), name
            if not _of_the_machine(name) and _exact(value) not in known.get(place, ()):
                what = "from nowhere" if place not in known else f"{sorted(known[place])} became {_exact(value)}"
                yield Violation("journal", f"{trial} {path.name}", f"{' '.join(place)}: {what}")
                break
    for kept in (files.checkpoints, *sorted((files.path / "milestones").glob("*"))):
        steps = {checkpoint.step for checkpoint in whole_checkpoints(kept)}
        for path in sorted(kept.glob("step-*.safetensors")):
            if int(path.stem.removeprefix("step-")) not in steps:
                yield Violation("checkpoint", f"{trial} {path.name}", "is not whole")


def segment_rows(path: Path) -> Iterator[tuple[int, int | None, str, float]]:
    """Yield the rows of one segment as they lie there, whatever other segments hold, up to a torn end."""
    try:
        with pa.ipc.open_stream(path.read_bytes()) as stream:
            for batch in stream:
                columns = (batch[name].to_pylist() for name in ("step", "layer", "name", "value"))
                yield from zip(*columns, strict=True)
    except (pa.ArrowInvalid, OSError):
        return


def leftovers(folder: RunsFolder) -> list[str]:
    """List the temporary files and the requests to stop that killed processes have left."""
    temporary = [path for path in folder.root.rglob("*.tmp") if "mlflow-artifacts" not in path.parts]
    stops = [path for name in _names(folder.root / "studies") for path in folder.study(name).stop_files]
    return sorted(str(path.relative_to(folder.root)) for path in [*temporary, *stops])


def _is_result(path: Path) -> bool:
    content = read_json(path)
    if content is None:
        return False
    return path.name != "outcome.json" or Status(content["status"]).is_over


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the value of each leaf of JSON, without times and where numbers come from."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in TIMES and key != "provenance":
                yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name}[{index}]")
    else:
        yield name, _exact(value)


def _exact(value: object) -> str:
    return value.hex() if isinstance(value, float) else str(value)


def _of_the_machine(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in (*OF_THE_MACHINE, SPEED))


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _trial_folders(folder: RunsFolder) -> list[TrialFolder]:
    return [folder.trial(name) for name in _names(folder.root / "trials")]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
