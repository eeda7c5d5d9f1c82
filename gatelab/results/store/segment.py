"""The format of a journal's segment: an Arrow IPC stream whose messages each carry a seal, a checksum of their bytes.

Arrow checks no bytes itself: a flipped bit is another number, or the end of the process. Here nothing reaches its
decoder whose seal is not right. Segments of version 1 have no seals; they are read with every check that Arrow has.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("layer", pa.int16()),  # null: of the whole model
        pa.field("name", pa.utf8(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("time", pa.timestamp("ms"), nullable=False),
    ],
    metadata={"gatelab.journal": "2"},
)

END = struct.pack("<II", 0xFFFFFFFF, 0)
"""Ends a stream."""

_PREFIX = struct.Struct("<II")  # of a message: a mark, and the length of its metadata
_MARK = b"\xff\xff\xff\xff"
_SEAL, _DIGITS = b"gatelab seal ", 8  # then length of the message, its number and CRC-32, so many digits of hex each
_UNSEALED = _SEAL + b"0" * 3 * _DIGITS
_SEAL_KEY = "gatelab.seal"
_LARGEST_METADATA = 1 << 16
_SMALL = 8
"""Rows of a batch that compression would make no smaller, and ten times slower to write and to read."""
_SCHEMA_MESSAGE = SCHEMA.serialize().to_pybytes()


def segment_head(trial: str, number: int) -> bytes:
    """Return the message that begins segment `number` of a trial's journal."""
    said = {"gatelab.trial": trial, _SEAL_KEY: _UNSEALED.decode()}
    return _sealed(SCHEMA.with_metadata(SCHEMA.metadata | said).serialize().to_pybytes(), number)


def batch_message(batch: pa.RecordBatch, number: int) -> bytes:
    """Return the message of batch `number` of a segment, in `SCHEMA`."""
    sink = pa.BufferOutputStream()
    # Batches are small: to hand their columns to threads takes longer than to compress them.
    options = pa.ipc.IpcWriteOptions(compression="zstd" if len(batch) > _SMALL else None, use_threads=False)
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as stream:
        stream.write_batch(batch, custom_metadata={_SEAL_KEY: _UNSEALED.decode()})
    return _sealed(sink.getvalue().to_pybytes()[len(_SCHEMA_MESSAGE) : -len(END)], number)


def _sealed(message: bytes, number: int) -> bytes:
    begin = message.index(_UNSEALED) + len(_SEAL)
    place = begin + 2 * _DIGITS
    numbered = message[:begin] + b"%08x%08x" % (len(message), number) + message[place:]
    return numbered[:place] + b"%08x" % zlib.crc32(numbered) + numbered[place + _DIGITS :]


def _check(content: bytes, start: int) -> tuple[int, int] | None:
    """Return the end and the number of the message that begins here; None unless there is a whole one, rightly sealed.

    The CRC is that of the message with zeros in its own place.
    """
    if content[start : start + 4] != _MARK or start + _PREFIX.size > len(content):
        return None
    _, length = _PREFIX.unpack_from(content, start)
    begin = content.find(_SEAL, start, start + _PREFIX.size + min(length, _LARGEST_METADATA)) + len(_SEAL)
    if begin < len(_SEAL):
        return None
    place = begin + 2 * _DIGITS
    digits = content[begin : place + _DIGITS]
    try:
        size, number, crc = (int(digits[at : at + _DIGITS], 16) for at in range(0, 3 * _DIGITS, _DIGITS))
    except ValueError:
        return None
    end = start + size
    if not place + _DIGITS <= end <= len(content):
        return None
    view = memoryview(content)
    found = zlib.crc32(view[place + _DIGITS : end], zlib.crc32(b"0" * _DIGITS, zlib.crc32(view[start:place])))
    return (end, number) if found == crc else None


@dataclass(frozen=True)
class _Extent:
    """Where a batch lies in what was read, and whether anything between the one before and it is missing."""

    start: int
    end: int
    number: int
    follows: bool


class SegmentReader:
    """Reads one segment as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_cut = False
        """True if the segment was written to its end, and what lies before the end cannot be read."""
        self.is_ended = False
        """True if it was written to its end: the process that wrote it was not killed."""
        self._offset = 0  # end of the last whole message read, the head among them
        self._number = 0  # of the next batch
        self._is_sealed = True
        self._follows = True  # of the next batch: nothing before it was found to be missing

    def read(self) -> Iterator[tuple[pa.RecordBatch, bool]]:
        """Yield new whole batches, each with whether nothing is missing between the one before and it.

        A batch that is not whole yet is read by a later call.
        """
        if self.path.stat().st_size <= self._offset + (len(END) if self.is_ended else 0):
            return
        base = self._offset
        with pa.OSFile(str(self.path)) as file:
            file.seek(base)
            content = file.read()
        start = self._read_head(content) if base == 0 else 0
        if start is None:
            return
        self._offset += start
        extents = list(self._extents(content, start))
        for extent, batch in _decoded(content, extents):
            self._offset = base + extent.end
            self._number = extent.number + 1
            self._follows = self._follows and extent.follows and batch is not None
            if batch is not None and len(batch):
                yield batch, self._follows
                self._follows = True
        whole = self._offset - base if extents else start
        self.is_ended = content.endswith(END)
        self.is_cut = self.is_ended and whole < len(content) - len(END)

    def _read_head(self, content: bytes) -> int | None:
        """Return the end of the head; None where the segment is of another place, or has only begun."""
        checked = _check(content, 0)
        if checked is not None:
            end, number = checked
            said = pa.ipc.read_schema(pa.py_buffer(content[:end])).metadata
            owner = said[b"gatelab.trial"].decode()
            if self.path.stem != f"{number:04d}" or owner not in ("", self.path.parent.parent.name):
                self.is_cut = True
                return None
            return end
        try:
            message = pa.ipc.read_message(pa.py_buffer(content))
            schema = pa.ipc.read_schema(message)
            if schema.equals(SCHEMA) and (schema.metadata or {}).get(b"gatelab.journal") == b"1":
                self._is_sealed = False
                return int(_PREFIX.size + message.metadata.size)
        except Exception:
            pass
        return 0  # damaged: its batches may not be

    def _extents(self, content: bytes, start: int) -> Iterator[_Extent]:
        """Yield where batches lie, as far as can be told without their content."""
        check = _check if self._is_sealed else _check_unsealed
        expected, follows = self._number, True
        while start < len(content):
            found = check(content, start)
            if found is None:
                follows = self._is_sealed  # else nothing but the place tells what is missing
                start = content.find(_MARK, start + 1)
                if start < 0:
                    return
                continue
            end, number = found
            number = number if self._is_sealed else expected
            if number >= expected:
                yield _Extent(start, end, number, follows and number == expected)
                expected, follows = number + 1, True
            start = end


def _check_unsealed(content: bytes, start: int) -> tuple[int, int] | None:
    """Return the end of the batch that begins here, and no number; None where Arrow finds no whole one."""
    if content[start : start + 4] != _MARK or content[start : start + len(END)] == END:
        return None
    try:
        message = pa.ipc.read_message(pa.py_buffer(content).slice(start))
        if message.type != "record batch":
            return None
        return start + _PREFIX.size + message.metadata.size + message.body.size, 0
    except Exception:  # Arrow raises whatever it comes upon in damaged bytes
        return None


def _decoded(content: bytes, extents: list[_Extent]) -> Iterator[tuple[_Extent, pa.RecordBatch | None]]:
    """Yield the batches that lie there; None for one that cannot be decoded."""
    # Batches are small: to hand their columns to threads takes longer than to read them.
    options = pa.ipc.IpcReadOptions(use_threads=False)
    index = 0
    while index < len(extents):
        last = index
        while last + 1 < len(extents) and extents[last + 1].start == extents[last].end:
            last += 1
        stream = None
        while index <= last:
            if stream is None:
                # A stream begins with its schema, which what follows a batch does not.
                source = _SCHEMA_MESSAGE + content[extents[index].start : extents[last].end]
                stream = pa.ipc.open_stream(pa.py_buffer(source), options=options)
            try:
                batch = stream.read_next_batch()
                batch.validate(full=True)
                whole = all(not column.null_count for column in batch.columns if column.type != pa.int16())
            except Exception:  # as above; only what has no seal comes here
                batch, whole, stream = None, False, None
            yield extents[index], batch if whole else None
            index += 1
