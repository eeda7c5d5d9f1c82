"""A study that is run to its end while processes are killed around it, and its commands given again."""

import contextlib
import functools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gatelab.errors import GatelabError
from gatelab.orchestrator.chaos.history import Sightings
from gatelab.orchestrator.chaos.kills import Kill, Moment, Victim
from gatelab.orchestrator.chaos.processes import Processes
from gatelab.orchestrator.chaos.tracking_server import TrackingServer
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import holder_of
from gatelab.results.store.records import Outcome
from gatelab.status import Status

LOOK_SECONDS = 0.1
"""Between two looks at files and processes."""
WATCH_SECONDS = 0.001
"""Between two looks for a write to break into."""
PATIENCE_SECONDS = 10.0
"""A write, or a process, that does not show for so long is not waited for any more."""
HUNG_SECONDS = 300.0
"""A command that writes nothing for so long is hung."""
ORPHAN_SECONDS = 30.0
"""Processes that live for so long after the last command were forgotten."""
SOME_FAILED = 1
"""Exit code of a command that has come to its end, though some of its trials failed."""
UNEXPLAINED = 3
"""A command that fails so often in a row, though nothing was done to it, does not come to its end."""


@dataclass(frozen=True)
class Delivered:
    """Something that was done to a study."""

    name: str
    """Its kind: the victim, and the signal if it is a process."""
    is_kill: bool
    """True if it ended, or asked to end, a process."""
    moment: str
    command: str
    seconds: float
    """From the beginning."""


@dataclass
class Account:
    """What happened while a study was run."""

    seconds: float = 0.0
    """Until every command had come to its end."""
    starts: int = 0
    """How often a command was started."""
    ends: dict[str, int] = field(default_factory=dict)
    """Command that has come to its end -> its exit code then."""
    delivered: list[Delivered] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What would have left a person without results: a command that hangs, or that never comes to its end."""
    notes: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Count the kills of processes."""
        return sum(each.is_kill for each in self.delivered)


class Stuck(GatelabError):
    """A command that does not come to its end."""


class Storm:
    """Gives commands, disturbs them, and gives them again until each has come to its end.

    Args:
        commands: each a name and its arguments.
        folder: the runs folder that they write.
        plan: what is done to them.
        kills: how many processes are killed at most.
        ends: the exit code of each command undisturbed; trials of one that is not named may fail.
        server: the tracking server that they write to, which runs; None: they write to a file.
        log: where what they print is written.
        environment: theirs.
        tell: is given a line for each thing that is done to them.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        folder: RunsFolder,
        plan: Iterator[Kill],
        kills: int,
        ends: Mapping[str, int],
        server: TrackingServer | None,
        log: Path,
        environment: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self._commands, self._folder, self._plan, self._most, self._ends = commands, folder, plan, kills, ends
        self._server, self._log, self._environment, self._tell = server, log, environment, tell
        self._processes = Processes()
        self._next_kill: Kill | None = None
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._command = ""
        self._begun = time.monotonic()
        self._news: tuple[object, float] = None, self._begun
        self.sightings = Sightings(folder)
        self.account = Account()

    def run(self) -> None:
        """Run everything; what happened is in `account` and `sightings`."""
        try:
            for name, command in self._commands.items():
                self._until_done(name, command)
            self.account.seconds = time.monotonic() - self._begun
            self._finish_later()
            for name, command in self._commands.items():  # as a person is told to where MLflow was away
                self._once_more(name, command)
            left = self._processes.left_after(ORPHAN_SECONDS)
            self.account.notes += [f"still lived after {ORPHAN_SECONDS:g} s: {title[:100]}" for title in left]
        except Stuck as error:
            self.account.seconds = time.monotonic() - self._begun
            self.account.problems.append(str(error))
        finally:
            self._do_due(all_of_it=True)
            self._processes.end_all()
        self.sightings.look()

    def _until_done(self, name: str, command: Sequence[str]) -> None:
        unexplained = 0
        while True:
            driver = self._start(name, command)
            hit = False
            while driver.poll() is None:
                kill = self._wanted()
                if kill is None:
                    self._tick(driver)
                elif (struck := self._await_and_strike(kill, driver)) is not None:
                    self._next_kill = None  # done, or there was nothing to hit
                    hit |= struck
            if driver.returncode == 0 or (not hit and self._fails_always(name, driver.returncode)):
                self.account.ends[name] = driver.returncode
                return
            unexplained = 0 if hit else unexplained + 1
            if unexplained == UNEXPLAINED:
                raise Stuck(
                    f"{name}: ended with {driver.returncode} though nothing was done to it: {self._last_line()}"
                )
            self._pause(driver.pid % 20 / 10)  # orphans of this one may meet the next

    def _fails_always(self, name: str, code: int) -> bool:
        """Return whether a command has come to its end though some of its trials failed, as they do undisturbed."""
        trials = (self._folder.trial(Path(path).name) for path in _folders(self._folder.trials))
        outcomes = (Outcome.read(files.outcome) for files in trials)
        failed = any(outcome is not None and outcome.status is Status.FAILED for outcome in outcomes)
        return code == SOME_FAILED == self._ends.get(name, SOME_FAILED) and failed

    def _once_more(self, name: str, command: Sequence[str]) -> None:
        driver = self._start(name, command)
        while driver.poll() is None:
            self._tick(driver)
        if driver.returncode != self.account.ends[name]:
            raise Stuck(f"{name}: given again after its end, ended with {driver.returncode}: {self._last_line()}")

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        self._command = name
        self.account.starts += 1
        self._news = None, time.monotonic()
        return self._processes.start(command, self._log, self._environment)

    def _wanted(self) -> Kill | None:
        """Return what is to be done next; None once there were enough kills."""
        if self.account.kills >= self._most:
            return None
        if self._next_kill is None:
            self._next_kill = next(self._plan)
        return self._next_kill

    def _tick(self, driver: subprocess.Popen[bytes]) -> None:
        """Look around. Raises Stuck if nothing has happened for too long."""
        self._do_due()
        self.sightings.look()
        state = self._files()
        if state != self._news[0]:
            self._news = state, time.monotonic()
        elif time.monotonic() - self._news[1] > HUNG_SECONDS:
            raise Stuck(f"{self._command}: wrote nothing for {HUNG_SECONDS:g} s: {self._last_line()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(LOOK_SECONDS)

    def _await_and_strike(self, kill: Kill, driver: subprocess.Popen[bytes]) -> bool | None:
        """Wait for the moment of a kill; return whether it hit, or None if the driver has ended before."""
        while not (kill.at_start or self._processes.workers()):
            self._tick(driver)
            if driver.returncode is not None:
                return None
        until = time.monotonic() + kill.after
        while time.monotonic() < until:
            self._tick(driver)
            if driver.returncode is not None:
                return None
        writer = 0
        if kill.moment is not Moment.ANY:
            writer = self._await_write(kill, driver)
            if driver.poll() is not None:
                return None
        return self._strike(kill, driver, writer)

    def _await_write(self, kill: Kill, driver: subprocess.Popen[bytes]) -> int:
        """Return the process that is just writing, as soon as there is one that may be hit; 0: there was none."""
        until = time.monotonic() + PATIENCE_SECONDS
        sizes = self._segments()
        while time.monotonic() < until and driver.poll() is None:
            self._do_due()
            for writer in self._writers(kill.moment, sizes):
                fits = writer == driver.pid if kill.victim is Victim.DRIVER else writer != driver.pid
                if (fits or kill.moment is Moment.JOURNAL) and self._processes.owns(writer):
                    return writer
            time.sleep(WATCH_SECONDS)
        return 0

    def _writers(self, moment: Moment, sizes: dict[str, int]) -> Iterator[int]:
        """Yield the processes that are just writing a file, or a segment that has grown beyond the known sizes."""
        if moment is Moment.FILE:
            for entry in _walk(self._folder.root):
                if entry.name.endswith(".tmp") and (owner := entry.name.split(".")[-2]).isdecimal():
                    yield int(owner)
            return
        for path, size in self._segments().items():
            if sizes.get(path) != size:
                sizes[path] = size
                if (holder := holder_of(Path(path).parent.parent)) is not None:
                    yield holder.pid

    def _segments(self) -> dict[str, int]:
        found = {}
        for trial in _folders(self._folder.root / "trials"):
            for entry in _walk(Path(trial) / "journal"):
                with contextlib.suppress(OSError):
                    found[entry.path] = entry.stat().st_size
        return found

    def _strike(self, kill: Kill, driver: subprocess.Popen[bytes], writer: int) -> bool:
        """Do what is planned; return whether there was something to do it to."""
        hit = self._signal(kill, driver, writer) if kill.victim.is_process else self._spoil(kill)
        if hit:
            moment = kill.moment if writer or kill.moment is Moment.ANY else Moment.ANY
            seconds = round(time.monotonic() - self._begun, 2)
            done = Delivered(kill.name, kill.victim.is_process, moment, self._command, seconds)
            self.account.delivered.append(done)
            self._tell(f"  {seconds:7.1f} s  {self._command}: {kill.name} {moment}")
        return hit

    def _signal(self, kill: Kill, driver: subprocess.Popen[bytes], writer: int) -> bool:
        assert kill.signal is not None
        if kill.victim is Victim.SERVER:
            assert self._server is not None
            self._after(kill.lasts, self._server.start)
            return self._server.kill()
        if kill.victim is Victim.DRIVER and kill.signal is signal.SIGINT:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
            return True
        targets = self._targets(kill.victim, driver, writer)
        hit = [pid for pid in targets if self._processes.send(pid, kill.signal)]
        if kill.signal is signal.SIGSTOP:
            for pid in hit:
                self._after(kill.lasts, functools.partial(self._processes.send, pid, signal.SIGKILL))
        return bool(hit)

    def _targets(self, victim: Victim, driver: subprocess.Popen[bytes], writer: int) -> list[int]:
        if victim is Victim.DRIVER:
            return [driver.pid]
        if victim is Victim.EVERYTHING:
            return [process.pid for process in self._processes.living()]
        if victim is Victim.WORKER:
            workers = [writer] if writer else self._processes.workers()
            return random.Random(driver.pid).sample(workers, min(1, len(workers)))
        return self._processes.named("raylet" if victim is Victim.RAYLET else "gcs_server")

    def _spoil(self, kill: Kill) -> bool:
        """Lock or delete the tracking store, or fill the disk."""
        database = self._folder.database if self._server is None else self._server.database
        if kill.victim is Victim.FULL:
            filler = self._folder.root.parent / "filler"
            self._folder.root.parent.mkdir(parents=True, exist_ok=True)
            fill(filler)
            self._after(kill.lasts, lambda: filler.unlink(missing_ok=True))
            return True
        if not database.exists():
            return False
        if kill.victim is Victim.DELETED:
            for path in database.parent.glob(f"{database.name}*"):
                path.unlink()
            return True
        connection = sqlite3.connect(database, timeout=1.0)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error:
            connection.close()
            return False
        self._after(kill.lasts, connection.close)
        return True

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, call))

    def _do_due(self, *, all_of_it: bool = False) -> None:
        now = time.monotonic()
        due = [entry for entry in self._later if all_of_it or entry[0] <= now]
        self._later = [entry for entry in self._later if entry not in due]
        for _, call in due:
            call()

    def _finish_later(self) -> None:
        self._do_due(all_of_it=True)
        if self._server is not None:
            self._server.start()
            self._server.wait()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._do_due()
            self.sightings.look()
            time.sleep(LOOK_SECONDS)

    def _files(self) -> object:
        """Return what changes as anything is written; logs of Ray's processes are not there."""
        stats = []
        for entry in _walk(self._folder.root):
            with contextlib.suppress(OSError):
                stat = entry.stat()
                stats.append((entry.path, stat.st_size, stat.st_mtime_ns))
        return hash(tuple(sorted(entry for entry in stats if "lease-" not in entry[0])))

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it has printed nothing"


def fill(path: Path) -> None:
    """Write a file that leaves nothing of its disk."""
    free = shutil.disk_usage(path.parent).free
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        block = bytes(1 << 16)
        while free > -(1 << 20):
            free -= file.write(block)


SKIPPED = ("mlflow-artifacts", "data")
"""Folders in which nobody looks for writes."""


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the files beneath a folder that are there; one that vanishes meanwhile is left out."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in SKIPPED:
                yield from _walk(entry.path)
        else:
            yield entry


def _folders(folder: Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []
