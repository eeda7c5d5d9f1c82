"""What prepared data are made of: the manifest beside the tokens, and checksums that tell whether they are whole."""

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from gatelab.checksums import content_checksum, with_checksum
from gatelab.errors import DataError
from gatelab.training.source_files import Skipped

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
"""The tokenizer that the text was tokenised with; there is no such file for bytes."""
DOCUMENTS = "validation-documents.npy"
"""File of the validation documents, `[documents, 2]` int64: tokens, and index of the domain in alphabetical order."""
READ_BYTES = 1 << 22  # at a time


class DamagedData(DataError):
    """Prepared data that are not as gatelab wrote them."""


def damaged(folder: Path, what: str) -> DamagedData:
    """Return the error for prepared data of which something is damaged."""
    again = "gatelab data STUDY prepares them anew where the source still holds the same"
    return DamagedData(f"the prepared data in {folder} are damaged ({what}): {again}")


_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


@dataclass(frozen=True)
class SplitCounts:
    """Size of one part of the data."""

    documents: _Count
    bytes: _Count
    tokens: Annotated[_Count, Field(gt=0)]  # each document ends in one
    lost_bytes: _Count | None = None
    """Bytes that the tokens do not give back; None: not counted, in data of older versions."""

    @property
    def lost_share(self) -> float:
        """Share of the bytes that is lost, as far as it is known."""
        return (self.lost_bytes or 0) / max(self.bytes, 1)


@dataclass(frozen=True)
class Manifest:
    """What prepared data are made of."""

    identity: str
    source: str
    source_digest: str
    tokenizer: str
    tokenizer_digest: str
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    train: SplitCounts
    validation: SplitCounts
    domains: dict[str, SplitCounts]  # of the validation part; empty where all text is of one domain
    skipped: list[Skipped]
    checksums: dict[str, str] | None = None
    """CRC-32 of each of the other files, in hexadecimal; None: not there, in data of older versions."""


_ADAPTER = TypeAdapter(Manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest, with a checksum of its own."""
    text = json.dumps(with_checksum(asdict(manifest)), indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of prepared data. Raises DataError if there are none in the folder, or DamagedData."""
    try:
        raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        checksum = raw.pop("checksum", None)
        manifest = _ADAPTER.validate_python(raw)
    except FileNotFoundError as error:
        raise DataError(f"there are no prepared data in {folder}: gatelab data STUDY prepares them") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(folder, MANIFEST) from error
    if (checksum is None) != (manifest.checksums is None) or checksum not in (None, content_checksum(raw)):
        raise damaged(folder, MANIFEST)
    return manifest


def file_checksums(paths: Iterable[Path]) -> dict[str, str]:
    """Return the CRC-32 of files, by name."""
    return {path.name: _file_checksum(path) for path in sorted(paths)}


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise DamagedData unless the files of prepared data are as they were written, as far as checksums tell."""
    for name, checksum in (manifest.checksums or {}).items():
        try:
            found = _file_checksum(folder / name)
        except OSError as error:
            raise damaged(folder, f"{name}: {error.strerror}") from error
        if found != checksum:
            raise damaged(folder, name)


_known: dict[tuple[int, int, int, int], str] = {}  # device, inode, size and time of a file -> its checksum


def _file_checksum(path: Path) -> str:
    """Return the CRC-32 of a file's content, in hexadecimal; it is read again only after it changed."""
    stat = path.stat()
    key = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key not in _known:
        checksum = 0
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                checksum = zlib.crc32(block, checksum)
        _known[key] = f"{checksum:08x}"
    return _known[key]
