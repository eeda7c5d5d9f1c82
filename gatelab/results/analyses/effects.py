"""What each axis of a study does, and which two depend on each other: a factorial analysis of finished trials.

Where there is a variant for each combination of levels, effects are differences of means and are tested against the
scatter of seeds. Where there are fewer, those are tested that the variants can tell apart, and axes get an importance.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.linalg import helmert
from scipy.special import fdtrc

from gatelab.results.analyses.comparison import DEFAULT_METRIC, UNFINISHED, environment_notes, unknown_metric
from gatelab.results.statistics.aliasing import (
    Alias,
    Axes,
    Cell,
    Effect,
    Structure,
    complete_part,
    effects_of,
    strings,
    structure,
)
from gatelab.results.statistics.importance import Importance, importance
from gatelab.results.statistics.paired import LEVEL, Interval, Mean, benjamini_hochberg, unequal_variances_p
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metric_specs import measure
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import AXIS, axes_of, metrics_of, short_axes
from gatelab.results.store.trials import Descriptions, study_descriptions

Floats = npt.NDArray[np.float64]


FACTORIAL, FRACTION, MAIN_EFFECTS = "factorial", "fraction", "main effects"


DIVERGED = "diverged"


LOST = {"finished": "has no such number", "diverged": DIVERGED, "failed": "failed"}
"""Outcome of a trial without a value -> why it has none; of all others, it has not finished."""


NAMED = 6
"""Most variants that a note names."""


class NotFactorial(ValueError):
    """A study without axes that vary, or with fewer than two finished variants, or without the metric."""


@dataclass(frozen=True)
class Seeds:
    """What came of the seeds of a variant."""

    values: dict[int, float]
    lost: dict[int, str]
    """Seed -> why it has no value."""

    @property
    def diverged(self) -> tuple[int, ...]:
        """Those that diverged."""
        return tuple(seed for seed, why in sorted(self.lost.items()) if why == DIVERGED)


@dataclass(frozen=True)
class Term:
    """An effect, or those that cannot be told from it, and its test. Not a number where there is none."""

    name: str
    effects: tuple[Effect, ...]
    """Aliased ones together; empty: all that is left between variants."""
    df: int
    ss: float
    """Sum of squares, over variants and seeds."""
    share: float
    """η²: of the sum of squares that values have about the means of their seeds."""
    f: float
    p: float
    q: float = math.nan
    """Benjamini and Hochberg's, over all terms."""

    @property
    def verdict(self) -> str:
        """effect, undecided, or not evaluable where there is no test."""
        return "not evaluable" if math.isnan(self.q) else "effect" if self.q < LEVEL else "undecided"


@dataclass(frozen=True)
class LevelEffect:
    """A level of an axis: its mean, and that less the grand mean, with its interval."""

    axis: str
    level: str
    mean: float
    effect: Interval
    verdict: str
    """better or worse than the grand mean where the test of the axis says effect; else undecided or not evaluable."""


@dataclass(frozen=True)
class CellEffect:
    """A combination of two axes' levels: its mean, and that less row and column plus grand mean, with its interval."""

    axes: tuple[str, str]
    levels: tuple[str, str]
    mean: float
    effect: Interval
    verdict: str
    """The same, where the test of the interaction says effect."""


@dataclass(frozen=True)
class Error:
    """What effects are tested against: by how much the differences of variants scatter over seeds."""

    name: str
    ss: float
    df: int

    @property
    def ms(self) -> float:
        """Mean square; not a number with one seed."""
        return self.ss / self.df if self.df else math.nan


@dataclass(frozen=True)
class Scatter:
    """Whether seeds scatter alike at all levels of an axis."""

    axis: str
    sds: dict[str, float]
    """Level -> standard deviation over seeds."""
    p: float
    """Of Bartlett's test; not a number with one seed."""


@dataclass(frozen=True)
class Factorial:
    """Variants at the seeds that all have finished, taken apart."""

    kind: str
    axes: dict[str, tuple[str, ...]]
    """Axis -> its levels, in the study's order."""
    cells: int
    seeds: tuple[int, ...]
    mean: float
    terms: tuple[Term, ...]
    """Main effects, interactions, and at last what else is between variants."""
    levels: tuple[LevelEffect, ...]
    combinations: tuple[CellEffect, ...]
    """Of each interaction; in a fraction none."""
    seeds_ss: float
    """Sum of squares of seeds, which are blocks."""
    total_ss: float
    """That of values about the means of their seeds: all terms and errors."""
    errors: tuple[Error, ...]
    """That of variants x seeds; or, where trials share trunks, of trunks x seeds, and of what is within trunks."""
    trunks: tuple[str, ...]
    """Axes along which trials branch off from one trunk."""
    scatter: tuple[Scatter, ...]

    @property
    def is_tested(self) -> bool:
        """Whether seeds scatter, so that there are tests and intervals."""
        return all(error.ms > 0 for error in self.errors)

    def error_of(self, effects: Sequence[Effect]) -> Error:
        """What aliased effects are tested against; without any, all interactions of three axes or more."""
        within = any(axis in self.trunks for effect in effects for axis in effect)
        if not effects:
            within = len(self.axes) - len(self.trunks) < 3  # else some of them are between trunks, which vary more
        return self.errors[-1 if within else 0]


@dataclass(frozen=True)
class Effects:
    """What a study's axes do to a metric."""

    study: str
    study_hash: str
    metric: str
    axes: tuple[str, ...]
    """That have two levels or more."""
    factorial: Factorial | None
    aliases: tuple[Alias, ...]
    """Of all variants at which every axis has a level, if they are not all combinations of levels."""
    importance: Importance | None
    """None for a complete factorial, which says more."""
    notes: tuple[str, ...]


def effects(runs: pa.Table, metric: str = DEFAULT_METRIC, trunks: Collection[str] = ()) -> Effects:
    """The factorial analysis of a `runs` frame by a summary metric, of trials that finished. Raises NotFactorial.

    Trials that differ only along the axes `trunks` share a part of their training, and with it what a seed does.
    """
    known = metrics_of(runs)
    if metric not in known:
        raise NotFactorial(unknown_metric(metric, known))
    columns = ["study", "study_hash", "variant", "seed", "outcome", metric, *(AXIS + axis for axis in axes_of(runs))]
    trials = runs.select(columns).to_pylist()
    seeds: dict[str, Seeds] = {}
    levels: dict[str, dict[str, str | None]] = {}
    for trial in trials:
        levels[trial["variant"]] = {axis: trial[AXIS + axis] for axis in axes_of(runs)}
        own, value = seeds.setdefault(trial["variant"], Seeds({}, {})), trial[metric]
        if trial["outcome"] == "finished" and math.isfinite(math.nan if value is None else value):
            own.values[trial["seed"]] = value
        else:
            own.lost[trial["seed"]] = LOST.get(trial["outcome"], "has not finished")
    varying = _varying(axes_of(runs), levels)
    if not varying:
        raise NotFactorial("effects are those of axes with two levels or more, and the study has none")
    valued = {variant: own for variant, own in seeds.items() if own.values}
    if len(valued) < 2:
        raise NotFactorial(
            f"effects are differences between variants: two must have finished (got {len(valued)} of {len(levels)})"
        )
    found = _analyse(valued, {variant: levels[variant] for variant in valued}, varying, metric, trunks)
    notes = [*_missing(seeds), *_chosen_by_divergence(seeds), *found.notes, *environment_notes(runs)]
    if unfinished := sum(trial["outcome"] in UNFINISHED for trial in trials):
        notes.append(f"{unfinished} trials have not finished: the table will change.")
    return replace(found, study=trials[0]["study"], study_hash=trials[0]["study_hash"], notes=tuple(notes))


def shared_trunks(folder: RunsFolder, record: StudyRecord) -> tuple[str, ...]:
    """The axes of a study's record along which some of its trials branched off from the training of others."""
    return trunks_of(record, study_descriptions(folder, record))


def trunks_of(record: StudyRecord, descriptions: Descriptions) -> tuple[str, ...]:
    """The same, by descriptions that have been read."""
    levels = {trial.id: record.variants[trial.variant].levels for trial in record.trials}
    found = set()
    for trial, own in levels.items():
        fork = descriptions[trial].branch if trial in descriptions else None
        if fork and fork.trunk in levels:
            trunk = levels[fork.trunk]
            found |= {axis for axis in record.axes if own.get(axis) != trunk.get(axis)}
    return tuple(axis for axis in record.axes if axis in found)


def effect_name(effect: Effect, names: Mapping[str, str]) -> str:
    """`position`, or `position × granularity`."""
    return " × ".join(names[axis] for axis in effect) if effect else "mean"


def _varying(axes: Sequence[str], levels: Mapping[str, Mapping[str, str | None]]) -> tuple[str, ...]:
    """The axes with two levels or more, no level being one, too."""
    return tuple(axis for axis in axes if len({of[axis] for of in levels.values()}) > 1)


def _analyse(
    seeds: Mapping[str, Seeds],
    levels: Mapping[str, Mapping[str, str | None]],
    varying: tuple[str, ...],
    metric: str,
    trunks: Collection[str],
) -> Effects:
    better = measure(metric).better
    # An axis that has but one level and none makes no table of its own, and who has none of it is no exception.
    tabled = [axis for axis in varying if len({of[axis] for of in levels.values()} - {None}) > 1]
    whole = [variant for variant, of in levels.items() if all(of[axis] is not None for axis in tabled)]
    axes = {
        axis: tuple(of)
        for axis in tabled
        if len(of := dict.fromkeys(level for v in whole if (level := levels[v][axis]) is not None)) > 1
    }
    cells: dict[Cell, Seeds] = {tuple(str(levels[variant][axis]) for axis in axes): seeds[variant] for variant in whole}
    notes = []
    if folded := [variant for variant in levels if variant not in whole]:
        notes.append(f"Left out of the table of effects, as an axis has no level there: {_listed(folded)}.")
    found: Factorial | None = None
    aliases: tuple[Alias, ...] = ()
    if not axes or len(cells) < len(whole):
        notes.append("There is no table of effects: no axis has two levels among variants that differ in nothing else.")
    else:
        kind = structure(list(cells), axes)
        aliases = kind.aliases
        chosen, why = _choose(cells, axes, kind)
        notes += [why] if why else []
        if chosen is not None:
            found = _factorial(*chosen, trunks, better)
            notes += _notes(found, chosen[2], trunks)
    important = None
    if found is None or found.kind != FACTORIAL or found.cells < len(seeds):
        values = {variant: own.values for variant, own in seeds.items()}
        important = importance(values, levels, _varying(varying, levels), better)
        if important.fanova is None:
            notes.append("Variants do not differ, so that no axis is important.")
    return Effects("", "", metric, varying, found, aliases, important, tuple(notes))


Chosen = tuple[str, dict[str, tuple[str, ...]], dict[Cell, Seeds], tuple[int, ...]]
"""The kind of a table, its axes, its cells, and the seeds that all of them have finished."""


def _choose(cells: dict[Cell, Seeds], axes: dict[str, tuple[str, ...]], kind: Structure) -> tuple[Chosen | None, str]:
    """What of the cells can be taken apart, and why it is not all."""
    if seeds := _common(cells):
        if kind.complete:
            return (FACTORIAL, axes, cells, seeds), ""
        if kind.regular:
            return (FRACTION, axes, cells, seeds), ""
        if kind.orthogonal:
            return (MAIN_EFFECTS, axes, cells, seeds), ""
    every = math.prod(map(len, axes.values()))
    if not seeds:
        why = "no seed has finished in all variants"
    else:
        why = f"{len(cells)} of {every} combinations of levels are neither all nor a regular fraction"
    # A seed that most variants lack would cost all others.
    counts = Counter(seed for of in cells.values() for seed in of.values)
    usual = {seed for seed, count in counts.items() if 2 * count >= len(cells)}
    complete = {cell: of for cell, of in cells.items() if usual and of.values.keys() >= usual}
    part = complete_part(complete, axes)
    if part is None:
        return None, f"The study is unbalanced: {why}. No effect is tested."
    inside = {
        cell: of
        for cell, of in complete.items()
        if all(level in part[axis] for axis, level in zip(axes, cell, strict=True))
    }
    names = short_axes(list(axes))
    where = "; ".join(f"{names[axis]} at {', '.join(of)}" for axis, of in part.items())
    why = f"The study is unbalanced: {why}. Effects are those of a part in which all combinations are: {where}."
    kept = {axis: of for axis, of in part.items() if len(of) > 1}
    places = [place for place, axis in enumerate(part) if axis in kept]
    inside = {tuple(cell[place] for place in places): of for cell, of in inside.items()}
    return (FACTORIAL, kept, inside, _common(inside)), why


def _common(cells: Mapping[Cell, Seeds]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*({*of.values} for of in cells.values()))))


def _factorial(
    kind: str,
    axes: dict[str, tuple[str, ...]],
    cells: Mapping[Cell, Seeds],
    seeds: Sequence[int],
    trunks: Collection[str],
    better: str,
) -> Factorial:
    """The analysis of a table of [cells, seeds], whose blocks are seeds."""
    table = np.array([[of.values[seed] for seed in seeds] for of in cells.values()])
    grand = float(table.mean())
    means = table.mean(1) - grand
    blocks = table.mean(0) - grand
    residuals = table - grand - means[:, None] - blocks
    residuals[np.abs(residuals) < 1e-12 * np.abs(table).max()] = 0.0  # rounding
    between = len(seeds) * float((means**2).sum())
    branching = tuple(axis for axis in axes if axis in trunks) if kind == FACTORIAL else ()
    whole = Factorial(
        kind=kind,
        axes=axes,
        cells=len(cells),
        seeds=tuple(seeds),
        mean=grand,
        terms=(),
        levels=(),
        combinations=(),
        seeds_ss=len(cells) * float((blocks**2).sum()),
        total_ss=between + float((residuals**2).sum()),
        errors=_errors(residuals, list(cells), axes, branching),
        trunks=branching if len(branching) < len(axes) else (),
        scatter=tuple(
            _scatter(axis, axes[axis], [cell[place] for cell in cells], residuals) for place, axis in enumerate(axes)
        ),
    )
    tested = [(axis,) for axis in axes] if kind == MAIN_EFFECTS else effects_of(axes)
    names, terms = short_axes(list(axes)), []
    for aliased, space in strings(list(cells), axes, tested):
        square = len(seeds) * float(((space.T @ means) ** 2).sum())
        name = _string_name(aliased, space.shape[1], axes, names)
        terms.append(_term(name, aliased, space.shape[1], square, whole))
    if left := len(cells) - 1 - sum(term.df for term in terms):
        name = "interactions of three axes or more" if kind == FACTORIAL else "all other interactions"
        terms.append(_term(name, (), left, max(0.0, between - sum(term.ss for term in terms)), whole))
    chances = benjamini_hochberg([term.p for term in terms])
    whole = replace(whole, terms=tuple(replace(term, q=q) for term, q in zip(terms, chances, strict=True)))
    at = {cell: index for index, cell in enumerate(cells)}
    levels = {
        axis: {level: float(means[[at[cell] for cell in at if cell[place] == level]].mean()) for level in of}
        for place, (axis, of) in enumerate(axes.items())
    }
    judge = Judge(better, whole, tuple(cell for cell, of in cells.items() if of.diverged))
    main = [_level(axis, level, mean, judge) for axis, of in levels.items() for level, mean in of.items()]
    pairs = [effect for effect in effects_of(axes) if len(effect) == 2] if kind == FACTORIAL else []
    combinations = [cell for pair in pairs for cell in _combinations(pair, levels, at, means, judge)]
    return replace(whole, levels=tuple(main), combinations=tuple(combinations))


def _errors(residuals: Floats, cells: Sequence[Cell], axes: Axes, trunks: Collection[str]) -> tuple[Error, ...]:
    """The scatter of [cells, seeds], apart for what trials of one trunk share and for what they do not."""
    count, seeds = residuals.shape
    every = Error("variants × seeds", float((residuals**2).sum()), (count - 1) * (seeds - 1))
    others = [place for place, axis in enumerate(axes) if axis not in trunks]
    if not trunks or not others:
        return (every,)
    stems: dict[Cell, list[int]] = {}
    for index, cell in enumerate(cells):
        stems.setdefault(tuple(cell[place] for place in others), []).append(index)
    shared = sum(len(of) * float((residuals[of].mean(0) ** 2).sum()) for of in stems.values())
    between = Error("trunks × seeds", shared, (len(stems) - 1) * (seeds - 1))
    return between, Error("within trunks", max(0.0, every.ss - between.ss), every.df - between.df)


def _scatter(axis: str, levels: Sequence[str], own: Sequence[str], residuals: Floats) -> Scatter:
    """How residuals of [cells, seeds] scatter at each level of an axis, `own` being the level of each cell."""
    if residuals.shape[1] < 2:
        return Scatter(axis, {}, math.nan)
    free = residuals @ helmert(residuals.shape[1]).T  # of each cell, as many contrasts as it has degrees of freedom
    at = {level: free[[index for index, of in enumerate(own) if of == level]] for level in levels}
    if all(len(of) > 1 for of in at.values()):  # then without what the level's cells share, which others have disturbed
        at = {level: helmert(len(of)) @ of for level, of in at.items()}
    sds = {level: float(np.sqrt((of**2).mean())) for level, of in at.items()}
    return Scatter(axis, sds, unequal_variances_p([of.ravel() for of in at.values()]))


def _term(name: str, aliased: tuple[Effect, ...], df: int, ss: float, whole: Factorial) -> Term:
    error = whole.error_of(aliased)
    f = ss / df / error.ms if whole.is_tested else math.nan
    p = math.nan if math.isnan(f) else float(fdtrc(df, error.df, f))
    return Term(name, aliased, df, ss, ss / whole.total_ss if whole.total_ss else math.nan, f, p)


def _string_name(aliased: Sequence[Effect], df: int, axes: Axes, names: Mapping[str, str]) -> str:
    """`position = granularity × sharing`; of an effect that has more degrees of freedom, it is a part."""
    whole = {effect: math.prod(len(axes[axis]) - 1 for axis in effect) for effect in aliased}
    return " = ".join(f"{'part of ' if whole[effect] > df else ''}{effect_name(effect, names)}" for effect in aliased)


@dataclass(frozen=True)
class Judge:
    """What verdicts on the levels and combinations of a table depend on."""

    better: str
    whole: Factorial
    lost: tuple[Cell, ...]
    """Those that lost seeds as they diverged."""

    def verdict(self, axes: Effect, levels: Sequence[str], effect: Interval) -> str:
        """Whether an effect is better or worse than nothing; lower or higher where neither is better."""
        if math.isnan(effect.low) or self._is_chosen(axes, levels):
            return "not evaluable"
        # Of many intervals some leave out 0 by chance. The test is one for all, and adjusted for their number.
        is_effect = any(axes in term.effects and term.verdict == "effect" for term in self.whole.terms)
        if not is_effect or effect.low <= 0 <= effect.high:
            return "undecided"
        way = "lower" if effect.high < 0 else "higher"
        return way if not self.better else "better" if way == self.better else "worse"

    def _is_chosen(self, axes: Effect, levels: Sequence[str]) -> bool:
        """Whether levels are those of a cell whose seeds are a choice in favour of what diverges. Of an axis with two
        levels both are: their effects are one number."""
        places = [list(self.whole.axes).index(axis) for axis in axes]
        return any(
            all(
                level == cell[place] or len(self.whole.axes[axis]) == 2
                for axis, level, place in zip(axes, levels, places, strict=True)
            )
            for cell in self.lost
        )


def _level(axis: str, level: str, mean: float, judge: Judge) -> LevelEffect:
    others = len(judge.whole.axes[axis]) - 1
    effect = _interval(mean, others, judge.whole, (axis,))
    return LevelEffect(axis, level, judge.whole.mean + mean, effect, judge.verdict((axis,), (level,), effect))


def _combinations(
    pair: Effect, levels: Mapping[str, Mapping[str, float]], at: Mapping[Cell, int], means: Floats, judge: Judge
) -> Iterator[CellEffect]:
    whole = judge.whole
    first, second = (list(whole.axes).index(axis) for axis in pair)
    others = math.prod(len(whole.axes[axis]) - 1 for axis in pair)
    for row, own in levels[pair[0]].items():
        for column, other in levels[pair[1]].items():
            cell = float(means[[i for of, i in at.items() if (of[first], of[second]) == (row, column)]].mean())
            effect = _interval(cell - own - other, others, whole, pair)
            verdict = judge.verdict(pair, (row, column), effect)
            yield CellEffect((pair[0], pair[1]), (row, column), whole.mean + cell, effect, verdict)


def _interval(value: float, others: int, whole: Factorial, effect: Effect) -> Interval:
    """Of an effect whose variance is that of one value, times `others`, over the number of values."""
    values, error = whole.cells * len(whole.seeds), whole.error_of([effect])
    # Without any scatter of seeds there is no t-interval, as there is no test.
    sd = math.sqrt(others * error.ms / values) if whole.is_tested else math.nan
    return Mean(value, sd, error.df, values).interval()


def _missing(seeds: Mapping[str, Seeds]) -> Iterator[str]:
    """Which variants have no value at all."""
    if missing := {variant: sorted(set(own.lost.values())) for variant, own in seeds.items() if not own.values}:
        named = [f"{variant} ({', '.join(whys)})" for variant, whys in missing.items()]
        yield f"Left out, as no trial has a value: {_listed(named)}."


def _chosen_by_divergence(seeds: Mapping[str, Seeds]) -> Iterator[str]:
    """Which variants have lost some of their seeds as they diverged."""
    if lost := [variant for variant, own in seeds.items() if own.values and own.diverged]:
        named = [f"{variant} (seed {', '.join(map(str, seeds[variant].diverged))})" for variant in lost]
        yield (
            f"Diverged at some seeds: {_listed(named)}. What is left of these is a choice in favour of what diverges: "
            "their levels and combinations have no verdict, and tests and importance that they enter are to be read so."
        )


def _notes(found: Factorial, cells: Mapping[Cell, Seeds], trunks: Collection[str]) -> Iterator[str]:
    names = short_axes(list(found.axes))
    if len(found.seeds) == 1:
        yield "A single seed: there is no error to test effects against, and no interval."
    elif not found.is_tested:
        yield "Seeds do not differ beyond what all variants share: there is no error to test effects against."
    else:
        of = " and ".join(f"of {error.name}, {error.ms:.3g} on {error.df} degrees of freedom" for error in found.errors)
        yield (
            f"F: against the mean square {of} ({found.cells} variants, seeds {', '.join(map(str, found.seeds))}). "
            "Seeds are blocks: at one, all variants have the same order of data and the same initial weights where "
            "they share them."
        )
    if found.trunks:
        along = ", ".join(names[axis] for axis in found.trunks)
        yield (
            f"Trials that differ only in {along} share a trunk and are no independent ones: effects of {along} are "
            "tested against what is within trunks, all others against trunks × seeds."
        )
    elif shared := [axis for axis in found.axes if axis in trunks and len(found.axes) > 1]:
        along = ", ".join(names[axis] for axis in shared)
        yield f"Trials that differ only in {along} share a trunk and are no independent ones: tests are too sure."
    for scatter in found.scatter:
        if scatter.p < LEVEL / len(found.axes):
            sds = ", ".join(f"{level}: {sd:.2g}" for level, sd in scatter.sds.items())
            yield (
                f"Seeds scatter unequally over {names[scatter.axis]} (Bartlett's p = {scatter.p:.2g}; standard "
                f"deviations {sds}): one error for all is too small where they scatter most, and too large elsewhere."
            )
    dropped = sorted({seed for of in cells.values() for seed in of.values} - set(found.seeds))
    for seed in dropped:
        lacking: dict[str, list[str]] = {}
        for cell, own in cells.items():
            if seed not in own.values:
                lacking.setdefault(own.lost.get(seed, "was not run"), []).append(", ".join(cell))
        told = ", ".join(f"{why} in {_listed(where)}" for why, where in lacking.items())
        yield f"Seed {seed} is left out: it {told}."
    if found.kind == FRACTION:
        yield "A fraction of all combinations: effects joined by = are one in it, and are tested once."
    if found.kind == MAIN_EFFECTS:
        yield (
            "A fraction of all combinations that mixes main effects with parts of interactions: they are what they "
            "seem only where those interactions are nothing. Interactions are not tested one by one."
        )


def _listed(names: Sequence[str]) -> str:
    """Names, not too many."""
    shown = "; ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown}; and {len(names) - NAMED} more"


def alias_name(alias: Alias, names: Mapping[str, str]) -> str:
    """`position = granularity × sharing`, or with ~ where they are not wholly one."""
    sign = "=" if alias.is_complete else "~"
    first, second = (effect_name(effect, names) for effect in (alias.first, alias.second))
    return f"{first} {sign} {second}"
