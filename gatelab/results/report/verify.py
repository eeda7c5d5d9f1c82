"""Check that written tables still follow from their trials: each is made again and compared."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.analysis import Analysis
from gatelab.results.report.artifacts import FORMS, TABLES, render
from gatelab.results.report.context import StudyResults, read_results
from gatelab.results.report.stamp import Stamp, make_stamp, read_stamp
from gatelab.results.store.layout import NotFound, RunsFolder

SHOWN = 12  # lines of a difference


NUMBER = r"(-?\d+\.\d+(?:e[-+]?\d+)?)"


FULL = 12  # characters of a number beyond which nobody has rounded it for reading


@dataclass(frozen=True)
class TableCheck:
    """The check of a written table."""

    path: Path
    problem: str
    """The difference to what follows now, or the reason why that cannot be said; '': the table holds."""


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
        yield TableCheck(path, _problem(path, results, made))


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
    if same_text(written, expected):
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


def _changes(before: Stamp, now: Stamp) -> Iterator[str]:
    for name in (field.name for field in fields(Stamp)):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            yield f"{name.replace('_', ' ')}: {_text(old)} -> {_text(new)}"


def _text(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
