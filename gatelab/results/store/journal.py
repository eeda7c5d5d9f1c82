"""The journal: the append-only record that a trial writes as it trains, and the source of every curve.

Tables that compare trials are made from outcome.json, which sums a trial up.

Each attempt at a trial writes a segment of its own; see `segment` for its format. A crash leaves at worst a torn last
batch, which readers leave out. Steps never decrease within a segment, and a batch never ends within a step.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gatelab.atomic import fsync, make_folder, names_in
from gatelab.results.store.segment import END, SCHEMA, SegmentReader, batch_message, segment_head

FLUSH_SECONDS = 2.0
"""A trial's latest values are on disk, fsynced, at most this long (and one look) after they were recorded."""


class Journal:
    """Writes one segment. A `Recorder` for the training loop.

    Args:
        folder: of the journal, which is made if there is none.
        flush_seconds: the time between two writes.
        trial: id of the trial, so that a segment is not taken for one of another trial. '': it may be any.
        fence: is called before anything is written, and raises if this process may not write any more.
    """

    def __init__(
        self,
        folder: Path,
        flush_seconds: float = FLUSH_SECONDS,
        trial: str = "",
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        self._fence = fence
        make_folder(folder)
        number = max((int(path.stem) for path in segments(folder)), default=-1) + 1
        self._file = (folder / f"{number:04d}.arrows").open("xb", buffering=0)
        self._batches = 0  # written
        self._write(segment_head(trial, number))
        fsync(folder)  # a file whose name is not on disk is lost with the power
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
            self._write_batch(batch)

    def flush(self) -> None:
        """Write what was recorded if the last write is long enough ago. Call it between steps."""
        self._whole = len(self._steps)
        if time.monotonic() - self._written_at >= self._flush_seconds:
            self.commit()

    def commit(self) -> None:
        """Return when everything recorded so far is on disk."""
        self._fence()
        if self._steps:
            columns = [self._steps, self._layers, self._names, self._values, self._times]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            self._write_batch(pa.record_batch(arrays, schema=SCHEMA))
            self._clear()
        os.fsync(self._file.fileno())
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Commit and end the segment."""
        self.commit()
        self._write(END)
        self._file.close()

    def _write_batch(self, batch: pa.RecordBatch) -> None:
        self._write(batch_message(batch, self._batches))
        self._batches += 1

    def _write(self, message: bytes) -> None:
        """Write a message, or nothing: what would come after a part of it could not be told from damage."""
        begin, left = self._file.tell(), memoryview(message)
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException:
            self._file.truncate(begin)
            self._file.seek(begin)
            raise

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


def continue_from(folder: Path, trunk: Path, step: int, trial: str = "") -> int:
    """Let the journal of a trial hold what another recorded of training up to a step, after what it holds itself.

    Returns the step up to which it holds every row.
    """
    own = read_journal(folder)["step"]
    last = own[-1].as_py() if len(own) else 0
    if last >= step:
        return last
    tail = JournalTail(trunk)
    rows = tail.read()
    between = pc.and_(pc.greater(rows["step"], last), pc.less_equal(rows["step"], min(step, tail.whole_steps)))
    with Journal(folder, trial=trial) as journal:
        journal.append(rows.filter(pc.and_(between, pc.starts_with(rows["name"], "train/"))))
    return max(last, min(step, tail.whole_steps))


def mend(folder: Path, trial: str = "") -> int:
    """Make a journal whole again as far as it is whole; return the step up to which it holds every row.

    Damaged segments, and those after them, are set aside: `NNNN.arrows.damaged`. What they hold of steps before the
    damage is written anew; the steps after it have to be trained again. For whoever holds the trial's lock.
    """
    tail = JournalTail(folder)
    rows = tail.read()
    if tail.lost:
        old = segments(folder)
        with Journal(folder, trial=trial) as journal:
            journal.append(rows.filter(pc.less_equal(rows["step"], tail.whole_steps)))
        for path in reversed(old):  # whichever are left by a kill, with the new one they hold the same
            path.rename(path.with_name(f"{path.name}.damaged"))
        fsync(folder)
    return tail.whole_steps


def compact(folder: Path, trial: str = "", fence: Callable[[], None] = lambda: None) -> None:
    """Make one segment of several, unless anything in them is lost. For whoever holds the trial's lease."""
    old = segments(folder)
    if len(old) < 2:
        return
    tail = JournalTail(folder)
    rows = tail.read()
    if tail.lost:
        return
    with Journal(folder, trial=trial, fence=fence) as journal:
        journal.append(rows)
    for path in reversed(old):  # whichever are left by a kill, with the new one they hold the same
        path.unlink()
    fsync(folder)


def segments(folder: Path) -> list[Path]:
    """Return the segments of a journal, in the order in which they were written."""
    numbers = [name.removesuffix(".arrows") for name in names_in(folder) if name.endswith(".arrows")]
    return [folder / f"{number}.arrows" for number in sorted(filter(str.isdecimal, numbers), key=int)]


@dataclass(frozen=True)
class Loss:
    """Rows that a journal does not hold any more."""

    path: Path
    """The segment that is damaged, or before which rows are missing."""
    first: int
    """The first step whose rows are lost."""
    last: int | None
    """The last one; None: all from the first on."""

    def __str__(self) -> str:
        steps = f"from step {self.first} on" if self.last is None else f"of steps {self.first} to {self.last}"
        return f"{self.path} is damaged, or what came before it: the trial's values {steps} are lost"


class JournalTail:
    """Reads a journal as it grows: each call returns the rows since the last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: dict[Path, SegmentReader] = {}
        self._last_step = -1
        self._gaps: list[Loss] = []
        self._cut: Path | None = None  # the segment after whose rows there were others, which no later one has

    def read(self) -> pa.Table:
        """Return new rows, steps ascending. Steps that a later attempt trains again are not repeated."""
        return pa.Table.from_batches(self.batches(), SCHEMA)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield new rows batch by batch, for callers that keep only a part of each."""
        while True:
            try:
                yield from self._batches()
                return
            except FileNotFoundError:  # the trial has come to its end: one segment has taken the place of several
                continue

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for path in segments(self._folder):
            reader = self._readers.get(path)
            begins = reader is None and bool(self._readers)
            if reader is None:
                reader = self._readers[path] = SegmentReader(path)
            for batch, follows in reader.read():
                first, last = batch["step"][0].as_py(), batch["step"][-1].as_py()
                # Every step of training leaves a row, and an attempt goes on where the last one was, or before.
                if (begins or not follows) and first > self._next_step:
                    self._gaps.append(Loss(path, self._next_step, first - 1))
                begins = False
                if first <= self._last_step:
                    batch = batch.filter(pc.greater(batch["step"], self._last_step))
                if len(batch):
                    self._last_step, self._cut = last, None
                    yield batch
            if reader.is_cut:
                self._cut = path

    @property
    def torn(self) -> Path | None:
        """The last segment, if it ends as that of a process that was killed, or that is still at work."""
        path, reader = next(reversed(self._readers.items()), (None, None))
        return path if reader is not None and not reader.is_ended else None

    @property
    def lost(self) -> list[Loss]:
        """What was found to be lost in what has been read so far. The torn end that a crash leaves is no loss."""
        return self._gaps if self._cut is None else [*self._gaps, Loss(self._cut, self._next_step, None)]

    @property
    def whole_steps(self) -> int:
        """The step up to which every row is there, as far as has been read."""
        return (self.lost[0].first if self.lost else self._next_step) - 1

    @property
    def _next_step(self) -> int:
        return max(self._last_step, 0) + 1


def read_journal(folder: Path) -> pa.Table:
    """Read all rows of a trial, steps ascending, in `SCHEMA`. Empty if it has no journal yet."""
    return JournalTail(folder).read()
