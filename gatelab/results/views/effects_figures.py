"""What a study's axes do, as figures."""

import math
import re
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.analyses.effects import Effects
from gatelab.results.analyses.factorial import Factorial, effect_name
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.statistics.linear_model import Effect
from gatelab.results.store.runs import short_axes
from gatelab.results.views.effects import shown_interactions, verdict_of, within
from gatelab.results.views.format import with_unit
from gatelab.results.views.style import MARKERS, line_style, style_axes
from gatelab.text import visible

COLUMNS = 4
"""Most panels beside each other."""
PANELS = 4
"""Most interactions in a figure."""
TOLD = {
    Verdict.EFFECT: "an effect",
    Verdict.UNDECIDED: "undecided",
    Verdict.NOT_EVALUABLE: "not tested",
}
"""Verdict on an interaction -> what the title of its panel says."""


def plot_effects(found: Effects) -> Figure | None:
    """Draw the mean of each level, a panel for each axis, all on one scale. None without a table of effects.

    Bars are the intervals of the differences to the grand mean, which is a line.
    """
    if (factorial := found.factorial) is None:
        return None
    names = short_axes(list(factorial.axes))
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(3.6, 2.3 * columns + 0.8), 2.6 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(names))
    for place, (axis, axes) in enumerate(zip(factorial.axes, grid.flat, strict=False)):
        mine = [level for level in factorial.levels if level.axis == axis]
        halves = [level.effect.high - level.effect.mean for level in mine]
        axes.axhline(factorial.mean, color="#555555", linewidth=0.8, linestyle=":")
        # A line between levels says that there is something between them.
        style = line_style(0) | ({} if all(map(_is_number, factorial.axes[axis])) else {"linestyle": ""})
        axes.errorbar(
            range(len(mine)), [level.mean for level in mine], _bars(halves), **style, **_marks(0), linewidth=1.2
        )
        _name_levels(axes, names[axis], [level.level for level in mine])
        if place % columns == 0:
            axes.set_ylabel(with_unit(found.metric, found.spec), fontsize=8)
    bars = (
        "bars: 95 % interval of the difference from the grand mean, the dotted line"
        if factorial.is_tested
        else "no error: no intervals"
    )
    _head(figure, f"{found.study}: means of levels{within(found)}", bars)
    return figure


def plot_interaction(found: Effects) -> Figure | None:
    """Draw means of the combinations of two axes: interactions that are an effect, or the strongest. None without.

    Lines that are not parallel are the interaction; bars are the intervals of the interaction in each combination.
    """
    factorial = found.factorial
    if factorial is None or not (pairs := shown_interactions(factorial)[:PANELS]):
        return None
    names = short_axes(list(factorial.axes))
    columns = min(2, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(5.2 if columns == 1 else 8.6, 3.2 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(pairs))
    for place, (pair, axes) in enumerate(zip(pairs, grid.flat, strict=False)):
        _draw_interaction(axes, factorial, pair, names)
        axes.set_title(f"{effect_name(pair, names)}: {TOLD[verdict_of(factorial, pair)]}", fontsize=8)
        if place % columns == 0:
            axes.set_ylabel(with_unit(found.metric, found.spec), fontsize=8)
    bars = "bars: 95 % interval of the interaction" if factorial.is_tested else "no error: no intervals"
    _head(figure, f"{found.study}: means of combinations{within(found)}", bars)
    return figure


def _draw_interaction(axes: Axes, factorial: Factorial, pair: Effect, names: Mapping[str, str]) -> None:
    along, lines = sorted(pair, key=lambda axis: -len(factorial.axes[axis]))  # more levels go along the abscissa
    cells = {frozenset(zip(cell.axes, cell.levels, strict=True)): cell for cell in factorial.combinations}
    levels, own = factorial.axes[along], factorial.axes[lines]
    for index, line in enumerate(own):
        mine = [cells[frozenset(((lines, line), (along, level)))] for level in levels]
        where = np.arange(len(levels)) + 0.08 * (index - (len(own) - 1) / 2) / max(1, len(own) - 1)  # side by side
        halves = [cell.effect.high - cell.effect.mean for cell in mine]
        means = [cell.mean for cell in mine]
        axes.errorbar(where, means, _bars(halves), **line_style(index), **_marks(index), linewidth=1.2, label=line)
    _name_levels(axes, names[along], levels)
    axes.legend(title=names[lines], title_fontsize=7, fontsize=7, frameon=False, ncols=1 + len(own) // 6)


def _head(figure: Figure, title: str, bars: str) -> None:
    letters = int(figure.get_figwidth() / 0.078)  # in a line
    figure.suptitle("\n".join([*wrap(title, letters), *wrap(f"({bars})", letters)]), fontsize=10)


def interaction_caption(found: Effects) -> str:
    """Return what the figure of interactions shows."""
    factorial = found.factorial
    pairs = [] if factorial is None else shown_interactions(factorial)
    if factorial is not None and any(verdict_of(factorial, pair) == Verdict.EFFECT for pair in pairs):
        return "Axes that act together: their lines are not parallel."
    return (
        "The strongest interaction, which the tests do not show to be an effect: without one, lines are parallel but "
        "for the scatter of seeds."
    )


def _is_number(level: str) -> bool:
    return re.fullmatch(r"[-+]?[\d_]*\.?\d+(e[-+]?\d+)?[kmbt]?", level, re.IGNORECASE) is not None


def _bars(halves: Sequence[float]) -> list[float] | None:
    return None if any(math.isnan(half) for half in halves) else list(halves)


def _marks(index: int) -> dict[str, Any]:
    return {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "elinewidth": 1.2, "capsize": 2.5}


def _name_levels(axes: Axes, axis: str, levels: Sequence[str]) -> None:
    """Write levels under the abscissa, aslant where they would not fit beside each other."""
    aslant = sum(map(len, levels)) > 22
    names = list(map(visible, levels))
    rotation, end = (30, "right") if aslant else (0, "center")
    axes.set_xticks(range(len(levels)), names, rotation=rotation, ha=end, parse_math=False)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_xlabel(axis, fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    style_axes(axes)


def figures(found: Effects) -> dict[str, Figure]:
    """Draw the means of levels and the strongest interactions, as far as there are any."""
    drawn = {"effects": plot_effects(found), "effects-interaction": plot_interaction(found)}
    return {name: figure for name, figure in drawn.items() if figure is not None}
