"""Curves show what was measured: means over seeds, their range, and paired differences, with their units."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.errors import AnalysisUnavailable
from gatelab.metrics import NATS
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.views.curves import plot_curves
from gatelab.results.views.style import save_figure

LOSS = "validation/loss"
PAIR = {"none": "none", "sdpa": "none"}

Points = Mapping[int, float]  # step -> value


def frame(curves: Mapping[tuple[str, int], Points], name: str = LOSS, layer: int | None = None) -> pa.Table:
    """Values in the long form of journals: (variant, seed) -> step -> value."""
    rows = [
        {"variant": variant, "seed": seed, "step": step, "layer": layer, "name": name, "value": float(value)}
        for (variant, seed), points in curves.items()
        for step, value in points.items()
    ]
    kinds = {"variant": pa.utf8(), "seed": pa.int64(), "step": pa.int64(), "layer": pa.int16()}
    return pa.Table.from_pylist(rows, pa.schema([*kinds.items(), ("name", pa.utf8()), ("value", pa.float64())]))


def lines(axes: Axes) -> dict[str, dict[int, float]]:
    """The lines of a panel by their names: step -> value."""
    return {
        str(line.get_label()).partition(" (")[0]: dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def panels(figure: Figure) -> list[dict[str, dict[int, float]]]:
    """The lines of each panel."""
    return [lines(axes) for axes in figure.axes]


SMALL = {
    ("none", 0): {10: 4.0, 20: 3.0, 30: 2.0},
    ("none", 1): {10: 6.0, 20: 3.5, 30: 2.5},
    ("sdpa", 0): {10: 3.5, 20: 2.0, 30: 1.5},
    ("sdpa", 1): {10: 5.5, 20: 3.0},
    ("sdpa", 2): {10: 9.0, 20: 9.0, 30: 9.0},  # the baseline has no such seed
}


def test_lines_are_means_and_differences_are_paired() -> None:
    """By hand: the mean of the seeds that reached a step; below it the mean of the differences at equal seeds."""
    top, bottom = panels(plot_curves(frame(SMALL), LOSS, PAIR, "gates", NATS))
    assert top["none"] == {10: 5.0, 20: 3.25, 30: 2.25}
    assert top["sdpa"] == {10: pytest.approx(6.0), 20: pytest.approx(14 / 3), 30: 5.25}
    assert bottom == {"sdpa": {10: -0.5, 20: -0.75, 30: -0.5}}


def test_bands_reach_over_the_seeds() -> None:
    """The band shows how much of a difference between lines could be luck."""
    figure = plot_curves(frame(SMALL), LOSS, PAIR, "gates", NATS)
    corners = [{tuple(point) for point in band.get_paths()[0].vertices} for band in figure.axes[0].collections]
    assert {(10, 4.0), (10, 6.0), (30, 2.0), (30, 2.5)} <= corners[0]
    assert {(10, 3.5), (10, 9.0), (20, 2.0), (20, 9.0)} <= corners[1]


def test_what_is_plotted_is_said() -> None:
    """A figure taken out of its context still says its metric, its unit, its variants and how many seeds they had."""
    figure = plot_curves(frame(SMALL), LOSS, PAIR, "gates", NATS)
    top, bottom = figure.axes
    assert top.get_ylabel() == "validation/loss [nats/token]"
    assert bottom.get_ylabel().split() == ["difference", "from", "baseline", "[nats/token]"]
    assert bottom.get_xlabel() == "step"
    assert top.get_title() == "gates"
    legend = top.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["none (2 seeds)", "sdpa (3 seeds)"]
    assert "range over seeds" in legend.get_title().get_text()


def test_without_a_baseline_there_is_one_panel() -> None:
    """There is nothing to show the difference of."""
    figure = plot_curves(frame(SMALL), LOSS, {"none": "none"}, "gates", NATS)
    assert [set(panel) for panel in panels(figure)] == [{"none"}]
    assert len(plot_curves(frame(SMALL), LOSS, {"none": None, "sdpa": None}, "gates", NATS).axes) == 1


def test_variants_can_be_told_apart() -> None:
    """More variants than colours still have a look of their own each."""
    names = [f"variant {index}" for index in range(20)]
    curves = frame({(name, 0): {1: 1.0, 2: 2.0} for name in names})
    figure = plot_curves(curves, LOSS, dict.fromkeys(names), "many", NATS)
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()]
    assert len(set(looks)) == 20


def test_non_finite_values_and_values_of_layers_are_left_out() -> None:
    """A divergence ends a line; it neither hides the rest of the figure nor is drawn as a number."""
    curves = pa.concat_tables(
        [
            frame({("none", 0): {1: 4.0, 2: 3.0, 3: 2.0}, ("sdpa", 0): {1: 4.0, 2: np.inf, 3: np.nan}}),
            frame({("lost", 0): {1: np.nan}}),
            frame({("none", 0): {1: 77.0, 2: 77.0}}, layer=1),
        ]
    )
    figure = plot_curves(curves, LOSS, {"none": "none", "sdpa": "none", "lost": "none"}, "gates", NATS)
    top, bottom = panels(figure)
    assert top == {"none": {1: 4.0, 2: 3.0, 3: 2.0}, "sdpa": {1: 4.0}}
    assert bottom == {"sdpa": {1: 0.0}}
    assert all(np.isfinite(axes.get_ylim()).all() for axes in figure.axes)


def test_long_curves_are_averaged_over_spans() -> None:
    """A metric of every step is readable: at most 200 points, each the mean of the steps that it stands for."""
    generator = np.random.default_rng(0)
    values = dict(enumerate(generator.normal(size=1_000).tolist(), 1))
    [top] = panels(plot_curves(frame({("none", 0): values}), LOSS, {"none": None}, "long", NATS))
    steps = sorted(top["none"])
    assert 100 <= len(steps) <= 200
    assert steps[-1] == 1_000
    for before, step in itertools.pairwise([0, *steps]):
        assert top["none"][step] == pytest.approx(np.mean([values[s] for s in range(before + 1, step + 1)]))


@pytest.mark.parametrize("reached", [600, 150], ids=["averaged", "not averaged"])
def test_trials_of_different_length_are_averaged_over_the_same_spans(reached: int) -> None:
    """While a study runs its trials differ in length: neither zigzag lines nor differences may come from that."""
    whole, part = range(1, 1_001), range(1, reached + 1)
    curves = {
        ("none", 0): {step: step for step in whole},
        ("none", 1): {step: step + 2 for step in part},
        ("sdpa", 0): {step: step for step in part},
    }
    top, bottom = panels(plot_curves(frame(curves), LOSS, PAIR, "running", NATS))
    assert set(bottom["sdpa"].values()) == {0.0}  # as far as it got, it is its baseline
    for step, value in top["none"].items():
        assert value == pytest.approx(top["sdpa"][step] + 1 if step in top["sdpa"] else step, abs=3)
    values = [value for _, value in sorted(top["none"].items())]
    assert sum(later < earlier for earlier, later in itertools.pairwise(values)) <= 1  # where a seed ends


def test_an_unknown_metric_is_answered_with_the_known() -> None:
    """A typing mistake is answered with what was recorded, layers' metrics apart."""
    curves = pa.concat_tables([frame(SMALL), frame(SMALL, "train/loss"), frame(SMALL, "gradient_norm", layer=0)])
    with pytest.raises(
        AnalysisUnavailable,
        match=r"'train/los' was not recorded, did you mean train/loss\? \(there are: train/loss, val",
    ):
        plot_curves(curves, "train/los", PAIR, "gates", NATS)
    with pytest.raises(AnalysisUnavailable, match="none yet"):
        plot_curves(curves.slice(0, 0), LOSS, PAIR, "gates", NATS)


def test_figures_are_written_for_the_screen_and_for_print(laboratory: Any, tmp_path: Path) -> None:
    """PNG, SVG and PDF, of the journals of a study, with its words in them and not blank."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    for variant in (0, 1):
        for seed in (0, 1):
            lab.finish(variant, seed)
    variants = {label: lab.record.variants[label].baseline for label in lab.variants}
    figure = plot_curves(metrics_from_journals(lab.folder, lab.name), "train/loss", variants, lab.name, NATS)
    assert panels(figure)[0]["position=sdpa"] == {
        step: pytest.approx(np.mean([lab.loss(1, seed, step) for seed in (0, 1)])) for step in range(1, 21)
    }
    with mpl.rc_context({"svg.fonttype": "none"}):
        png, svg, pdf = save_figure(figure, tmp_path / "plots" / "curves-train.loss")
    assert {path.name for path in (png, svg, pdf)} == {f"curves-train.loss.{end}" for end in ("png", "svg", "pdf")}
    assert pdf.read_bytes().startswith(b"%PDF")
    image = matplotlib.image.imread(png)
    assert min(image.shape[:2]) > 500
    assert image[..., :3].std() > 0.05
    texts = ["".join(element.itertext()).strip() for element in ElementTree.parse(svg).iter() if "text" in element.tag]
    for expected in (lab.name, "train/loss [nats/token]", "step", "position=none (2 seeds)", "position=sdpa (2 seeds)"):
        assert expected in texts
