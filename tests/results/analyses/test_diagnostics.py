"""Diagnostics are shown as they were measured: every panel, table and file against values planted in journals."""

import csv
import json
import math
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.comparison import Comparisons
from gatelab.results.analyses.diagnostics import diagnostics
from gatelab.results.report.artifacts import write
from gatelab.results.report.context import read_results
from gatelab.results.report.write import write_study
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.views.diagnostics import (
    plot_by_layer,
    plot_by_position,
    plot_gates,
    plot_over_training,
    tables,
)
from gatelab.training.config import TrialConfig
from gatelab.training.metric_specs import trial_metric_specs

SPECS = trial_metric_specs(TrialConfig())

MEASURES = (
    "attention/first_token_share",
    "attention/first_token_share_late",
    "attention/first_token_share_top_head",
    "attention/entropy",
    "attention/max_logit",
    "activation/attention_residual",
    "activation/ffn_output",
    "activation/ffn_residual",
    "sdpa/mean_abs",
    "sdpa/below_1e-2",
)
OF_GATES = ("mean", "below_0.1", "first_token_mean")
OF_ALL = {
    "attention/sequence_length": 8.0,
    "attention/first_token_share_uniform": 0.34,
    "attention/first_token_share_late_uniform": 0.16,
    "attention/entropy_uniform": 1.33,
}
FLOOR_OF = {
    "attention/first_token_share": 0.34,
    "attention/first_token_share_late": 0.16,
    "attention/first_token_share_top_head": 0.34,
    "attention/entropy": 1.33,
}
OCTAVES = {"00001-00001": 1.0, "00002-00003": math.sqrt(6), "00004-00008": math.sqrt(32)}
VARIANTS = ("none", "sdpa", "value+sdpa")
LAYERS, BINS = 2, 4


def planted(name: str, variant: int, seed: int, step: int, layer: int | None = None) -> float:
    """A value from 1 to 2 that no other place has; in entropy, variants differ more than seeds."""
    effect = 10 * variant if name == "attention/entropy" else 0
    return effect + 1 + zlib.crc32(repr((name, variant, seed, step, layer)).encode()) / 2**32


def positions(variant: int) -> list[str]:
    return [] if VARIANTS[variant] == "none" else VARIANTS[variant].split("+")


def evaluation(variant: int, seed: int, step: int) -> dict[int | None, dict[str, float]]:
    """What a trial records at an evaluation, by layer."""
    names = [*MEASURES, *(f"gate/{position}/{kind}" for position in positions(variant) for kind in OF_GATES)]
    norms = [f"weight_norm/gate_{position}" for position in positions(variant)]
    bins = [f"histogram/gate/{position}/{index:02d}" for position in positions(variant) for index in range(BINS)]
    whole = ["validation/loss", *names, *(f"validation/position/{octave}" for octave in OCTAVES)]
    return {
        None: {name: planted(name, variant, seed, step) for name in whole} | OF_ALL,
        **{
            layer: {name: planted(name, variant, seed, step, layer) for name in (*names, *norms, *bins)}
            for layer in range(LAYERS)
        },
    }


def finish(lab: Any, variant: int, seed: int, steps: Iterable[int] = (5, 10, 20)) -> None:
    lab.plant(variant, seed, {step: evaluation(variant, seed, step) for step in steps}, "finished")


@pytest.fixture
def studied(laboratory: Any) -> Any:
    """Three variants at two seeds; one trial was interrupted after its evaluation at step 10."""
    lab = laboratory(VARIANTS, seeds=2)
    for variant in range(3):
        for seed in (0, 1):
            if (variant, seed) != (0, 1):
                finish(lab, variant, seed)
    lab.plant(0, 1, {step: evaluation(0, 1, step) for step in (5, 10)})
    return lab


def last(variant: int, seed: int) -> int:
    return 10 if (variant, seed) == (0, 1) else 20


def variants(lab: Any) -> dict[str, str | None]:
    return {label: lab.record.variants[label].baseline for label in lab.variants}


def lines(axes: Axes) -> dict[str, dict[float, float]]:
    """The lines of a panel by their names: abscissa -> value."""
    return {
        str(line.get_label()): dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def drawn(figure: Figure) -> dict[str, dict[str, dict[float, float]]]:
    """Of each panel by the name in its title, units apart: its lines by their names, abscissa -> value."""
    return {axes.get_title().partition(" [")[0]: lines(axes) for axes in figure.axes if axes.get_visible()}


def owners(name: str) -> list[int]:
    """The variants that have a measure."""
    match = re.match(r"gate/(\w+)|weight_norm/gate_(\w+)", name)
    return [variant for variant in range(3) if match is None or (match[1] or match[2]) in positions(variant)]


def assert_shown(panels: dict[str, dict[str, dict[float, float]]], name: str, expected: dict[int, dict[float, float]]):
    """A panel has a line for each variant that has the measure, and the floor where there is one, and no more."""
    lines = dict(panels[name])
    floor = lines.pop("uniform attention", None)
    assert (None if floor is None else set(floor.values())) == ({FLOOR_OF[name]} if name in FLOOR_OF else None)
    assert lines == {f"position={VARIANTS[variant]}": pytest.approx(points) for variant, points in expected.items()}


def test_layers_are_those_of_each_trials_last_evaluation(studied: Any) -> None:
    """A line holds the mean over seeds of what each trial measured last, layer by layer, whenever that was."""
    panels = drawn(
        plot_by_layer(metrics_from_journals(studied.folder, studied.name), variants(studied), "gates", SPECS)
    )
    late = "attention/first_token_share_late"  # over training alone
    gates = [f"gate/{position}/{kind}" for position in ("sdpa", "value") for kind in ("mean", "below_0.1")]
    norms = ["weight_norm/gate_sdpa", "weight_norm/gate_value"]
    assert list(panels) == [*(name for name in MEASURES if name != late), *gates, *norms]
    for name in panels:
        expected = {
            variant: {
                layer: np.mean([planted(name, variant, seed, last(variant, seed), layer) for seed in (0, 1)])
                for layer in range(LAYERS)
            }
            for variant in owners(name)
        }
        assert_shown(panels, name, expected)


def test_training_shows_the_whole_model_at_every_evaluation(studied: Any) -> None:
    """Values of layers do not enter; a seed that has not come so far does not, either."""
    panels = drawn(
        plot_over_training(metrics_from_journals(studied.folder, studied.name), variants(studied), "gates", SPECS)
    )
    assert list(panels) == [
        "attention/first_token_share_late",
        "attention/first_token_share_top_head",
        "attention/entropy",
        "attention/max_logit",
        "activation/ffn_residual",
        "sdpa/below_1e-2",
        *(f"gate/{position}/{kind}" for position in ("sdpa", "value") for kind in ("mean", "below_0.1")),
    ]
    for name in panels:
        expected = {
            variant: {
                step: np.mean([planted(name, variant, seed, step) for seed in (0, 1) if step <= last(variant, seed)])
                for step in (5, 10, 20)
            }
            for variant in owners(name)
        }
        assert_shown(panels, name, expected)


def images(figure: Figure | None) -> dict[tuple[str, str], np.ndarray]:
    """Of each panel of gate scores, by variant and position, its colours as numbers."""
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert len({axes.get_images()[0].get_clim() for axes in shown}) == 1  # one scale for all
    return {
        (axes.get_title().split("\n")[0], axes.get_title().split("\n")[1]): np.asarray(axes.get_images()[0].get_array())
        for axes in shown
    }


def test_gate_scores_are_shown_layer_by_layer(studied: Any) -> None:
    """A panel for each gate that there is, a row for each layer, a cell the mean over seeds of a bin's share."""
    figure = plot_gates(metrics_from_journals(studied.folder, studied.name), variants(studied), "gates")
    found = images(figure)
    assert list(found) == [
        ("position=sdpa", "gate/sdpa"),
        ("position=value+sdpa", "gate/sdpa"),
        ("position=value+sdpa", "gate/value"),
    ]
    for (label, gate), image in found.items():
        variant = VARIANTS.index(label.removeprefix("position="))
        expected = [
            [
                np.mean([planted(f"histogram/{gate}/{index:02d}", variant, seed, 20, layer) for seed in (0, 1)])
                for index in range(BINS)
            ]
            for layer in range(LAYERS)
        ]
        np.testing.assert_allclose(image, expected)
    image = next(axes.get_images()[0] for axes in figure.axes if axes.get_images())
    assert image.get_extent() == [0, 1, -0.5, LAYERS - 0.5]
    assert image.origin == "lower"  # the first layer is at the bottom


def test_a_study_without_gates_is_diagnosed(laboratory: Any, tmp_path: Path) -> None:
    """What a sink is can be asked of ungated models alone: no panel and no row of a gate, and no empty figure."""
    lab = laboratory(("none",), seeds=1)
    finish(lab, 0, 0)
    metrics = metrics_from_journals(lab.folder, lab.name)
    assert plot_gates(metrics, variants(lab), "no gates") is None
    for draw in (plot_by_layer, plot_over_training):
        panels = drawn(draw(metrics, variants(lab), "no gates", SPECS))
        assert not any("gate" in name for name in panels)
        assert {line for lines in panels.values() for line in lines} == {lab.variants[0], "uniform attention"}
    [axes] = plot_by_position(metrics, variants(lab), "no gates", SPECS).axes  # and nothing to compare with
    assert set(lines(axes)) == {lab.variants[0]}
    found = write("diagnostics", read_results(lab.folder, lab.name), tmp_path / "out")
    assert not any("gate/" in comparison.metric for comparison in found.result.comparisons)
    stems = {"diagnostics-layers", "diagnostics-training", "loss-by-position"}
    assert sorted((tmp_path / "out").iterdir()) == sorted([*found.plots, *found.tables])
    assert {path.stem for path in found.plots} == stems


def test_loss_by_position_and_its_paired_difference(studied: Any) -> None:
    """Octaves stand in their middle; differences are of equal seeds, each trial's last evaluation."""
    figure = plot_by_position(metrics_from_journals(studied.folder, studied.name), variants(studied), "gates", SPECS)
    top, bottom = figure.axes

    def values(variant: int, octave: str) -> list[float]:
        name = f"validation/position/{octave}"
        return [planted(name, variant, seed, last(variant, seed)) for seed in (0, 1)]

    expected = {
        f"position={VARIANTS[variant]}": {x: np.mean(values(variant, octave)) for octave, x in OCTAVES.items()}
        for variant in range(3)
    }
    assert lines(top) == {label: pytest.approx(points) for label, points in expected.items()}
    differences = {
        f"position={VARIANTS[variant]}": {
            x: np.mean(np.subtract(values(variant, octave), values(0, octave))) for octave, x in OCTAVES.items()
        }
        for variant in (1, 2)
    }
    assert lines(bottom) == {label: pytest.approx(points) for label, points in differences.items()}
    assert top.get_ylabel() == "validation loss [nats/token]"
    assert bottom.get_xlabel() == "tokens that the prediction sees"
    assert top.get_xscale() == "log"


def test_units_and_layers_are_said(studied: Any) -> None:
    """A figure taken out of its context says its units, what its abscissa is and who is who."""
    figure = plot_by_layer(metrics_from_journals(studied.folder, studied.name), variants(studied), "one study", SPECS)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert {"attention/entropy [nats]", "attention/first_token_share [share]", "attention/max_logit"} <= set(titles)
    assert {axes.get_xlabel() for axes in figure.axes if axes.get_visible()} == {"", "layer (the first is 0)"}
    assert figure.get_suptitle().startswith("one study")
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*studied.variants, "uniform attention"]


@pytest.mark.parametrize("spread", [5.0, 1000.0], ids=["narrow", "wide"])
def test_sizes_that_differ_much_are_shown_on_a_logarithmic_axis(laboratory: Any, spread: float) -> None:
    """One massive activation must not press all other layers onto the axis; a share stays linear, whatever it is."""
    lab = laboratory(("none",), seeds=1)
    entry = evaluation(0, 0, 20)
    for name in ("activation/ffn_residual", "attention/entropy"):
        entry[0][name], entry[1][name] = 1.0, spread
    lab.plant(0, 0, {20: entry}, "finished")
    figure = plot_by_layer(metrics_from_journals(lab.folder, lab.name), variants(lab), "sizes", SPECS)
    scales = {axes.get_title().partition(" [")[0]: axes.get_yscale() for axes in figure.axes}
    assert scales["activation/ffn_residual"] == ("log" if spread == 1000 else "linear")
    assert scales["attention/entropy"] == "linear"


def test_a_study_that_was_not_measured_says_so(laboratory: Any, tmp_path: Path) -> None:
    """Before the first evaluation, or with diagnostics off, there is a message and neither figure nor table."""
    lab = laboratory(("none", "sdpa"), seeds=1)
    empty = metrics_from_journals(lab.folder, lab.name)
    lab.finish(0, 0)  # losses and a layer's gradient norm, no diagnostics
    metrics = metrics_from_journals(lab.folder, lab.name)
    why = r"no trial has recorded diagnostics yet, or evaluation\.diagnostic_tokens is 0"
    for frame in (empty, metrics):
        for draw in (plot_by_layer, plot_over_training):
            with pytest.raises(AnalysisUnavailable, match=why):
                draw(frame, variants(lab), "nothing", SPECS)
        with pytest.raises(AnalysisUnavailable, match="no trial has been evaluated yet"):
            plot_by_position(frame, variants(lab), "nothing", SPECS)
        assert plot_gates(frame, variants(lab), "nothing") is None
    with pytest.raises(AnalysisUnavailable, match=why):
        diagnostics(runs_from_journals(lab.folder, lab.name))
    with pytest.raises(AnalysisUnavailable, match=why):
        write("diagnostics", read_results(lab.folder, lab.name), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
    assert "diagnostics" not in {path.stem for path in write_study(lab.folder, lab.name).tables}


@pytest.fixture
def complete(laboratory: Any) -> Any:
    """Three variants at three seeds, all finished."""
    lab = laboratory(VARIANTS, seeds=3)
    for variant in range(3):
        for seed in range(3):
            finish(lab, variant, seed)
    return lab


def sample(name: str, variant: int) -> list[float]:
    return [planted(name, variant, seed, 20) for seed in range(3)]


TABLE = [
    "validation/loss",
    *(name for name in MEASURES if name not in ("activation/attention_residual", "activation/ffn_output")),
    *(f"gate/{position}/{kind}" for position in ("sdpa", "value") for kind in OF_GATES),
]


def compared(complete: Any) -> Comparisons:
    return diagnostics(runs_from_journals(complete.folder, complete.name))


def test_each_measure_is_compared_by_a_paired_t_test(complete: Any) -> None:
    """Means over seeds and intervals of paired differences, as SciPy has them; a variant without the gate has none."""
    comparisons = compared(complete).comparisons
    assert [comparison.metric for comparison in comparisons] == TABLE
    for comparison in comparisons:
        rows = {row.variant: row for row in comparison.rows}
        assert set(rows) == set(complete.variants)
        for variant, label in enumerate(complete.variants):
            row = rows[label]
            if variant not in owners(comparison.metric):
                assert (row.value.n, math.isnan(row.value.mean)) == (0, True)
                continue
            own, base = sample(comparison.metric, variant), sample(comparison.metric, 0)
            assert (row.value.mean, row.value.n) == (pytest.approx(np.mean(own)), 3)
            if variant and 0 in owners(comparison.metric):
                assert row.delta is not None
                interval = scipy.stats.ttest_rel(own, base).confidence_interval(0.95)
                assert [row.delta.mean, row.delta.low, row.delta.high] == pytest.approx(
                    [np.mean(np.subtract(own, base)), interval.low, interval.high]
                )


CELL = re.compile(r"(?P<mean>[\d.]+)( \((?P<delta>[+-][\d.e-]+)( ± (?P<half>[\d.e-]+)(?P<sure>, \w+)?)?\))?")


def read(cell: str) -> tuple[float, float | None, float | None, bool]:
    """Mean, difference, half of its interval and whether that leaves out 0."""
    match = CELL.fullmatch(cell)
    assert match is not None, cell
    delta, half = (None if match[name] is None else float(match[name]) for name in ("delta", "half"))
    return float(match["mean"]), delta, half, bool(match["sure"])


def test_the_table_shows_means_and_differences(complete: Any) -> None:
    """Cell by cell: the baseline's mean first, then means with differences, and a verdict where sure."""
    comparisons = compared(complete)
    grid = tables(comparisons)[0]
    headings = [column.heading for column in grid.columns]
    assert headings[:2] == ["measure", "position=none"]
    assert set(headings[2:]) == {"position=sdpa", "position=value+sdpa"}
    assert [row[0].partition(" [")[0] for row in grid.rows] == TABLE
    assert "attention/entropy [nats]" in [row[0] for row in grid.rows]
    marks = []
    for name, row in zip(TABLE, grid.rows, strict=True):
        for label, cell in zip(headings[1:], row[1:], strict=True):
            variant = complete.variants.index(label)
            own, base = sample(name, variant), sample(name, 0)
            if variant not in owners(name):
                assert cell == "–"
                continue
            mean, delta, half, sure = read(cell)
            assert mean == pytest.approx(np.mean(own), rel=1e-3)
            if variant == 0 or 0 not in owners(name):
                assert (delta, half, sure) == (None, None, False)
            else:
                test = scipy.stats.ttest_rel(own, base)
                interval = test.confidence_interval(0.95)
                assert delta == pytest.approx(np.mean(np.subtract(own, base)), rel=0.05)
                assert half == pytest.approx((interval.high - interval.low) / 2, rel=0.05)
                assert sure == (test.pvalue < 0.05)
                marks.append(sure)
    assert set(marks) == {True, False}  # both kinds of cell were seen
    assert grid.notes[0].startswith("Mean over 3 seeds")
    [floors] = [note for note in grid.notes if note.startswith("Attention uniform over the past would show")]
    for said in ("attention/entropy 1.33", "first_token_share 0.34", "first_token_share_late 0.16"):
        assert said in floors
    assert "Sequences of 8 tokens." in grid.notes


def test_the_table_of_one_seed_claims_nothing(laboratory: Any) -> None:
    """One pair has a difference and no interval, so no mark of certainty."""
    lab = laboratory(("none", "sdpa"), seeds=1)
    for variant in (0, 1):
        finish(lab, variant, 0)
    runs = runs_from_journals(lab.folder, lab.name)
    grid = tables(diagnostics(runs))[0]
    [row] = [row for row in grid.rows if row[0].startswith("attention/max_logit")]
    own, base = (planted("attention/max_logit", variant, 0, 20) for variant in (1, 0))
    assert read(row[1]) == (pytest.approx(base, rel=1e-3), None, None, False)
    assert read(row[2]) == (pytest.approx(own, rel=1e-3), pytest.approx(own - base, rel=0.05), None, False)


def test_a_published_study_has_its_diagnostics(complete: Any) -> None:
    """JSON and CSV hold the same numbers in full, Markdown and LaTeX a row for each measure, PNG and SVG no blanks."""
    published = write_study(complete.folder, complete.name)
    folder = complete.folder.study(complete.name).path
    written = {path.name: path.read_text(encoding="utf-8") for path in published.tables}
    assert {f"diagnostics.{suffix}" for suffix in ("md", "tex", "html", "csv", "json")} <= written.keys()
    from_json = {
        (comparison["metric"], row["variant"]): row
        for comparison in json.loads(written["diagnostics.json"], parse_constant=pytest.fail)["comparisons"]
        for row in comparison["rows"]
    }
    from_csv = {(row["metric"], row["variant"]): row for row in csv.DictReader(written["diagnostics.csv"].splitlines())}
    assert from_json.keys() == from_csv.keys()
    assert len(from_json) == len(TABLE) * 3
    for (name, label), row in from_csv.items():
        variant, entry = complete.variants.index(label), from_json[name, label]
        if variant in owners(name):
            assert float(row["mean"]) == entry["value"]["mean"] == pytest.approx(np.mean(sample(name, variant)))
        else:
            assert (row["mean"], entry["value"]["mean"]) == ("", None)
        if variant and variant in owners(name) and 0 in owners(name):
            assert float(row["delta_low"]) == entry["delta"]["low"]
    markdown = written["diagnostics.md"].splitlines()
    table = [line for line in markdown if line.startswith("|")]
    assert len(table) == 2 + len(TABLE)
    assert all(line.count("|") == 5 for line in table)
    assert written["diagnostics.tex"].count(r"\\") == 1 + len(TABLE)
    stems = ("diagnostics-layers", "diagnostics-training", "diagnostics-gates", "loss-by-position")
    plots = [path for path in published.plots if path.stem in stems]
    suffixes = ("png", "svg", "pdf")
    assert [path.name for path in plots] == [f"{stem}.{suffix}" for stem in stems for suffix in suffixes]
    for path in plots:
        assert path.parent == folder
        if path.suffix == ".png":
            image = matplotlib.image.imread(path)
            assert min(image.shape[:2]) > 500
            assert image[..., :3].std() > 0.05
        elif path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_values_that_are_not_finite_are_left_out(laboratory: Any) -> None:
    """A layer that overflowed is a gap, not a number and not the end of the figure."""
    lab = laboratory(("none", "sdpa"), seeds=1)
    for variant in (0, 1):
        entry = evaluation(variant, 0, 20)
        entry[1 - variant]["attention/max_logit"] = math.inf if variant else math.nan
        lab.plant(variant, 0, {20: entry}, "finished")
    panels = drawn(plot_by_layer(metrics_from_journals(lab.folder, lab.name), variants(lab), "overflow", SPECS))
    assert panels["attention/max_logit"] == {
        label: {variant: pytest.approx(planted("attention/max_logit", variant, 0, 20, variant))}
        for variant, label in enumerate(lab.variants)
    }


def test_the_order_of_rows_does_not_matter(studied: Any) -> None:
    """Frames read from Parquet or joined elsewhere may come in any order."""
    metrics = metrics_from_journals(studied.folder, studied.name)
    shuffled = metrics.take(pa.array(np.random.default_rng(0).permutation(len(metrics))))
    for draw in (plot_by_layer, plot_over_training):
        assert drawn(draw(shuffled, variants(studied), "", SPECS)) == drawn(draw(metrics, variants(studied), "", SPECS))
    for (place, image), (other, same) in zip(
        images(plot_gates(metrics, variants(studied), "")).items(),
        images(plot_gates(shuffled, variants(studied), "")).items(),
        strict=True,
    ):
        assert place == other
        np.testing.assert_allclose(image, same)
