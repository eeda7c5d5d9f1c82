"""The certificate of a study that was disturbed: what was done to it, on which machine, and what came of it."""

import os
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gatelab.orchestrator.chaos.history import Hashes
from gatelab.orchestrator.chaos.storm import Delivered
from gatelab.orchestrator.provenance import code_version
from gatelab.results.store.records import write_json
from gatelab.training.device import device_name

PACKAGES = ("torch", "ray", "mlflow", "pyarrow", "numpy")


@dataclass
class Round:
    """One disturbed run of a study, from its first command to the end of its last."""

    seconds: float
    starts: int
    """How often a command was started."""
    kills: dict[str, int]
    """Kind -> how many."""
    others: dict[str, int]
    """What else was done, which ends no process: kind -> how often."""
    moments: dict[str, int]
    """When kills came -> how many."""
    hashes: Hashes | None
    """None: it did not come to its end."""
    violations: list[str]
    notes: list[str]
    events: list[Delivered]
    """Each thing that was done, in order."""


@dataclass
class Certificate:
    """What is certified of one study."""

    study: str
    study_hash: str
    commands: list[str]
    trials: int
    """Of the study and of those that it continues or makes."""
    seed: int
    wanted: int
    """Kills that were asked for."""
    undisturbed_seconds: float
    undisturbed: Hashes
    begun: str
    """ISO 8601, UTC."""
    options: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str]
    rounds: list[Round] = field(default_factory=list)
    version: int = 1

    @property
    def kills(self) -> Counter[str]:
        """Kind -> how many kills."""
        return sum((Counter(each.kills) for each in self.rounds), Counter())

    @property
    def others(self) -> Counter[str]:
        """Kind -> how often something else was done."""
        return sum((Counter(each.others) for each in self.rounds), Counter())

    @property
    def seconds_lost(self) -> float:
        """Time that the kills have cost, in all."""
        return sum(each.seconds - self.undisturbed_seconds for each in self.rounds)

    @property
    def violations(self) -> list[str]:
        """All that was not as it is without kills."""
        found = [violation for each in self.rounds for violation in each.violations]
        if self.kills.total() < self.wanted:
            found.append(f"only {self.kills.total()} of {self.wanted} kills could be made")
        return found

    @property
    def holds(self) -> bool:
        """Return whether nothing was lost, doubled, changed or made again."""
        return not self.violations

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        said = {"kills": dict(self.kills), "others": dict(self.others), "seconds_lost": round(self.seconds_lost, 1)}
        return {**asdict(self), **said, "violations": self.violations, "holds": self.holds}

    def write(self, folder: Path) -> None:
        """Write certificate.json and certificate.md."""
        write_json(folder / "certificate.json", self.to_json())
        (folder / "certificate.md").write_text(self.to_markdown(), encoding="utf-8")

    def to_markdown(self) -> str:
        """Return the short form, for people."""
        kills, others = self.kills, self.others
        done = "; ".join(f"{count} × {name}" for name, count in (kills + others).most_common())
        moments: Counter[str] = sum((Counter(each.moments) for each in self.rounds), Counter())
        when = "; ".join(f"{count} {name}" for name, count in moments.most_common())
        rows = {
            "study": f"{self.study} {self.study_hash[:12]}: {self.trials} trials, {', '.join(self.commands)}",
            "seed": self.seed,
            "kills": f"{kills.total()} in {len(self.rounds)} runs: {done}",
            "when": when,
            "undisturbed": f"{self.undisturbed_seconds:.0f} s",
            "disturbed": f"{sum(each.seconds for each in self.rounds):.0f} s: {self.seconds_lost:.0f} s lost",
            **{f"SHA-256 of {name}": value for name, value in asdict(self.undisturbed).items()},
            "machine": ", ".join(self.machine.values()),
            "versions": ", ".join(f"{name} {value}" for name, value in self.versions.items()),
            "date": self.begun,
        }
        verdict = "**holds**: every disturbed run left what the undisturbed one left"
        if not self.holds:
            verdict = "**does not hold**:\n\n" + "\n".join(f"* {each}" for each in self.violations)
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        return f"# Certificate of {self.study}\n\n| | |\n|---|---|\n{table}\n\nVerdict: {verdict}\n"


def now() -> str:
    """Return the time, as a certificate says it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of what a study runs on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    code = {name: value for name, value in code_version().items() if value}
    return {
        "gatelab": code.get("code", ""),
        "commit": code.get("commit", ""),
        "python": platform.python_version(),
    } | packages


def machine() -> dict[str, str]:
    """Return what machine this is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GB",
        "gpu": ", ".join(gpus) or "no GPU",
        "system": f"{platform.system()} {platform.release()}",
    }
