"""What a study's axes do, as tables."""

import math

import numpy as np

from gatelab.results.analyses.effects import Effects
from gatelab.results.analyses.effects_frame import alias_name, known_shares
from gatelab.results.analyses.factorial import FACTORIAL, FRACTION, CellEffect, Factorial, LevelEffect, effect_name
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.statistics.importance import TOP, Importance
from gatelab.results.statistics.linear_model import Effect
from gatelab.results.store.runs import short_axes
from gatelab.results.views.format import DASH, bounds, with_unit
from gatelab.results.views.table import Column, Table

SHOWN = 20
"""Most partial aliases in a table for people."""


def tables(found: Effects) -> list[Table]:
    """Lay out a report for people: effects and tests, levels, interactions, aliases, importances, as far as there are
    any.
    """
    grids, factorial = [], found.factorial
    if factorial is not None:
        grids += [
            _terms_table(found, factorial),
            _levels_table(found, factorial),
            *_combination_tables(found, factorial),
        ]
    if found.aliases:
        grids.append(_aliases_table(found))
    if found.importance is not None and (known_shares(found.importance.fanova) or found.importance.ped_anova):
        grids.append(_importance_table(found, found.importance))
    if not grids:
        grids = [Table(f"{found.study}: effects on {found.metric}", (Column("effect"),), ())]
    first = grids[0]
    legend = [_legend(factorial)] if factorial is not None else []
    whole = Table(first.title, first.columns, first.rows, first.emphasised, (*legend, *first.notes, *found.notes))
    return [whole, *grids[1:]]


def _legend(factorial: Factorial) -> str:
    beyond = "Interactions of three axes or more are no part of the error. " if len(factorial.axes) > 2 else ""
    return (
        "SS: sum of squares; η²: its fraction of all that values have about the means of their seeds (all rows but "
        f"seeds; not partial). q: Benjamini and Hochberg's, over all tests here. {beyond}Verdict: effect where "
        "q < 0.05."
    )


def _terms_table(found: Effects, factorial: Factorial) -> Table:
    unit = found.spec.unit
    squares = f"SS [({unit})²]" if unit else "SS"
    columns = [
        Column("effect"),
        *(Column(name, True) for name in ("df", squares, "η²", "F", "p", "q")),
        Column("verdict"),
    ]
    rows: list[tuple[str, ...]] = []
    for term in factorial.terms:
        squares_of = (term.name, str(term.df), f"{term.ss:.4g}", _or_dash(term.share, ".4f"))
        rows.append((*squares_of, _or_dash(term.f, ",.2f"), _chance(term.p), _chance(term.q), term.verdict))
    untested = (DASH,) * 4
    if len(factorial.seeds) > 1:
        for error in factorial.errors:
            share = _or_dash(error.ss / factorial.total_ss if factorial.total_ss else math.nan, ".4f")
            rows.append((f"error: {error.name}", str(error.df), f"{error.ss:.4g}", share, *untested))
        rows.append(("seeds (blocks)", str(len(factorial.seeds) - 1), f"{factorial.seeds_ss:.4g}", DASH, *untested))
    bold = [row[-1] == Verdict.EFFECT for row in rows]
    title = f"{found.study}: effects on {found.metric}{within(found)}"
    return Table(title, tuple(columns), tuple(rows), tuple(bold))


def within(found: Effects) -> str:
    """Say among which variants effects are computed, where these are not all."""
    factorial, every = found.factorial, found.importance
    if factorial is None or every is None or factorial.cells >= every.variants:
        return ""
    names = short_axes(list(factorial.axes))
    levels = "; ".join(f"{names[axis]} {', '.join(of)}" for axis, of in factorial.axes.items())
    return f", among {factorial.cells} of {every.variants} variants ({levels})"


def _levels_table(found: Effects, factorial: Factorial) -> Table:
    names, digits = short_axes(list(factorial.axes)), _digits(factorial)
    rows = [(names[level.axis], level.level, *_estimate(level, digits)) for level in factorial.levels]
    notes = [
        f"Effect: mean of a level minus the grand mean, {factorial.mean:,.{digits}f}, with its t-interval (each by "
        f"itself, not adjusted for their number). Verdict: {_ways(found)} than the average of all levels where "
        "the test of the axis says effect (q < 0.05) and the interval excludes 0; else undecided."
    ]
    if factorial.kind == FRACTION and any(len(term.effects) > 1 for term in factorial.terms):
        notes.append("In a fraction these are the effects of axes and of what is aliased with them.")
    columns = (Column("axis"), Column("level"), *_estimate_columns(found, "effect"))
    return Table(f"{found.study}: levels", columns, tuple(rows), notes=tuple(notes))


def _combination_tables(found: Effects, factorial: Factorial) -> list[Table]:
    """Lay out the interactions that are an effect, or else the strongest: row x column, the effect in each cell."""
    shown = shown_interactions(factorial)
    return [_combination_table(found, factorial, pair, first=pair == shown[0]) for pair in shown]


def shown_interactions(factorial: Factorial) -> list[Effect]:
    """Return the interactions that are an effect, the strongest first; or the strongest, if there is none."""
    if factorial.kind != FACTORIAL:
        return []
    pairs = [term for term in factorial.terms if term.effects and len(term.effects[0]) == 2]
    pairs.sort(key=lambda term: -term.ss / term.df)
    found = [term.effects[0] for term in pairs if term.verdict == Verdict.EFFECT]
    return found or [term.effects[0] for term in pairs[:1]]


def verdict_of(factorial: Factorial, pair: Effect) -> Verdict:
    """Return the verdict on an interaction."""
    return next(term.verdict for term in factorial.terms if pair in term.effects)


def _combination_table(found: Effects, factorial: Factorial, pair: Effect, first: bool) -> Table:
    names, digits = short_axes(list(factorial.axes)), _digits(factorial)
    rows = [(*cell.levels, *_estimate(cell, digits)) for cell in factorial.combinations if cell.axes == pair]
    columns = (*(Column(names[axis]) for axis in pair), *_estimate_columns(found, "interaction"))
    notes = [
        "Interaction: mean of a combination less those of its two levels, plus the grand mean: what the levels do "
        f"together beyond what each does by itself. Verdict: {_ways(found)} than that would be, where the test of "
        "the interaction says effect (q < 0.05) and the interval excludes 0; else undecided."
    ]
    title = f"{found.study}: {effect_name(pair, names)}"
    return Table(title, columns, tuple(rows), notes=tuple(notes) if first else ())


def _aliases_table(found: Effects) -> Table:
    """Lay out the alias strings of a regular fraction; otherwise, the pairs that are aliased and how closely."""
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
    title = f"{found.study}: confounded (aliased) effects"
    return Table(title, columns, tuple(rows), notes=tuple(notes))


def _importance_table(found: Effects, important: Importance) -> Table:
    names, ped = short_axes(found.axes), important.ped_anova
    methods = {"fANOVA": known_shares(important.fanova), "PED-ANOVA": ped or {}}
    methods = {method: shares for method, shares in methods.items() if shares}
    columns = [Column("axis"), *(Column(method, True) for method in methods)]
    first = next(iter(methods.values()))
    order = sorted(first, key=first.__getitem__, reverse=True)
    rows = [(names[axis], *(f"{shares[axis]:.3f}" for shares in methods.values())) for axis in order]
    forest = (
        "fANOVA: the share of a random forest's variance over all combinations of levels, also those never run, that "
        "an axis alone accounts for; what is missing to 1 are interactions. "
    )
    notes = [
        f"Importance, of {important.runs} runs of {important.variants} variants, minus the seed effect. "
        f"{forest if 'fANOVA' in methods else ''}It is no test, and says neither which level is better "
        "nor, where axes go together, which of them it is."
    ]
    if within(found):
        notes.append(
            "It is of all variants, the tests above of some of them: an axis can be important here and undecided there."
        )
    if ped:
        notes.append(
            f"PED-ANOVA: how unlike the levels of the best {TOP:.0%} of runs are to those of all, as shares of 1."
        )
    elif not found.spec.better:
        notes.append("PED-ANOVA is of the best runs, and this metric has no better.")
    else:
        notes.append(
            f"PED-ANOVA has too few runs: it is of the best {TOP:.0%}, which must be five and differ from all."
        )
    if len(rows) < len(found.axes):
        notes.append("Axes with one level in all finished runs have no importance.")
    title = f"{found.study}: importance for {found.metric}"
    return Table(title, tuple(columns), tuple(rows), notes=tuple(notes))


def _ways(found: Effects) -> str:
    return "better or worse" if found.spec.better else "lower or higher"


def _or_dash(value: float, form: str) -> str:
    return DASH if math.isnan(value) else format(value, form)


def _chance(p: float) -> str:
    return DASH if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _estimate_columns(found: Effects, what: str) -> list[Column]:
    numeric = (with_unit(found.metric, found.spec), what, "95 % interval")
    return [*(Column(heading, True) for heading in numeric), Column("verdict")]


def _estimate(of: LevelEffect | CellEffect, digits: int) -> tuple[str, str, str, str]:
    """Format an effect as the cells of these columns."""
    interval = DASH if math.isnan(of.effect.low) else bounds(of.effect.low, of.effect.high, f"+,.{digits}f")
    return f"{of.mean:,.{digits}f}", f"{of.effect.mean:+,.{digits}f}", interval, of.verdict


def _digits(factorial: Factorial) -> int:
    """Return the decimals at which effects and their intervals can be read: two figures of the narrowest interval."""
    effects = [of.effect for of in factorial.levels] + [of.effect for of in factorial.combinations]
    widths = [effect.high - effect.mean for effect in effects if effect.high > effect.mean]
    widths = widths or [abs(effect.mean) for effect in effects if effect.mean]
    return int(np.clip(1 - math.floor(math.log10(min(widths))), 0, 9)) if widths else 4
