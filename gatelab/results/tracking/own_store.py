"""The default store: a SQLite file in the runs folder. As a copy of the journals, it can be mended or made again.

A store that people name is theirs: nothing here touches it.
"""

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import filelock
from mlflow.tracking import MlflowClient
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from gatelab.atomic import fsync, replacing
from gatelab.results.store.layout import RunsFolder, StudyFolder
from gatelab.results.tracking.address import StoreUnavailable, reason, root_cause

LOCK_SECONDS = 120.0  # for another process to create the store

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file that is no database, or no whole one."""

HALF_MADE = ("no such table", "no such column", "already exists", "duplicate column")
"""What it says of one whose tables are not MLflow's, or not all of them."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_FILE = "gatelab.file"
_unsynced: set[str] = set()
"""Stores that this process writes without waiting for the disk at each transaction: see `start_writing`."""


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that a SQLite file is not, or no longer, a store of MLflow's."""
    cause = root_cause(error)
    if not isinstance(cause, sqlite3.DatabaseError):
        return False
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in DAMAGED or any(word in str(cause) for word in HALF_MADE)


def keep(folder: RunsFolder, study: StudyFolder) -> list[str]:
    """Make sure that the default store is there and whole, and that it keeps artifacts in this runs folder.

    Call it with the study's lock held. Returns a sentence for each thing that people should know.
    """
    database = folder.database
    database.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.tracking_lock, timeout=LOCK_SECONDS):
        notes = []
        if database.exists() and _was_cut_short(study):
            notes.append(_put_aside(database, "may be incomplete, since the machine went down while it was written"))
        study.unsynced.unlink(missing_ok=True)
        _unshare(database)
        try:
            if not database.exists() or not database.stat().st_size:
                _create(database)
            _relocate(folder)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            notes.append(_put_aside(database, f"is damaged ({error})"))
            _create(database)
            _relocate(folder)
    return notes


def replace_damaged(folder: RunsFolder, error: BaseException) -> str:
    """Put a default store aside that MLflow cannot work with, and return a sentence that says so."""
    with filelock.FileLock(folder.tracking_lock, timeout=LOCK_SECONDS):
        return _put_aside(folder.database, f"is damaged ({reason(error)})")


def check_place(folder: RunsFolder) -> None:
    """Let a default store that was copied or moved keep its artifacts where it is now, before it is read.

    Raises StoreUnavailable if that cannot be corrected, or if the file is no store.
    """
    if not folder.database.exists():
        return
    try:
        if _foreign(folder):
            with filelock.FileLock(folder.tracking_lock, timeout=LOCK_SECONDS):
                _unshare(folder.database)
                _relocate(folder)
    except (sqlite3.Error, OSError) as error:
        hint = "; the next `gatelab run` makes it again from the journals" if is_damage(error) else ""
        raise StoreUnavailable(f"MLflow store {folder.database}: {reason(error)}{hint}") from error


def start_writing(folder: RunsFolder, study: StudyFolder) -> None:
    """Let connections to the store from now on not wait for the disk, and note that, for the next process to see.

    Waiting takes longer than all else that a trial costs. A process that is killed loses nothing by it; if the machine
    goes down, the note is there and the store is made again.
    """
    if not BOOT_ID.exists():
        return
    _unsynced.add(str(folder.database))
    if not study.unsynced.exists():
        with replacing(study.unsynced) as temporary:
            temporary.write_text(BOOT_ID.read_text())


def stop_writing(folder: RunsFolder, study: StudyFolder) -> None:
    """Return when what was written is on disk."""
    if study.unsynced.exists():
        fsync(folder.database)
        fsync(folder.database.parent)  # else a journal of SQLite's that was removed may be back after a power cut
        study.unsynced.unlink()


def file_id(database: Path) -> int | None:
    """Return what tells a file from another of the same name; None where there is none."""
    try:
        return database.stat().st_ino
    except FileNotFoundError:
        return None


def _was_cut_short(study: StudyFolder) -> bool:
    """Return whether the machine has gone down since it wrote to the store without waiting for the disk."""
    return study.unsynced.exists() and (not BOOT_ID.exists() or study.unsynced.read_text() != BOOT_ID.read_text())


def _put_aside(database: Path, problem: str) -> str:
    number = 1
    while (aside := database.with_name(f"{database.name}.broken-{number}")).exists():
        number += 1
    database.rename(aside)
    database.with_name(f"{database.name}-journal").unlink(missing_ok=True)
    return (
        f"MLflow store {database} {problem}: it is kept as {aside.name}, and made again from the journals, "
        "other studies when they are next run"
    )


def _unshare(database: Path) -> None:
    """Make a file that a copy of the folder shares, as a hard link, this folder's own."""
    if database.exists() and not database.is_symlink() and database.stat().st_nlink > 1:
        with replacing(database) as temporary:
            shutil.copyfile(database, temporary)


def _create(database: Path) -> None:
    """Create a store under another name first: MLflow makes its tables one after another, and may be stopped."""
    for leftover in database.parent.glob(".mlflow-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=database.parent) as workshop:
        made = Path(workshop) / database.name
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        fsync(made)
        made.replace(database)
    fsync(database.parent)


def _foreign(folder: RunsFolder) -> dict[int, tuple[str, str]]:
    """Map experiments whose artifacts lie in another runs folder to where they lie, and to where they should."""
    here = folder.artifacts.as_uri()
    with closing(sqlite3.connect(f"{folder.database.as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
    return {
        number: (location, f"{here}/{location.rpartition('/')[2] if number else name}")
        for number, name, location in found
        if elsewhere(location, folder.artifacts) or (number == 0 and location.endswith("/mlruns/0"))
    }


def elsewhere(location: str, artifacts: Path) -> bool:
    """Return whether an experiment keeps its artifacts in a runs folder that is not the one of these artifacts."""
    parent = location.rpartition("/")[0]
    return parent.startswith(("file:", "/")) and parent.endswith(f"/{artifacts.name}") and parent != artifacts.as_uri()


def _relocate(folder: RunsFolder) -> None:
    """Let experiments keep their artifacts in this runs folder: it was copied or moved, and they with it."""
    foreign = _foreign(folder)
    if not foreign:
        return
    if folder.database.is_symlink():
        raise StoreUnavailable(
            f"{folder.database} is a link to the store of another runs folder: remove it, or name a store with "
            "--tracking-uri"
        )
    with closing(sqlite3.connect(folder.database, timeout=LOCK_SECONDS)) as database, database:
        for number, (before, after) in foreign.items():
            database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (after, number))
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (after, len(before) + 1, number, len(before) + 1, f"{before}/"),
            )


@event.listens_for(Pool, "connect")
def _connected(connection: object, entry: ConnectionPoolEntry) -> None:
    """Remember which file a connection has open."""
    if not isinstance(connection, sqlite3.Connection):
        return
    path = next(iter(connection.execute("PRAGMA database_list")))[2]
    if path:
        entry.info[_FILE] = (Path(path), file_id(Path(path)))
    if path in _unsynced:
        connection.execute("PRAGMA synchronous = OFF")


@event.listens_for(Pool, "checkout")
def _checked_out(connection: object, entry: ConnectionPoolEntry, proxy: object) -> None:
    """Open a file anew if another has taken its place."""
    path, number = entry.info.get(_FILE, (None, None))
    if path is not None and file_id(path) != number:
        raise DisconnectionError(f"{path} was replaced")
