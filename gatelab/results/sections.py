"""The sections of a report, each collected by one function from what the other modules of this room find, as texts,
tables and drawn figures.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from matplotlib.figure import Figure

from gatelab.results import beyond, diagnosis
from gatelab.results.autopsies import autopsies_grid
from gatelab.results.claims import claims_grid
from gatelab.results.curves import plot_curves
from gatelab.results.effects import NotFactorial, effects, trunks_of
from gatelab.results.effects_report import effects_grids, plot_effects, plot_interaction
from gatelab.results.figures import render_figure
from gatelab.results.frames import PROVENANCE
from gatelab.results.material import MOST_DRAWN, SEARCH, Material
from gatelab.results.register import RegisterChanged
from gatelab.results.scaling_report import plot_scaling, scaling_grids
from gatelab.results.stability import plot_all, stability_grid
from gatelab.results.tables import Column, Grid, comparison_grid, measures_grid, tests_grid
from gatelab.results.tolerance_report import plot_by_rate, plot_tolerance, summary, tolerance_grid

MOST_COLUMNS = 8
"""Variants beside each other in a table."""
LONGEST_REASON = 400
"""Characters of why a trial failed; its log has the rest."""


@dataclass(frozen=True)
class Picture:
    """A figure: what its files are called, how it is read, width and height in inches, its files by suffix."""

    name: str
    caption: str
    size: tuple[float, float]
    files: dict[str, bytes]
    scale: bool = False
    """Whether its colours are a scale, as those of a map are."""


@dataclass(frozen=True)
class Listing:
    """A text that is shown as it is."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report. Words between backticks are names, in prose and captions."""

    id: str
    title: str
    prose: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    grids: tuple[Grid, ...] = ()
    wordy: bool = False
    """Whether its tables hold sentences, to be broken into lines."""
    listings: tuple[Listing, ...] = ()


def _claims(material: Material) -> Section | None:
    """What was claimed before the study ran, and what became of it."""
    found = material.claims
    if found is None:
        return None
    if isinstance(found, RegisterChanged):
        return Section("claims", "Claims", prose=(f"{found}.",))
    return Section("claims", "Claims", grids=(claims_grid(found),), wordy=True)


def _comparison(material: Material) -> Section:
    tests = tests_grid(material.comparison)
    grids = (comparison_grid(material.comparison), *([tests] if tests.rows else []))
    return Section("comparison", "Comparison", grids=grids)


def _effects(material: Material) -> Section | None:
    """What each axis does, and each two together. Of one axis the comparison says it all."""
    if len(material.record["axes"]) < 2:
        return None
    trunks = trunks_of(material.record, material.descriptions)
    try:
        found = effects(material.runs, material.comparison.metric, trunks)
    except NotFactorial:
        return None
    figures = {
        "effects": (plot_effects(found), "The mean of each level, all axes on one scale."),
        "effects-interaction": (plot_interaction(found), "Axes that act together: their lines are not parallel."),
    }
    pictures = [_picture(name, caption, figure) for name, (figure, caption) in figures.items() if figure]
    return Section("effects", "Effects of each axis", pictures=tuple(pictures), grids=tuple(effects_grids(found)))


def _curves(material: Material) -> Section | None:
    """Curves of the metric, if it has any, and of the training loss."""
    rows = material.values.curves
    known = set(pc.unique(rows["name"]).to_pylist())
    pictures = []
    for name in material.curve_names:
        if name in known:
            own = rows.filter(pc.equal(rows["name"], name))
            figure = plot_curves(own, name, material.drawn, material.study)
            caption = (
                f"`{name}` over training. Lines: mean over seeds; bands: their range. Below, where there is a "
                "baseline, the paired difference to it."
            )
            pictures.append(_picture(f"curves-{name.replace('/', '-')}", caption, figure))
    if not pictures:
        return None
    return Section("curves", "Curves", prose=material.omitted, pictures=tuple(pictures))


def _tolerance(material: Material) -> Section | None:
    found = material.tolerance
    if found is None or material.search is None:
        return None
    search, runs = str(material.searched_by), material.search[1]
    prose = [] if search == material.study else [f"Of the search `{search}`."]
    shown = found
    if len(found.arms) > MOST_DRAWN:
        shown = replace(found, arms=found.arms[:MOST_DRAWN])
        prose.append(f"The figure shows the first {MOST_DRAWN} of {len(found.arms)} arms.")
    caption = "Loss against the peak learning rate: all of it, and near the best."
    pictures = [_picture("tolerance", caption, plot_tolerance(shown))]
    by_rate = plot_by_rate(runs, search) if len(found.arms) <= MOST_DRAWN else None
    if by_rate is not None:
        caption = "What each learning rate does, of the trials that finished."
        pictures.append(_picture("tolerance-measures", caption, by_rate))
    told = tuple(f"{line}." for line in summary(found))
    return Section(
        "learning-rates",
        "Learning-rate tolerance",
        prose=(*prose, *told[:MOST_DRAWN]),
        pictures=tuple(pictures),
        grids=(_upright(tolerance_grid(found)),),
    )


def _scaling(material: Material) -> Section | None:
    found = material.scaling
    if found is None:
        return None
    caption = "Loss against compute, with the fitted laws; below, the paired difference to the baseline at each rung."
    return Section(
        "scaling",
        "Scaling",
        pictures=(_picture("scaling", caption, plot_scaling(found, material.study)),),
        grids=tuple(scaling_grids(found)),
    )


def _stability(material: Material) -> Section | None:
    if material.values.stability is None:
        return None
    metrics, found = material.values.stability
    known = {one.variant: one for one in found.variants}
    drawn = replace(found, variants=tuple(known[name] for name in material.drawn if name in known))
    training = "Over training, the largest value in each span of steps. Thin lines up to a cross: trials that diverged."
    event = "The last steps before an event, a line for each layer; a point marks where a measurement left its band."
    figures = plot_all(material.runs, metrics, drawn)
    pictures = [
        _picture(name, training if name == "stability-training" else event, figure) for name, figure in figures.items()
    ]
    grids = [stability_grid(found)]
    if found.autopsies:
        grids.append(autopsies_grid(found.study, found.autopsies))
    return Section("stability", "Stability", material.omitted, pictures=tuple(pictures), grids=tuple(grids))


def _diagnostics(material: Material) -> Section | None:
    try:
        comparisons = diagnosis.diagnosis(material.runs)
    except diagnosis.NoDiagnostics:
        return None
    grid = _upright(diagnosis.diagnosis_grid(comparisons, material.runs))
    rows = material.values.diagnostics
    captions = {
        "diagnostics-layers": "By layer, at the last evaluation.",
        "diagnostics-training": "Of the whole model, over training.",
        "diagnostics-gates": "Distribution of gate scores by layer, at the last evaluation.",
        "loss-by-position": "Loss by the number of tokens that a prediction sees; below, the paired difference.",
    }
    pictures = []
    for name, draw in diagnosis.FIGURES.items():
        try:
            figure = draw(rows, material.drawn, material.study)
        except diagnosis.NoDiagnostics:
            continue
        if figure is not None:
            pictures.append(replace(_picture(name, captions[name], figure), scale=name == "diagnostics-gates"))
    return Section("diagnostics", "Diagnostics by layer", material.omitted, pictures=tuple(pictures), grids=(grid,))


def _evaluation(material: Material) -> Section | None:
    try:
        comparisons = beyond.beyond(material.runs)
    except beyond.NotEvaluated:
        return None
    rows = material.evaluations
    captions = {
        "loss-by-length": "Loss against the length of the sequence.",
        "loss-by-position-beyond": "Loss by the number of tokens that a prediction sees, in the longest sequences.",
        "retrieval": "Synthetic retrieval tasks against the length of the sequence.",
    }
    figures = {name: draw(rows, material.drawn, material.study) for name, draw in beyond.FIGURES.items()}
    return Section(
        "evaluation",
        "Beyond the training length",
        material.omitted,
        pictures=tuple(_picture(name, captions[name], figure) for name, figure in figures.items() if figure),
        grids=(_upright(measures_grid("evaluation", comparisons, material.answer_notes)),),
    )


def _failures(material: Material) -> Section | None:
    """Trials without a result, and combinations without a trial."""
    stability = material.values.stability
    events = () if stability is None else stability[1].autopsies
    led_to = {one.trial: one.sentence for one in events if one.diverged}
    columns = ["trial", "variant", "seed", "outcome", "step", "steps", "reason"]
    trials = [trial for trial in material.runs.select(columns).to_pylist() if trial["outcome"] != "finished"]
    trials_grid = Grid(
        "Trials that diverged, failed or have not finished",
        (
            Column("variant"),
            Column("seed", numeric=True),
            Column("outcome"),
            Column("steps", numeric=True),
            Column("reason, and what led to it"),
        ),
        tuple(
            (
                trial["variant"],
                str(trial["seed"]),
                trial["outcome"],
                f"{trial['step']:,} of {trial['steps']:,}",
                "; ".join(filter(None, (_cut(trial["reason"] or ""), led_to.get(trial["trial"])))) or "–",
            )
            for trial in trials
        ),
        (False,) * len(trials),
    )
    untried = tuple(
        (label, what, reason)
        for what, reasons in (("excluded", material.record["excluded"]), ("impossible", material.record["impossible"]))
        for label, reason in reasons.items()
    )
    headings = (Column("combination"), Column("why"), Column("rule or reason"))
    grids = (trials_grid, Grid("Combinations without a trial", headings, untried, (False,) * len(untried)))
    shown = tuple(grid for grid in grids if grid.rows)
    return Section("failures", "Failures and gaps", grids=shown, wordy=True) if shown else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} … (the trial's log.txt has the rest)"


def _provenance(material: Material) -> Section:
    """Where the numbers come from, and how to get them again."""
    record, runs = material.record, material.runs
    facts = [("Study", material.study), ("Study hash", str(record["hash"]))]
    if "continues" in record:
        facts.append(("Continues", str(record["continues"])))
    facts.append(("Data hash", listed(_known(runs, "data")) or "–"))
    facts.append(("Learning rates", str(record.get("learning_rate", "given"))))
    attempts = [len(description["attempts"]) for description in material.descriptions.values()]
    begun = [one["attempts"][0]["started"] for one in material.descriptions.values() if one["attempts"]]
    if begun:
        facts.append(("First trial began", _date(min(begun))))
    if material.ended is not None:
        facts.append(("Last trial ended", _date(material.ended)))
    if seconds := [value for value in runs["train/seconds"].to_pylist() if value is not None]:
        facts.append(("Time in training", _hours(sum(seconds))))
    if resumed := sum(count > 1 for count in attempts):
        facts.append(("Trials that took several attempts", f"{resumed} of {len(attempts)}"))
    listings = [Listing("How to reproduce it", "\n".join(_commands(material)))]
    common, varying = common_configuration([one["config"] for one in material.descriptions.values()])
    prose = []
    if common:
        text = yaml.safe_dump(common, sort_keys=False).rstrip()
        listings.append(Listing("Configuration that all trials share", text, folded=True))
        others = [path for path in varying if path != "seed"]
        if others:
            prose.append(f"Trials differ in {', '.join(f'`{path}`' for path in others)} and in their seeds.")
    return Section(
        "provenance",
        "Provenance",
        prose=tuple(prose),
        facts=tuple(facts),
        grids=(_environments(material),),
        listings=tuple(listings),
    )


def _known(runs: pa.Table, column: str) -> list[str]:
    return sorted(value for value in pc.unique(runs[column]).to_pylist() if value is not None)


def _environments(material: Material) -> Grid:
    """A row for each combination of code and machine that trials were carried out by."""
    shown = [name for name in PROVENANCE if name not in ("data", "host")]
    kinds: dict[tuple[str, ...], list[str]] = {}
    for trial in material.runs.select(list(PROVENANCE)).to_pylist():
        if any(trial[name] for name in shown):
            kinds.setdefault(tuple(trial[name] or "–" for name in shown), []).append(trial["host"] or "–")
    rows = tuple((str(len(hosts)), *kind, listed(sorted(set(hosts)), 4)) for kind, hosts in kinds.items())
    columns = (Column("trials", numeric=True), *(Column(name) for name in (*shown, "hosts")))
    return Grid("What the trials were carried out with", columns, rows, (False,) * len(rows))


def common_configuration(configs: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What configurations have in common, as one; and the dotted paths of what differs."""
    flat = [dict(_leaves(config)) for config in configs]
    paths = list(dict.fromkeys(path for one in flat for path in one))
    values = {path: {json.dumps(one.get(path), sort_keys=True) for one in flat} for path in paths}
    common: dict[str, Any] = {}
    for path in paths:
        if len(values[path]) == 1:
            *rooms, leaf = path.split(".")
            place = common
            for room in rooms:
                place = place.setdefault(room, {})
            place[leaf] = flat[0][path]
    return common, [path for path in paths if len(values[path]) > 1]


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _commands(material: Material) -> Iterator[str]:
    """What to type to get the study again; the study file itself is not in the records."""
    name = material.study
    commits = sorted({commit for each in _known(material.runs, "commit") for commit in each.split(" then ")} - {""})
    if len(commits) == 1:
        changed = "; it had changes that were not committed" if commits[0].endswith("+") else ""
        yield f"git checkout {commits[0].removesuffix('+')}   # gatelab's sources{changed}"
    torch = sorted({version for each in _known(material.runs, "torch") for version in each.split(" then ")})
    if len(torch) == 1:
        yield f"pip install -c constraints.txt -e . torch=={torch[0].partition('+')[0]}"
    searched = name.removesuffix(SEARCH)
    file = f"{searched}.yaml   # the file of the study {searched}"
    yield f"gatelab lr-tolerance {file}" if name != searched else f"gatelab run {file}"
    if material.scaling is not None:
        yield f"gatelab scaling {name}"
    yield f"gatelab report {name}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{seconds / 3600:,.1f} h"


SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    _claims,
    _comparison,
    _effects,
    _curves,
    _tolerance,
    _scaling,
    _stability,
    _diagnostics,
    _evaluation,
    _failures,
    _provenance,
)
"""What makes the sections, in their order. One that has nothing to say returns None."""


# What sections are made of.


def _picture(name: str, caption: str, figure: Figure) -> Picture:
    width, height = figure.get_size_inches()
    return Picture(name, caption, (float(width), float(height)), render_figure(figure))


def _upright(grid: Grid) -> Grid:
    """A table with a column for each variant as one with a row for each, where there are many."""
    if len(grid.columns) <= 1 + MOST_COLUMNS:
        return grid
    table = [[column.heading for column in grid.columns], *grid.rows]
    head, *rows = zip(*table, strict=True)
    columns = (Column(head[0]), *(Column(name, numeric=True) for name in head[1:]))
    return replace(grid, columns=columns, rows=tuple(rows), emphasised=(False,) * len(rows))


def listed(items: Iterable[str], most: int = 12) -> str:
    """Texts after each other, not too many."""
    every = list(items)
    return ", ".join(every[:most]) + (f", … ({len(every)} in all)" if len(every) > most else "")
