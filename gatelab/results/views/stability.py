"""Stability scores, as a table and figures."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.metrics import find_spec
from gatelab.results.analyses.curves import Variants, curves_by_seed
from gatelab.results.analyses.stability import SCORES, Spread, Stability, VariantStability, drawn_traces
from gatelab.results.analyses.trial_stability import GATES, lines_of
from gatelab.results.statistics.series import Curve, bin_maxima
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.views.divergence import plot_trace, traces_table
from gatelab.results.views.format import DASH, with_unit
from gatelab.results.views.style import draw_curves, line_style, panels, spans_decade
from gatelab.results.views.table import Column, Table
from gatelab.status import Status

MOST_COLUMNS = 6
"""Variants beside each other in the table."""


MOST_LINES = 12
"""Variants in a figure over training."""


def tables(found: Stability) -> list[Table]:
    """Return the table of a study's stability, and that of its failures."""
    table = stability_table(found)
    if len(found.variants) > MOST_LINES:
        note = "Too many variants for a figure over training: choose some with --variant."
        table = replace(table, notes=(*table.notes, note))
    return [table, *([traces_table(found.study, found.traces)] if found.traces else [])]


def stability_table(found: Stability) -> Table:
    """Lay out the table for people: a row for each number, a column for each variant, the baseline first; the other way
    round where there are many variants.
    """
    variants = sorted(found.variants, key=lambda one: one.baseline != one.variant)
    rows = [
        ("trials diverged", *(f"{one.diverged} of {one.trials}" for one in variants)),
        ("steps to divergence, median", *(_number(one.steps_to_divergence) for one in variants)),
        ("tokens to divergence, median", *(_number(one.tokens_to_divergence) for one in variants)),
    ]
    if not any(one.diverged for one in variants):
        rows = rows[:1]
    known = dict.fromkeys(name for one in variants for name in one.scores)
    zeros = []
    for name in (*SCORES, *sorted(known.keys() - SCORES)):
        if name not in known:
            continue
        spreads = [one.scores.get(name) for one in variants]
        label = SCORES.get(name, f"{name}: last evaluation, mean over layers")
        if all(spread is None or spread.high == 0 for spread in spreads):
            zeros.append(label)
        else:
            rows.append((label, *(_spread_cell(one, spread) for one, spread in zip(variants, spreads, strict=True))))
    notes = [
        "Mean over all seeds that trained, those that diverged included (lowest to highest seed); n: of fewer seeds.",
        *([f"0 for every variant and seed: {'; '.join(zeros)}."] if zeros else []),
        *found.notes,
    ]
    wide = len(variants) > MOST_COLUMNS
    table = [("variant" if wide else "measure", *(one.variant for one in variants)), *rows]
    if wide:
        table = list(zip(*table, strict=True))
    head, *body = table
    columns = (Column(head[0]), *(Column(name, numeric=True) for name in head[1:]))
    return Table(f"{found.study}: stability", columns, tuple(body), notes=tuple(notes))


def _number(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _spread_cell(variant: VariantStability, spread: Spread | None) -> str:
    if spread is None:
        return DASH
    fewer = f"; n={spread.n}" if spread.n < variant.trials else ""
    if spread.n == 1 or spread.low == spread.high:
        return f"{spread.mean:.3g}" + (f" ({fewer.removeprefix('; ')})" if fewer else "")
    return f"{spread.mean:.3g} ({spread.low:.3g} to {spread.high:.3g}{fewer})"


def plot_stability(runs: pa.Table, metrics: pa.Table, variants: Variants, title: str) -> Figure:
    """Draw gradient norm, largest logit and activation, first token's share and gates' norms over training.

    Lines and bands show the trials that did not diverge; those that did are thin lines up to a cross at their end.
    """
    specs = specs_of(runs)
    shown = {name: line for name, (_, line) in lines_of(metrics).items()}
    diverged = {trial["trial"] for trial in runs.to_pylist() if trial["outcome"] == Status.DIVERGED}
    headings = {
        "activation/ffn_residual": "activation/ffn_residual, largest layer",
        **{name: f"{name}, mean over layers" for name in shown if name.startswith(GATES)},
    }

    def draw(axes: Axes, name: str) -> None:
        rows, spec = shown[name].sort_by("step"), find_spec(name, specs)
        lost = pc.is_in(rows["trial"], pa.array(sorted(diverged), pa.utf8()))
        for index, variant in enumerate(variants):
            mine = pc.equal(rows["variant"], variant)
            ended, survived = (
                {seed: bin_maxima(curve) for seed, curve in curves_by_seed(rows.filter(pc.and_(mine, those))).items()}
                for those in (lost, pc.invert(lost))
            )
            draw_curves(axes, index, survived, variant, "" if spec.kind == "series" else "o")
            _draw_lost(axes, index, ended, "" if survived else variant)
        axes.set_title(headings.get(name, with_unit(name, spec)), fontsize=8)
        values = rows["value"].to_numpy()
        if spans_decade(values[np.isfinite(values)]):
            axes.set_yscale("log")

    return panels(list(shown), draw, "step", title)


def _draw_lost(axes: Axes, index: int, curves: Mapping[int, Curve], label: str) -> None:
    """Draw trials that diverged, each by itself; `label` names the first line where no other line does."""
    for steps, values in curves.values():
        axes.plot(steps, values, **line_style(index), linewidth=0.8, label=label or None)
        axes.plot(steps[-1:], values[-1:], color="black", marker="x", markersize=6, linestyle="none", label="diverged")
        label = ""


def figures(found: Stability, runs: pa.Table, metrics: pa.Table) -> dict[str, Figure]:
    """Draw training, unless there are too many variants, and the events of the first trials that diverged or spiked."""
    variants = {one.variant: one.baseline for one in found.variants}
    drawn = {}
    if len(variants) <= MOST_LINES:
        drawn["stability-training"] = plot_stability(runs, metrics, variants, found.study)
    for trace in drawn_traces(found.traces):
        drawn[f"stability-autopsy-{trace.trial[:12]}-{trace.found}"] = plot_trace(metrics, trace, specs_of(runs))
    return drawn
