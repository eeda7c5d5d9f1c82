"""How a study's arms scale, for people and programs: tables, CSV, JSON and the figure."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.analyses.scaling import (
    BEYOND,
    COMPUTE,
    FORMULAS,
    PARAMETERS_AND_TOKENS,
    ArmFit,
    Estimate,
    Fit,
    Rung,
    Scaling,
)
from gatelab.results.statistics import power_law
from gatelab.results.store.metric_specs import with_unit
from gatelab.results.store.runs import STATUSES
from gatelab.results.views.style import COLOURS, legend_below, tidy
from gatelab.results.views.table import Column, Grid, finite

MARKERS = "osD^vPX"


def scaling_grids(report: Scaling) -> list[Grid]:
    """A report for people: the rungs as they were measured and, if there is a fit, what it says."""
    headings = ("arm", "rung")
    numbers = ("parameters", "tokens", "compute [FLOPs]", with_unit(DEFAULT_METRIC), "seeds", "Δ to baseline")
    gains = ("CEG", "CEG 95 %", "CEG in time")
    columns = [
        *map(Column, headings),
        *(Column(name, numeric=True) for name in (*numbers, "Δ 95 %")),
        Column("verdict"),
        *(Column(name, numeric=True) for name in gains),
    ]
    notes = [
        "Loss: mean over seeds; Δ: mean of the differences to the baseline's arm at equal seeds and rung, with its "
        "t-interval.",
        *report.notes,
    ]
    if any(rung.gain for rung in report.rungs):
        notes.insert(
            1,
            "CEG: compute-equivalent gain, the factor of compute that would take the baseline from its loss to the "
            "arm's; in time: times the ratio of their tokens/s. What an arm computes in addition counts there only.",
        )
    rungs = Grid(
        f"{report.study}: ladder of {', '.join(report.ladder)}",
        tuple(columns),
        tuple(_rung_cells(rung) for rung in report.rungs),
        (False,) * len(report.rungs),
        tuple(notes),
    )
    return [rungs] if report.fit is None else [rungs, _fit_grid(report, report.fit)]


def _rung_cells(rung: Rung) -> tuple[str, ...]:
    row = rung.row
    others = [f"{count} {name}" for name, count in row.outcomes.items() if name != "finished"]
    delta, interval = "–", "–"
    if not row.is_baseline and row.delta is not None and row.delta.n:
        delta = f"{row.delta.mean:+.4f}"
        interval = "–" if row.delta.n == 1 else f"[{row.delta.low:+.4f}, {row.delta.high:+.4f}]"
    return (
        rung.arm,
        rung.rung,
        f"{row.parameters:,}",
        f"{rung.tokens:,}",
        f"{rung.compute:.3g}",
        "–" if math.isnan(row.value.mean) else f"{row.value.mean:.4f}",
        " + ".join([str(row.value.n), *others]),
        delta,
        interval,
        row.verdict,
        *(_cells_of(rung.gain, ".3f")),
        _cells_of(rung.gain_in_time, ".3f")[0],
    )


def _cells_of(estimate: Estimate | None, form: str) -> tuple[str, str]:
    """A number and its interval."""
    if estimate is None:
        return "–", "–"
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{number:{form}}".replace("inf", "∞").replace("nan", "–") for number in numbers)
    return value, f"[{low}, {high}]"


def _fit_grid(report: Scaling, fit: Fit) -> Grid:
    """A row for each quantity of each arm."""
    rows = []
    for name, estimate in fit.shared.items():
        shown = None if name == "E" and fit.caveat else estimate
        rows.append(("all arms", name, *_cells_of(shown, ".4g"), "–", "–"))
    compared = [arm for arm in fit.arms if arm.better is not None]
    measured = [bound(rung.compute for rung in report.rungs if rung.losses) for bound in (min, max)]
    for arm in fit.arms:
        rows.append((arm.arm, "A", *_cells_of(arm.scale, ".4g"), "–", "–"))
        difference = _cells_of(arm.exponent_difference, "+.4f")
        rows.append((arm.arm, "α", *_cells_of(arm.exponent, ".4f"), *difference))
        if arm.better is not None:
            rows.append((arm.arm, "own E", "–", "–", *_cells_of(arm.offset_difference, "+.3f")))
            inside = arm.crossover is None or measured[0] <= arm.crossover.value <= measured[1]
            what = "crossover [FLOPs]" + ("" if inside else " (extrapolated)")
            rows.append((arm.arm, what, *_cells_of(arm.crossover, ".2g"), "–", "–"))
            for multiple, share in zip(BEYOND, arm.better, strict=True):
                what = f"P(lower loss) at {multiple}×" + (" (extrapolated)" if multiple > 1 else "")
                rows.append((arm.arm, what, _share(share, report.bootstraps), "–", "–", "–"))
    notes = []
    if fit.caveat:
        notes.append(f"{fit.caveat}.")
    if compared:
        at = "equal compute" if fit.kind == COMPUTE else "equal parameters and tokens, both grown alike"
        notes.append(f"P: share of bootstrap replicates, at {at}, from the baseline's largest rung on.")
    if any(arm.crossover is None for arm in compared):
        notes.append("No crossover is given where the interval of the difference of exponents holds 0.")
    if any(arm.offset_difference is None for arm in compared):
        notes.append("No difference of own offsets is given where the rungs of either arm do not determine its own.")
    headings = ("value", "95 % interval", "Δ to baseline", "Δ 95 %")
    columns = (Column("arm"), Column("quantity"), *(Column(name, numeric=True) for name in headings))
    title = f"{report.study}: {FORMULAS[fit.kind]}"
    return Grid(title, columns, tuple(rows), (False,) * len(rows), tuple(notes))


def _share(share: float, count: int) -> str:
    """A share of replicates; none of a thousand is no proof of never."""
    least = 1 / count
    return f"< {least:.2g}" if share < least else f"> {1 - least:.5g}" if share > 1 - least else f"{share:.3f}"


def scaling_dict(report: Scaling) -> dict[str, Any]:
    """A report as JSON values; numbers that do not exist are None."""
    rungs = [{**asdict(rung), "verdict": rung.row.verdict} for rung in report.rungs]
    values: dict[str, Any] = {name: getattr(report, name) for name in ("study", "study_hash", "ladder", "bootstraps")}
    values |= {"baselines": report.baselines, "rungs": rungs, "fit": None, "notes": report.notes}
    if (fit := report.fit) is not None:
        shared = {name: asdict(estimate) for name, estimate in fit.shared.items()}
        values["fit"] = {
            "kind": fit.kind,
            "formula": FORMULAS[fit.kind],
            "caveat": fit.caveat,
            "shared": {**shared, "E": {**shared["E"], "determined": not fit.caveat}},
            "arms": [{**asdict(arm), "better": _better(arm)} for arm in fit.arms],
        }
    whole: dict[str, Any] = finite(values)
    return whole


def _better(arm: ArmFit) -> dict[str, float] | None:
    return None if arm.better is None else {f"{at}x": share for at, share in zip(BEYOND, arm.better, strict=True)}


def scaling_csv(report: Scaling) -> str:
    """The rungs of a report for spreadsheets, with full precision; numbers that do not exist are empty."""
    out = io.StringIO()
    headings = ["arm", "rung", "baseline", "parameters", "tokens", "compute", "tokens_per_second", *STATUSES, "verdict"]
    bounds = ("", "_low", "_high")
    headings += [name + end for name in ("loss", "delta", "gain", "gain_in_time") for end in bounds]
    writer = csv.writer(out)
    writer.writerow(headings)
    for rung in report.rungs:
        row = rung.row
        cells: list[Any] = [rung.arm, rung.rung, report.baselines[rung.arm], row.parameters, rung.tokens, rung.compute]
        cells += [row.tokens_per_second, *(row.outcomes.get(name, 0) for name in STATUSES), row.verdict]
        for interval in (row.value, row.delta):
            cells += [None] * 3 if interval is None else [interval.mean, interval.low, interval.high]
        for estimate in (rung.gain, rung.gain_in_time):
            cells += [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]
        writer.writerow("" if cell is None or cell != cell else cell for cell in cells)
    return out.getvalue()


def plot_scaling(report: Scaling, title: str) -> Figure:
    """Loss against compute with the fitted laws, and below it each rung's paired difference to the baseline.

    Dots are seeds, markers their means, bands and bars 95 % intervals. A law in parameters and tokens is drawn at those
    that it finds optimal for each compute.
    """
    compared = any(rung.row.delta and rung.row.delta.n for rung in report.rungs)
    figure = Figure(figsize=(6.5, 5.6 if compared else 3.8), layout="constrained")
    ratios = {"height_ratios": (2, 1)} if compared else {}
    above, *below = figure.subplots(1 + compared, 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    names = list(report.baselines)
    for index, name in enumerate(names):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        mine = [rung for rung in report.rungs if rung.arm == name and rung.losses]
        style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "fillstyle": "none"}
        for rung in mine:
            where = [rung.compute] * len(rung.losses)
            above.plot(where, list(rung.losses.values()), ".", color=colour, alpha=0.6, markersize=3)
        means = [rung.row.value.mean for rung in mine]
        above.plot([rung.compute for rung in mine], means, label=name, markersize=5.5, **style)
        differences = [rung for rung in mine if not rung.row.is_baseline and rung.row.delta and rung.row.delta.n]
        for axes in below if differences else []:
            deltas = [rung.row.delta for rung in differences if rung.row.delta]
            halves = [delta.high - delta.mean for delta in deltas]
            where = [rung.compute * 1.06 ** (index - len(names) / 2) for rung in differences]  # side by side
            axes.errorbar(
                where, [delta.mean for delta in deltas], halves, elinewidth=1.2, capsize=2.5, markersize=4, **style
            )
    if report.fit is not None:
        _draw_laws(above, report, report.fit, names)
    above.set_xscale("log")
    above.set_ylabel(with_unit(DEFAULT_METRIC))
    above.set_title(f"{title} (dots: seeds; bands and bars: 95 %)", fontsize=10)
    for axes in below:
        axes.axhline(0, color="#555555", linewidth=0.8)
        axes.set_ylabel("difference to\nbaseline [nats/token]")
    for axes in (above, *below):
        tidy(axes)
    (below or [above])[-1].set_xlabel("training compute [FLOPs]")
    handles, labels = above.get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles, strict=True)))
    figure.align_ylabels()
    return figure


def _draw_laws(axes: Axes, report: Scaling, fit: Fit, names: Sequence[str]) -> None:
    """Each arm's curve with its band, dashed a decade beyond what was measured."""
    for arm, found in enumerate(fit.arms):
        mine = [rung for rung in report.rungs if rung.arm == found.arm and rung.losses]
        least, most = (bound(rung.compute for rung in mine) for bound in (min, max))
        compute = np.concatenate([np.geomspace(least, most, 61), np.geomspace(most, 10 * most, 21)])
        where: list[Any] = [(compute, None), (compute, None)]
        if fit.kind == PARAMETERS_AND_TOKENS:
            largest = max(mine, key=lambda rung: rung.compute)
            # An optimum is of 6 N D FLOPs; trials count theirs, attention included.
            counted = largest.compute / (6 * largest.row.parameters * largest.tokens)
            where = [power_law.optimum(law, arm, compute / counted) for law in (fit.law, fit.replicates)]
        curve, many = (
            law.losses([arm] * len(compute), *at) for law, at in zip((fit.law, fit.replicates), where, strict=True)
        )
        colour = COLOURS[names.index(found.arm) % len(COLOURS)]
        low, high = np.quantile(many, (0.025, 0.975), axis=0)
        axes.fill_between(compute, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(compute[:61], curve[:61], color=colour, linewidth=1.3)
        axes.plot(compute[61:], curve[61:], color=colour, linewidth=1.1, linestyle="--")
    law = "law" if fit.kind == COMPUTE else "law at optimal N, D"
    axes.plot([], [], color="#555555", linewidth=1.3, label=law)
    axes.plot([], [], color="#555555", linewidth=1.1, linestyle="--", label="extrapolated")
