"""Attention weights of models on one text, side by side."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from gatelab.text import visible

LABELLED = 48  # tokens, at most, whose texts are written beside a map
LEAST = 1e-3  # a weight that is shown as nothing
COLUMNS = 4  # models beside each other, at most
LETTER = 0.062  # inches that a letter of a title takes

Maps = Mapping[tuple[int, str], npt.NDArray[np.float32]]
"""(layer, head or "mean") -> weights `[T, T]`, a row for each query."""


def plot_attention(maps: Mapping[str, Maps], tokens: Sequence[str], title: str) -> Figure:
    """Draw a column for each model, a row for each layer and head; all share one logarithmic scale of colours.

    Models that do not fit beside each other go below.
    """
    kinds = list(dict.fromkeys(key for own in maps.values() for key in own))
    labelled = len(tokens) <= LABELLED
    side = max(2.6, 0.13 * len(tokens)) if labelled else 2.6
    columns = min(COLUMNS, len(maps))
    rows = len(kinds) * math.ceil(len(maps) / columns)
    names = {name: "\n".join(wrap(visible(name), int(side / LETTER))) for name in maps}
    heading = 0.14 * (2 + max(name.count("\n") for name in names.values()))
    texts = 0.055 * max(map(len, map(_written, tokens))) if labelled else 0.2
    figure = Figure((columns * (side + texts) + 1.2, rows * (side + texts + heading) + 0.6), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    norm = LogNorm(LEAST, 1.0)
    for place, (name, own) in enumerate(maps.items()):
        for row, (layer, head) in enumerate(kinds):
            if (layer, head) not in own:  # a model with fewer layers or heads
                continue
            axes, weights = grid[place // columns * len(kinds) + row, place % columns], own[layer, head]
            axes.set_visible(True)
            image = axes.imshow(np.where(weights < LEAST, np.nan, weights), norm=norm, cmap="viridis")
            which = "mean of heads" if head == "mean" else f"head {head}"
            axes.set_title(
                f"{names[name]}\nlayer {layer}, {which}; first token {float(weights[:, 0].mean()):.0%}", fontsize=8
            )
            if labelled:
                shown, how = list(map(_written, tokens)), {"fontsize": 6.0, "family": "monospace"}
                axes.set_xticks(range(len(tokens)), shown, rotation=90, parse_math=False, **how)
                axes.set_yticks(range(len(tokens)), shown, parse_math=False, **how)
            else:
                axes.tick_params(labelsize=7)
            if row == len(kinds) - 1:
                axes.set_xlabel("key (attended to)", fontsize=8)
            if place % columns == 0:
                axes.set_ylabel("query", fontsize=8)
    bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.8, pad=0.02)
    bar.set_label("attention weight", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    floor = float(np.mean(1 / np.arange(1, len(tokens) + 1)))
    note = f"uniform attention would give the first token {floor:.0%}"
    figure.suptitle(
        "\n".join(wrap(f"{title}: attention weights ({note})", int(0.9 * figure.get_figwidth() / 0.08))), fontsize=10
    )
    return figure


def _written(token: str) -> str:
    """Write a token so that spaces and line feeds are seen."""
    return repr(token)[1:-1].replace(" ", "␣")
