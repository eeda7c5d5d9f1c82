"""What each axis of a study does, and which two depend on each other: a factorial analysis of finished trials.

Where there is a variant for each combination of levels, effects are differences of means and are tested against the
scatter of seeds. Where there are fewer, those are tested that the variants can tell apart, and axes get an importance.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gatelab.errors import AnalysisUnavailable, Unavailable
from gatelab.extras import MissingExtra
from gatelab.metrics import MetricSpec, find_spec
from gatelab.results.analyses.analysis import tidy, to_jsonable
from gatelab.results.analyses.comparison import DEFAULT_METRIC, UNFINISHED, environment_notes, unknown_metric
from gatelab.results.analyses.effects_frame import EFFECTS, alias_rows, factorial_rows, importance_rows
from gatelab.results.analyses.factorial import (
    DIVERGED,
    FACTORIAL,
    FRACTION,
    MAIN_EFFECTS,
    Design,
    Factorial,
    Seeds,
    factorial,
)
from gatelab.results.analyses.lost_text import incomparable_variants, lost_text_notes
from gatelab.results.statistics.aliasing import Alias, complete_part, structure
from gatelab.results.statistics.importance import Importance, importance
from gatelab.results.statistics.linear_model import Cell
from gatelab.results.statistics.paired import LEVEL
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import AXIS, axes_of, metrics_of, short_axes
from gatelab.results.store.trials import Descriptions, study_descriptions
from gatelab.status import Status

LOST = {"finished": "has no such number", "diverged": DIVERGED, "failed": "failed"}
"""Outcome of a trial without a value -> why it has none; of all others, it has not finished."""
NAMED = 6
"""Most variants that a note names."""

Levels = Mapping[str, Mapping[str, str | None]]
"""Variant -> axis -> level."""


@dataclass(frozen=True)
class Effects:
    """Effects of a study's axes on a metric."""

    study: str
    study_hash: str
    metric: str
    axes: tuple[str, ...]
    """Axes that have two levels or more."""
    factorial: Factorial | None
    aliases: tuple[Alias, ...]
    """Aliases among all variants at which every axis has a level, if they are not all combinations of levels."""
    importance: Importance | None
    """None for a complete factorial, which says more."""
    notes: tuple[str, ...]
    spec: MetricSpec
    """What the metric is."""

    def frame(self) -> pa.Table:
        """Return a row for each effect, level, combination, alias and importance."""
        rows = [*factorial_rows(self.factorial)] if self.factorial is not None else []
        rows += alias_rows(self.aliases)
        rows += importance_rows(self.importance) if self.importance is not None else []
        return tidy(rows, EFFECTS)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values. None: no such number."""
        values = {name: value for name, value in to_jsonable(self).items() if name != "spec"}
        if (factorial := self.factorial) is not None:
            errors = [{"name": of.name, "ss": of.ss, "df": of.df, "ms": of.ms} for of in factorial.errors]
            values["factorial"]["errors"] = to_jsonable(errors)
            for of, term in zip(values["factorial"]["terms"], factorial.terms, strict=True):
                of["verdict"] = term.verdict
        for of, alias in zip(values["aliases"], self.aliases, strict=True):
            of["complete"] = alias.is_complete
        if self.importance is not None and isinstance(self.importance.fanova, Unavailable):
            values["importance"]["fanova"] = None
        return values


def effects(runs: pa.Table, metric: str = DEFAULT_METRIC, trunks: Collection[str] = ()) -> Effects:
    """Analyse finished trials of a `runs` frame by a summary metric. Raises AnalysisUnavailable.

    Trials that differ only along the axes `trunks` share a part of their training, and with it what a seed does.
    """
    trials, levels, seeds = _read(runs, metric)
    varying = _varying(axes_of(runs), levels)
    if not varying:
        why = "effects are those of axes with two levels or more, and the study has none"
        raise AnalysisUnavailable(f"{_study(runs)}: {why}")
    valued = {variant: own for variant, own in seeds.items() if own.values}
    if len(valued) < 2:
        raise AnalysisUnavailable(
            f"{_study(runs)}: effects are differences between variants: two must have finished "
            f"(got {len(valued)} of {len(levels)}). {' '.join(_missing(seeds))}"
        )
    levels = {variant: levels[variant] for variant in valued}
    spec = find_spec(metric, specs_of(runs))
    axes, cells, folded = _cells(valued, levels, varying)
    notes = [*_missing(seeds), *_chosen_by_divergence(seeds)]
    if folded:
        notes.append(f"Left out of the table of effects, as an axis has no level there: {_listed(folded)}.")
    found: Factorial | None = None
    aliases: tuple[Alias, ...] = ()
    if not axes or len(cells) + len(folded) < len(levels):
        notes.append("There is no table of effects: no axis has two levels among variants that differ in nothing else.")
    else:
        design, why, aliases = _choose(cells, axes)
        notes += [why] if why else []
        if design is not None:
            found = factorial(design, trunks, spec.better)
            notes += _notes(found, design, trunks)
    important = None
    if found is None or found.kind != FACTORIAL or found.cells < len(valued):
        values = {variant: own.values for variant, own in valued.items()}
        try:
            important = importance(values, levels, _varying(varying, levels), spec.better)
        except MissingExtra as error:
            notes.append(f"The importance of axes is left out: {error}.")
        else:
            if important.fanova is None:
                notes.append("Variants do not differ, so that no axis is important.")
            elif isinstance(important.fanova, Unavailable):
                notes.append(important.fanova.reason)
    notes += environment_notes(runs)
    notes += lost_text_notes(runs, metric)
    if unfinished := sum(trial["outcome"] in UNFINISHED for trial in trials):
        notes.append(f"{unfinished} trials have not finished: the table will change.")
    study, study_hash = trials[0]["study"], trials[0]["study_hash"]
    return Effects(study, study_hash, metric, varying, found, aliases, important, tuple(notes), spec)


def _study(runs: pa.Table) -> str:
    return str(runs["study"][0])


def shared_trunks(folder: RunsFolder, record: StudyRecord) -> tuple[str, ...]:
    """Return the axes of a study's record along which some of its trials branched off from the training of others."""
    return trunks_of(record, study_descriptions(folder, record))


def trunks_of(record: StudyRecord, descriptions: Descriptions) -> tuple[str, ...]:
    """Return the axes of shared trunks from descriptions that have been read; see `shared_trunks`."""
    levels = {trial.id: record.variants[trial.variant].levels for trial in record.trials}
    found = set()
    for trial, own in levels.items():
        fork = descriptions[trial].branch if trial in descriptions else None
        if fork and fork.trunk in levels:
            trunk = levels[fork.trunk]
            found |= {axis for axis in record.axes if own.get(axis) != trunk.get(axis)}
    return tuple(axis for axis in record.axes if axis in found)


def _read(
    runs: pa.Table, metric: str
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str | None]], dict[str, Seeds]]:
    """Read the trials, the levels of each variant, and the results of its seeds."""
    known = metrics_of(runs)
    if metric not in known:
        raise AnalysisUnavailable(f"{_study(runs)}: {unknown_metric(metric, known)}")
    columns = ["study", "study_hash", "variant", "seed", "outcome", metric, *(AXIS + axis for axis in axes_of(runs))]
    trials: list[dict[str, Any]] = runs.select(columns).to_pylist()
    levels: dict[str, dict[str, str | None]] = {}
    seeds: dict[str, Seeds] = {}
    unfair = incomparable_variants(runs, metric)
    for trial in trials:
        levels[trial["variant"]] = {axis: trial[AXIS + axis] for axis in axes_of(runs)}
        own, value = seeds.setdefault(trial["variant"], Seeds({}, {})), trial[metric]
        if trial["variant"] in unfair:
            own.lost[trial["seed"]] = unfair[trial["variant"]]
        elif trial["outcome"] == Status.FINISHED and value is not None and math.isfinite(value):
            own.values[trial["seed"]] = value
        else:
            own.lost[trial["seed"]] = LOST.get(trial["outcome"], "has not finished")
    return trials, levels, seeds


def _varying(axes: Sequence[str], levels: Levels) -> tuple[str, ...]:
    """Return the axes with at least two levels; the absence of a level counts as one."""
    return tuple(axis for axis in axes if len({of[axis] for of in levels.values()}) > 1)


def _cells(
    seeds: Mapping[str, Seeds], levels: Levels, varying: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], dict[Cell, Seeds], list[str]]:
    """Return the axes of a table, its cells, and the variants left out because an axis has no level there."""
    # An axis that has but one level and none makes no table of its own, and who has none of it is no exception.
    tabled = [axis for axis in varying if len({of[axis] for of in levels.values()} - {None}) > 1]
    whole = [variant for variant, of in levels.items() if all(of[axis] is not None for axis in tabled)]
    axes = {
        axis: tuple(of)
        for axis in tabled
        if len(of := dict.fromkeys(level for v in whole if (level := levels[v][axis]) is not None)) > 1
    }
    cells = {tuple(str(levels[variant][axis]) for axis in axes): seeds[variant] for variant in whole}
    return axes, cells, [variant for variant in levels if variant not in whole]


def _choose(cells: dict[Cell, Seeds], axes: dict[str, tuple[str, ...]]) -> tuple[Design | None, str, tuple[Alias, ...]]:
    """Choose the cells whose effects can be told apart, with the reason if it is not all; and the aliases of all."""
    allowed = structure(list(cells), axes)
    seeds = _common(cells)
    kinds = {FACTORIAL: allowed.complete, FRACTION: allowed.regular, MAIN_EFFECTS: allowed.orthogonal}
    if seeds and (kind := next((kind for kind, is_so in kinds.items() if is_so), "")):
        return Design(kind, axes, cells, seeds), "", allowed.aliases
    every = math.prod(map(len, axes.values()))
    run = f"Only {len(cells)} of {every} combinations of levels have results"
    why = run if seeds else "No seed has finished in all variants"
    # A seed that most variants lack would cost all others.
    counts = Counter(seed for of in cells.values() for seed in of.values)
    usual = {seed for seed, count in counts.items() if 2 * count >= len(cells)}
    full = {cell: of for cell, of in cells.items() if usual and of.values.keys() >= usual}
    part = complete_part(full, axes)
    if part is None:
        return None, f"{why}; no effect is tested.", allowed.aliases
    names = short_axes(axes)
    where = "; ".join(f"{names[axis]} at {', '.join(of)}" for axis, of in part.items())
    size = " × ".join(str(len(of)) for of in part.values())
    why += f"; effects are computed on the complete {size} subset: {where}."
    kept = {axis: of for axis, of in part.items() if len(of) > 1}
    inside = {}
    for cell, of in full.items():
        at = dict(zip(axes, cell, strict=True))
        if all(at[axis] in part[axis] for axis in axes):
            inside[tuple(at[axis] for axis in kept)] = of
    return Design(FACTORIAL, kept, inside, _common(inside)), why, allowed.aliases


def _common(cells: Mapping[Cell, Seeds]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*({*of.values} for of in cells.values()))))


def _missing(seeds: Mapping[str, Seeds]) -> Iterator[str]:
    """Yield a sentence on the variants that have no value at all."""
    if missing := {variant: sorted(set(own.lost.values())) for variant, own in seeds.items() if not own.values}:
        named = [f"{variant} ({', '.join(whys)})" for variant, whys in missing.items()]
        yield f"Left out, as no trial has a value: {_listed(named)}."


def _chosen_by_divergence(seeds: Mapping[str, Seeds]) -> Iterator[str]:
    """Yield a sentence on the variants that lost some of their seeds to divergence."""
    if lost := [variant for variant, own in seeds.items() if own.values and own.diverged]:
        named = [f"{variant} (seed {', '.join(map(str, seeds[variant].diverged))})" for variant in lost]
        yield (
            f"Diverged at some seeds: {_listed(named)}. What is left of these is a choice in favour of what diverges: "
            "their levels and combinations have no verdict, and tests and importance that they enter are to be read so."
        )


def _notes(found: Factorial, design: Design, trunks: Collection[str]) -> Iterator[str]:
    names = short_axes(found.axes)
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
    dropped = sorted({seed for of in design.cells.values() for seed in of.values} - set(found.seeds))
    for seed in dropped:
        lacking: dict[str, list[str]] = {}
        for cell, own in design.cells.items():
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
    """Join names into a list, cut short where there are too many."""
    shown = "; ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown}; and {len(names) - NAMED} more"
