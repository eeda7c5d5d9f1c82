"""What every analysis has in common: its result is a tidy table, and JSON.

An analysis is a function of frames that returns a frozen result. The view of the same name makes tables and figures
of it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import pyarrow as pa


class Analysis(Protocol):
    """The result of an analysis."""

    def frame(self) -> pa.Table:
        """Return its numbers as a tidy table, in full precision: what CSV and Parquet hold. Null: no such number."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values. None: no such number."""


def tidy(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table in which numbers that do not exist (nan, or no key at all) are null."""
    known = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    return pa.Table.from_pylist(known, schema)


def to_jsonable(value: Any) -> Any:
    """Return data classes, mappings and sequences as JSON values, with None in the place of numbers that are not
    finite."""
    if is_dataclass(value):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
