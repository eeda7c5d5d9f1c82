"""Leases: one process at a time may write a folder, whatever becomes of the others."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gatelab.results.store import lease as leases
from gatelab.results.store.lease import LAPSE_SECONDS, Held, LeaseLost, acquire, holder_of

HOLD = """
import sys, time, pathlib
from gatelab.results.store.lease import acquire
lease = acquire(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held_by_a_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lease_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Whoever comes second is told who holds it, and gets it once it is released."""
    with acquire(tmp_path) as first:
        first.check()
        with pytest.raises(Held, match=f"process {os.getpid()} on .*, since 20"):
            acquire(tmp_path)
        assert holder_of(tmp_path) == first.holder
    assert holder_of(tmp_path) is None
    with acquire(tmp_path) as second:
        second.check()
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_two_names_in_a_folder_are_two_leases(tmp_path: Path) -> None:
    """A search holds its own lease while the study in the same folder runs."""
    with acquire(tmp_path), acquire(tmp_path, "search") as search:
        search.check()
        with pytest.raises(Held):
            acquire(tmp_path, "search")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """On its own machine nobody waits for a process that is gone."""
    with held_by_a_process(tmp_path) as process:
        with pytest.raises(Held, match=f"process {process.pid} on"):
            acquire(tmp_path)
        process.send_signal(number)
        process.wait()
        with acquire(tmp_path, wait_seconds=5.0) as lease:
            lease.check()
            assert int(lease.path.name.removeprefix("lease-")) == 2  # its fencing token is above that of the dead


def test_a_stopped_process_keeps_its_lease_on_its_own_machine(tmp_path: Path) -> None:
    """A paused process (Ctrl-Z) goes on later: there its lock says that it lives."""
    with held_by_a_process(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        lapse(next(tmp_path.glob("lease-*")))
        with pytest.raises(Held):
            acquire(tmp_path)


def lapse(path: Path) -> None:
    """Let the last heartbeat of a lease be long ago."""
    then = time.time() - 2 * LAPSE_SECONDS
    os.utime(path, (then, then))


@pytest.fixture(params=["another machine", "no locks"])
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes leases that are there look as they do from another machine, or where the file system has no locks."""

    def without_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", without_locks)
        return lambda: None
    return lambda: monkeypatch.setattr(leases, "_machine", lambda: "another")


def test_a_lease_elsewhere_lapses_without_heartbeat(tmp_path: Path, remote: Callable[[], None]) -> None:
    """What no lock tells, the heartbeat does; who was taken over may write no more, and removes nothing."""
    old = acquire(tmp_path)
    remote()
    with pytest.raises(Held):
        acquire(tmp_path)
    lapse(old.path)
    new = acquire(tmp_path)
    with pytest.raises(LeaseLost, match=f"taken over by process {os.getpid()}"):
        old.check()
    old.release()
    new.check()
    new.release()


def test_the_heart_beats_while_a_lease_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that lives is never taken for dead: its file's time is renewed."""
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(leases, "_heart", leases._Heart())
    with acquire(tmp_path) as lease:
        lapse(lease.path)
        until = time.monotonic() + 5.0
        while time.time() - lease.path.stat().st_mtime > LAPSE_SECONDS and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - lease.path.stat().st_mtime < LAPSE_SECONDS


def test_a_lease_that_was_released_and_taken_again_is_another(tmp_path: Path) -> None:
    """Numbers begin anew when nobody holds a lease: a number alone does not let a late writer in."""
    old = acquire(tmp_path)
    old.path.unlink()  # as by one who took it over and has released it
    with acquire(tmp_path) as new:
        assert new.path == old.path
        with pytest.raises(LeaseLost):
            old.check()
        old.release()
        new.check()


STEPS = """
import os, pathlib, signal, sys
from gatelab.results.store import lease as leases
how, folder = sys.argv[1], pathlib.Path(sys.argv[2])
where, name = {"locking": (leases, "_try_lock"), "linking": (pathlib.Path, "hardlink_to"),
               "unlinking": (pathlib.Path, "unlink")}[how]
setattr(where, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
leases.acquire(folder)
"""


@pytest.mark.parametrize(("moment", "swept"), [("locking", False), ("linking", True), ("unlinking", True)])
def test_what_is_left_by_one_who_was_killed_as_he_asked_is_swept_by_the_next(
    tmp_path: Path, moment: str, swept: bool
) -> None:
    """Wherever within `acquire` it was; a file that does not say whose it is may be anybody's for a minute."""
    killed = subprocess.run([sys.executable, "-c", STEPS, moment, str(tmp_path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.glob(".lease.*.tmp")
    with acquire(tmp_path):
        assert left.exists() != swept
    if not swept:
        lapse(left)
        acquire(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_one_who_is_asking_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even between its file and the file's lock: it is told who was faster, and gets the lease after that."""
    real, other = leases._try_lock, []

    def come_between(descriptor: int, kind: int) -> bool | None:
        monkeypatch.setattr(leases, "_try_lock", real)
        other.append(acquire(tmp_path))
        assert len(list(tmp_path.glob(".lease.*.tmp"))) == 1  # of the first, not yet locked
        return real(descriptor, kind)

    monkeypatch.setattr(leases, "_try_lock", come_between)
    with pytest.raises(Held):
        acquire(tmp_path)
    other.pop().release()
    with acquire(tmp_path) as lease:
        lease.check()
    assert list(tmp_path.iterdir()) == []


def test_one_who_was_swept_after_a_long_pause_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only its silence told, a process that goes on after a minute comes to its lease all the same."""
    real = leases._try_lock

    def pause(descriptor: int, kind: int) -> bool | None:
        monkeypatch.setattr(leases, "_try_lock", real)
        [own] = tmp_path.glob(".lease.*.tmp")
        lapse(own)
        acquire(tmp_path).release()
        assert not own.exists()
        return real(descriptor, kind)

    monkeypatch.setattr(leases, "_try_lock", pause)
    with acquire(tmp_path) as lease:
        lease.check()


def test_a_damaged_lease_lapses(tmp_path: Path) -> None:
    """A file that is no whole lease blocks for as long as a holder elsewhere may be silent, and no longer."""
    damaged = tmp_path / "lease-000007"
    damaged.write_bytes(b"")
    with pytest.raises(Held):
        acquire(tmp_path)
    lapse(damaged)
    with acquire(tmp_path) as lease:
        assert lease.path.name == "lease-000008"
        assert not damaged.exists()


CONTEND = """
import pathlib, sys, time
from gatelab.results.store.lease import Held, LeaseLost, acquire
folder, taken = pathlib.Path(sys.argv[1]), 0
counter = folder / "count"
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + 1.5
while time.monotonic() < until:
    try:
        with acquire(folder) as lease:
            lease.check()
            value = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(value + 1))
            taken += 1
    except (Held, LeaseLost):  # another was there, or came between: nothing was written
        continue
print(taken)
"""


def test_of_several_processes_one_wins_each_time(tmp_path: Path) -> None:
    """Four processes that take a lease as fast as they can never hold it together: then a count would be lost."""
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", CONTEND, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = sum(int(process.communicate(timeout=60)[0]) for process in processes)
    assert taken > 10
    assert int((tmp_path / "count").read_text()) == taken
