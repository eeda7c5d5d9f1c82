"""The sections of a report, each collected by one function from what the other modules of this room find, as texts,
tables and drawn figures.
"""

from collections.abc import Callable
from dataclasses import replace

import pyarrow.compute as pc

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses import diagnostics, evaluation
from gatelab.results.analyses.effects import effects, trunks_of
from gatelab.results.report.context import MOST_DRAWN, Material
from gatelab.results.report.parts import Section, picture, upright
from gatelab.results.report.provenance import provenance_section
from gatelab.results.store.preregistration import RegisterChanged
from gatelab.results.views import diagnostics as diagnostics_views
from gatelab.results.views import evaluation as evaluation_views
from gatelab.results.views.claims import claims_grid
from gatelab.results.views.comparison import comparison_grid, measures_grid, tests_grid
from gatelab.results.views.curves import plot_curves
from gatelab.results.views.divergence import autopsies_grid
from gatelab.results.views.effects import effects_grids
from gatelab.results.views.effects_figures import plot_effects, plot_interaction
from gatelab.results.views.learning_rates import plot_by_rate, plot_tolerance, summary, tolerance_grid
from gatelab.results.views.scaling import plot_scaling, scaling_grids
from gatelab.results.views.stability import plot_all, stability_grid
from gatelab.results.views.table import Column, Grid

LONGEST_REASON = 400
"""Characters of why a trial failed; its log has the rest."""


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
    if len(material.record.axes) < 2:
        return None
    trunks = trunks_of(material.record, material.descriptions)
    try:
        found = effects(material.runs, material.comparison.metric, trunks)
    except AnalysisUnavailable:
        return None
    figures = {
        "effects": (plot_effects(found), "The mean of each level, all axes on one scale."),
        "effects-interaction": (plot_interaction(found), "Axes that act together: their lines are not parallel."),
    }
    pictures = [picture(name, caption, figure) for name, (figure, caption) in figures.items() if figure]
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
            pictures.append(picture(f"curves-{name.replace('/', '-')}", caption, figure))
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
    pictures = [picture("tolerance", caption, plot_tolerance(shown))]
    by_rate = plot_by_rate(runs, search) if len(found.arms) <= MOST_DRAWN else None
    if by_rate is not None:
        caption = "What each learning rate does, of the trials that finished."
        pictures.append(picture("tolerance-measures", caption, by_rate))
    told = tuple(f"{line}." for line in summary(found))
    return Section(
        "learning-rates",
        "Learning-rate tolerance",
        prose=(*prose, *told[:MOST_DRAWN]),
        pictures=tuple(pictures),
        grids=(upright(tolerance_grid(found)),),
    )


def _scaling(material: Material) -> Section | None:
    found = material.scaling
    if found is None:
        return None
    caption = "Loss against compute, with the fitted laws; below, the paired difference to the baseline at each rung."
    return Section(
        "scaling",
        "Scaling",
        pictures=(picture("scaling", caption, plot_scaling(found, material.study)),),
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
        picture(name, training if name == "stability-training" else event, figure) for name, figure in figures.items()
    ]
    grids = [stability_grid(found)]
    if found.autopsies:
        grids.append(autopsies_grid(found.study, found.autopsies))
    return Section("stability", "Stability", material.omitted, pictures=tuple(pictures), grids=tuple(grids))


def _diagnostics(material: Material) -> Section | None:
    try:
        comparisons = diagnostics.diagnosis(material.runs)
    except diagnostics.NoDiagnostics:
        return None
    grid = upright(diagnostics_views.diagnosis_grid(comparisons, material.runs))
    rows = material.values.diagnostics
    captions = {
        "diagnostics-layers": "By layer, at the last evaluation.",
        "diagnostics-training": "Of the whole model, over training.",
        "diagnostics-gates": "Distribution of gate scores by layer, at the last evaluation.",
        "loss-by-position": "Loss by the number of tokens that a prediction sees; below, the paired difference.",
    }
    pictures = []
    for name, draw in diagnostics_views.FIGURES.items():
        try:
            figure = draw(rows, material.drawn, material.study)
        except diagnostics.NoDiagnostics:
            continue
        if figure is not None:
            pictures.append(replace(picture(name, captions[name], figure), scale=name == "diagnostics-gates"))
    return Section("diagnostics", "Diagnostics by layer", material.omitted, pictures=tuple(pictures), grids=(grid,))


def _evaluation(material: Material) -> Section | None:
    try:
        comparisons = evaluation.beyond(material.runs)
    except evaluation.NotEvaluated:
        return None
    rows = material.evaluations
    captions = {
        "loss-by-length": "Loss against the length of the sequence.",
        "loss-by-position-beyond": "Loss by the number of tokens that a prediction sees, in the longest sequences.",
        "retrieval": "Synthetic retrieval tasks against the length of the sequence.",
    }
    figures = {name: draw(rows, material.drawn, material.study) for name, draw in evaluation_views.FIGURES.items()}
    return Section(
        "evaluation",
        "Beyond the training length",
        material.omitted,
        pictures=tuple(picture(name, captions[name], figure) for name, figure in figures.items() if figure),
        grids=(upright(measures_grid("evaluation", comparisons, material.answer_notes)),),
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
        for what, reasons in (("excluded", material.record.excluded), ("impossible", material.record.impossible))
        for label, reason in reasons.items()
    )
    headings = (Column("combination"), Column("why"), Column("rule or reason"))
    grids = (trials_grid, Grid("Combinations without a trial", headings, untried, (False,) * len(untried)))
    shown = tuple(grid for grid in grids if grid.rows)
    return Section("failures", "Failures and gaps", grids=shown, wordy=True) if shown else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} … (the trial's log.txt has the rest)"


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
    provenance_section,
)
"""What makes the sections, in their order. One that has nothing to say returns None."""
