"""Stability scores, as a table and figures."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.analyses.curves import Variants, curves_by_seed
from gatelab.results.analyses.stability import GATES, SCORES, Spread, Stability, VariantStability, is_drawn, lines_of
from gatelab.results.statistics.series import SPANS, Curve
from gatelab.results.store.metric_specs import with_unit
from gatelab.results.views.divergence import plot_autopsy
from gatelab.results.views.style import draw_curves, line_style, panels
from gatelab.results.views.table import Column, Grid, finite

MOST_COLUMNS = 6
"""Variants beside each other in the table."""


MOST_LINES = 12
"""Variants in a figure over training."""


def stability_grid(found: Stability) -> Grid:
    """The table for people: a row for each number, a column for each variant, the baseline first; the other way round
    where there are many variants."""
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
    return Grid(f"{found.study}: stability", columns, tuple(body), (False,) * len(body), tuple(notes))


def stability_dict(found: Stability) -> dict[str, Any]:
    """All of it as JSON values; numbers that are not finite are None."""
    sentences = [{**asdict(one), "sentence": one.sentence} for one in found.autopsies]
    whole: dict[str, Any] = finite({**asdict(found), "autopsies": sentences})
    return whole


def stability_csv(found: Stability) -> str:
    """The table for spreadsheets, a line for each variant and number; numbers that do not exist are empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    counts = ("trials", "diverged", "steps_to_divergence", "tokens_to_divergence")
    writer.writerow(["variant", *counts, "measure", "mean", "low", "high", "n"])
    for one in found.variants:
        own = [getattr(one, name) for name in counts]
        for name, spread in one.scores.items():
            cells = [one.variant, *own, name, spread.mean, spread.low, spread.high, spread.n]
            writer.writerow(["" if cell != cell else cell for cell in cells])
    return out.getvalue()


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _spread_cell(variant: VariantStability, spread: Spread | None) -> str:
    if spread is None:
        return "–"
    fewer = f"; n={spread.n}" if spread.n < variant.trials else ""
    if spread.n == 1 or spread.low == spread.high:
        return f"{spread.mean:.3g}" + (f" ({fewer.removeprefix('; ')})" if fewer else "")
    return f"{spread.mean:.3g} ({spread.low:.3g} to {spread.high:.3g}{fewer})"


def plot_stability(runs: pa.Table, metrics: pa.Table, variants: Variants, title: str) -> Figure:
    """Gradient norm, largest logit and activation, first token's share and gates' norms over training.

    Lines and bands are of the trials that did not diverge; those that did are thin lines up to a cross at their end.
    """
    shown = {name: line for name, (_, line) in lines_of(metrics).items()}
    diverged = {trial["trial"] for trial in runs.to_pylist() if trial["outcome"] == "diverged"}
    headings = {
        "activation/ffn_residual": "activation/ffn_residual, largest layer",
        **{name: f"{name}, mean over layers" for name in shown if name.startswith(GATES)},
    }

    def draw(axes: Axes, name: str) -> None:
        rows = shown[name].sort_by("step")
        lost = pc.is_in(rows["trial"], pa.array(sorted(diverged), pa.utf8()))
        for index, variant in enumerate(variants):
            mine = pc.equal(rows["variant"], variant)
            ended, survived = (
                _thinned(curves_by_seed(rows.filter(pc.and_(mine, those)))) for those in (lost, pc.invert(lost))
            )
            draw_curves(axes, index, survived, variant, "" if name.startswith("train/") else "o")
            _draw_lost(axes, index, ended, "" if survived else variant)
        axes.set_title(headings.get(name, with_unit(name)), fontsize=8)
        values = rows["value"].to_numpy()
        values = values[np.isfinite(values)]
        if len(values) and 0 < 10 * values.min() < values.max():
            axes.set_yscale("log")

    return panels(list(shown), draw, "step", title)


def _draw_lost(axes: Axes, index: int, curves: Mapping[int, Curve], label: str) -> None:
    """Trials that diverged, each by itself; `label` names the first line where no other line does."""
    for steps, values in curves.values():
        axes.plot(steps, values, **line_style(index), linewidth=0.8, label=label or None)
        axes.plot(steps[-1:], values[-1:], color="black", marker="x", markersize=6, linestyle="none", label="diverged")
        label = ""


def _thinned(curves: Mapping[int, Curve]) -> dict[int, Curve]:
    """Curves of many points as the largest of each span: what a mean would hide is what matters here."""
    thin = {}
    for seed, (steps, values) in curves.items():
        span = math.ceil(int(steps[-1]) / SPANS)
        starts = np.flatnonzero(np.diff((steps - 1) // span, prepend=-1))
        begins = (steps[starts] - 1) // span * span + 1  # the same for all seeds, whatever is left of a span
        thin[seed] = (steps, values) if len(steps) <= SPANS else (begins, np.maximum.reduceat(values, starts))
    return thin


def plot_all(runs: pa.Table, metrics: pa.Table, found: Stability) -> dict[str, Figure]:
    """The figures of a study's stability by the names of their files: over training, and of the first trials with an
    autopsy that of their divergence, or of their first spike."""
    variants = {one.variant: one.baseline for one in found.variants}
    training = (
        {}
        if len(variants) > MOST_LINES
        else {"stability-training": plot_stability(runs, metrics, variants, found.study)}
    )
    return {
        **training,
        **{
            f"stability-autopsy-{one.trial[:12]}-{one.found}": plot_autopsy(metrics, one)
            for one in is_drawn(found.autopsies)
        },
    }
