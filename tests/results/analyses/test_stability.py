"""Scores, bands and tables of stability against planted journals and numbers worked out by hand."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.divergence import place_of
from gatelab.results.analyses.stability import stability
from gatelab.results.analyses.trial_stability import Settings, settings_from
from gatelab.results.report.artifacts import write
from gatelab.results.report.context import read_results
from gatelab.results.statistics.spikes import BAND, LASTING, WINDOW, band_exit, spike_score
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.trials import study_descriptions
from gatelab.results.views.diagnostics import plot_by_layer
from gatelab.results.views.divergence import plot_trace, traces_table
from gatelab.results.views.stability import plot_stability, stability_table
from gatelab.thresholds import MIN_VALUES


def calm(count: int, seed: int = 0) -> np.ndarray:
    """Normal noise of deviation 0.1 around 3."""
    return 3 + 0.1 * np.random.default_rng(seed).standard_normal(count)


def by_definition(values: np.ndarray) -> float:
    """OLMo 2's score, value by value."""
    spikes, window = 0, []
    for value in values:
        if not math.isfinite(value):
            continue
        last = window[-1000:]
        spikes += len(last) >= MIN_VALUES and abs(value - np.mean(last)) >= 7 * np.std(last) > 0
        window.append(value)
    return 100 * spikes / len(values)


def test_planted_spikes_are_scored() -> None:
    """Up or down, each value seven deviations away counts; noise does not."""
    values = calm(4000)
    assert spike_score(values) == 0
    values[[500, 1500, 1501, 3999]] = 9.0, 9.0, -3.0, 9.0
    assert spike_score(values) == 100 * 4 / 4000
    assert math.isnan(spike_score(np.array([])))


def test_a_spike_is_seven_deviations_from_the_mean() -> None:
    """A window of 500 ones and 500 threes has mean 2 and deviation 1: the bound is 9, and inclusive."""
    window = np.tile([1.0, 3.0], 500)
    for value, spike in ((9.0, 1), (8.999, 0), (-5.0, 1), (-4.999, 0)):
        assert spike_score(np.append(window, value)) == pytest.approx(100 * spike / 1001)
    # What is older than the last 1,000 does not count: a wild past would have widened the bound.
    assert spike_score(np.concatenate([[1e30, 1e9], window, [9.5]])) == pytest.approx(100 / 1003)
    # Before there are 32 values nothing is judged, from then on by those there are.
    assert spike_score(np.append(np.tile([1.0, 3.0], 15), 90.0)) == 0
    assert spike_score(np.append(np.tile([1.0, 3.0], 16), 90.0)) == pytest.approx(100 / 33)
    assert spike_score(np.full(2000, 0.1)) == 0  # flat, and no rounding is a spike


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_their_definition(seed: int) -> None:
    """The vectorised score against the loop, with heavy tails and values that are not finite."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(2, 2500)
    values[rng.integers(0, 2500, 20)] = rng.choice([math.nan, math.inf, -math.inf], 20)
    assert spike_score(values) == by_definition(values) > 0


def test_a_value_that_is_not_finite_hides_no_spike() -> None:
    """The replay in which a rule of means is blind: NaN at step 200, a spike at step 250."""
    values = calm(400)
    values[200], values[250] = math.nan, 6.0
    with np.errstate(invalid="ignore"):
        blind = np.abs(values[250] - values[122:250].mean()) >= 7 * values[122:250].std()
    assert not blind
    assert spike_score(values) == 100 / 400
    values[201] = math.inf
    assert spike_score(values) == 100 / 400


def test_a_band_is_left_by_what_lasts() -> None:
    """Four values in a row, or one that is not finite; a shorter excursion is noise."""
    quiet = np.tile([1.0, 3.0, 2.0, 1.5], 16)  # median 1.75, median absolute deviation 0.5
    low, high = 1.75 - BAND * 1.4826 * 0.5, 1.75 + BAND * 1.4826 * 0.5
    assert band_exit(quiet) is None

    def altered(values: Mapping[int, float]) -> np.ndarray:
        changed = quiet.copy()
        changed[list(values)] = list(values.values())
        return changed

    lasting = range(40, 40 + LASTING)
    assert band_exit(altered(dict.fromkeys(lasting, 50.0))) == pytest.approx((40, 1.75, low, high))
    assert band_exit(altered(dict.fromkeys(lasting[1:], 50.0))) is None
    assert band_exit(altered({45: math.nan}))[0] == 45
    assert band_exit(altered({44: 50.0, 45: math.inf}))[0] == 44
    assert band_exit(altered(dict.fromkeys(lasting, -50.0)))[0] == 40
    assert band_exit(altered(dict.fromkeys(lasting, -50.0)), upwards=True) is None
    # What left before the newer half, and is out since, is dated back; an early transient is not.
    assert band_exit(altered(dict.fromkeys(range(29, 64), 50.0)))[0] == 29
    assert band_exit(altered(dict.fromkeys(range(6), 50.0))) is None
    assert band_exit(quiet[:31]) is None
    assert band_exit(np.append(quiet[:31], math.nan))[0] == 31


@pytest.mark.parametrize("slope", [1.0, -1.0, 1e-6])
def test_a_series_that_goes_on_as_it_did_has_left_no_band(slope: float) -> None:
    """Growth alone is no exit: a straight line stays within for all of the ring; growth that speeds up does not."""
    line = 100 + slope * np.arange(256.0)
    assert band_exit(line) is None
    assert band_exit(np.exp(np.arange(256) / 12)) is not None
    assert band_exit(np.full(256, 2.0)) is None


LAYERS, NAMES = 3, ("gate/sdpa/mean", "attention/logit_bound", "activation/ffn_output", "gradient_norm")
END = 300


def ring(found: int, steps: range, first: int, loss_at: int) -> dict[int, dict[str, float]]:
    """A ring written at `found`: layer 1 leaves at step `first`, the others at `loss_at`."""
    rows: dict[int, dict[str, float]] = {layer: {} for layer in range(LAYERS)}
    for layer in range(LAYERS):
        for place, name in enumerate(NAMES):
            for step in steps:
                value = 2.0 + layer + place + 0.01 * ((step * 7 + layer) % 5)
                if step >= loss_at:
                    value = math.nan
                elif layer == 1 and name == "activation/ffn_output" and step >= first:
                    value *= 10
                rows[layer][f"autopsy/{name}/{found - step:03d}"] = value
    return rows


def loss(step: int, lost: int | None = None) -> float:
    return math.nan if lost is not None and step >= lost else 3.0 + 0.1 * ((step * 13) % 7 - 3)


def evaluated(variant: int, seed: int, step: int) -> dict[int | None, dict[str, float]]:
    gates = {"weight_norm/gate_sdpa": 4.0 + seed} if variant else {}
    return {
        None: {"attention/max_logit": 10.0 * (1 + seed) + (step == 100), "attention/first_token_share": step / 1000}
        | {"attention/entropy": 1.0},
        **{
            layer: {"activation/ffn_residual": 100.0 * (layer + 1) + seed, "attention/entropy": 1.0}
            | {name: value + layer for name, value in gates.items()}
            for layer in range(LAYERS)
        },
    }


def run(lab: Any, variant: int, seed: int, lost: int | None = None, first: int = 0) -> None:
    """A trial of END steps, or one whose loss is lost and is found at the next tenth step."""
    last = END if lost is None else -(-lost // 10) * 10
    values: dict[int, dict[int | None, dict[str, float]]] = {}
    for step in range(1, last + 1):
        norm = math.inf if lost is not None and step >= lost else 40.0 if step == 150 else 0.5 + 0.1 * (step % 3)
        values[step] = {None: {"train/loss": loss(step, lost), "train/gradient_norm": norm}}
        if step in (100, 200, END) and (lost is None or step < lost):
            for layer, named in evaluated(variant, seed, step).items():
                values[step][layer] = {**values[step].get(layer, {}), **named}
    if lost is not None:
        for layer, named in ring(last, range(max(1, last - 255), last + 1), first, lost).items():
            values[last][layer] = {**values[last].get(layer, {}), **named}
    lab.plant(variant, seed, values)
    counted = {"train/loss_spike_steps": 0.0, "train/gradient_spike_steps": 3.0}
    lab.end(variant, seed, "finished" if lost is None else "diverged", last, metrics=counted)


@pytest.fixture
def shaken(laboratory: Any) -> Any:
    """Two variants at two seeds: the gated ones finish, one without a gate diverges at step 255, layer 1 at 214."""
    lab = laboratory(("none", "sdpa"), seeds=2, steps=END)
    run(lab, 0, 0)
    run(lab, 0, 1, lost=255, first=214)
    run(lab, 1, 0)
    run(lab, 1, 1)
    return lab


def found_in(lab: Any) -> Any:
    runs, metrics = runs_from_journals(lab.folder, lab.name), metrics_from_journals(lab.folder, lab.name)
    return stability(runs, metrics, settings_from(study_descriptions(lab.folder, lab.record)))


def test_the_table_counts_trials_that_diverged(shaken: Any) -> None:
    """Every number by hand; the trial that diverged is in each of them up to its end."""
    none, sdpa = found_in(shaken).variants
    assert (none.variant, none.trials, none.diverged) == ("position=none", 2, 1)
    assert (none.steps_to_divergence, none.tokens_to_divergence) == (255, 510)
    assert (sdpa.trials, sdpa.diverged) == (2, 0)
    assert math.isnan(sdpa.steps_to_divergence)

    def close(variant: Any, name: str, *values: float) -> None:
        spread = variant.scores[name]
        expected = (np.mean(values), min(values), max(values), len(values))
        assert (spread.mean, spread.low, spread.high, spread.n) == pytest.approx(expected), name

    close(none, "train/loss_spike_score", 0, 0)
    close(none, "train/gradient_norm_spike_score", 100 / 300, 100 / 260)
    close(none, "train/gradient_norm_spike_share", 300 / 300, 300 / 260)
    close(none, "train/loss_nonfinite_share", 0, 600 / 260)
    close(none, "train/gradient_norm_nonfinite_share", 0, 600 / 260)
    close(none, "train/clipped_share", 100 / 300, 100 / 260)  # over 1.0: the one of 40
    norms = [40.0 if step == 150 else 0.5 + 0.1 * (step % 3) for step in range(1, END + 1)]
    quantiles = [np.quantile(norms, 0.999), np.quantile(norms[:254], 0.999)]
    close(none, "train/gradient_norm_p99.9", *quantiles)
    close(none, "attention/max_logit", 11, 21)
    close(none, "activation/ffn_residual", 300, 301)
    close(none, "attention/first_token_share", 0.3, 0.2)
    close(sdpa, "weight_norm/gate_sdpa", 5, 6)
    assert "weight_norm/gate_sdpa" not in none.scores


def test_the_first_layer_that_left_is_named(shaken: Any) -> None:
    """One sentence: which layer and measurement, when, how far, and how long before the loss."""
    [autopsy] = found_in(shaken).traces
    assert (autopsy.variant, autopsy.seed, autopsy.found, autopsy.steps) == ("position=none", 1, 260, 256)
    assert (autopsy.diverged, autopsy.at, autopsy.loss_step) == (True, 255, 255)
    assert autopsy.sentence == (
        "diverged at step 255: first out of band was layer 1's activation/ffn_output at step 214 (5.02 → 50.4), "
        "41 steps before the loss"
    )
    assert [(one.layer, one.name, one.step) for one in autopsy.exits] == [
        (1, "activation/ffn_output", 214),
        *(
            (layer, name, 255)
            for layer in range(LAYERS)
            for name in NAMES
            if (layer, name) != (1, "activation/ffn_output")
        ),
    ]


def test_nothing_before_the_loss_and_too_little_to_say(laboratory: Any) -> None:
    """Where no layer left first, or a trial ended at once, the sentence says so."""
    lab = laboratory(("none",), seeds=2, steps=END)
    run(lab, 0, 0, lost=255, first=255)
    run(lab, 0, 1, lost=12, first=5)
    late, early = found_in(lab).traces
    assert late.sentence == "diverged at step 255: nothing left its band before the loss did at step 255"
    assert early.sentence == "diverged at step 12: the 20 steps kept are too few to say what was usual"
    grid = traces_table("s", [late, early])
    assert [row[:6] for row in grid.rows] == [
        ("position=none", "0", "divergence", "260", "256", "255"),
        ("position=none", "1", "divergence", "20", "20", "–"),
    ]


def test_a_spike_shares_the_ring_of_the_divergence_after_it(laboratory: Any) -> None:
    """Steps are written once: a later event is read with what an earlier one wrote."""
    lab = laboratory(("none",), seeds=1, steps=END)
    values: dict[int, dict[int | None, dict[str, float]]] = {
        step: {None: {"train/loss": loss(step, 255), "train/gradient_norm": 1.0}} for step in range(1, 261)
    }
    for found, steps in ((100, range(1, 101)), (260, range(101, 261))):
        values[found] |= ring(found, steps, 214, 255)
    lab.plant(0, 0, values)
    lab.end(0, 0, "diverged", 260)
    spike, divergence = found_in(lab).traces
    assert (spike.diverged, spike.found, spike.at, spike.steps) == (False, 100, 100, 100)
    assert spike.sentence == "loss spike at step 100: no measurement of a layer left its band"
    assert (divergence.diverged, divergence.steps) == (True, 256)
    assert (divergence.exits[0].layer, divergence.exits[0].step) == (1, 214)


def test_texts_and_programs_get_the_same_numbers(shaken: Any, tmp_path: Path) -> None:
    """Markdown, LaTeX, CSV and JSON are written; JSON has no NaN; zeros are told in a note."""
    written = write("stability", read_results(shaken.folder, shaken.name), tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted([*written.tables, *written.plots])
    text = (tmp_path / "out" / "stability.md").read_text(encoding="utf-8")
    assert "| trials diverged | 1 of 2 | 0 of 2 |" in text
    assert "| steps to divergence, median | 255 | – |" in text
    assert "weight_norm/gate_sdpa: last evaluation, mean over layers | – | 5.5 (5 to 6) |" in text
    assert "0 for every variant and seed: loss: spike score of OLMo 2 [% of steps]" in text
    assert "41 steps before the loss." in text
    report = json.loads((tmp_path / "out" / "stability.json").read_text(), parse_constant=pytest.fail)
    assert report["variants"][1]["steps_to_divergence"] is None
    assert report["autopsies"][0]["sentence"].startswith("diverged at step 255")
    rows = csv.DictReader((tmp_path / "out" / "stability.csv").read_text().splitlines())
    means = {(row["variant"], row["measure"]): float(row["mean"]) for row in rows}
    assert means == {
        (variant["variant"], name): pytest.approx(spread["mean"])
        for variant in report["variants"]
        for name, spread in variant["scores"].items()
    }
    for path in written.plots:
        if path.suffix == ".png":
            assert matplotlib.image.imread(path).std() > 0.01
    assert {path.stem.rpartition("-")[0] for path in written.plots} == {
        "stability",
        f"stability-autopsy-{shaken.id(0, 1)[:12]}",
    }


def test_trials_that_diverged_are_drawn_to_their_end(shaken: Any) -> None:
    """A mean of those that went on, and each of the others by itself with a cross where it ended."""
    runs, metrics = (read(shaken.folder, shaken.name) for read in (runs_from_journals, metrics_from_journals))
    variants = {label: shaken.variants[0] for label in shaken.variants}
    figure = plot_stability(runs, metrics, variants, "shaken")
    panels = {axes.get_title().partition(",")[0].partition(" [")[0]: axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == [
        "train/gradient_norm",
        "attention/max_logit",
        "activation/ffn_residual",
        "attention/first_token_share",
        "weight_norm/gate_sdpa",
    ]
    lines = panels["attention/max_logit"].get_lines()
    drawn = [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    assert drawn[0] == ("position=none", [100, 200, 300], [11, 10, 10])
    assert drawn[1][1:] == ([100, 200], [21, 20])
    assert drawn[2] == ("diverged", [200], [20])
    assert drawn[3] == ("position=sdpa", [100, 200, 300], [16, 15, 15])
    [peak] = [max(line.get_ydata()) for line in panels["train/gradient_norm"].get_lines()[:1]]
    assert peak == 40  # of a span the largest is shown


def test_an_autopsy_is_drawn_layer_by_layer(shaken: Any) -> None:
    """A panel for the loss and each measurement, in the order of the forward pass; a point where a layer left."""
    metrics = metrics_from_journals(shaken.folder, shaken.name)
    [autopsy] = found_in(shaken).traces
    figure = plot_trace(metrics, autopsy, specs_of(runs_from_journals(shaken.folder, shaken.name)))
    panels = {axes.get_title().partition(" [")[0]: axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["train/loss", *NAMES]
    points = [line for line in panels["activation/ffn_output"].get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in points] == [[214]]
    assert len(panels["gradient_norm"].get_lines()[0].get_xdata()) == 256
    assert autopsy.sentence[:40] in figure.get_suptitle()


def test_an_unknown_measurement_comes_last() -> None:
    """A trial may record what this version has no place for in the forward pass; its events are read all the same."""
    names = ["a_new_measurement", "gradient_norm", "gate/sdpa/mean", "attention/max_logit"]
    assert sorted(names, key=place_of) == [
        "gate/sdpa/mean",
        "attention/max_logit",
        "gradient_norm",
        "a_new_measurement",
    ]


def test_rings_are_no_evaluations(shaken: Any) -> None:
    """A divergence does not take the last evaluation from the figure of diagnostics by layer."""
    metrics = metrics_from_journals(shaken.folder, shaken.name)
    figure = plot_by_layer(
        metrics, {"position=none": None}, "layers", specs_of(runs_from_journals(shaken.folder, shaken.name))
    )
    axes = next(axes for axes in figure.axes if axes.get_title() == "activation/ffn_residual")
    assert list(axes.get_lines()[0].get_ydata()) == [100.5, 200.5, 300.5]


def test_what_is_unknown_is_left_out(laboratory: Any) -> None:
    """A trial that is still under way counts with what it has, and a note says so; without any there is a message."""
    lab = laboratory(("none",), seeds=2, steps=END)
    runs, metrics = (read(lab.folder, lab.name) for read in (runs_from_journals, metrics_from_journals))
    with pytest.raises(AnalysisUnavailable, match="no trial has trained yet"):
        stability(runs, metrics)
    lab.plant(0, 0, {step: {None: {"train/loss": loss(step), "train/gradient_norm": 2.0}} for step in range(1, 40)})
    found = found_in(lab)
    [only] = found.variants
    assert (only.trials, only.diverged) == (1, 0)
    assert "train/loss_spike_share" not in only.scores
    assert only.scores["train/clipped_share"].mean == 100
    assert found.notes == ("2 trials have not finished: the table will change",)
    assert not found.traces
    assert [row[0] for row in stability_table(found).rows][:1] == ["trials diverged"]
    assert found.to_dict()["variants"][0]["tokens_to_divergence"] is None
    without = stability(runs_from_journals(lab.folder, lab.name), metrics_from_journals(lab.folder, lab.name))
    assert "train/clipped_share" not in without.variants[0].scores
    assert settings_from(study_descriptions(lab.folder, lab.record)) == {lab.id(0, 0): Settings(2, 1.0)}
    assert WINDOW == 1000
