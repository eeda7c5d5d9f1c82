"""Check that written tables still follow from their trials: each is made again and compared."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from html import unescape
from pathlib import Path
from typing import Any

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.analysis import Analysis
from gatelab.results.report.artifacts import FORMS, TABLES, render
from gatelab.results.report.context import StudyResults, read_results
from gatelab.results.report.stamp import Stamp, make_stamp, read_stamp
from gatelab.results.store.layout import NotFound, RunsFolder
from gatelab.results.views.format import DASH
from gatelab.results.views.pivot import NOTHING

SHOWN = 12  # lines of a difference


NUMBER = r"(-?\d+\.\d+(?:e[-+]?\d+)?)"


FULL = 12  # characters of a number beyond which nobody has rounded it for reading


@dataclass(frozen=True)
class TableCheck:
    """The check of a written table."""

    path: Path
    problem: str
    """The difference from what follows now, or the reason why that cannot be said; '': the table is as it should be."""
    is_missing: bool = False

    @property
    def state(self) -> str:
        """Return ok, out of date or missing."""
        return "missing" if self.is_missing else "out of date" if self.problem else "ok"


def stamped_tables(folder: RunsFolder, study: str) -> list[Path]:
    """List the tables in a study's folder. Raises NotFound if there is no such study."""
    folder.study(study).read()
    stems = {path for path in sorted(folder.study(study).path.iterdir()) if path.suffix.removeprefix(".") in FORMS}
    return [path for path in sorted(stems) if read_stamp(path) is not None]


def check(folder: RunsFolder, study: str, paths: Iterable[Path]) -> Iterator[TableCheck]:
    """Make tables of a study again and compare. Raises NotFound if there is no such study."""
    results = read_results(folder, study)
    made: dict[str, Analysis] = {}  # the forms of one table have one content
    for path in paths:
        yield TableCheck(path, _problem(path, results, made), not path.exists())


def _problem(path: Path, results: StudyResults, made: dict[str, Analysis]) -> str:
    try:
        written = path.read_text(encoding="utf-8")
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        return "is no text"
    stamp = read_stamp(path)
    if stamp is None:
        hint = " (of CSV it is that of the JSON beside it)" if path.suffix == ".csv" else ""
        return f"has no stamp{hint}: write it again with this version"
    if stamp.study != results.study:
        return f"is of study {stamp.study!r}, not of {results.study!r}"
    form = path.suffix.removeprefix(".")
    if stamp.table not in TABLES or form not in FORMS:
        return f"is a table of a kind or a form that this version does not know: {stamp.table!r}, {path.suffix}"
    try:
        now = make_stamp(results.runs, stamp.table, **stamp.options)
        key = f"{stamp.table} {sorted(stamp.options.items())}"
        if key not in made:
            made[key] = TABLES[stamp.table].compute(results, stamp.options)
    except (ValueError, NotFound, AnalysisUnavailable) as error:
        return f"does not follow from the trials any more: {error}"
    except (AttributeError, KeyError, TypeError):
        return f"has a stamp that makes no table: {stamp.options}"
    expected = render(made[key], form, now).replace("\r\n", "\n")  # as reading makes it of the line ends of CSV
    if same_text(written, expected) or (stamp.layout < now.layout and _same_cells(written, expected, form)):
        return ""
    changed = list(_changes(stamp, now)) or ["the text is not what follows from the trials"]
    lines = difflib.unified_diff(written.splitlines(), expected.splitlines(), "written", "now", n=0, lineterm="")
    shown = [line for line in lines if not line.startswith(("---", "+++", "@@")) and "gatelab-table" not in line]
    more = [f"… and {len(shown) - SHOWN} lines more"] if len(shown) > SHOWN else []
    return "\n".join(["; ".join(changed), *shown[:SHOWN], *more])


def same_text(one: str, other: str) -> bool:
    """Return whether two texts are equal, but for the last digits of numbers in full precision.

    Another processor may round otherwise.
    """
    if one == other:
        return True
    parts, others = re.split(NUMBER, one), re.split(NUMBER, other)
    if len(parts) != len(others):
        return False
    return all(
        mine == its
        or (place % 2 == 1 and min(len(mine), len(its)) > FULL and math.isclose(float(mine), float(its), rel_tol=1e-9))
        for place, (mine, its) in enumerate(zip(parts, others, strict=True))
    )


def _same_cells(written: str, expected: str, form: str) -> bool:
    """Return whether a table of an earlier layout has the cells that it should have: words around them may differ."""
    if form == "json":
        one, other = (_without_words(json.loads(text)) for text in (written, expected))
        return same_text(json.dumps(one), json.dumps(other))
    if form == "csv":
        return False
    one, other = (_cells(text, form) for text in (written, expected))
    return len(one) == len(other) and all(map(_same_row, one, other))


def _without_words(value: Any) -> Any:
    """Return JSON values without the stamp and notes."""
    if isinstance(value, dict):
        return {key: _without_words(inner) for key, inner in value.items() if key not in ("stamp", "notes")}
    return [_without_words(inner) for inner in value] if isinstance(value, list) else value


BODIES = {
    "md": re.compile(r"^\|[ :|-]+\|\n((?:\|.*\n)*)", re.MULTILINE),
    "tex": re.compile(r"\\midrule\n(.*?)\\bottomrule", re.DOTALL),
    "html": re.compile(r"<tbody>\n(.*?)</tbody>", re.DOTALL),
}
"""Form -> the rows of a table in it, a line for each."""
BOUNDS = {"md": r"(?<!\\) \| ", "tex": r"(?<!\\) & ", "html": r"</t[hd]>"}
"""Form -> what is between two cells."""
MARKUP = re.compile(r"<[^>]*>|\\textbf|[\\${}*|]")


def _cells(text: str, form: str) -> list[list[str]]:
    """Return the cells of each row of the tables in a text, without markup."""
    rows = [row for body in BODIES[form].findall(text) for row in body.splitlines()]
    return [[unescape(MARKUP.sub("", cell)).strip() for cell in re.split(BOUNDS[form], row)] for row in rows]


def _same_row(written: list[str], expected: list[str]) -> bool:
    """Return whether a row has the cells of another, to which this version may add a reason."""
    return len(written) == len(expected) and all(
        its == mine or its.startswith(f"{mine}: ") or (mine, its) == (DASH, NOTHING)
        for mine, its in zip(written, expected, strict=True)
    )


def _changes(before: Stamp, now: Stamp) -> Iterator[str]:
    for name in (field.name for field in fields(Stamp) if field.name != "layout"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            yield f"{name.replace('_', ' ')}: {_text(old)} -> {_text(new)}"


def _text(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
