"""A study is run twice, once undisturbed and once under kills, and what both left is compared."""

import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatelab.ablations.study import StudyPlan
from gatelab.orchestrator.chaos.certificate import Certificate, Round, machine, now, versions
from gatelab.orchestrator.chaos.history import Facts, Hashes, compare_facts, leftovers, read_facts
from gatelab.orchestrator.chaos.kills import Kill, plan_kills
from gatelab.orchestrator.chaos.storm import Storm
from gatelab.orchestrator.chaos.tracking_server import TrackingServer
from gatelab.orchestrator.executor import CannotRun
from gatelab.results.store.layout import RunsFolder

COMMANDS = {
    "run": ["run"],
    "lr-tolerance": ["lr-tolerance"],
    "scaling": ["scaling"],
    "evaluate": ["evaluate", "--tokens", "4k", "--examples", "4"],
}
"""Commands that can be disturbed; an evaluation asks little, so that models of a few thousand weights can answer."""


def is_command(text: str) -> bool:
    """Return whether a text, split as a shell does, is a command that can be disturbed, with options of its own."""
    try:
        return shlex.split(text)[0] in COMMANDS
    except (ValueError, IndexError):
        return False


MOST_IDLE = 5
"""A study that comes to its end so often in a row before anything hits it is too short to be killed."""

FOREIGN = ("GATELAB_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")


@dataclass(frozen=True)
class ChaosOptions:
    """What is done to a study."""

    kills: int
    seed: int
    gap_seconds: float
    """The mean time between two kills, once workers are there."""
    checkpoint_seconds: float
    concurrency: int
    server: bool
    """True if trials are sent to a real tracking server, which is killed, too."""
    output: Path
    """The folder of the certificate, and of runs that went wrong."""
    disk: Path | None = None
    """A small file system, on which the disturbed runs are, and which is filled."""

    def to_json(self) -> dict[str, Any]:
        """Return the options that say how hard a study is hit."""
        how = ("gap_seconds", "checkpoint_seconds", "concurrency", "server")
        return {**{name: getattr(self, name) for name in how}, "small_disk": self.disk is not None}

    def log(self, folder: RunsFolder) -> Path:
        """Return the file for what the commands print that write a runs folder."""
        return self.output / f"{folder.root.name}.log"


def run_chaos(
    study: Path,
    plan: StudyPlan,
    commands: Sequence[str],
    options: ChaosOptions,
    tell: Callable[[str], None] = lambda line: None,
) -> Certificate:
    """Disturb a study until there were as many kills as were asked for; return the certificate, which is written, too.

    A disturbed run that has come to its end as it should is removed, and another one begun where kills are left.

    Args:
        study: its file.
        plan: the same, read.
        commands: of `COMMANDS`, each with options of its own or without, given one after another.
        options: what is done to it.
        tell: is given a line for each thing that is done.

    Raises:
        CannotRun: the study does not come to its end undisturbed.
    """
    output = options.output
    right = RunsFolder(output / "undisturbed")
    tell("undisturbed")
    with _tracking_server(right, options) as server:
        storm = _storm(study, commands, right, iter(()), 0, {}, server, options, tell)
        storm.run()
        ends = storm.account.ends
        if storm.account.problems:
            raise CannotRun(f"{study}: undisturbed, too: {'; '.join(storm.account.problems)}")
        facts = read_facts(right, _store(right, server))
    certificate = Certificate(
        study=plan.study.name,
        study_hash=plan.hash,
        commands=list(commands),
        trials=sum(1 for _ in (right.root / "trials").iterdir()),
        seed=options.seed,
        wanted=options.kills,
        undisturbed_seconds=round(storm.account.seconds, 1),
        undisturbed=Hashes.of(facts),
        begun=now(),
        options=options.to_json(),
        versions=versions(),
        machine=machine(),
    )
    chosen = f"{plan.study.name} {options.seed}"  # another study with the same seed is hit in another way
    plan_of_kills = plan_kills(chosen, options.gap_seconds, server=options.server, disk=options.disk is not None)
    idle = 0
    while (left := options.kills - certificate.kills.total()) > 0:
        number = len(certificate.rounds) + 1
        tell(f"disturbed, run {number}: {left} kills to make")
        folder = RunsFolder((options.disk or output) / f"disturbed-{number}")
        certificate.rounds.append(_disturb(study, commands, folder, plan_of_kills, left, ends, facts, options, tell))
        certificate.write(output)
        done = certificate.rounds[-1]
        tell(f"{sum(done.kills.values())} kills in {done.seconds:.0f} s: {'; '.join(done.violations) or 'holds'}")
        idle = 0 if done.kills else idle + 1
        if done.violations or idle == MOST_IDLE:
            break
        shutil.rmtree(folder.root)
    if certificate.holds:
        shutil.rmtree(right.root)
    certificate.write(output)
    return certificate


def _disturb(
    study: Path,
    commands: Sequence[str],
    folder: RunsFolder,
    plan: Iterator[Kill],
    kills: int,
    ends: Mapping[str, int],
    facts: Facts,
    options: ChaosOptions,
    tell: Callable[[str], None],
) -> Round:
    """Run a study under kills, once, and compare what it left with the facts of the undisturbed one."""
    with _tracking_server(folder, options) as server:
        storm = _storm(study, commands, folder, plan, kills, ends, server, options, tell)
        storm.run()
        account = storm.account
        violations, hashes = list(account.problems), None
        if not violations:
            found = read_facts(folder, _store(folder, server))
            hashes = Hashes.of(found)
            violations = [str(each) for each in compare_facts(facts, found, folder, storm.sightings.seen)]
    return Round(
        seconds=round(account.seconds, 1),
        starts=account.starts,
        kills=dict(Counter(each.name for each in account.delivered if each.is_kill)),
        others=dict(Counter(each.name for each in account.delivered if not each.is_kill)),
        moments=dict(Counter(each.moment for each in account.delivered if each.is_kill)),
        hashes=hashes,
        violations=violations,
        notes=[*account.notes, *(f"left behind: {name}" for name in leftovers(folder))],
        events=account.delivered,
    )


def _storm(
    study: Path,
    commands: Sequence[str],
    folder: RunsFolder,
    plan: Iterator[Kill],
    kills: int,
    ends: Mapping[str, int],
    server: TrackingServer | None,
    options: ChaosOptions,
    tell: Callable[[str], None],
) -> Storm:
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.root.parent.mkdir(parents=True, exist_ok=True)
    log = options.log(folder)
    log.unlink(missing_ok=True)
    # What the person who tests has chosen for other studies does not hold here.
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    given = {command: _arguments(command, study, folder, server, options) for command in commands}
    return Storm(given, folder, plan, kills, ends, server, log, environment, tell)


def _arguments(
    given: str, study: Path, folder: RunsFolder, server: TrackingServer | None, options: ChaosOptions
) -> list[str]:
    name, *chosen = shlex.split(given)
    command = [sys.executable, "-m", "gatelab", *COMMANDS[name], str(study), "--runs", str(folder.root)]
    command += ["--concurrency", str(options.concurrency), *chosen]
    if name != "evaluate":
        command += ["--checkpoint-seconds", str(options.checkpoint_seconds)]
    return command if server is None else [*command, "--tracking-uri", server.uri]


@contextmanager
def _tracking_server(folder: RunsFolder, options: ChaosOptions) -> Iterator[TrackingServer | None]:
    """Yield a tracking server that runs, beside a runs folder; None if none is asked for."""
    if not options.server:
        yield None
        return
    place = options.output / f"{folder.root.name}-server"
    shutil.rmtree(place, ignore_errors=True)
    server = TrackingServer(place)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()
        shutil.rmtree(place, ignore_errors=True)


def _store(folder: RunsFolder, server: TrackingServer | None) -> str:
    return folder.tracking_uri if server is None else server.uri
