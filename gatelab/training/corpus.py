"""Where text comes from: the standard library, files, folders, Hugging Face datasets.

A corpus is a list of documents with a stable name each. Whole documents are held out for validation, chosen by a
hash of their name, so that the choice depends neither on order nor on chance.
"""

import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gatelab.errors import GatelabError
from gatelab.training.config import DataConfig

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".c", ".h", ".cpp", ".js", ".ts", ".rs", ".go", ".java"}


class DataError(GatelabError, ValueError):
    """The data that a study names cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Document:
    """A piece of text, the name that decides its side of the split, and the kind of text it is."""

    name: str
    text: str
    domain: str = ""


@dataclass(frozen=True)
class Skipped:
    """Something of the source that was left out."""

    name: str
    reason: str


def read_corpus(config: DataConfig, skipped: Callable[[Skipped], None]) -> Iterator[Document]:
    """Yield the documents of a source, in a fixed order. Raises DataError if there are none."""
    empty = True
    first: list[Skipped] = []

    def skip(entry: Skipped) -> None:
        if not first:
            first.append(entry)
        skipped(entry)

    for document in _documents(config, skip):
        if document.text:
            empty = False
            yield document
        else:
            skip(Skipped(document.name, "empty"))
    if empty:
        why = f" (skipped {first[0].name}: {first[0].reason})" if first else ""
        raise DataError(f"data.source {config.source!r} holds no text{why}")


def source_digest(config: DataConfig) -> str:
    """Return the SHA-256 of what the source holds, wherever it lies: the names and contents of its files.

    A Hugging Face dataset is identified by its name and the fingerprint that `datasets` computes.
    """
    digest = hashlib.sha256()
    if config.source.startswith("hf:"):
        digest.update(f"{config.source}/{config.split}/{_load_hugging_face(config)._fingerprint}".encode())
        return digest.hexdigest()
    for name, path in _source_files(config.source, lambda _: None):
        digest.update(f"{name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _documents(config: DataConfig, skipped: Callable[[Skipped], None]) -> Iterator[Document]:
    if config.source.startswith("hf:"):
        fields = [config.text_field] + ([config.domain_field] if config.domain_field else [])
        records = ({field: row[field] for field in fields} for row in _checked_hugging_face(config))
        yield from _record_documents(config.source, "", records, config, skipped)
        return
    for name, path in _source_files(config.source, skipped):
        folder = name.partition("/")[0] if "/" in name and config.source != "stdlib" else ""
        if path.suffix == ".jsonl":
            yield from _record_documents(name, folder, _json_lines(path), config, skipped)
        elif path.suffix == ".parquet":
            yield from _record_documents(name, folder, _parquet_rows(path, config), config, skipped)
        else:
            try:
                yield Document(name, path.read_text(encoding="utf-8"), _domain_name(folder))
            except UnicodeDecodeError:
                skipped(Skipped(name, "not UTF-8 text"))


def _source_files(source: str, skipped: Callable[[Skipped], None]) -> list[tuple[str, Path]]:
    """Return (name, path) of each file of a source, by name."""
    if source == "stdlib":
        return _stdlib_files(skipped)
    root = Path(source)
    if root.is_file():
        return [(root.name, root)]
    if not root.is_dir():
        raise DataError(f"data.source {source!r}: no such file or folder (expected stdlib, a path or hf:NAME)")
    files = []
    for path in sorted(root.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        name = path.relative_to(root).as_posix()
        if path.suffix in TEXT_SUFFIXES | {".jsonl", ".parquet"}:
            files.append((name, path))
        else:
            skipped(Skipped(name, f"not a known kind of text ({path.suffix or 'no suffix'})"))
    if not files:
        raise DataError(f"data.source {source!r}: the folder holds no text, .jsonl or .parquet files")
    return files


def _stdlib_files(skipped: Callable[[Skipped], None]) -> list[tuple[str, Path]]:
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


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                yield json.loads(line)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 text") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON ({error.msg})") from error


def _domain_name(given: object) -> str:
    """Return a domain as it can stand in the name of a metric."""
    return re.sub(r"[^\w. -]", "_", str(given))[:64].strip(" .")  # a word in any script


def _parquet_rows(path: Path, config: DataConfig) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from error
    with opened as file:
        columns = _columns(config, file.schema_arrow.names, str(path), "column")
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()


def _columns(config: DataConfig, there: list[str], where: str, what: str) -> list[str]:
    """Return the fields of a record that are read. Raises DataError naming one that is not there."""
    wanted = {"data.text_field": config.text_field, "data.domain_field": config.domain_field}
    for key, name in wanted.items():
        if name is not None and name not in there:
            raise DataError(f"{where}: no {what} {name!r} ({key}); it has {', '.join(there)}")
    return [name for name in wanted.values() if name is not None]


def _load_hugging_face(config: DataConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data.source {config.source!r} needs: pip install 'gatelab[datasets]'") from error
    name, _, configuration = config.source.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(name, configuration or None, split=config.split)
    except Exception as error:
        raise DataError(f"data.source {config.source!r}, split {config.split!r}: {error}") from error


def _checked_hugging_face(config: DataConfig) -> Any:
    dataset = _load_hugging_face(config)
    _columns(config, dataset.column_names, f"data.source {config.source!r}", "field")
    return dataset


def _record_documents(
    name: str, folder: str, records: Iterable[Any], config: DataConfig, skipped: Callable[[Skipped], None]
) -> Iterator[Document]:
    """Yield documents of records, named by their content: equal texts fall on the same side of the split.

    A record that does not name its domain is of the domain of its file's folder.
    """
    for number, record in enumerate(records, 1):
        text = record.get(config.text_field) if isinstance(record, dict) else None
        if isinstance(text, str):
            text = text.encode(errors="replace").decode()  # JSON may hold lone surrogates, UTF-8 may not
            domain = record.get(config.domain_field) if config.domain_field else None
            yield Document(
                hashlib.sha256(text.encode()).hexdigest(), text, _domain_name(folder if domain is None else domain)
            )
        else:
            skipped(Skipped(f"{name}:{number}", f"no text in field {config.text_field!r}"))


def validation_names(sizes: dict[str, int], fraction: float) -> set[str]:
    """Choose the documents to hold out: in the order of their hashes, until `fraction` of the bytes is reached.

    Both sides get at least one document where there are two or more.
    """
    wanted = fraction * sum(sizes.values())
    held: set[str] = set()
    taken = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if taken >= wanted or len(held) + 1 == len(sizes):
            break
        held.add(name)
        taken += sizes[name]
    return held
