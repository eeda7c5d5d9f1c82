"""Where text comes from: the standard library, files, folders, Hugging Face datasets.

A corpus is a list of documents with a stable name each. Whole documents are held out for validation, chosen by a
hash of their name, so that the choice depends neither on order nor on chance.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from gatelab.errors import DataError
from gatelab.training.config import DataConfig
from gatelab.training.source_files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIX,
    Skip,
    Skipped,
    kind_of,
    open_file,
    reading,
    source_files,
)


@dataclass(frozen=True)
class Document:
    """A piece of text, the name that decides its side of the split, and the kind of text it is."""

    name: str
    text: str
    domain: str = ""


def read_corpus(config: DataConfig, skipped: Skip) -> Iterator[Document]:
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
    for name, path in source_files(config.source, lambda _: None):
        digest.update(f"{name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _documents(config: DataConfig, skipped: Skip) -> Iterator[Document]:
    if config.source.startswith("hf:"):
        fields = [config.text_field] + ([config.domain_field] if config.domain_field else [])
        records = ({field: row[field] for field in fields} for row in _checked_hugging_face(config))
        yield from _record_documents(config.source, "", enumerate(records, 1), config, skipped)
        return
    for name, path in source_files(config.source, skipped):
        folder = name.partition("/")[0] if "/" in name and config.source != "stdlib" else ""
        kind = kind_of(path)
        with reading(path):
            if kind in JSONL_SUFFIXES:
                yield from _record_documents(name, folder, _json_lines(path), config, skipped)
            elif kind == PARQUET_SUFFIX:
                yield from _record_documents(name, folder, _parquet_rows(path, config), config, skipped)
            else:
                yield from _text_document(name, folder, path, skipped)


def _text_document(name: str, folder: str, path: Path, skipped: Skip) -> Iterator[Document]:
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError:
        skipped(Skipped(name, "not UTF-8 text"))
    else:
        yield Document(name, text, _domain_name(folder))


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of each line that is not blank."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                value = json.loads(line)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 text") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON ({error.msg})") from error
            except ValueError as error:
                raise DataError(f"{path}:{number}: a number of too many digits") from error
            except RecursionError as error:
                raise DataError(f"{path}:{number}: nested too deep") from error
            yield number, value


def _domain_name(given: object) -> str:
    """Return a domain as it can stand in the name of a metric."""
    return re.sub(r"[^\w. -]", "_", str(given))[:64].strip(" .")  # a word in any script


def _parquet_rows(path: Path, config: DataConfig) -> Iterator[tuple[int, Any]]:
    """Yield (row number, row) of a Parquet file, with the columns that are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
        columns = _columns(config, opened.schema_arrow.names, str(path), "column")
        kind = opened.schema_arrow.field(config.text_field).type
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file ({_first_line(error)})") from error
    with opened as file:
        if str(kind).removeprefix("large_") not in ("string", "string_view", "null") and not pa.types.is_dictionary(
            kind
        ):
            raise DataError(f"{path}: column {config.text_field!r} (data.text_field) holds {kind}: expected string")
        batches = file.iter_batches(columns=columns)
        number = 0
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise DataError(f"{path}: a damaged Parquet file ({_first_line(error)})") from error
            if batch is None:
                return
            yield from enumerate(rows, number + 1)
            number += len(rows)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


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
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it tries again, the error sums up
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
    name: str, folder: str, records: Iterable[tuple[int, Any]], config: DataConfig, skipped: Skip
) -> Iterator[Document]:
    """Yield documents of numbered records, named by their content: equal texts fall on the same side of the split.

    A record that does not name its domain is of the domain of its file's folder.
    """
    for number, record in records:
        text = record.get(config.text_field) if isinstance(record, dict) else None
        if isinstance(text, str) and text:
            text = text.encode(errors="replace").decode()  # JSON may hold lone surrogates, UTF-8 may not
            domain = record.get(config.domain_field) if config.domain_field else None
            yield Document(
                hashlib.sha256(text.encode()).hexdigest(), text, _domain_name(folder if domain is None else domain)
            )
        else:
            skipped(Skipped(f"{name}:{number}", _why_no_text(record, config.text_field)))


_KINDS = {dict: "an object", list: "a list", bytes: "bytes", bool: "true or false", type(None): "null"}


def _why_no_text(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        return f"{_KINDS.get(type(record), 'a value')}, expected an object with the field {field!r}"
    if field not in record:
        return f"no field {field!r} (data.text_field); it has {', '.join(map(repr, list(record)[:5]))}"
    value = record[field]
    return "empty" if value == "" else f"field {field!r} holds {_KINDS.get(type(value), 'a number')}, expected text"


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
