"""The sections of a report, each collected by one function from what the other modules of this room find, as texts,
tables and drawn figures.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import pyarrow.compute as pc
from matplotlib.figure import Figure

from gatelab.errors import AnalysisUnavailable
from gatelab.metrics import find_spec
from gatelab.results.analyses.diagnostics import diagnostics
from gatelab.results.analyses.effects import effects, trunks_of
from gatelab.results.analyses.evaluation import evaluation
from gatelab.results.report.context import MOST_DRAWN, Context
from gatelab.results.report.parts import Picture, Section, pictures, upright
from gatelab.results.report.provenance import provenance_section
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.preregistration import RegisterChanged
from gatelab.results.views import claims as claims_view
from gatelab.results.views import diagnostics as diagnostics_view
from gatelab.results.views import effects as effects_view
from gatelab.results.views import effects_figures
from gatelab.results.views import evaluation as evaluation_view
from gatelab.results.views import learning_rates as learning_rates_view
from gatelab.results.views import scaling as scaling_view
from gatelab.results.views import stability as stability_view
from gatelab.results.views.comparison import comparison_table, tests_table
from gatelab.results.views.curves import plot_curves
from gatelab.results.views.divergence import traces_table
from gatelab.results.views.format import DASH
from gatelab.results.views.table import Column, Table
from gatelab.text import file_stem

LONGEST_REASON = 400
"""Characters of why a trial failed; its log has the rest."""


def _claims(context: Context) -> Section | None:
    """Show the claims made before the study ran, with their verdicts."""
    found = context.claims
    if found is None:
        return None
    if isinstance(found, RegisterChanged):
        return Section("claims", "Claims", prose=(f"{found}.",))
    return Section("claims", "Claims", tables=tuple(claims_view.tables(found)), wordy=True)


def _comparison(context: Context) -> Section:
    tests = tests_table(context.comparison)
    tables = (comparison_table(context.comparison), *([tests] if tests.rows else []))
    return Section("comparison", "Comparison", tables=tables)


def _effects(context: Context) -> Section | None:
    """Show the effect of each axis, and of each two together. With one axis the comparison says it all."""
    if len(context.record.axes) < 2:
        return None
    trunks = trunks_of(context.record, context.descriptions)
    try:
        found = effects(context.runs, context.comparison.metric, trunks)
    except AnalysisUnavailable:
        return None
    captions = {
        "effects": "The mean of each level, all axes on one scale.",
        "effects-interaction": effects_figures.interaction_caption(found),
    }
    drawn, problems = pictures(lambda: effects_figures.figures(found), captions.__getitem__, "effects")
    tables = tuple(effects_view.tables(found))
    return Section("effects", "Effects of each axis", problems, pictures=drawn, tables=tables)


def _curves(context: Context) -> Section | None:
    """Draw the curves of the metric, if it has any, and of the training loss."""
    rows = context.values.curves
    known = set(pc.unique(rows["name"]).to_pylist())
    drawn: list[Picture] = []
    problems = list(context.omitted)
    for name in context.curve_names:
        if name in known:
            made, lost = pictures(functools.partial(_curve, context, name), functools.partial(_about, name), name)
            drawn += made
            problems += lost
    if not drawn and len(problems) == len(context.omitted):
        return None
    return Section("curves", "Curves", prose=tuple(problems), pictures=tuple(drawn))


def _about(metric: str, name: str) -> str:
    return (
        f"`{metric}` over training. Lines: mean over seeds; bands: their range. Below, where there is a baseline, the "
        "paired difference from it."
    )


def _curve(context: Context, name: str) -> dict[str, Figure]:
    own = context.values.curves.filter(pc.equal(context.values.curves["name"], name))
    spec = find_spec(name, specs_of(context.runs))
    return {f"curves-{file_stem(name)}": plot_curves(own, name, context.drawn, context.study, spec)}


def _learning_rates(context: Context) -> Section | None:
    found = context.learning_rates
    if found is None or context.search is None:
        return None
    search, runs = str(context.searched_by), context.search[1]
    prose = [] if search == context.study else [f"Of the search `{search}`."]
    shown = found
    if len(found.arms) > MOST_DRAWN:
        shown = replace(found, arms=found.arms[:MOST_DRAWN])
        prose.append(f"The figure shows the first {MOST_DRAWN} of {len(found.arms)} arms.")
    captions = {"tolerance": "Loss against the peak learning rate: all of it, and near the best."}
    if len(found.arms) <= MOST_DRAWN:
        captions["tolerance-measures"] = "What each learning rate does, of the trials that finished."

    def figures() -> dict[str, Figure]:
        return {name: each for name, each in learning_rates_view.figures(shown, runs).items() if name in captions}

    drawn, problems = pictures(figures, captions.__getitem__, "learning rates")
    told = tuple(f"{line}." for line in learning_rates_view.sentences(found))
    return Section(
        "learning-rates",
        "Learning-rate tolerance",
        prose=(*prose, *told[:MOST_DRAWN], *problems),
        pictures=drawn,
        tables=tuple(map(upright, learning_rates_view.tables(found))),
    )


def _scaling(context: Context) -> Section | None:
    found = context.scaling
    if found is None:
        return None
    caption = "Loss against compute, with the fitted laws; below, the paired difference to the baseline at each rung."
    drawn, problems = pictures(lambda: scaling_view.figures(found), lambda name: caption, "scaling")
    return Section("scaling", "Scaling", problems, pictures=drawn, tables=tuple(scaling_view.tables(found)))


def _stability(context: Context) -> Section | None:
    if context.values.stability is None:
        return None
    metrics, found = context.values.stability
    known = {one.variant: one for one in found.variants}
    drawn = replace(found, variants=tuple(known[name] for name in context.drawn if name in known))
    training = "Over training, the largest value in each span of steps. Thin lines up to a cross: trials that diverged."
    event = "The last steps before an event, a line for each layer; a point marks where a measurement left its band."
    made, problems = pictures(
        lambda: stability_view.figures(drawn, context.runs, metrics),
        lambda name: training if name == "stability-training" else event,
        "stability",
    )
    tables = [stability_view.stability_table(found)]
    if found.traces:
        tables.append(traces_table(found.study, found.traces))
    return Section("stability", "Stability", (*context.omitted, *problems), pictures=made, tables=tuple(tables))


def _diagnostics(context: Context) -> Section | None:
    try:
        found = diagnostics(context.runs)
    except AnalysisUnavailable:
        return None
    captions = {
        "diagnostics-layers": "By layer, at the last evaluation.",
        "diagnostics-training": "Of the whole model, over training.",
        "diagnostics-gates": "Distribution of gate scores by layer, at the last evaluation.",
        "loss-by-position": "Loss by the number of tokens that a prediction sees; below, the paired difference.",
    }
    made, problems = pictures(
        lambda: diagnostics_view.figures(found, context.values.diagnostics, context.drawn, specs_of(context.runs)),
        captions.__getitem__,
        "diagnostics",
    )
    drawn = tuple(replace(one, scale=one.name == "diagnostics-gates") for one in made)
    prose, tables = (*context.omitted, *problems), tuple(map(upright, diagnostics_view.tables(found)))
    return Section("diagnostics", "Diagnostics by layer", prose, pictures=drawn, tables=tables)


def _evaluation(context: Context) -> Section | None:
    try:
        found = evaluation(context.runs, context.answers)
    except AnalysisUnavailable:
        return None
    captions = {
        "loss-by-length": "Loss against the length of the sequence.",
        "loss-by-position-beyond": "Loss by the number of tokens that a prediction sees, in the longest sequences.",
        "retrieval": "Synthetic retrieval tasks against the length of the sequence.",
    }
    drawn, problems = pictures(
        lambda: evaluation_view.figures(found, context.evaluations, context.drawn, specs_of(context.runs)),
        captions.__getitem__,
        "evaluation",
    )
    return Section(
        "evaluation",
        "Beyond the training length",
        (*context.omitted, *problems),
        pictures=drawn,
        tables=tuple(map(upright, evaluation_view.tables(found))),
    )


def _failures(context: Context) -> Section | None:
    """List trials without a result, and combinations without a trial."""
    stability = context.values.stability
    events = () if stability is None else stability[1].traces
    led_to = {one.trial: one.sentence for one in events if one.diverged}
    columns = ["trial", "variant", "seed", "outcome", "step", "steps", "reason"]
    trials = [trial for trial in context.runs.select(columns).to_pylist() if trial["outcome"] != "finished"]
    trials_table = Table(
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
                "; ".join(filter(None, (_cut(trial["reason"] or ""), led_to.get(trial["trial"])))) or DASH,
            )
            for trial in trials
        ),
    )
    untried = tuple(
        (label, what, reason)
        for what, reasons in (("excluded", context.record.excluded), ("impossible", context.record.impossible))
        for label, reason in reasons.items()
    )
    headings = (Column("combination"), Column("why"), Column("rule or reason"))
    tables = (trials_table, Table("Combinations without a trial", headings, untried))
    shown = tuple(table for table in tables if table.rows)
    return Section("failures", "Failures and gaps", tables=shown, wordy=True) if shown else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} … (the trial's log.txt has the rest)"


SECTIONS: tuple[Callable[[Context], Section | None], ...] = (
    _claims,
    _comparison,
    _effects,
    _curves,
    _learning_rates,
    _scaling,
    _stability,
    _diagnostics,
    _evaluation,
    _failures,
    provenance_section,
)
"""Functions that make the sections, in their order. One that has nothing to say returns None."""
