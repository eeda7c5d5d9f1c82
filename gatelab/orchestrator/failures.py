"""Failures by their kind: what a trial met that could not be carried out, and how often it is tried again.

A divergence is an outcome, not a failure.
"""

import errno
import random
import traceback
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import gatelab
from gatelab.errors import GatelabError, Unavailable


class FailureKind(StrEnum):
    """What kept a trial from being carried out."""

    MEMORY = "out of memory"
    MACHINE = "lost machine"
    """Its process or its machine is gone."""
    PREEMPTED = "preempted"
    """Its process was told to end by whoever runs the machine."""
    DISK = "disk"
    """Full, read-only or broken."""
    DATA = "data"
    ERROR = "error"
    """Anything else: most likely a mistake in the code."""


@dataclass(frozen=True)
class Retries:
    """How often, and when, a trial is tried again."""

    times: int
    seconds: float
    """Before the first retry; twice as long before each further one, and not above `MOST_SECONDS`."""

    def delay(self, failures: int, random: random.Random) -> float:
        """Return the seconds before the next attempt; jitter keeps trials that failed together apart."""
        longest: float = min(MOST_SECONDS, self.seconds * 2.0 ** (failures - 1))
        return longest * random.uniform(0.5, 1.0)


MOST_SECONDS = 300.0


def retries(kind: FailureKind, chosen: int) -> Retries:
    """Return how often a kind of failure is tried again; `chosen` is how often a user wants an error to be."""
    return {
        FailureKind.MEMORY: Retries(chosen, 5.0),  # what shares the memory may have ended by then
        FailureKind.MACHINE: Retries(max(chosen, 5) if chosen else 0, 1.0),
        FailureKind.PREEMPTED: Retries(max(chosen, 100) if chosen else 0, 1.0),
        FailureKind.DISK: Retries(chosen, 10.0),
        FailureKind.DATA: Retries(0, 0.0),
        FailureKind.ERROR: Retries(chosen, 0.0),
    }[kind]


@dataclass(frozen=True)
class Lost(Unavailable):
    """Stands for the result of a task whose process is gone."""

    kind: FailureKind = FailureKind.MACHINE


def kind_of(error: BaseException) -> FailureKind:
    """Classify what was raised in a trial."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return FailureKind.MEMORY
    if isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text):
        return FailureKind.MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return FailureKind.DISK
    if isinstance(error, GatelabError):
        return FailureKind.DATA
    return FailureKind.ERROR


def cause_of(error: BaseException) -> str:
    """Say which error it was and where it was raised, so that the same one in two trials reads the same."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    package = Path(gatelab.__file__).parent
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    frame = (own or frames)[-1]
    name = Path(frame.filename)
    place = name.relative_to(package.parent) if own else name.name
    return f"{type(error).__name__} at {place}:{frame.lineno} in {frame.name}"
