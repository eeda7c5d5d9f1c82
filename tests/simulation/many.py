"""Many histories, in several processes, and what came out of them."""

import argparse
import logging
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 50


@dataclass
class Tally:
    """What came out of some histories."""

    histories: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    """Operations on the disk."""
    attempts: int = 0
    """Times that a trial was trained, or went on."""
    seconds: float = 0.0
    """Of simulated time."""
    problems: dict[int, list[str]] = field(default_factory=dict)
    """Seed -> what did not hold in its history."""

    def add(self, other: "Tally") -> None:
        """Add what came out of others."""
        self.histories += other.histories
        self.faults.update(other.faults)
        self.operations += other.operations
        self.attempts += other.attempts
        self.seconds += other.seconds
        self.problems |= other.problems

    def __str__(self) -> str:
        faults = ", ".join(f"{count:,} {name}" for name, count in self.faults.most_common())
        return (
            f"{self.histories:,} histories, {self.seconds / 3600:,.0f} simulated hours, {self.operations:,} operations "
            f"on the disk, {self.attempts:,} attempts at trials; faults: {faults or 'none'}; "
            f"histories in which something did not hold: {len(self.problems)}"
        )


def play_all(seeds: Sequence[int], folder: Path) -> Tally:
    """Play the histories of some seeds, one after another."""
    from tests.simulation.history import play

    logging.disable(logging.CRITICAL)  # each simulated failure would write a traceback
    try:
        tally = Tally()
        for seed in seeds:
            history = play(seed, folder)
            tally.add(
                Tally(
                    1,
                    Counter(fault.rpartition(": ")[2] for fault in history.happened),
                    history.world.operations,
                    history.attempts,
                    history.world.now,
                    {seed: history.problems} if history.problems else {},
                )
            )
        return tally
    finally:
        logging.disable(logging.NOTSET)


def play_in_processes(seeds: range, processes: int) -> Iterator[Tally]:
    """Play histories in several processes; yield what came out of a few at a time."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool,
    ):
        chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
        yield from pool.map(play_all, chunks, [Path(folder)] * len(chunks))


def main() -> int:
    """Play histories and print what came out of them; return 1 if something did not hold."""
    parser = argparse.ArgumentParser(description="Play simulated histories of studies.")
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    total, started, told = Tally(), time.monotonic(), 0.0
    for part in play_in_processes(range(chosen.first, chosen.first + chosen.histories), chosen.processes):
        total.add(part)
        for seed, problems in part.problems.items():
            print(f"seed {seed}:", *problems, sep="\n  ", flush=True)
        if time.monotonic() - told > 30.0:
            told = time.monotonic()
            print(f"{total.histories} of {chosen.histories}, {told - started:.0f} s", flush=True)
    print(f"{total} ({time.monotonic() - started:.0f} s in {chosen.processes} processes)")
    return 1 if total.problems else 0
