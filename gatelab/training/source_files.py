"""The files of a source: which there are, in which order, and how each is read."""

import gzip
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

from gatelab.errors import DataError

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".c", ".h", ".cpp", ".js", ".ts", ".rs", ".go", ".java"}
JSONL_SUFFIXES = {".jsonl", ".ndjson", ".jsonlines"}
PARQUET_SUFFIX = ".parquet"
READ = TEXT_SUFFIXES | JSONL_SUFFIXES | {PARQUET_SUFFIX}
"""Suffixes of what is read of a folder, in upper or lower case; all but Parquet may end in .gz, too."""
_TABLE, _PACKED = "a table: write it as .jsonl or .parquet", "compressed: unpack it, or use .gz"
REFUSED = {
    ".json": "one JSON value: write it as .jsonl, a record on each line",
    **dict.fromkeys((".csv", ".tsv", ".arrow", ".feather", ".orc", ".avro", ".xls", ".xlsx", ".db", ".sqlite"), _TABLE),
    **dict.fromkeys((".zst", ".bz2", ".xz", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz"), _PACKED),
}
"""Suffixes of what would not be read as it is meant -> what it is, and what would be right."""


@dataclass(frozen=True)
class Skipped:
    """Something of the source that was left out."""

    name: str
    reason: str


Skip = Callable[[Skipped], None]
"""Is told of what is left out."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what keeps a file from being read into a DataError that names it."""
    try:
        yield
    except OSError as error:  # gzip's own among them
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip ({error})") from error


def kind_of(path: Path) -> str:
    """Return the suffix that says how a file is read: in lower case, without .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return suffixes[0] if len(suffixes) == 2 and suffixes[1] == ".gz" else "".join(suffixes[-1:])


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if its name ends in .gz."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def source_files(source: str, skipped: Skip) -> list[tuple[str, Path]]:
    """Return (name, path) of each file of a source, by name. Raises DataError if there are none."""
    if source == "stdlib":
        return _stdlib_files(skipped)
    root = Path(source)
    if root.is_file():
        if (reason := _refusal(root)) is not None:
            raise DataError(f"data.source {source!r}: {reason}")
        return [(_name_of(root, root.parent), root)]
    if not root.is_dir():
        raise DataError(f"data.source {source!r}: no such file or folder (expected stdlib, a path or hf:NAME)")
    files = []
    for path in sorted(_walk(root, skipped), key=lambda path: path.parts):
        name, kind = _name_of(path, root), kind_of(path)
        if (reason := _refusal(path)) is not None:
            skipped(Skipped(name, reason))
        elif kind in READ:
            files.append((name, path))
        else:
            skipped(Skipped(name, f"not a known kind of text ({path.suffix or 'no suffix'})"))
    if not files:
        raise DataError(f"data.source {source!r}: the folder holds no text, .jsonl or .parquet files")
    return files


def _refusal(path: Path) -> str | None:
    """Return why a file is not read, if it is of a kind that would not be read as it is meant."""
    kind, packed = kind_of(path), path.suffix.lower() == ".gz"
    reason = REFUSED.get(kind, _PACKED if packed and kind == PARQUET_SUFFIX else None)
    return None if reason is None else f"{''.join(path.suffixes[-2:]) if packed else path.suffix} is {reason}"


def _name_of(path: Path, root: Path) -> str:
    """Return the name of a file within a source. Bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _walk(root: Path, skipped: Skip) -> Iterator[Path]:
    """Yield the files below a folder, through links, but for hidden ones and what gatelab itself wrote."""
    above = {root: {_place(root)}}  # folder -> itself and those that it lies in, as links lead there

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    runs: set[Path] = set()  # runs folders
    for where, folders, files in os.walk(root, onerror=fail, followlinks=True):
        here = Path(where)
        places = above.pop(here)
        for name in [*folders]:
            path = here / name
            if name.startswith(".") or _is_own(path, runs):
                folders.remove(name)
            elif (place := _place(path)) in places:
                skipped(Skipped(_name_of(path, root), "a link to a folder that it lies in"))
                folders.remove(name)
            else:
                above[path] = places | {place}
        for name in files:
            path = here / name
            if name.startswith(".") or _is_own(path, runs):
                continue
            if path.is_file():
                yield path
            else:
                reason = "a link to nothing" if path.is_symlink() else "neither a file nor a folder"
                skipped(Skipped(_name_of(path, root), reason))
    for path in sorted(runs):
        skipped(Skipped(_name_of(path, root), "of a gatelab runs folder"))


def _place(folder: Path) -> tuple[int, int]:
    with reading(folder):
        stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _is_own(path: Path, runs: set[Path]) -> bool:
    """Return whether gatelab itself wrote something: what it writes must not change the data that it is named by.

    Notes the runs folder that it lies in.
    """
    folder, name = path.parent, path.name
    known = {"data": ("manifest.json",), "trials": ("lock", "trial.json", "outcome.json"), "studies": ("study.json",)}
    unfinished = folder.name == "data" and re.fullmatch(r"[0-9a-f]{64}(\.lock|-.*\.tmp)", name)
    if unfinished or any((path / file).is_file() for file in known.get(folder.name, ())):
        runs.add(folder.parent)
        return True
    if name == "mlflow-artifacts" or (name == "noise.parquet" and (folder / "studies").is_dir()):
        runs.add(folder)
        return True
    return False


def _stdlib_files(skipped: Skip) -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    pinned = resources.files("gatelab.training").joinpath("stdlib_files.txt").read_text(encoding="utf-8")
    files = []
    for name in pinned.splitlines():
        if name.startswith("#"):
            continue
        if (root / name).is_file():
            files.append((name, root / name))
        else:
            skipped(Skipped(name, "not part of this Python installation"))
    if not files:
        raise DataError(f"data.source 'stdlib': this Python has no library sources in {root}")
    return files
