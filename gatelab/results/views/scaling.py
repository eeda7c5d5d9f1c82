"""How a study's arms scale: tables and the figure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.analyses.scaling import Scaling
from gatelab.results.analyses.scaling_fit import BEYOND, COMPUTE, FORMULAS, PARAMETERS_AND_TOKENS, Estimate, Fit, Rung
from gatelab.results.statistics import power_law
from gatelab.results.views import format
from gatelab.results.views.format import DASH, unit_of, with_unit
from gatelab.results.views.style import COLOURS, MARKERS, legend_below, style_axes
from gatelab.results.views.table import Column, Table


def tables(report: Scaling) -> list[Table]:
    """Lay out a report for people: the rungs as they were measured and, if there is a fit, its numbers."""
    headings = ("arm", "rung")
    numbers = (
        "parameters",
        "tokens",
        "compute [FLOPs]",
        with_unit(DEFAULT_METRIC, report.spec),
        "seeds",
        "Δ to baseline",
    )
    gains = ("CEG", "CEG 95 %", "CEG in time")
    columns = [
        *map(Column, headings),
        *(Column(name, numeric=True) for name in (*numbers, "Δ 95 %")),
        Column("verdict"),
        *(Column(name, numeric=True) for name in gains),
    ]
    notes = [
        "Loss: mean over seeds; Δ: mean of the differences from the baseline's arm at the same rung, paired by seed, "
        "with its t-interval.",
        *report.notes,
    ]
    if any(rung.gain for rung in report.rungs):
        notes.insert(
            1,
            "CEG: compute-equivalent gain, the factor of compute that would take the baseline from its loss to the "
            "arm's; in time: times the ratio of their tokens/s. What an arm computes in addition counts there only.",
        )
    rungs = Table(
        f"{report.study}: ladder of {', '.join(report.ladder)}",
        tuple(columns),
        tuple(_rung_cells(rung) for rung in report.rungs),
        notes=tuple(notes),
    )
    return [rungs] if report.fit is None else [rungs, _fit_table(report, report.fit)]


def _rung_cells(rung: Rung) -> tuple[str, ...]:
    row = rung.row
    difference = None if row.is_baseline else row.delta
    return (
        rung.arm,
        rung.rung,
        f"{row.parameters:,}",
        f"{rung.tokens:,}",
        f"{rung.compute:.3g}",
        DASH if math.isnan(row.value.mean) else f"{row.value.mean:.4f}",
        format.seeds(row.value.n, row.outcomes),
        format.delta(difference),
        format.interval(difference),
        row.verdict,
        *_estimate_cells(rung.gain, ".3f"),
        _estimate_cells(rung.gain_in_time, ".3f")[0],
    )


def _estimate_cells(estimate: Estimate | None, form: str) -> tuple[str, str]:
    """Format a number and its interval."""
    if estimate is None:
        return DASH, DASH
    value, interval = f"{estimate.value:{form}}", format.bounds(estimate.low, estimate.high, form)
    return _infinite(value), _infinite(interval)


def _infinite(text: str) -> str:
    return text.replace("inf", "∞").replace("nan", DASH)


def _fit_table(report: Scaling, fit: Fit) -> Table:
    """Lay out a row for each quantity of each arm."""
    rows = []
    for name, estimate in fit.shared.items():
        shown = None if name == "E" and fit.caveat else estimate
        rows.append(("all arms", name, *_estimate_cells(shown, ".4g"), DASH, DASH))
    compared = [arm for arm in fit.arms if arm.better is not None]
    measured = [bound(rung.compute for rung in report.rungs if rung.losses) for bound in (min, max)]
    for arm in fit.arms:
        rows.append((arm.arm, "A", *_estimate_cells(arm.scale, ".4g"), DASH, DASH))
        difference = _estimate_cells(arm.exponent_difference, "+.4f")
        rows.append((arm.arm, "α", *_estimate_cells(arm.exponent, ".4f"), *difference))
        if arm.better is not None:
            rows.append((arm.arm, "own E", DASH, DASH, *_estimate_cells(arm.offset_difference, "+.3f")))
            inside = arm.crossover is None or measured[0] <= arm.crossover.value <= measured[1]
            what = "crossover [FLOPs]" + ("" if inside else " (extrapolated)")
            rows.append((arm.arm, what, *_estimate_cells(arm.crossover, ".2g"), DASH, DASH))
            for multiple, share in zip(BEYOND, arm.better, strict=True):
                what = f"P(lower loss) at {multiple}×" + (" (extrapolated)" if multiple > 1 else "")
                rows.append((arm.arm, what, _share(share, report.bootstraps), DASH, DASH, DASH))
    at = "equal compute" if fit.kind == COMPUTE else "equal parameters and tokens, both grown alike"
    notes = [  # whether it applies, and the text
        (bool(fit.caveat), f"{fit.caveat}."),
        (bool(compared), f"P: fraction of bootstrap replicates, at {at}, from the baseline's largest rung on."),
        (
            any(arm.crossover is None for arm in compared),
            "No crossover is given where the interval of the difference of exponents contains 0.",
        ),
        (
            any(arm.offset_difference is None for arm in compared),
            "No difference of own offsets is given where the rungs of either arm do not determine its own.",
        ),
    ]
    headings = ("value", "95 % interval", "Δ to baseline", "Δ 95 %")
    columns = (Column("arm"), Column("quantity"), *(Column(name, numeric=True) for name in headings))
    title = f"{report.study}: {FORMULAS[fit.kind]}"
    return Table(title, columns, tuple(rows), notes=tuple(text for applies, text in notes if applies))


def _share(share: float, count: int) -> str:
    """Format a share of replicates; none of a thousand is no proof of never."""
    least = 1 / count
    return f"< {least:.2g}" if share < least else f"> {1 - least:.5g}" if share > 1 - least else f"{share:.3f}"


def plot_scaling(report: Scaling, title: str) -> Figure:
    """Draw loss against compute with the fitted laws, and below it each rung's paired difference to the baseline.

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
    above.set_ylabel(with_unit(DEFAULT_METRIC, report.spec))
    above.set_title(f"{title} (dots: seeds; bands and bars: 95 %)", fontsize=10)
    for axes in below:
        axes.axhline(0, color="#555555", linewidth=0.8)
        axes.set_ylabel(f"difference from\nbaseline{unit_of(report.spec)}")
    for axes in (above, *below):
        style_axes(axes)
    (below or [above])[-1].set_xlabel("training compute [FLOPs]")
    handles, labels = above.get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles, strict=True)))
    figure.align_ylabels()
    return figure


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # replicates may be infinite far out
def _draw_laws(axes: Axes, report: Scaling, fit: Fit, names: Sequence[str]) -> None:
    """Draw each arm's curve with its band, dashed a decade beyond what was measured."""
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


def figures(report: Scaling) -> dict[str, Figure]:
    """Draw losses against compute, with the laws."""
    return {"scaling": plot_scaling(report, report.study)}
