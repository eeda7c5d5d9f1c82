"""Attention weights of models on one text, side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

LABELLED = 48  # tokens, at most, whose texts are written beside a map


LEAST = 1e-3  # a weight that is shown as nothing


Maps = Mapping[tuple[int, str], npt.NDArray[np.float32]]
"""(layer, head or "mean") -> weights `[T, T]`, a row for each query."""


def plot_attention(maps: Mapping[str, Maps], tokens: Sequence[str], title: str) -> Figure:
    """Draw a column for each model, a row for each layer and head; all share one logarithmic scale of colours."""
    rows = list(dict.fromkeys(key for own in maps.values() for key in own))
    labelled = len(tokens) <= LABELLED
    side = 2.6 if not labelled else max(2.6, 0.11 * len(tokens))
    figure = Figure(figsize=(side * len(maps) + 1.2, side * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), len(maps), squeeze=False)
    norm = LogNorm(LEAST, 1.0)
    for column, (name, own) in enumerate(maps.items()):
        for row, (layer, head) in enumerate(rows):
            axes = grid[row, column]
            if (layer, head) not in own:  # a model with fewer layers or heads
                axes.set_visible(False)
                continue
            weights = own[layer, head]
            image = axes.imshow(np.where(weights < LEAST, np.nan, weights), norm=norm, cmap="viridis")
            first = float(weights[:, 0].mean())
            which = "mean of heads" if head == "mean" else f"head {head}"
            axes.set_title(f"{name}\nlayer {layer}, {which}; first token {first:.0%}", fontsize=8)
            if labelled:
                shown = [repr(token)[1:-1].replace("$", r"\$") for token in tokens]
                axes.set_xticks(range(len(tokens)), shown, rotation=90, fontsize=5, family="monospace")
                axes.set_yticks(range(len(tokens)), shown, fontsize=5, family="monospace")
            else:
                axes.tick_params(labelsize=7)
            if row == len(rows) - 1:
                axes.set_xlabel("key (attended to)", fontsize=8)
            if column == 0:
                axes.set_ylabel("query", fontsize=8)
    figure.colorbar(image, ax=list(grid.flat), label="attention weight", shrink=0.8)
    floor = float(np.mean(1 / np.arange(1, len(tokens) + 1)))
    figure.suptitle(f"{title} (uniform attention: first token {floor:.0%})", fontsize=10)
    return figure
