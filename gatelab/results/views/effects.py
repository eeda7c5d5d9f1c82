"""What a study's axes do, for people and programs: tables, CSV, JSON and figures."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.analyses.effects import (
    FACTORIAL,
    FRACTION,
    CellEffect,
    Effects,
    Factorial,
    LevelEffect,
    Term,
    alias_name,
    effect_name,
)
from gatelab.results.statistics.aliasing import Effect
from gatelab.results.statistics.importance import TOP, Importance
from gatelab.results.store.metric_specs import measure, with_unit
from gatelab.results.store.runs import short_axes
from gatelab.results.views.style import line_style, tidy
from gatelab.results.views.table import Column, Grid, finite

MARKERS = "osD^vPX"


COLUMNS = 4
"""Most panels beside each other."""


PANELS = 4
"""Most interactions in a figure."""


SHOWN = 20
"""Most partial aliases in a table for people."""


HEADINGS = (
    "what",
    "name",
    "level",
    "mean",
    "effect",
    "low",
    "high",
    "df",
    "ss",
    "share",
    "F",
    "p",
    "q",
    "verdict",
    "value",
)
"""Of the CSV file."""


def effects_grids(found: Effects) -> list[Grid]:
    """A report for people: of effects and tests, levels, interactions, aliases and importances those that there are."""
    grids, factorial = [], found.factorial
    if factorial is not None:
        grids += [_terms_grid(found, factorial), _levels_grid(found, factorial), *_combination_grids(found, factorial)]
    if found.aliases:
        grids.append(_aliases_grid(found))
    if found.importance is not None and found.importance.fanova is not None:
        grids.append(_importance_grid(found, found.importance))
    if not grids:
        grids = [Grid(f"{found.study}: effects on {found.metric}", (Column("effect"),), (), ())]
    first = grids[0]
    legend = [_legend(factorial)] if factorial is not None else []
    whole = Grid(first.title, first.columns, first.rows, first.emphasised, (*legend, *first.notes, *found.notes))
    return [whole, *grids[1:]]


def _legend(factorial: Factorial) -> str:
    beyond = "Interactions of three axes or more are no part of the error. " if len(factorial.axes) > 2 else ""
    return (
        "SS: sum of squares; η²: its share of all that values have about the means of their seeds (all rows but seeds; "
        f"not partial). q: Benjamini and Hochberg's, over all tests here. {beyond}Verdict: effect where q < 0.05."
    )


def _terms_grid(found: Effects, factorial: Factorial) -> Grid:
    unit = measure(found.metric).unit
    squares = f"SS [({unit})²]" if unit else "SS"
    columns = [
        Column("effect"),
        *(Column(name, True) for name in ("df", squares, "η²", "F", "p", "q")),
        Column("verdict"),
    ]
    rows = [
        (
            term.name,
            str(term.df),
            f"{term.ss:.4g}",
            _share(term.share),
            _f(term.f),
            _chance(term.p),
            _chance(term.q),
            term.verdict,
        )
        for term in factorial.terms
    ]
    others = []
    if len(factorial.seeds) > 1:
        for error in factorial.errors:
            rest = error.ss / factorial.total_ss if factorial.total_ss else math.nan
            others.append((f"error: {error.name}", error.df, error.ss, _share(rest)))
        others.append(("seeds (blocks)", len(factorial.seeds) - 1, factorial.seeds_ss, "–"))
    for name, df, square, share in others:
        rows.append((name, str(df), f"{square:.4g}", share, "–", "–", "–", "–"))
    bold = [term.verdict == "effect" for term in factorial.terms] + [False] * len(others)
    return Grid(f"{found.study}: effects on {found.metric}", tuple(columns), tuple(rows), tuple(bold))


def _levels_grid(found: Effects, factorial: Factorial) -> Grid:
    names, digits = short_axes(list(factorial.axes)), _digits(factorial)
    rows = [
        (
            names[level.axis],
            level.level,
            f"{level.mean:,.{digits}f}",
            f"{level.effect.mean:+,.{digits}f}",
            _interval(level.effect.low, level.effect.high, digits),
            level.verdict,
        )
        for level in factorial.levels
    ]
    notes = [
        f"Effect: mean of a level less the grand mean, {factorial.mean:,.{digits}f}, with its t-interval (each by "
        f"itself, not adjusted for their number). Verdict: {_ways(found)} than the average of all levels where "
        "the test of the axis says effect (q < 0.05) and the interval leaves out 0; else undecided."
    ]
    if factorial.kind == FRACTION and any(len(term.effects) > 1 for term in factorial.terms):
        notes.append("In a fraction these are the effects of axes and of what is aliased with them.")
    columns = (
        Column("axis"),
        Column("level"),
        Column(with_unit(found.metric), True),
        Column("effect", True),
        Column("95 % interval", True),
        Column("verdict"),
    )
    return Grid(f"{found.study}: levels", columns, tuple(rows), (False,) * len(rows), tuple(notes))


def _combination_grids(found: Effects, factorial: Factorial) -> list[Grid]:
    """Of the interactions that are an effect, or else of the strongest: row x column, the effect in each cell."""
    shown = _shown(factorial)
    return [_combination_grid(found, factorial, pair, first=pair == shown[0]) for pair in shown]


def _shown(factorial: Factorial) -> list[Effect]:
    """The interactions that are an effect, the strongest first; or the strongest, if there is none."""
    if factorial.kind != FACTORIAL:
        return []
    pairs = [term for term in factorial.terms if term.effects and len(term.effects[0]) == 2]
    pairs.sort(key=lambda term: -term.ss / term.df)
    return [term.effects[0] for term in pairs if term.verdict == "effect"] or [term.effects[0] for term in pairs[:1]]


def _combination_grid(found: Effects, factorial: Factorial, pair: Effect, first: bool) -> Grid:
    names, digits = short_axes(list(factorial.axes)), _digits(factorial)
    rows = [
        (
            *cell.levels,
            f"{cell.mean:,.{digits}f}",
            f"{cell.effect.mean:+,.{digits}f}",
            _interval(cell.effect.low, cell.effect.high, digits),
            cell.verdict,
        )
        for cell in factorial.combinations
        if cell.axes == pair
    ]
    columns = (
        *(Column(names[axis]) for axis in pair),
        Column(with_unit(found.metric), True),
        Column("interaction", True),
        Column("95 % interval", True),
        Column("verdict"),
    )
    notes = [
        "Interaction: mean of a combination less those of its two levels, plus the grand mean: what the levels do "
        f"together beyond what each does by itself. Verdict: {_ways(found)} than that would be, where the test of "
        "the interaction says effect (q < 0.05) and the interval leaves out 0; else undecided."
    ]
    title = f"{found.study}: {effect_name(pair, names)}"
    return Grid(title, columns, tuple(rows), (False,) * len(rows), tuple(notes) if first else ())


def _aliases_grid(found: Effects) -> Grid:
    """Alias strings of a regular fraction; of others, which pairs are how far from being told apart."""
    names = short_axes(found.axes)
    factorial, notes = found.factorial, []
    if factorial is not None and factorial.kind == FRACTION:
        aliased = [term.name for term in factorial.terms if len(term.effects) > 1]
        aliased += [alias_name(alias, names) for alias in found.aliases if not alias.first]
        rows = [(name, "1") for name in aliased]
    else:
        order = sorted(found.aliases, key=lambda a: (len(a.first) + len(a.second) > 2, -a.correlations[0]))
        rows = [(alias_name(alias, names), f"{alias.correlations[0]:.3f}") for alias in order[:SHOWN]]
        notes.append("=: one is wholly within the other; ~: partly (largest canonical correlation of the two).")
        if len(order) > SHOWN:
            notes.append(f"{len(order) - SHOWN} more pairs of effects are in the CSV and JSON files.")
    columns = (Column("aliased effects"), Column("correlation", True))
    title = f"{found.study}: effects that these variants cannot tell apart"
    return Grid(title, columns, tuple(rows), (False,) * len(rows), tuple(notes))


def _importance_grid(found: Effects, important: Importance) -> Grid:
    names, fanova, ped = short_axes(found.axes), important.fanova or {}, important.ped_anova
    columns = [Column("axis"), Column("fANOVA", True), *([Column("PED-ANOVA", True)] if ped else [])]
    order = sorted(fanova, key=fanova.__getitem__, reverse=True)
    rows = [(names[axis], f"{fanova[axis]:.3f}", *([f"{ped[axis]:.3f}"] if ped else [])) for axis in order]
    notes = [
        f"Importance, of {important.runs} runs of {important.variants} variants, less what seeds add. fANOVA: the "
        "share of a random forest's variance over all combinations of levels, also those never run, that an axis alone "
        "accounts for; what is missing to 1 are interactions. It is no test, and says neither which level is better "
        "nor, where axes go together, which of them it is."
    ]
    if ped:
        notes.append(
            f"PED-ANOVA: how unlike the levels of the best {TOP:.0%} of runs are to those of all, as shares of 1."
        )
    elif not measure(found.metric).better:
        notes.append("PED-ANOVA is of the best runs, and this metric has no better.")
    else:
        notes.append(
            f"PED-ANOVA has too few runs: it is of the best {TOP:.0%}, which must be five and differ from all."
        )
    if len(rows) < len(found.axes):
        notes.append("Axes with one level in all finished runs have no importance.")
    title = f"{found.study}: importance for {found.metric}"
    return Grid(title, tuple(columns), tuple(rows), (False,) * len(rows), tuple(notes))


def _ways(found: Effects) -> str:
    return "better or worse" if measure(found.metric).better else "lower or higher"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _f(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.2f}"


def _chance(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _interval(low: float, high: float, digits: int) -> str:
    return "–" if math.isnan(low) else f"[{low:+,.{digits}f}, {high:+,.{digits}f}]"


def _digits(factorial: Factorial) -> int:
    """Decimals at which effects and their intervals can be read: two figures of the narrowest interval."""
    effects = [of.effect for of in factorial.levels] + [of.effect for of in factorial.combinations]
    widths = [effect.high - effect.mean for effect in effects if effect.high > effect.mean]
    widths = widths or [abs(effect.mean) for effect in effects if effect.mean]
    return int(np.clip(1 - math.floor(math.log10(min(widths))), 0, 9)) if widths else 4


def effects_dict(found: Effects) -> dict[str, Any]:
    """A report as JSON values; numbers that do not exist are None."""
    values = asdict(found)
    if (factorial := found.factorial) is not None:
        for of, error in zip(values["factorial"]["errors"], factorial.errors, strict=True):
            of["ms"] = error.ms
        for of, term in zip(values["factorial"]["terms"], factorial.terms, strict=True):
            of["verdict"] = term.verdict
    for of, alias in zip(values["aliases"], found.aliases, strict=True):
        of["complete"] = alias.is_complete
    whole: dict[str, Any] = finite(values)
    return whole


def effects_csv(found: Effects) -> str:
    """A report for spreadsheets: a row for each effect, level, combination, alias and importance, at full precision.

    Numbers that do not exist are empty.
    """
    rows: list[dict[str, Any]] = []
    if (factorial := found.factorial) is not None:
        rows += [_term_row(term) for term in factorial.terms]
        rows += [{"what": "error", "name": of.name, "df": of.df, "ss": of.ss} for of in factorial.errors]
        rows.append({"what": "blocks", "name": "seeds", "df": len(factorial.seeds) - 1, "ss": factorial.seeds_ss})
        places: list[tuple[str, LevelEffect | CellEffect, str, str]] = [
            ("level", of, of.axis, of.level) for of in factorial.levels
        ]
        places += [("combination", of, " × ".join(of.axes), " × ".join(of.levels)) for of in factorial.combinations]
        for what, of, name, level in places:
            numbers = {"mean": of.mean, "effect": of.effect.mean, "low": of.effect.low, "high": of.effect.high}
            rows.append({"what": what, "name": name, "level": level, **numbers, "verdict": of.verdict})
    full = {axis: axis for axis in found.axes}
    rows += [{"what": "alias", "name": alias_name(of, full), "value": of.correlations[0]} for of in found.aliases]
    if found.importance is not None:
        for method, by_axis in (("fANOVA", found.importance.fanova), ("PED-ANOVA", found.importance.ped_anova)):
            rows += [{"what": method, "name": axis, "value": value} for axis, value in (by_axis or {}).items()]
    out = io.StringIO()
    writer = csv.DictWriter(out, HEADINGS)
    writer.writeheader()
    writer.writerows({name: cell for name, cell in row.items() if cell == cell} for row in rows)
    return out.getvalue()


def _term_row(term: Term) -> dict[str, Any]:
    tests = {"F": term.f, "p": term.p, "q": term.q}
    name = " = ".join(effect_name(effect, {axis: axis for axis in effect}) for effect in term.effects) or term.name
    sums = {"df": term.df, "ss": term.ss, "share": term.share}
    return {"what": "effect", "name": name, **sums, **tests, "verdict": term.verdict}


def plot_effects(found: Effects) -> Figure | None:
    """The mean of each level, a panel for each axis, all on one scale. None without a table of effects.

    Bars are the intervals of the differences to the grand mean, which is a line.
    """
    if (factorial := found.factorial) is None:
        return None
    names = short_axes(list(factorial.axes))
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(3.6, 2.3 * columns + 0.8), 2.6 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(names))
    for place, (axis, axes) in enumerate(zip(factorial.axes, grid.flat, strict=False)):
        mine = [level for level in factorial.levels if level.axis == axis]
        halves = [level.effect.high - level.effect.mean for level in mine]
        axes.axhline(factorial.mean, color="#555555", linewidth=0.8, linestyle=":")
        axes.errorbar(
            range(len(mine)), [level.mean for level in mine], _bars(halves), **line_style(0), **_marks(0), linewidth=1.2
        )
        _name_levels(axes, names[axis], [level.level for level in mine])
        if place % columns == 0:
            axes.set_ylabel(with_unit(found.metric), fontsize=8)
    bars = "bars: 95 % of the difference to the grand mean" if factorial.is_tested else "no error: no intervals"
    figure.suptitle(f"{found.study}: means of levels\n({bars})", fontsize=10)
    return figure


def plot_interaction(found: Effects) -> Figure | None:
    """Means of the combinations of two axes, of the interactions that are an effect, or of the strongest. None without.

    Lines that are not parallel are the interaction; bars are the intervals of the interaction in each combination.
    """
    factorial = found.factorial
    if factorial is None or not (pairs := _shown(factorial)[:PANELS]):
        return None
    names = short_axes(list(factorial.axes))
    columns = min(2, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(5.2 if columns == 1 else 8.6, 3.2 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(pairs))
    for place, (pair, axes) in enumerate(zip(pairs, grid.flat, strict=False)):
        _draw_interaction(axes, factorial, pair, names)
        if place % columns == 0:
            axes.set_ylabel(with_unit(found.metric), fontsize=8)
    bars = "bars: 95 % of the interaction" if factorial.is_tested else "no error: no intervals"
    figure.suptitle(f"{found.study}: interactions\n({bars})", fontsize=10)
    return figure


def _draw_interaction(axes: Axes, factorial: Factorial, pair: Effect, names: Mapping[str, str]) -> None:
    along, lines = sorted(pair, key=lambda axis: -len(factorial.axes[axis]))  # more levels go along the abscissa
    cells = {frozenset(zip(cell.axes, cell.levels, strict=True)): cell for cell in factorial.combinations}
    levels, own = factorial.axes[along], factorial.axes[lines]
    for index, line in enumerate(own):
        mine = [cells[frozenset(((lines, line), (along, level)))] for level in levels]
        where = np.arange(len(levels)) + 0.08 * (index - (len(own) - 1) / 2) / max(1, len(own) - 1)  # side by side
        halves = [cell.effect.high - cell.effect.mean for cell in mine]
        means = [cell.mean for cell in mine]
        axes.errorbar(where, means, _bars(halves), **line_style(index), **_marks(index), linewidth=1.2, label=line)
    _name_levels(axes, names[along], levels)
    axes.legend(title=names[lines], title_fontsize=7, fontsize=7, frameon=False, ncols=1 + len(own) // 6)


def _bars(halves: Sequence[float]) -> list[float] | None:
    return None if any(math.isnan(half) for half in halves) else list(halves)


def _marks(index: int) -> dict[str, Any]:
    return {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "elinewidth": 1.2, "capsize": 2.5}


def _name_levels(axes: Axes, axis: str, levels: Sequence[str]) -> None:
    """Levels under the abscissa, aslant where they would not fit beside each other."""
    aslant = sum(map(len, levels)) > 22
    axes.set_xticks(range(len(levels)), levels, rotation=30 if aslant else 0, ha="right" if aslant else "center")
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_xlabel(axis, fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    tidy(axes)
