"""Values of a study's trials in long form, one trial at a time."""

import fnmatch
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatelab.errors import DamagedFile
from gatelab.results.store.journal import JournalTail
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import TrialRecord
from gatelab.results.store.trials import lost_values

TEXT = pa.dictionary(pa.int32(), pa.utf8())
"""Texts that many rows share."""


METRICS = pa.schema(
    [
        ("trial", TEXT),
        ("variant", TEXT),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("layer", pa.int16()),  # null: of the whole model
        ("name", TEXT),
        ("value", pa.float64()),
        ("time", pa.timestamp("ms")),
    ]
)
"""Columns of values in long form."""


SMALL = 1 << 12
"""Rows of a trial that are few."""


AT_ONCE = 1 << 16
"""Rows of a journal that are looked at together."""


def metrics_from_journals(
    folder: RunsFolder,
    study: str,
    names: Collection[str] = ("*",),
    layers: bool | None = None,
    keep: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> pa.Table:
    """Read values of a study in long form, in `METRICS`. Of each trial, `keep` selects among those that are asked for.

    See `each_journal`. A whole study may be more than memory holds. Raises NotFound.
    """
    each = each_journal(folder, folder.study(study).read().trials, names, layers)
    return together(keep(rows) for rows in each)


def together(tables: Iterable[pa.Table]) -> pa.Table:
    """Concatenate the rows of several trials into one table."""
    rows = pa.concat_tables([METRICS.empty_table(), *tables]).unify_dictionaries()
    # What is asked of a column is asked of chunk after chunk: thousands of small ones would take seconds each time.
    return rows.combine_chunks() if len(rows) < SMALL * rows["value"].num_chunks else rows


def split(rows: pa.Table, column: str) -> dict[Any, pa.Table]:
    """Return the rows of each value of a column, in the order in which values and rows come.

    Takes as long for thousands of values as for a few, where a filter for each would not.
    """
    codes = rows[column].dictionary_encode().unify_dictionaries().combine_chunks()
    indices = codes.indices.to_numpy(zero_copy_only=False)
    ordered = rows.take(np.argsort(indices, kind="stable"))
    counts = np.bincount(indices, minlength=len(codes.dictionary))
    begins = np.cumsum(counts) - counts
    return {
        value: ordered.slice(begin, count)
        for value, begin, count in zip(codes.dictionary.to_pylist(), begins, counts, strict=True)
        if count
    }


def each_journal(
    folder: RunsFolder, trials: Sequence[TrialRecord], names: Collection[str] = ("*",), layers: bool | None = None
) -> Iterator[pa.Table]:
    """Yield the values of each trial of a study's record, in `METRICS`, steps ascending. Holds two at a time: the next
    one is read while one is looked at. Warns of values that are lost (DamagedFile).

    Args:
        folder: where their journals lie.
        trials: whose values.
        names: of metrics, patterns as those of file names; all others are left out.
        layers: of layers only (True), of the whole model only (False), or both.
    """

    def read(index: int) -> pa.Table:
        trial = trials[index]
        files = folder.trial(trial.id)
        journal = JournalTail(files.journal)
        parts = [_chosen(rows, names, layers) for rows in _in_parts(journal)]
        for loss in lost_values(files, journal):
            warnings.warn(loss, DamagedFile, stacklevel=2)
        rows = pa.Table.from_batches(parts, _VALUES).unify_dictionaries()
        own = {
            "trial": _constant(trial.id, len(rows)),
            "variant": _constant(trial.variant, len(rows)),
            "seed": pa.repeat(pa.scalar(trial.seed, pa.int64()), len(rows)),
        }
        return pa.table([*own.values(), *rows.columns], METRICS)

    with ThreadPoolExecutor(1) as reader:  # Arrow lets go of the interpreter while it reads
        following = reader.submit(read, 0) if trials else None
        for index in range(len(trials)):
            assert following is not None
            rows = following.result()
            following = reader.submit(read, index + 1) if index + 1 < len(trials) else None
            yield rows


_VALUES = pa.schema([METRICS.field(name) for name in ("step", "layer", "name", "value", "time")])


def _in_parts(journal: JournalTail) -> Iterator[pa.RecordBatch]:
    """Yield new journal rows in batches of some size: those that were written may hold a step each."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in journal.batches():
        held.append(batch)
        count += len(batch)
        if count >= AT_ONCE:
            yield pa.concat_batches(held)
            held, count = [], 0
    if held:
        yield pa.concat_batches(held)


def _chosen(rows: pa.RecordBatch, names: Collection[str], layers: bool | None) -> pa.RecordBatch:
    """Return the rows of a journal whose names fit, in `_VALUES`."""
    texts = rows["name"].dictionary_encode()
    known = texts.dictionary.to_pylist()
    fitting = [index for index, name in enumerate(known) if _fits(name, names)]
    rows = pa.record_batch([rows[name] if name != "name" else texts for name in _VALUES.names], schema=_VALUES)
    if len(fitting) < len(known):
        rows = rows.filter(pc.is_in(texts.indices, pa.array(fitting, pa.int32())))
    if layers is not None:
        rows = rows.filter((pc.is_valid if layers else pc.is_null)(rows["layer"]))
    return rows


def _constant(text: str, length: int) -> pa.DictionaryArray:
    # A dictionary of its own: if each trial's were that of all trials, to unify them would take the square of these.
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), length), pa.array([text], pa.utf8()))


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def named(rows: pa.Table, *patterns: str) -> pa.ChunkedArray:
    """Mark the rows in long form whose name fits one of the patterns, as those of file names."""
    fitting = [name for name in pc.unique(rows["name"]).to_pylist() if _fits(name, patterns)]
    return pc.is_in(rows["name"], pa.array(fitting, pa.utf8()))
