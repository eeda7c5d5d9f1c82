"""Writing files so that a reader, or a power cut, finds the old content or the new one, never a part of it."""

import fnmatch
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder where there is none, and return when its name, and those of the folders above, are on disk."""
    made, above = [path], path.parent  # the folder may be there, its name not yet on disk
    while not above.exists():
        made.append(above)
        above = above.parent
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        fsync(folder.parent)


def names_in(folder: Path) -> list[str]:
    """List the names in a folder, in no order; none where there is no folder, or none that this user may read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write, which takes the place of `path`, durably and at once, unless an exception is raised.

    Makes the folder where there is none.
    """
    if not path.parent.is_dir():
        make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # readers of a folder overlook a leading dot
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path, unchanged_seconds: float = 0.0) -> None:
    """Remove the temporary files that killed processes have left in a folder.

    Those of a process that still writes go with them, unless it holds a lock on the folder that the caller would need,
    or `unchanged_seconds` is more than any write takes.
    """
    for name in fnmatch.filter(names_in(folder), ".*.tmp"):
        path = folder / name
        try:
            if time.time() - path.stat().st_mtime >= unchanged_seconds:
                path.unlink()
        except FileNotFoundError:  # its process has just finished with it
            continue
