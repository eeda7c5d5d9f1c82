"""A simulated world: processes, machines, a clock and a disk, in which real code runs and any moment can be the last.

Each process is a greenlet, of which one runs at a time: a seeded scheduler decides which, whenever a process touches
the disk or sleeps. So a history is a function of its seed. The files are real; what a power cut may do to them is
computed from what was fsynced. Time passes only where a process sleeps.
"""

import builtins
import errno
import fcntl
import io
import os
import random
import stat
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenlet import getcurrent, greenlet

from gatelab.results.store import lease

SWITCH = 0.1
"""Probability that another process goes on after an operation."""
START = 1_800_000_000.0
"""Seconds since 1970 at which each history begins."""


class Killed(BaseException):
    """Raised in a process that has been killed, at whatever it does next: nothing that it still does has an effect."""


@dataclass(eq=False)
class Process:
    """A simulated process."""

    name: str
    machine: str
    pid: int
    wakes_at: float = 0.0
    paused_until: float = 0.0
    killed: bool = False
    over: bool = False
    interrupted: bool = False
    result: Any = None
    open_files: dict[int, int] = field(default_factory=dict)
    """Descriptors that it may write, and their inodes."""
    leases: set[Any] = field(default_factory=set)
    thread: greenlet = field(init=False)

    def is_ready(self, now: float) -> bool:
        """Return whether it may go on."""
        return self.wakes_at <= now and self.paused_until <= now and not self.killed

    @property
    def error(self) -> str:
        """The traceback of what it died of, if that was an exception."""
        return "".join(traceback.format_exception(self.result)) if isinstance(self.result, BaseException) else ""


class _Thread(greenlet):
    """The thread of control of a process: it begins, and goes on, where the scheduler switches to it."""

    def __init__(self, process: Process, run: Callable[[], None], scheduler: greenlet) -> None:
        super().__init__(run, scheduler)
        self.process = process


class World:
    """What processes share, and the scheduler."""

    def __init__(self, seed: int, root: Path, *, locks: bool = True) -> None:
        self.random = random.Random(seed)
        self.root = root
        self.locks = locks
        self.now = 0.0
        self.operations = 0
        self.processes: list[Process] = []
        self._not_over: list[Process] = []
        """Those that have not come to their end; a history looks at them at every operation."""
        self.events: list[tuple[float, Callable[[], None]]] = []
        self.at_operation: dict[int, Callable[[], None]] = {}
        self.full = False
        self.ever_full = False
        self.skew: dict[str, float] = {}
        self.disk = Disk(root)
        self._scheduler = getcurrent()

    # processes

    def start(self, name: str, machine: str, main: Callable[[], Any]) -> Process:
        """Start a process."""
        process = Process(name, machine, 1000 + len(self.processes), wakes_at=self.now)
        self.processes.append(process)
        self._not_over.append(process)

        def run() -> None:
            try:
                self._raise_if_ended(process)
                process.result = main()
            except Killed:
                pass
            except BaseException as error:  # whatever it is, the history says so
                process.result = error
            self._end(process)

        process.thread = _Thread(process, run, self._scheduler)
        return process

    def current(self) -> Process | None:
        """Return the process that asks; None outside of the world."""
        running = getcurrent()
        return running.process if isinstance(running, _Thread) else None

    def kill(self, process: Process) -> None:
        """End a process at the point where it is (SIGKILL)."""
        if process.over or process.killed:
            return
        process.killed = True
        self._lose_files(process)
        self._switch_to(process)  # it unwinds, without effect

    def pause(self, process: Process, seconds: float) -> None:
        """Stop a process for a while (SIGSTOP, or a machine that swaps)."""
        process.paused_until = max(process.paused_until, self.now + seconds)

    def interrupt(self, process: Process) -> None:
        """Raise KeyboardInterrupt in a process at its next operation (SIGINT)."""
        process.interrupted = True
        process.wakes_at = min(process.wakes_at, self.now)

    def living(self, prefix: str = "") -> list[Process]:
        """List the processes that run and whose name begins so."""
        return [each for each in self._not_over if not each.killed and each.name.startswith(prefix)]

    def _end(self, process: Process) -> None:
        process.over = True
        self._not_over.remove(process)
        process.leases.clear()
        self._lose_files(process)

    def _lose_files(self, process: Process) -> None:
        """Close a process's files without writing what it has buffered: the kernel's locks on them end, too."""
        if not process.open_files:
            return
        nowhere = REAL.os_open(os.devnull, os.O_RDWR)
        for descriptor, inode in process.open_files.items():
            with suppress(OSError):
                if os.fstat(descriptor).st_ino == inode:
                    os.dup2(nowhere, descriptor, inheritable=False)
        REAL.close(nowhere)
        process.open_files.clear()

    # scheduling

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Let processes run until something is so; return False if it is not after so many seconds."""
        end = self.now + seconds
        while not until():
            due = next((event for event in self.events if event[0] <= self.now), None)
            if due is not None:
                self.events.remove(due)
                due[1]()
            elif ready := [each for each in self._not_over if each.is_ready(self.now)]:
                self._switch_to(self.random.choice(ready))
            else:
                times = [max(each.wakes_at, each.paused_until) for each in self.living()]
                later = min([*times, *(at for at, _ in self.events), end])
                if later >= end:
                    return until()
                self.now = later
                self._beat()
        return True

    def _switch_to(self, process: Process) -> None:
        process.thread.switch()

    def _beat(self) -> None:
        """Let the heart of every process beat that is not paused."""
        for process in self.living():
            if process.paused_until <= self.now:
                for held in process.leases:
                    held.beat()

    def _yield(self, process: Process) -> None:
        self._scheduler.switch()
        self._raise_if_ended(process)

    def _raise_if_ended(self, process: Process) -> None:
        if process.killed:
            raise Killed
        if process.interrupted:
            process.interrupted = False
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Let time pass for the process that asks."""
        process = self.current()
        assert process is not None
        if process.killed:
            raise Killed
        process.wakes_at = self.now + seconds
        self._yield(process)

    def operation(self, *, writes: bool) -> Process | None:
        """Note that a process is about to touch the disk: what was planned for this moment happens, or another goes on.

        Returns the process; None outside of the world.
        """
        process = self.current()
        if process is None:
            return None
        if process.killed:
            raise Killed
        self.operations += 1
        if (planned := self.at_operation.pop(self.operations, None)) is not None:
            self.events.insert(0, (self.now, planned))
            self._yield(process)
        elif self.random.random() < SWITCH:
            self._yield(process)
        if writes and self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return process


class Disk:
    """What of the files in a folder would survive a power cut: content that was fsynced, names whose folder was."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}
        """Inode -> content at its last fsync."""
        self.names: dict[str, dict[str, int]] = {str(root): {}}
        """Folder -> its names at its last fsync, and their inodes."""

    def fsync(self, descriptor: int) -> None:
        """Note that a file or a folder is on disk."""
        found = os.fstat(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - called so often that a Path shows
        if stat.S_ISDIR(found.st_mode):
            self.names[path] = _names(path)
        else:
            self.contents[found.st_ino] = _content(path)

    def cut(self, source: random.Random) -> None:
        """Do what a power cut may do: to every name and content that was not fsynced, independently."""
        self._cut(self.root, source)
        self.contents = {path.stat().st_ino: _content(path) for path in self.root.rglob("*") if path.is_file()}
        folders = [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]
        self.names = {str(path): _names(path) for path in folders}

    def _cut(self, folder: Path, source: random.Random) -> None:
        now = {entry.name: entry for entry in os.scandir(folder)}
        before = self.names.get(str(folder), {})
        for name in sorted(now.keys() | before.keys()):
            path = folder / name
            entry = now.get(name)
            kept = before.get(name)
            if entry is not None and (kept == entry.inode() or source.random() < 0.5):
                if entry.is_dir(follow_symlinks=False):
                    self._cut(path, source)
                else:
                    self._tear(path, entry.inode(), source)
                continue
            if entry is not None:  # its new name is lost, or never was there
                if entry.is_dir(follow_symlinks=False):
                    _remove(path)
                else:
                    REAL.unlink(path)
            if kept is not None and kept in self.contents and (entry is not None or source.random() < 0.5):
                _write(path, self.contents[kept])  # its new content, or its removal is lost

    def _tear(self, path: Path, inode: int, source: random.Random) -> None:
        """Let a part of what was written since the last fsync be on disk: all, none, a beginning, or zeros."""
        content = path.read_bytes()
        safe = self.contents.get(inode, b"")
        if content == safe or not content.startswith(safe):
            if content != safe and source.random() < 0.5:
                _write(path, safe)
            return
        rest = content[len(safe) :]
        some = rest[: source.randrange(len(rest) + 1)]
        _write(path, safe + source.choice([rest, b"", some, bytes(len(some))]))


def _names(folder: Path | str) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _content(path: Path | str) -> bytes:
    with REAL.open(path, "rb", buffering=0) as file:
        return file.readall()


def _write(path: Path, content: bytes) -> None:
    with REAL.open(path, "wb") as file:
        file.write(content)


def _remove(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _remove(Path(entry.path))
        else:
            REAL.unlink(entry.path)
    folder.rmdir()


class REAL:
    """The functions that the world stands before."""

    fsync, replace, link, unlink, mkdir = os.fsync, os.replace, os.link, os.unlink, os.mkdir
    os_open, close, utime, getpid = os.open, os.close, os.utime, os.getpid
    open = io.open
    flock = fcntl.flock
    sleep, monotonic, time, time_ns = time.sleep, time.monotonic, time.time, time.time_ns
    uuid4 = uuid.uuid4
    machine, heart = lease._machine, lease._heart


@contextmanager
def inhabited(world: World) -> Iterator[None]:
    """Let the processes of a world see its disk and its clock; everybody else sees the real ones."""

    def writing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            world.operation(writes=real is not REAL.unlink)
            return real(*arguments, **options)

        return call

    def fsync(descriptor: int) -> None:
        if world.operation(writes=True) is not None:
            world.disk.fsync(descriptor)

    def os_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        process = world.operation(writes=bool(flags & os.O_CREAT)) if flags & os.O_RDWR else None
        descriptor = REAL.os_open(path, flags, *arguments, **options)
        if process is not None:
            process.open_files[descriptor] = os.fstat(descriptor).st_ino
        return descriptor

    def open_file(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        process = world.operation(writes=True) if mode.strip("rbt") else None
        file = REAL.open(path, mode, *arguments, **options)
        if process is not None:
            process.open_files[file.fileno()] = os.fstat(file.fileno()).st_ino
        return file

    def utime(path: Any, *arguments: Any, **options: Any) -> None:
        if arguments or options or not isinstance(path, int):
            REAL.utime(path, *arguments, **options)
        else:
            REAL.utime(path, (START + world.now, START + world.now))

    def flock(descriptor: Any, operation: int) -> None:
        if world.current() is not None and not world.locks:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        REAL.flock(descriptor, operation)

    def of_world(inside: Callable[[Process], Any], outside: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            process = world.current()
            return outside() if process is None else inside(process)

        return call

    def sleep(seconds: float) -> None:
        if world.current() is None:
            REAL.sleep(seconds)
        else:
            world.sleep(seconds)

    def clock(process: Process) -> float:
        return START + world.now + world.skew.get(process.machine, 0.0)

    class Heart:
        def add(self, held: Any) -> None:
            process = world.current()
            assert process is not None
            process.leases.add(held)

        def remove(self, held: Any) -> None:
            for process in world.processes:
                process.leases.discard(held)

    ticks = iter(range(10**9))
    nonces = random.Random(0)  # a power cut goes through a folder by name: no name may be a matter of chance
    patches: list[tuple[Any, str, Any]] = [
        (os, "fsync", fsync),
        *((os, name, writing(getattr(REAL, name))) for name in ("replace", "link", "unlink", "mkdir")),
        (os, "open", os_open),
        (os, "utime", utime),
        (os, "getpid", of_world(lambda process: process.pid, REAL.getpid)),
        (io, "open", open_file),
        (builtins, "open", open_file),
        (fcntl, "flock", flock),
        (time, "sleep", sleep),
        (time, "monotonic", of_world(lambda process: world.now, REAL.monotonic)),
        (time, "time", of_world(clock, REAL.time)),
        (time, "time_ns", of_world(lambda process: int(clock(process) * 1e9) + next(ticks), REAL.time_ns)),
        (uuid, "uuid4", of_world(lambda process: uuid.UUID(int=nonces.getrandbits(128), version=4), REAL.uuid4)),
        (lease, "_machine", of_world(lambda process: process.machine, REAL.machine)),
        (lease, "_heart", Heart()),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in patches]
    for place, name, value in patches:
        setattr(place, name, value)
    try:
        yield
    finally:
        for process in world.living():
            world.kill(process)
        for place, name, value in before:
            setattr(place, name, value)
