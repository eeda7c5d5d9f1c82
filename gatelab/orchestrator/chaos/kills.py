"""What is done to a study, and when: a plan of kills, drawn from a seed."""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

Choice = TypeVar("Choice")


class Victim(StrEnum):
    """What is hit."""

    WORKER = "worker"
    DRIVER = "driver"
    EVERYTHING = "all processes"
    RAYLET = "raylet"
    GCS = "gcs"
    SERVER = "tracking server"
    LOCKED = "tracking store locked"
    DELETED = "tracking store deleted"
    FULL = "disk full"

    @property
    def is_process(self) -> bool:
        """Return whether it is ended by a signal."""
        return self not in (Victim.LOCKED, Victim.DELETED, Victim.FULL)


class Moment(StrEnum):
    """The moment of a kill, once its time has come."""

    ANY = "at any time"
    FILE = "while a file is being written"
    """As soon as a temporary file of the victim shows."""
    JOURNAL = "while a journal is being written"
    """As soon as a segment appears or grows."""


@dataclass(frozen=True)
class Kill:
    """One thing that is done to a study."""

    victim: Victim
    signal: signal.Signals | None
    """SIGSTOP: it is stopped, and killed a little later. None: it is no process."""
    moment: Moment
    after: float
    """Seconds from the kill before, or from when workers are there."""
    at_start: bool
    """True if the time counts from the start of the driver."""
    lasts: float
    """Seconds: between SIGSTOP and SIGKILL, until a server is started again, of a lock or a full disk."""

    @property
    def name(self) -> str:
        """The kind of kill, for people."""
        return self.victim if self.signal is None else f"{self.victim} {self.signal.name}"


WEIGHTS = {Victim.WORKER: 12, Victim.DRIVER: 5, Victim.EVERYTHING: 2, Victim.RAYLET: 2, Victim.GCS: 1}
"""How often each is hit, in proportion."""
STORE_WEIGHTS = {Victim.LOCKED: 1, Victim.DELETED: 1}
SERVER_WEIGHTS = {Victim.SERVER: 6, Victim.LOCKED: 1}
DISK_WEIGHTS = {Victim.FULL: 4}

SIGNALS = {
    Victim.WORKER: {signal.SIGKILL: 6, signal.SIGTERM: 3, signal.SIGSTOP: 1},
    Victim.DRIVER: {signal.SIGKILL: 5, signal.SIGTERM: 2, signal.SIGINT: 2, signal.SIGSTOP: 1},
    Victim.EVERYTHING: {signal.SIGKILL: 3, signal.SIGTERM: 1},
}
"""Those that are always ended by SIGKILL are not named."""

MOMENTS = {Moment.ANY: 4, Moment.FILE: 3, Moment.JOURNAL: 3}
OFTEN_IN_WRITES = (Victim.WORKER, Victim.DRIVER, Victim.EVERYTHING)


def plan_kills(seed: str, seconds: float, *, server: bool = False, disk: bool = False) -> Iterator[Kill]:
    """Yield kills without end, the same for the same arguments.

    Args:
        seed: which kills.
        seconds: the mean time between two.
        server: whether there is a tracking server; otherwise there is a tracking store in a file.
        disk: whether the disk is a small one that can be filled.
    """
    draw = random.Random(seed)
    weights = {**WEIGHTS, **(SERVER_WEIGHTS if server else STORE_WEIGHTS), **(DISK_WEIGHTS if disk else {})}
    while True:
        victim = _one_of(draw, weights)
        number = _one_of(draw, SIGNALS.get(victim, {signal.SIGKILL: 1})) if victim.is_process else None
        moment = _one_of(draw, MOMENTS) if victim in OFTEN_IN_WRITES else Moment.ANY
        after, at_start = draw.expovariate(1 / seconds), draw.random() < 0.1
        yield Kill(victim, number, moment, after, at_start, draw.uniform(0.5, 6.0))


def _one_of(draw: random.Random, weights: dict[Choice, int]) -> Choice:
    return draw.choices(list(weights), list(weights.values()))[0]
