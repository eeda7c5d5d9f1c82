"""Effects as a tidy table: a row for each effect, level, combination, alias and importance."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from gatelab.errors import Unavailable
from gatelab.results.analyses.factorial import CellEffect, Factorial, LevelEffect, Term, effect_name
from gatelab.results.statistics.aliasing import Alias
from gatelab.results.statistics.importance import Importance

EFFECTS = pa.schema(
    [
        *((name, pa.utf8()) for name in ("what", "name", "level")),
        *((name, pa.float64()) for name in ("mean", "effect", "low", "high")),
        ("df", pa.int64()),
        *((name, pa.float64()) for name in ("ss", "share", "F", "p", "q")),
        ("verdict", pa.utf8()),
        ("value", pa.float64()),
    ]
)
"""Columns of the frame of effects."""


def factorial_rows(factorial: Factorial) -> Iterator[dict[str, Any]]:
    """Yield a row for each term, error, level and combination of a factorial analysis, and one for its blocks."""
    yield from map(_term_row, factorial.terms)
    for error in factorial.errors:
        yield {"what": "error", "name": error.name, "df": error.df, "ss": error.ss}
    yield {"what": "blocks", "name": "seeds", "df": len(factorial.seeds) - 1, "ss": factorial.seeds_ss}
    places: list[tuple[str, LevelEffect | CellEffect, str, str]] = [
        ("level", of, of.axis, of.level) for of in factorial.levels
    ]
    places += [("combination", of, " × ".join(of.axes), " × ".join(of.levels)) for of in factorial.combinations]
    for what, of, name, level in places:
        numbers = {"mean": of.mean, "effect": of.effect.mean, "low": of.effect.low, "high": of.effect.high}
        yield {"what": what, "name": name, "level": level, **numbers, "verdict": of.verdict}


def alias_rows(aliases: Sequence[Alias]) -> Iterator[dict[str, Any]]:
    """Yield a row for each pair of effects that the variants cannot tell apart."""
    for alias in aliases:
        full = {axis: axis for axis in (*alias.first, *alias.second)}
        yield {"what": "alias", "name": alias_name(alias, full), "value": alias.correlations[0]}


def importance_rows(importance: Importance) -> Iterator[dict[str, Any]]:
    """Yield a row for each axis and kind of importance."""
    for method, by_axis in (("fANOVA", importance.fanova), ("PED-ANOVA", importance.ped_anova)):
        for axis, value in known_shares(by_axis).items():
            yield {"what": method, "name": axis, "value": value}


def known_shares(importances: dict[str, float] | Unavailable | None) -> dict[str, float]:
    """Return importances, if there are any."""
    return importances if isinstance(importances, dict) else {}


def alias_name(alias: Alias, names: Mapping[str, str]) -> str:
    """Return `position = granularity × sharing`, or with ~ where they are not wholly one."""
    sign = "=" if alias.is_complete else "~"
    first, second = (effect_name(effect, names) for effect in (alias.first, alias.second))
    return f"{first} {sign} {second}"


def _term_row(term: Term) -> dict[str, Any]:
    tests = {"F": term.f, "p": term.p, "q": term.q}
    name = " = ".join(effect_name(effect, {axis: axis for axis in effect}) for effect in term.effects) or term.name
    sums = {"df": term.df, "ss": term.ss, "share": term.share}
    return {"what": "effect", "name": name, **sums, **tests, "verdict": term.verdict}
