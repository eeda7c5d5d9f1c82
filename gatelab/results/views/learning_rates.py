"""What a learning-rate search found: a table, sentences, and the plots of loss against rate."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.metrics import find_spec
from gatelab.results.analyses.curves import curves_by_seed
from gatelab.results.analyses.learning_rates import Arm, LearningRates
from gatelab.results.analyses.sweep_quantities import LOSS, OPTIMUM, STABLE, UPPER, Quantity
from gatelab.results.analyses.sweeps import RATE
from gatelab.results.statistics.paired import Interval
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.runs import AXIS, arm_of
from gatelab.results.views.format import with_unit
from gatelab.results.views.style import draw_curves, legend_below, line_style, panels, style_axes
from gatelab.results.views.table import Column, Table
from gatelab.status import Status

SHOWN = 3  # margins above the worst arm's best loss that the lower panel shows


BY_RATE = ("attention/max_logit", "activation/ffn_residual", "attention/first_token_share", "train/gradient_spikes")
"""Measures of a trial that are drawn against its learning rate."""


def learning_rates_table(found: LearningRates) -> Table:
    """Lay out a row for each property, a column for each arm; beneath each value its difference to the baseline."""
    arms = sorted(found.arms, key=lambda arm: arm.sweep.arm != arm.sweep.baseline)
    rows = []
    for first in arms[0].quantities:
        quantities = [arm.quantity(first.name) for arm in arms]
        unit = "" if first.is_rate else f" [{first.unit}]"
        rows.append((first.name + unit, *(_value(quantity) for quantity in quantities)))
        if any(quantity.delta is not None and quantity.delta.n for quantity in quantities):
            change = "  × baseline" if first.is_rate else "  Δ to baseline"
            rows.append((change, *(_difference(quantity) for quantity in quantities)))
    rows.append(("first not stable", *(_rate(arm.first_unstable) for arm in arms)))
    rows.append(("tried at, from", *(f"{arm.sweep.rates[0]:g} to {arm.sweep.rates[-1]:g}" for arm in arms)))
    rows.append(("trials, diverged", *(f"{arm.sweep.losses.size}, {arm.sweep.diverged}" for arm in arms)))
    window = f"{found.window[0]:g} to {found.window[-1]:g}"
    notes = [
        "Mean over seeds [95 % t-interval]; learning rates: geometric mean. Differences are paired by seed; * the "
        "interval excludes 0 (or × 1), as one in twenty does by chance. ≥, ≤: only a bound, of at least one seed: it "
        "lies beyond the learning rates that were tried.",
        f"S (arXiv 2309.14322): mean over {len(found.window)} learning rates, {window}, of min(loss, initial loss) "
        "less the best; centred: over as many around the arm's own best. Diverged trials count with the initial loss.",
        f"Edges: where the loss exceeds a seed's best by {found.margin:.0%}. Stable: finished below the initial loss.",
        *(["† a single seed: no interval."] if any(len(arm.sweep.seeds) == 1 for arm in arms) else []),
        *(note for arm in arms for note in arm.notes),
        *found.notes,
    ]
    columns = (Column("property"), *(Column(arm.sweep.arm, numeric=True) for arm in arms))
    return Table(f"{found.study}: learning rates", columns, tuple(rows), notes=tuple(notes))


def _value(quantity: Quantity) -> str:
    interval, bound = quantity.interval, quantity.bound
    if interval.n == 0:
        return "–"
    if (quantity.name, quantity.unit) == STABLE:
        least = min(quantity.by_seed.values(), key=lambda own: own.value)
        return f"{least.bound} {_rate(10**least.value)}".strip()
    mean = _number(quantity, interval.mean)
    if bound:
        return f"{'' if bound == '?' else bound} {mean}".strip() + (" (bounds of both kinds)" if bound == "?" else "")
    if interval.n == 1:
        return f"{mean} †"
    return f"{mean} [{_number(quantity, interval.low)}, {_number(quantity, interval.high)}]"


def _number(quantity: Quantity, value: float) -> str:
    if quantity.is_rate:
        return _rate(10**value)
    return f"{value:.2f}" if quantity.unit == "decades" else f"{value:.4f}"


def _rate(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.3g}"


def _difference(quantity: Quantity) -> str:
    delta = quantity.delta
    if delta is None or delta.n == 0:
        return "–"
    if quantity.is_rate:
        mean, low, high = (f"×{10**value:.3g}" for value in (delta.mean, delta.low, delta.high))
    else:
        digits = 2 if quantity.unit == "decades" else 4
        mean, low, high = (f"{value:+.{digits}f}" for value in (delta.mean, delta.low, delta.high))
    if delta.n == 1:
        return mean
    return f"{mean} [{low}, {high}]" + ("*" if decided(delta) else "")


def decided(delta: Interval) -> bool:
    """Return whether an interval excludes 0."""
    return delta.low > 0 or delta.high < 0


def plot_learning_rates(found: LearningRates) -> Figure:
    """Draw loss against learning rate: all of it above, the part near the best below, with optimum and upper edge."""
    figure = Figure(figsize=(6.5, 6.6), layout="constrained")
    whole, near = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    for index, arm in enumerate(found.arms):
        for axes in (whole, near):
            _draw_arm(axes, index, arm)
    for index, arm in enumerate(found.arms):
        _mark(near, index, arm, found.margin)
    whole.axvspan(found.window[0], found.window[-1], color="#000000", alpha=0.04, linewidth=0)
    lowest = [float(arm.sweep.mean[arm.sweep.complete].min()) for arm in found.arms if arm.best_rate is not None]
    if lowest and min(lowest) < max(float(np.nanmax(arm.sweep.losses)) for arm in found.arms if arm.best_rate):
        near.set_ylim(min(lowest) * (1 - found.margin), max(lowest) * (1 + SHOWN * found.margin))
    whole.set_xscale("log")
    tried = np.concatenate([arm.sweep.rates for arm in found.arms])
    whole.set_xlim(tried.min() / 1.5, tried.max() * 1.5)
    whole.set_ylabel("validation loss\n[nats/token]")
    near.set_ylabel("validation loss [nats/token]")
    near.set_xlabel("learning rate (peak of the schedule)")
    figure.suptitle(found.study, fontsize=10)
    whole.set_title("mean over seeds (band: their range; grey: the window of S; ×: not stable)", fontsize=8)
    near.set_title(
        f"near the best (●: optimum with its 95 % interval; |: where the loss exceeds the best by {found.margin:.0%})",
        fontsize=8,
    )
    for axes in (whole, near):
        style_axes(axes)
    handles, labels = whole.get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles, strict=True)))
    figure.align_ylabels()
    return figure


def plot_by_rate(runs: pa.Table, title: str) -> Figure | None:
    """Draw attention, activations and gradients of the trials that finished against their learning rate.

    None if they recorded none of it.
    """
    names = [name for name in BY_RATE if name in runs.column_names]
    specs = specs_of(runs)
    trials = [trial for trial in runs.to_pylist() if trial["outcome"] == Status.FINISHED]
    arms = list(dict.fromkeys(arm_of(trial, [RATE]) for trial in trials))
    if not names or not trials:
        return None

    def draw(axes: Axes, name: str) -> None:
        for index, arm in enumerate(arms):
            own = sorted((t for t in trials if arm_of(t, [RATE]) == arm), key=lambda t: float(t[AXIS + RATE]))
            columns = {
                "seed": [trial["seed"] for trial in own],
                "rate": [float(trial[AXIS + RATE]) for trial in own],
                "value": pa.array([trial[name] for trial in own], pa.float64(), from_pandas=True),
            }
            draw_curves(axes, index, curves_by_seed(pa.table(columns), "rate"), arm, marker="o")
        spec = find_spec(name, specs)
        axes.set_title(with_unit(name, spec), fontsize=8)
        axes.set_xscale("log")
        if spec.logarithmic:
            axes.set_yscale("log")

    return panels(names, draw, "learning rate", title, columns=2)


def _draw_arm(axes: Axes, index: int, arm: Arm) -> None:
    sweep = arm.sweep
    curves = {
        seed: (sweep.rates[known], losses[known])
        for seed, losses in zip(sweep.seeds, sweep.losses, strict=True)
        if (known := np.isfinite(losses)).any()
    }
    draw_curves(axes, index, curves, sweep.arm, marker="o")
    unstable = sweep.complete & ~np.all(sweep.stable, axis=0)
    colour = line_style(index)["color"]
    axes.plot(sweep.rates[unstable], sweep.mean[unstable], "x", color=colour, markersize=6)


def _mark(axes: Axes, index: int, arm: Arm, margin: float) -> None:
    """Mark the optimum with its interval, and the upper edge, of one arm."""
    colour = line_style(index)["color"]
    best, loss, upper = (arm.quantity(name) for name, _ in (OPTIMUM, LOSS, UPPER))
    if not loss.by_seed or not best.by_seed:
        return
    height = loss.interval.mean
    if not best.bound:
        axes.plot(10**best.interval.mean, height, "o", color=colour, markersize=7, markeredgecolor="white")
        if best.interval.n > 1:
            axes.plot(
                10 ** np.array([best.interval.low, best.interval.high]), [height] * 2, color=colour, linewidth=2.5
            )
    if not upper.bound:
        axes.plot(10**upper.interval.mean, height * (1 + margin), "|", color=colour, markersize=16, markeredgewidth=2)


def sentences(found: LearningRates) -> Iterator[str]:
    """Yield a sentence for each arm that is compared, on those of its differences that the seeds decide."""
    for arm in found.arms:
        told = [
            f"{quantity.name} {_difference(quantity)}"
            for quantity in arm.quantities
            if quantity.delta is not None and quantity.delta.n > 1 and decided(quantity.delta)
        ]
        if arm.sweep.baseline not in (None, arm.sweep.arm):
            yield f"{arm.sweep.arm} against {arm.sweep.baseline}: {'; '.join(told) or 'nothing is decided'}"


def tables(found: LearningRates) -> list[Table]:
    """Return the one table."""
    return [learning_rates_table(found)]


def figures(found: LearningRates, runs: pa.Table) -> dict[str, Figure]:
    """Draw losses against learning rates and, if trials recorded any of it, what rates do to training."""
    by_rate = plot_by_rate(runs, found.study)
    more = {} if by_rate is None else {"tolerance-measures": by_rate}
    return {"tolerance": plot_learning_rates(found), **more}
