"""Leases: the right to write a folder, held by one process at a time, on whichever machine it runs.

A lease is a file named NAME-N, where N, its fencing token, is above that of the lease that it follows. The file appears
by an exclusive link, which only one of several processes wins on any file system; the conditional write of an object
store would serve as well. A holder checks before it writes that its lease is the newest: one that was paused, and
replaced meanwhile, writes no more.

A lease ends with its holder. On the holder's machine the kernel says so at once: it releases the lock on the file. From
another machine, or where the file system has no locks, a lease has lapsed when its heartbeat, the file's time, is
`LAPSE_SECONDS` behind the clock of the file system.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gatelab.atomic import make_folder, names_in
from gatelab.errors import GatelabError

LAPSE_SECONDS = 60.0
"""A holder on another machine that has not been heard of for so long has lost its lease."""
BEAT_SECONDS = 10.0
"""Between two heartbeats."""

RECHECKS = (0.0, 0.01, 0.1)
"""Seconds before each look at a lease that seems lost: one who took it by mistake gives it up at once."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease."""

    host: str
    pid: int
    since: float
    """Seconds since 1970, by its own clock."""
    machine: str = ""
    """What tells a machine, since it was started, from all others."""
    nonce: str = ""
    """What tells this lease from all others."""

    def to_bytes(self) -> bytes:
        """Return the content of its lease."""
        return json.dumps(vars(self)).encode()

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host}, since {when}"


class Held(GatelabError):
    """A lease that another process holds."""

    def __init__(self, holder: Holder, path: Path) -> None:
        super().__init__(f"held by {holder} ({path})")
        self.holder = holder


class LeaseLost(GatelabError):
    """A lease that another process has taken over: nothing more may be written under it."""


class Lease:
    """The right to write a folder. Made by `acquire`; a context, at whose end it is released."""

    def __init__(self, path: Path, holder: Holder, descriptor: int) -> None:
        self.path, self.holder = path, holder
        self._content, self._descriptor = holder.to_bytes(), descriptor
        _heart.add(self)

    def check(self) -> None:
        """Return if the lease still holds. Raises LeaseLost."""
        for seconds in RECHECKS:
            if seconds:
                time.sleep(seconds)
            known = _leases(self.path.parent, self.path.name.rpartition("-")[0])
            if known and known[-1] == self.path and self._is_ours():
                return
        by = f" by {follower}" if known and (follower := _read(known[-1])) else ""
        raise LeaseLost(f"{self.path.parent} was taken over{by}: this process had not been heard of")

    def beat(self) -> None:
        """Say that the holder is alive."""
        with contextlib.suppress(OSError):  # a disk that is away now may be back at the next beat
            os.utime(self._descriptor)

    def clock(self) -> float:
        """Return the time by the clock of the file system, which all machines share."""
        self.beat()
        return os.fstat(self._descriptor).st_mtime

    def release(self) -> None:
        """End the lease."""
        _heart.remove(self)
        if self._is_ours():  # not that of a follower
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _is_ours(self) -> bool:
        try:
            return self.path.read_bytes() == self._content
        except OSError:
            return False

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def acquire(folder: Path, name: str = "lease", wait_seconds: float = 0.0) -> Lease:
    """Take the lease of a folder, which is made where there is none, and whose name is on disk then.

    Raises Held if another process holds it, and still does after `wait_seconds`.
    """
    make_folder(folder)
    until = time.monotonic() + wait_seconds
    while True:
        try:
            return _acquire(folder, name)
        except FileNotFoundError:  # it was paused for so long that its temporary file counted as that of a dead process
            make_folder(folder)
        except Held:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)


def holder_of(folder: Path, name: str = "lease", now: float | None = None) -> Holder | None:
    """Return who holds the lease of a folder; None if nobody does.

    `now` is the time by the clock of the file system. By default it is this machine's, whose clock may be another.
    """
    leases = _leases(folder, name)
    return _alive(leases[-1], time.time() if now is None else now) if leases else None


def _acquire(folder: Path, name: str) -> Lease:
    holder = Holder(socket.gethostname(), os.getpid(), time.time(), _machine(), uuid.uuid4().hex)
    temporary = folder / f".{name}.{holder.nonce}.tmp"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    try:
        try:
            # Before the file says whose it is: one that says so and is seen unlocked has no holder.
            _try_lock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, holder.to_bytes())
            os.utime(descriptor)  # the time by the clock of the file system
            now = os.fstat(descriptor).st_mtime
            path = _link(temporary, folder, name, now)
            for other in folder.glob(f".{name}.*.tmp"):
                if _alive(other, now) is None:  # of a process that was killed as it asked for the lease
                    other.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)
    except BaseException:
        os.close(descriptor)
        raise
    return Lease(path, holder, descriptor)


def _link(temporary: Path, folder: Path, name: str, now: float) -> Path:
    """Give a lease its name, and remove those that it follows. Raises Held."""
    while True:
        before = _leases(folder, name)
        for path in before:
            if (other := _alive(path, now)) is not None:
                raise Held(other, path)
        token = 1 + (_token(before[-1]) if before else 0)
        mine = folder / f"{name}-{token:06d}"
        try:
            mine.hardlink_to(temporary)
        except FileExistsError:
            continue  # another process was faster
        # Another may have begun when there was another state, and have come to an end just now.
        others = [path for path in _leases(folder, name) if path != mine]
        holders = [found for path in others if (found := _alive(path, now)) is not None]
        if holders or any(_token(path) > token for path in others):
            mine.unlink()
            if holders:
                raise Held(holders[0], mine)
            continue
        for path in others:
            path.unlink(missing_ok=True)
        return mine


def _leases(folder: Path, name: str) -> list[Path]:
    """List the leases of a folder, the newest last."""
    numbers = [each.removeprefix(f"{name}-") for each in names_in(folder) if each.startswith(f"{name}-")]
    return [folder / f"{name}-{number}" for number in sorted(filter(str.isdecimal, numbers), key=int)]


def _token(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _alive(path: Path, now: float) -> Holder | None:
    """Return the holder of a lease, or None if it has ended; `now` is the time by the clock of the file system."""
    descriptor: int | None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError:  # of another user, for example
        descriptor = None
    try:
        beat = path.stat().st_mtime
        holder = _read(path) or Holder("another machine", 0, beat)
        if descriptor is not None and holder.machine == _machine():  # else it may be about to lock the file itself
            free = _try_lock(descriptor, fcntl.LOCK_SH)
            if free is not None:
                return None if free else holder
        return holder if now - beat <= LAPSE_SECONDS else None
    except FileNotFoundError:
        return None
    finally:
        if descriptor is not None:
            os.close(descriptor)  # and with it the lock


def _try_lock(descriptor: int, kind: int) -> bool | None:
    """Lock a file, and return whether that was possible; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class _Heart:
    """A thread that beats for every lease of this process."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Beat for nobody yet. A process that was forked has no thread, and does not hold its parent's leases."""
        self._leases: set[Lease] = set()
        self._change = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        with self._change:
            self._leases.add(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()

    def remove(self, lease: Lease) -> None:
        with self._change:
            self._leases.discard(lease)

    def _run(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self._change:  # so that none is released, and its descriptor used again, between two lines
                for lease in self._leases:
                    lease.beat()


_heart = _Heart()
os.register_at_fork(after_in_child=_heart.begin)
