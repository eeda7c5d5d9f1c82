"""The processes of drivers that were started here: their workers and Ray's own, orphans included."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

END_SECONDS = 10.0
"""For killed processes to be gone."""
WORKERS = ("ray::TrialWorker", "ray::EvalWorker")


class Processes:
    """Drivers, each the leader of a session, and all that belongs to their sessions.

    A process stays in the session in which it was started, whoever of its ancestors has ended.
    """

    def __init__(self) -> None:
        self._drivers: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a driver; what it prints is appended to a file."""
        with log.open("ab") as output:
            driver = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(environment),
            )
        self._drivers.append(driver)
        return driver

    def living(self) -> list[psutil.Process]:
        """List all that live, of all drivers."""
        sessions = {driver.pid for driver in self._drivers}
        return [process for process in psutil.process_iter() if _session(process.pid) in sessions and _lives(process)]

    def owns(self, pid: int) -> bool:
        """Return whether a process is one of these."""
        return _session(pid) in {driver.pid for driver in self._drivers}

    def workers(self) -> list[int]:
        """List the processes that carry out trials or evaluations."""
        return [process.pid for process in self.living() if _title(process).startswith(WORKERS)]

    def named(self, name: str) -> list[int]:
        """List the processes whose program has a name."""
        return [process.pid for process in self.living() if _program(process) == name]

    def send(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to a process, if it is one of these; return whether it was there."""
        with contextlib.suppress(ProcessLookupError):
            if self.owns(pid):
                os.kill(pid, number)
                return True
        return False

    def end_all(self) -> None:
        """Kill all of them."""
        left = self.living()
        for process in left:
            self.send(process.pid, signal.SIGKILL)
        psutil.wait_procs(left, timeout=END_SECONDS)
        for driver in self._drivers:
            driver.wait()

    def left_after(self, seconds: float) -> list[str]:
        """List what still lives after so many seconds, by its title."""
        until = time.monotonic() + seconds
        while (left := self.living()) and time.monotonic() < until:
            time.sleep(0.2)
        return [_title(process) for process in left]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _program(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
