"""The register of a study's claims: what was claimed when, and how much was known by then.

Each entry's hash covers all that it says and the hash of the entry before: a guard against accidents, not against those
who compute hashes anew. A copy lies beside the study in MLflow.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatelab.errors import GatelabError
from gatelab.results.store.records import read_json


class RegisterChanged(GatelabError, ValueError):
    """The register of claims is not as it was written."""


@dataclass(frozen=True)
class Registration:
    """An entry: claims as they were written down at a time."""

    at: str  # ISO 8601, UTC
    hash: str  # of the entry and of the one before
    ended: int  # trials of the study that had finished or diverged by then
    trials: int  # of so many
    changes: dict[str, str]  # claim -> in what it differs from the entry before, for people

    @property
    def state_of_evidence(self) -> str:
        """The state of evidence by then."""
        return f"after {self.ended} of {self.trials} trials" if self.ended else "before any trial had ended"


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read the entries of claims.json as stored, the oldest first; none where there is no such file.

    Raises RegisterChanged.
    """
    if not path.exists():
        return []
    content = read_json(path)
    if content is None or not isinstance(content.get("entries"), list):
        raise RegisterChanged(f"{path}: is not what was written: no JSON with entries")
    before = ""
    entries: list[dict[str, Any]] = content["entries"]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or entry.get("hash") != chain_hash(entry, before):
            raise RegisterChanged(f"{path}: entry {number} is not as it was written: its hash does not fit")
        before = entry["hash"]
    return entries


def read_register(path: Path) -> tuple[Registration, ...]:
    """Read claims.json as entries. Raises RegisterChanged."""
    names = ("at", "hash", "ended", "trials", "changes")
    try:
        return tuple(Registration(**{name: entry[name] for name in names}) for entry in read_entries(path))
    except KeyError as error:
        raise RegisterChanged(f"{path}: an entry without {error}: another version of gatelab wrote it") from error


def chain_hash(entry: Mapping[str, Any], before: str) -> str:
    """Hash an entry: all that it says, the time included, and the hash of the entry before."""
    said = {name: value for name, value in entry.items() if name != "hash"}
    text = json.dumps({"entry": said, "before": before}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
