"""A search's report shows what was found, its bounds as bounds, and is there for a partial search too."""

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatelab.ablations.learning_rates import LEARNING_RATE, ToleranceConfig
from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.learning_rates import LearningRates, read_learning_rates
from gatelab.results.analyses.sweeps import RATE
from gatelab.results.report.artifacts import write
from gatelab.results.report.context import read_results
from gatelab.results.store.layout import RunsFolder
from gatelab.results.views.learning_rates import (
    learning_rates_table,
    plot_learning_rates,
    sentences,
)
from gatelab.results.views.table import to_csv, to_latex, to_markdown
from tests.results.analyses.test_learning_rates import Cells, judge

CLEAR: dict[str, Cells] = {
    "a": {0.001: [2.0, 2.01, 2.02], 0.01: [1.5, 1.52, 1.51], 0.1: [2.0, 2.02, 2.01], 1.0: ["diverged"] * 3},
    "b": {0.001: [2.2, 2.21, 2.22], 0.01: [1.4, 1.42, 1.41], 0.1: [1.6, 1.62, 1.61], 1.0: [3.0, "diverged", 3.2]},
}
ONE_SEED: dict[str, Cells] = {
    "a": {0.001: [2.0], 0.01: [1.5], 0.1: [2.0]},
    "b": {0.001: [2.0], 0.01: [1.5], 0.1: [1.25]},
}
LOST: dict[str, Cells] = {"lost": {0.01: ["waiting", "failed"]}, "a": {0.001: [2.0], 0.01: [1.5], 0.1: [2.0]}}


def cells_of(found: LearningRates) -> dict[str, tuple[str, ...]]:
    """Rows of the table by their first cell; those that are repeated get a number."""
    rows: dict[str, tuple[str, ...]] = {}
    for first, *rest in learning_rates_table(found).rows:
        name = first.strip()
        rows[name if name not in rows else f"{name} {sum(key.startswith(name) for key in rows) + 1}"] = tuple(rest)
    return rows


def test_the_table_has_the_baseline_first_and_a_row_for_each_property() -> None:
    """What others are compared with stands beside the names of the rows, wherever the study has it."""
    found = judge({"b": CLEAR["b"], "a": CLEAR["a"]})
    grid = learning_rates_table(found)
    assert [column.heading for column in grid.columns] == ["property", "arm=b", "arm=a"]
    rows = cells_of(found)
    for name in ("optimal learning rate", "loss at the optimum [nats/token]", "sensitivity S, window [nats/token]"):
        assert name in rows
    for name in (
        "lower edge",
        "upper edge",
        "tolerance width [decades]",
        "largest stable, all seeds",
        "first not stable",
    ):
        assert name in rows
    assert rows["tried at, from"] == ("0.001 to 1", "0.001 to 1")
    assert rows["trials, diverged"] == ("12, 1", "12, 3")
    assert rows["first not stable"] == ("1", "1")
    assert len({len(row) for row in grid.rows}) == 1


def test_values_and_differences_as_they_are_read() -> None:
    """The numbers of the table are those of the report, a learning rate as such and its difference as a factor."""
    found = judge(CLEAR)
    rows = cells_of(found)
    loss = found.arms[1].quantity("loss at the optimum")
    assert loss.delta is not None
    value, difference = rows["loss at the optimum [nats/token]"][1], rows["Δ to baseline"][1]
    assert value == f"{1.41:.4f} [{loss.interval.low:.4f}, {loss.interval.high:.4f}]"
    assert difference == f"-0.1000 [{loss.delta.low:+.4f}, {loss.delta.high:+.4f}]*"
    assert rows["Δ to baseline"][0] == "–"
    optimum = found.arms[1].quantity("optimal learning rate")
    rates = [10**number for number in (optimum.interval.mean, optimum.interval.low, optimum.interval.high)]
    assert rows["optimal learning rate"][1] == "{:.3g} [{:.3g}, {:.3g}]".format(*rates)
    assert re.match(r"×[\d.]+ \[×[\d.]+, ×[\d.]+\]\*$", rows["× baseline"][1])
    assert rows["largest stable, all seeds"][0] == "0.1"  # one that was tried: no interval, no difference


def test_bounds_and_single_seeds_are_marked() -> None:
    """A bound must never be read as a value, nor one seed as several."""
    rows = cells_of(judge(ONE_SEED))
    assert rows["optimal learning rate"][1] == "≥ 0.1"
    assert rows["largest stable, all seeds"] == ("≥ 0.1", "≥ 0.1")
    assert rows["loss at the optimum [nats/token]"][0] == "1.5000 †"
    both = cells_of(judge({"a": {0.001: [1.0, 3.0], 0.01: [2.0, 2.0], 0.1: [3.0, 1.0]}}))
    assert both["optimal learning rate"] == ("0.01 (bounds of both kinds)",)
    lost = cells_of(judge(LOST))
    assert set(lost["upper edge"]) == {"–", lost["upper edge"][1]}


def test_what_a_mark_means_is_said_beneath() -> None:
    """A table is read without its documentation."""
    notes = "\n".join(learning_rates_table(judge(ONE_SEED)).notes)
    for said in ("≥", "*", "95 % t-interval", "min(loss, initial loss)", "2%", "the end of what was tried"):
        assert said in notes
    assert "†" in notes
    assert "single seed" in notes


@pytest.mark.parametrize("arms", [CLEAR, ONE_SEED, LOST], ids=["clear", "one seed", "partial"])
def test_json_is_json_and_holds_everything(arms: dict[str, Cells]) -> None:
    """Programs read it: numbers that do not exist are null, not NaN, which is no JSON."""
    found = judge(arms)
    whole = json.loads(json.dumps(found.to_dict()), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert whole == found.to_dict()
    assert (whole["study"], whole["window"], whole["margin"]) == ("s", [0.001, 0.01, 0.1], 0.02)
    for arm, entry in zip(found.arms, whole["arms"], strict=True):
        assert (entry["arm"], entry["rates"]) == (arm.sweep.arm, arm.sweep.rates.tolist())
        losses = np.array(entry["losses"], dtype=float)  # None becomes nan
        np.testing.assert_array_equal(losses, arm.sweep.losses)
        for quantity, shown in zip(arm.quantities, entry["quantities"], strict=True):
            unit = "" if quantity.is_rate else quantity.unit  # learning rates are such, not logarithms
            assert (shown["name"], shown["unit"], shown["bound"]) == (quantity.name, unit, quantity.bound)
            values = {
                seed: [10**own.value if quantity.is_rate else own.value, own.bound]
                for seed, own in quantity.by_seed.items()
            }
            assert {int(seed): own for seed, own in shown["by_seed"].items()} == values
            if quantity.bound:
                assert (shown["low"], shown["high"]) == (None, None)


def test_the_spreadsheet_has_a_row_for_each_trial() -> None:
    """Whoever wants other measures can make them from the losses."""
    rows = list(csv.DictReader(io.StringIO(to_csv(judge(CLEAR | {"c": LOST["lost"]}).frame()))))
    assert len(rows) == 26
    by_cell = {(row["arm"], row["learning_rate"], row["seed"]): (row["loss"], row["stable"]) for row in rows}
    assert by_cell["arm=a", "0.001", "1"] == ("2.01", "True")
    assert by_cell["arm=a", "1", "0"] == ("5.0", "False")
    assert by_cell["arm=c", "0.01", "0"] == ("", "")


@pytest.mark.parametrize(
    "arms",
    [CLEAR, ONE_SEED, LOST, {"a": CLEAR["a"], **LOST}, {"a": {0.01: [1.5]}}],
    ids=["clear", "one seed", "first arm unknown", "last arm unknown", "one trial"],
)
def test_the_plot_shows_what_is_known(arms: dict[str, Cells], tmp_path: Path) -> None:
    """The curve of every arm that has one, whatever is missing; its limits are around the best."""
    found = judge(arms)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_learning_rates(found)
        figure.savefig(tmp_path / "plot.png")
    whole, near = figure.axes
    best = min(float(arm.sweep.losses[np.isfinite(arm.sweep.losses)].min()) for arm in found.arms if arm.best_rate)
    low, high = near.get_ylim()
    assert low < best < high
    drawn = {line.get_label(): line for line in whole.get_lines() if not str(line.get_label()).startswith("_")}
    for arm in found.arms:
        known = np.isfinite(arm.sweep.mean)
        assert (arm.sweep.arm in drawn) == bool(known.any())
        if known.any():
            np.testing.assert_array_equal(drawn[arm.sweep.arm].get_xdata(), arm.sweep.rates[known])
            np.testing.assert_array_equal(drawn[arm.sweep.arm].get_ydata(), arm.sweep.mean[known])


def test_the_summary_says_what_is_decided() -> None:
    """The terminal's last lines: a sentence for each arm that is compared, and no more than its seeds decide."""
    [line] = sentences(judge(CLEAR))
    assert line.startswith("arm=b against arm=a: ")
    assert "loss at the optimum -0.1000 [" in line
    assert list(sentences(judge(ONE_SEED))) == ["arm=b against arm=a: nothing is decided"]
    assert list(sentences(judge({"a": CLEAR["a"]}))) == []


def test_markdown_and_latex_are_whole() -> None:
    """Every row has every cell, and LaTeX finds no character that it would trip over."""
    grid = learning_rates_table(judge(ONE_SEED))
    table = [line for line in to_markdown(grid).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    body = [line for line in to_latex(grid).splitlines() if not line.startswith("%")]
    assert all(character.isascii() for line in body for character in line)
    rows = [line for line in body if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {2}
    assert not re.search(r"(?<!\\)[%#_]", "".join(rows))


def test_files_of_a_search(laboratory: Callable[..., Any]) -> None:
    """The report of a runs folder: from the trials' own files, by the rules that the search recorded."""
    how = {"rates": [0.001, 0.01, 0.1], "extend": 1, "margin": 0.05}
    lab = laboratory(["none"], 2, tolerance=how, axes={LEARNING_RATE: [0.001, 0.01, 0.1]})
    for variant, rate_loss in enumerate((2.0, 1.5, 1.75)):
        for seed in range(2):
            metrics = {"validation/loss": rate_loss + seed / 8, "train/initial_loss": 4.0}
            lab.begin(variant, seed)
            lab.end(variant, seed, "finished", 20, metrics=metrics)
    written = write("tolerance", read_results(lab.folder, lab.name))
    names = {path.name for path in (*written.tables, *written.plots)}
    assert names == {f"tolerance.{suffix}" for suffix in ("md", "tex", "html", "csv", "json", "png", "svg", "pdf")}
    assert all(path.stat().st_size > 100 for path in (*written.tables, *written.plots))
    assert {path.parent for path in written.tables} == {lab.folder.study(lab.name).path}
    found = read_learning_rates(lab.folder, lab.name)
    assert (found.window, found.margin) == ((0.001, 0.01, 0.1), 0.05)
    assert lab.record.tolerance.lattice == ToleranceConfig(**how).lattice
    [arm] = found.arms
    assert arm.sweep.losses.tolist() == [[2.0, 1.5, 1.75], [2.125, 1.625, 1.875]]
    expected = -2 + 0.5 * (0.5 - 0.25) / (0.5 + 0.25)  # equal steps: vertex at half a step times (left-right)/sum
    assert math.log10(arm.optimum or math.nan) == pytest.approx(expected)


def test_a_plain_study_has_no_such_report(laboratory: Callable[..., Any], tmp_path: Path) -> None:
    """Asking for it says why, instead of inventing one."""
    lab = laboratory()
    with pytest.raises(AnalysisUnavailable, match=f"no axis {RATE}"):
        write("tolerance", read_results(lab.folder, lab.name))
    with pytest.raises(LookupError, match="no study 'unheard-of'"):
        read_learning_rates(RunsFolder(tmp_path), "unheard-of")
