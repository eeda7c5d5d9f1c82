"""The journal: the append-only record that a trial writes as it trains, and the source of every curve.

Tables that compare trials are made from outcome.json, which sums a trial up.

Each attempt at a trial writes a segment of its own, an Arrow IPC stream. A crash leaves at worst a torn last batch,
which readers leave out. Steps never decrease within a segment, and a batch never ends within a step.
"""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gatelab.atomic import fsync

FLUSH_SECONDS = 2.0
"""A trial's latest values are on disk, fsynced, at most this long (and one look) after they were recorded."""


SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("layer", pa.int16()),  # null: of the whole model
        pa.field("name", pa.utf8(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("time", pa.timestamp("ms"), nullable=False),
    ],
    metadata={"gatelab.journal": "1"},
)


class Journal:
    """Writes one segment. A `Recorder` for the training loop."""

    def __init__(self, folder: Path, flush_seconds: float = FLUSH_SECONDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in segments(folder)), default=-1) + 1
        self._file = (folder / f"{number:04d}.arrows").open("xb")
        for changed in (folder, folder.parent):  # a file whose name is not on disk is lost with the power
            fsync(changed)
        self._writer = pa.ipc.new_stream(self._file, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        self._flush_seconds = flush_seconds
        self._written_at = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._steps: list[int] = []
        self._layers: list[int | None] = []
        self._names: list[str] = []
        self._values: list[float] = []
        self._times: list[int] = []
        self._whole = 0
        """Rows at the last `flush`: those after it may be of a step that has not ended."""

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        """Record named values after `step` optimiser steps, of one layer or of the whole model."""
        now = time.time_ns() // 1_000_000
        for name, value in values.items():
            self._steps.append(step)
            self._layers.append(layer)
            self._names.append(name)
            self._values.append(value)
            self._times.append(now)

    def append(self, rows: pa.Table) -> None:
        """Write rows of another journal as they are, steps ascending."""
        for batch in rows.to_batches():
            self._writer.write_batch(batch)

    def flush(self) -> None:
        """Write what was recorded if the last write is long enough ago. Call it between steps."""
        self._whole = len(self._steps)
        if time.monotonic() - self._written_at >= self._flush_seconds:
            self.commit()

    def commit(self) -> None:
        """Return when everything recorded so far is on disk."""
        if self._steps:
            columns = [self._steps, self._layers, self._names, self._values, self._times]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
            self._clear()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Commit and end the segment."""
        self.commit()
        self._writer.close()
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """End the segment. After an exception the rows since the last `flush` are left out.

        They may be a part of a step, which the next attempt does again: readers would take the part for the whole.
        """
        if kind is None:
            self.close()
            return
        for column in (self._steps, self._layers, self._names, self._values, self._times):
            del column[self._whole :]
        try:
            self.close()
        except (OSError, pa.ArrowException):  # the disk may be the reason: what was raised first says more
            self._file.close()


def continue_from(folder: Path, trunk: Path, step: int) -> None:
    """Let a journal hold what another recorded of training up to a step, after what it holds of that itself."""
    own = read_journal(folder)["step"]
    last = own[-1].as_py() if len(own) else 0
    if last >= step:
        return
    rows = read_journal(trunk)
    between = pc.and_(pc.greater(rows["step"], last), pc.less_equal(rows["step"], step))
    with Journal(folder) as journal:
        journal.append(rows.filter(pc.and_(between, pc.starts_with(rows["name"], "train/"))))


def segments(folder: Path) -> list[Path]:
    """Return the segments of a journal, in the order in which they were written."""
    return sorted((path for path in folder.glob("*.arrows") if path.stem.isdecimal()), key=lambda path: int(path.stem))


class JournalTail:
    """Reads a journal as it grows: each call returns the rows since the last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}  # end of the last whole batch read
        self._last_step = -1

    def read(self) -> pa.Table:
        """Return new rows, steps ascending. Steps that a later attempt trains again are not repeated."""
        return pa.Table.from_batches(self.batches(), SCHEMA)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield new rows batch by batch, for callers that keep only a part of each."""
        for path in segments(self._folder):
            for batch in self._new_batches(path):
                if batch.num_rows and batch["step"][0].as_py() <= self._last_step:
                    batch = batch.filter(pc.greater(batch["step"], self._last_step))
                if batch.num_rows:
                    self._last_step = batch["step"][-1].as_py()
                    yield batch

    def _new_batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        begin = self._offsets.get(path, 0)
        if path.stat().st_size <= begin:
            return
        with pa.OSFile(str(path)) as file:
            file.seek(begin)
            # A stream begins with its schema, which what follows a batch does not.
            source = pa.BufferReader(_SCHEMA_MESSAGE + file.read()) if begin else file
            ahead = len(_SCHEMA_MESSAGE) if begin else 0
            for batch in _whole_batches(source):
                self._offsets[path] = begin + source.tell() - ahead
                yield batch


def read_journal(folder: Path) -> pa.Table:
    """Read all rows of a trial, steps ascending, in `SCHEMA`. Empty if it has no journal yet."""
    return JournalTail(folder).read()


def _whole_batches(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream up to its end or to where it is torn."""
    # Batches are small: to hand their columns to threads takes longer than to read them.
    options = pa.ipc.IpcReadOptions(use_threads=False)
    try:
        stream = pa.ipc.open_stream(source, options=options)
        while True:
            yield stream.read_next_batch()
    except (StopIteration, OSError, pa.ArrowInvalid):
        return


_SCHEMA_MESSAGE = SCHEMA.serialize().to_pybytes()
