"""What a written table says of its own origin: for people a line, for `gatelab report --check` all that made it."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

MARK = "gatelab-table "

LAYOUT = 2
"""Version of how tables are worded and escaped, their numbers aside. Stamps without one are of version 1."""


@dataclass(frozen=True)
class Stamp:
    """The origin of a table."""

    table: str
    """Its kind, and with `options` all that makes it again from the same trials."""
    study: str
    study_hash: str
    commits: tuple[str, ...]
    """Commits of the code that ran the trials; for an installed release its version and the hash of its sources."""
    data: tuple[str, ...]
    """Identities of what they were trained on."""
    finished: int
    """Trials that have finished, of so many."""
    trials: int
    seeds: int
    options: dict[str, Any] = field(default_factory=dict)
    layout: int = 1

    def __str__(self) -> str:
        commits = ", ".join(self.commits) or "unknown"
        data = ", ".join(value[:12] for value in self.data) or "unknown"
        counts = f"{self.finished} of {self.trials} trials finished, {self.seeds} seed{'' if self.seeds == 1 else 's'}"
        return f"Study {self.study} {self.study_hash[:12]}, commit {commits}, data {data}, n: {counts}"


def make_stamp(runs: pa.Table, table: str, **options: Any) -> Stamp:
    """Return the stamp of a table of a `runs` frame."""

    def every(*columns: str) -> tuple[str, ...]:
        """Return the first non-null of some columns per trial, each value once, sorted."""
        rows = runs.select(columns).to_pylist()
        return tuple(sorted({value for row in rows if (value := next(filter(None, row.values()), None))}))

    outcomes = runs["outcome"].to_pylist()
    return Stamp(
        table=table,
        study=runs["study"][0].as_py(),
        study_hash=runs["study_hash"][0].as_py(),
        commits=every("commit", "code"),
        data=every("data"),
        finished=outcomes.count("finished"),
        trials=len(outcomes),
        seeds=len(set(runs["seed"].to_pylist())),
        options=options,
        layout=LAYOUT,
    )


def with_provenance(text: str, form: str, stamp: Stamp) -> str:
    """Return the text of a table (md, tex or html) with its stamp beneath."""
    # Two hyphens would end a comment of HTML.
    mark = MARK + json.dumps(asdict(stamp), sort_keys=True).replace("--", "-\\u002d")
    if form == "tex":
        return f"{text}% {stamp}\n% {mark}\n"
    text_of_it = escape(str(stamp))
    shown = f'<p class="stamp"><small>{text_of_it}</small></p>' if form == "html" else f"\n<sub>{text_of_it}</sub>"
    return f"{text.rstrip()}\n{shown}\n\n<!-- {mark} -->\n"


def with_origin(frame: pa.Table, stamp: Stamp) -> pa.Table:
    """Return a frame whose rows name their study, its hash, commits and data, as far as it has no such columns."""
    said = {"study": stamp.study, "study_hash": stamp.study_hash}
    said |= {"commit": " ".join(stamp.commits), "data": " ".join(stamp.data)}
    known = frame.column_names
    for name, value in said.items():
        if name not in known:
            frame = frame.append_column(name, pa.repeat(pa.scalar(value, pa.utf8()), len(frame)))
    return frame


def json_with_provenance(values: Mapping[str, Any], stamp: Stamp) -> str:
    """Return JSON values as text, with the stamp under a key of its own."""
    return json.dumps({"stamp": asdict(stamp), **values}, indent=1)


def read_stamp(path: Path) -> Stamp | None:
    """Read the stamp of a written table, or None. CSV has no room for one: its stamp is that of the JSON beside it."""
    if path.suffix == ".csv":
        path = path.with_suffix(".json")
        if not path.exists():
            return None
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            entry = json.loads(text)["stamp"]
        else:
            match = re.search(rf"{MARK}(\{{.*\}})", text)
            entry = None if match is None else json.loads(match[1])
        return None if entry is None else _from_json(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _from_json(entry: Mapping[str, Any]) -> Stamp:
    stamp = Stamp(**{**entry, "commits": tuple(entry["commits"]), "data": tuple(entry["data"])})
    if not all(isinstance(text, str) for text in (stamp.table, stamp.study, *stamp.commits, *stamp.data)):
        raise TypeError("expected texts")
    return stamp
