"""How every plot looks: colours, lines, files. A line is a mean over seeds, its band reaches over them all."""

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from gatelab.atomic import replacing
from gatelab.errors import AnalysisUnavailable
from gatelab.results.statistics.series import Curve
from gatelab.results.views.fonts import give_fonts
from gatelab.text import visible

logger = logging.getLogger(__name__)

# Told apart in print and by colour-blind readers (Okabe and Ito), then by dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


MARKERS = "osD^vPX"


DASHES = ("-", "--", "-.", ":")


UNDATED: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Formats in which figures are written, and what keeps the date out of each."""


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of the index-th line."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def draw_curves(axes: Axes, index: int, curves: Mapping[int, Curve], label: str, marker: str = "") -> None:
    """Draw a mean line and a band over seeds, in the index-th colour. Draws nothing where there are no curves."""
    if not curves:
        return
    where = np.unique(np.concatenate([own for own, _ in curves.values()]))
    grid = np.full((len(curves), len(where)), np.nan)
    for row, (own, values) in enumerate(curves.values()):
        grid[row, np.searchsorted(where, own)] = values
    style = line_style(index)
    axes.plot(where, np.nanmean(grid, 0), **style, linewidth=1.4, marker=marker, markersize=3, label=label)
    axes.fill_between(where, np.nanmin(grid, 0), np.nanmax(grid, 0), color=style["color"], alpha=0.18, linewidth=0)


def style_axes(axes: Axes) -> None:
    """Give axes a light grid and no frame."""
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def spans_decade(values: npt.NDArray[np.float64]) -> bool:
    """Return whether values are positive and span more than a factor of ten, which a logarithmic axis shows better."""
    return len(values) > 0 and bool(0 < 10 * np.fmin.reduce(values) < np.fmax.reduce(values))


def panels(
    names: Sequence[str], draw: Callable[[Axes, str], None], abscissa: str, title: str, columns: int = 3
) -> Figure:
    """Draw a figure with a panel for each name, one legend for all, and the abscissa's name under each column."""
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.3, 2.2 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    entries: dict[str, Any] = {}
    for axes, name in zip(grid.flat, names, strict=False):
        draw(axes, name)
        style_axes(axes)
        axes.tick_params(which="both", labelsize=8)
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
        elif place + columns >= len(names):
            axes.set_xlabel(abscissa, fontsize=8)
            axes.tick_params(labelbottom=True)
    figure.suptitle(f"{title} (mean over seeds; band: their range)", fontsize=10)
    legend_below(figure, entries)
    return figure


def legend_below(figure: Figure, entries: Mapping[str, Any]) -> None:
    """Draw one legend for a whole figure: label -> what is drawn.

    The figure grows by what is more than two lines of it.
    """
    longest = max(map(len, entries), default=0)
    fitting = int(figure.get_figwidth() / (0.07 * longest + 0.45))  # inches of a letter, and of a line with its gap
    columns = max(1, min(4, len(entries), fitting))
    lines = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - 2))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


@dataclass(frozen=True)
class Drawing:
    """A figure that was drawn: width and height in inches, its files by suffix."""

    size: tuple[float, float]
    files: dict[str, bytes]


def draw(make: Callable[[], Mapping[str, Figure]], what: str) -> tuple[dict[str, Drawing], list[str]]:
    """Draw figures: name of a file -> its drawing, and a line for each that cannot be drawn, which costs no other.

    `what` names them all, where none can be made. Raises AnalysisUnavailable as `make` does.
    """
    drawn, problems = {}, []

    def note(name: str, error: Exception) -> None:
        logger.info("%s cannot be drawn", name, exc_info=error)
        problems.append(f"{name} cannot be drawn: {type(error).__name__}: {str(error).partition(chr(10))[0]}")

    try:
        figures = make()
    except AnalysisUnavailable:
        raise
    except Exception as error:  # whatever data make of a drawing, tables are worth more
        note(f"figures of {what}", error)
        return {}, problems
    for name, figure in figures.items():
        try:
            files = render_figure(figure)
        except Exception as error:
            note(f"figure {name}", error)
        else:
            width, height = figure.get_size_inches()
            drawn[name] = Drawing((float(width), float(height)), files)
    return drawn, problems


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG, SVG and PDF; return the paths."""
    return save_files(render_figure(figure), stem)


def take_literally(figure: Figure) -> None:
    """Let no word of a figure be read as a formula, whatever a level is called; numbers of a scale may be one."""
    scales = {
        tick_label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for tick_label in (tick.label1, tick.label2)
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in scales:
            text.set_parse_math(False)
            text.set_text(visible(text.get_text()))


@contextmanager
def _without_boxes_told() -> Iterator[None]:
    """Keep from the terminal that the font lacks a letter, which is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield


@_without_boxes_told()
def render_figure(figure: Figure) -> dict[str, bytes]:
    """Render a figure's files by suffix. Equal figures give equal files: none says when it was drawn."""
    files = {}
    take_literally(figure)
    give_fonts(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what has its place keeps it: to find it costs as much as to draw
    with matplotlib.rc_context({"svg.hashsalt": "gatelab"}):
        for suffix, undated in UNDATED.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=200, metadata=undated)
            files[suffix] = buffer.getvalue()
    return files


def save_files(files: Mapping[str, bytes], stem: Path) -> list[Path]:
    """Write the files of a figure; return the paths."""
    paths = []
    for suffix, content in files.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        paths.append(path)
    return paths
