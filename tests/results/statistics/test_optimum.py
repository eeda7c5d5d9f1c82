"""Figures need not hold a study: what is read of it trial by trial shows what all of its values show."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from gatelab.metrics import NATS
from gatelab.results.analyses.curves import read_curves
from gatelab.results.analyses.diagnostics import read_diagnostics
from gatelab.results.analyses.stability import read_stability, stability
from gatelab.results.analyses.trial_stability import settings_from
from gatelab.results.statistics.series import SPANS, bin_means, extremes
from gatelab.results.store.metric_specs import BEFORE_SPECS
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.trials import study_descriptions
from gatelab.results.views.curves import plot_curves
from gatelab.results.views.diagnostics import DRAWINGS
from gatelab.results.views.stability import figures

STEPS = 3 * SPANS + 50
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.inf, -math.inf, math.nan])


@st.composite
def series(draw: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    steps = np.unique(draw(st.lists(st.integers(1, 60), min_size=1, max_size=40)))
    return steps, np.array(draw(st.lists(VALUES, min_size=len(steps), max_size=len(steps))))


@settings(deadline=None)
@given(series(), st.integers(1, 12))
def test_no_extreme_is_lost(curve: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]], spans: int) -> None:
    """By brute force: of each span its least and greatest value, its last one and its first that is no number."""
    steps, values = curve
    kept = extremes(curve, spans)
    assert kept.tolist() == sorted(set(kept.tolist()))
    if len(steps) <= spans:
        assert len(kept) == len(steps)
        return
    width = math.ceil(int(steps[-1]) / spans)
    needed = 0
    for span in range(spans):
        inside = [place for place, step in enumerate(steps) if span * width < step <= (span + 1) * width]
        finite = [values[place] for place in inside if math.isfinite(values[place])]
        lost = [place for place in inside if not math.isfinite(values[place])]
        mine = [place for place in kept.tolist() if place in inside]
        if inside:
            assert inside[-1] in mine
        if finite:
            assert {min(finite), max(finite)} <= {values[place] for place in mine}
        assert lost[:1] == [place for place in mine if place in lost][:1]
        needed += min(len(inside), 4)
    assert len(kept) <= needed


def test_means_are_of_spans_that_are_over_and_taken_once() -> None:
    """By hand: 650 steps make spans of 4; a trial that stopped at step 398 has 99 of them, and no half one."""
    steps = np.arange(1, STEPS + 1)
    ends, means = bin_means((steps, steps.astype(float)), STEPS)
    assert (ends[0], means[0], ends[-1], means[-1]) == (4, 2.5, 650, 649.5)
    assert len(ends) == 163
    ends, means = bin_means((steps[:398], steps[:398].astype(float)), STEPS)
    assert (len(ends), ends[-1], means[-1]) == (99, 396, 394.5)
    again = bin_means((ends, means), STEPS)
    assert (again[0] is ends, again[1] is means) == (True, True)
    few = steps[::50]
    assert bin_means((few, few.astype(float)), STEPS)[0] is few


@pytest.fixture
def long(laboratory: Any) -> Any:
    """Two variants at two seeds with more values than points of a line; one trial diverged, one goes on."""
    lab = laboratory(("none", "sdpa"), seeds=2, steps=STEPS)
    for variant, seed, last in ((0, 0, STEPS), (0, 1, STEPS), (1, 0, 421), (1, 1, STEPS)):
        generator = np.random.default_rng([variant, seed])
        values = {}
        for step in range(1, last + 1):
            loss, norm, logit, sink, *layers = generator.exponential(size=8).tolist()
            lost = (variant, seed, step) == (1, 0, last)
            whole = {"train/loss": math.nan if lost else loss, "train/gradient_norm": norm, "validation/loss": loss + 1}
            whole |= {"attention/max_logit": logit, "attention/first_token_share": sink, "attention/entropy": norm}
            values[step] = {
                None: whole,
                **{
                    layer: {
                        "attention/entropy": layers[layer],
                        "activation/ffn_residual": layers[layer],
                        "weight_norm/gate_sdpa": layers[layer + 2],
                    }
                    for layer in (0, 1)
                },
            }
        values[last][None] |= {"validation/position/00001-00001": 2.0, "validation/position/00002-00003": 1.0}
        lab.plant(variant, seed, values, {STEPS: "finished", 421: "diverged"}[last] if seed == 0 or variant else "")
    return lab


def variants(lab: Any) -> dict[str, str | None]:
    return {label: lab.record.variants[label].baseline for label in lab.variants}


def shown(figure: Figure) -> list[Any]:
    """All that a figure's panels draw: lines and bands."""
    found: list[Any] = []
    for axes in figure.axes:
        found += [(line.get_label(), line.get_xydata()) for line in axes.get_lines()]
        found += [("band", band.get_paths()[0].vertices) for band in axes.collections]
    return found


def assert_same(ours: Figure, theirs: Figure) -> None:
    for (label, mine), (other, whole) in zip(shown(ours), shown(theirs), strict=True):
        assert label == other
        np.testing.assert_allclose(mine, whole, rtol=1e-12)


@pytest.mark.parametrize("metric", ["train/loss", "validation/loss"])
def test_curves_of_means_are_curves_of_all_values(metric: str, long: Any) -> None:
    """Lines, bands and differences do not depend on how much of the study was in memory."""
    rows = read_curves(long.folder, long.name, metric, STEPS)
    assert len(rows) < 4 * SPANS
    assert_same(
        plot_curves(rows, metric, variants(long), "long", NATS),
        plot_curves(metrics_from_journals(long.folder, long.name), metric, variants(long), "long", NATS),
    )


def test_diagnostics_keep_each_last_evaluation_and_means_before(long: Any) -> None:
    """By layer and by position nothing differs; over training a line has means of spans in the place of every step."""
    rows = read_diagnostics(long.folder, long.name, STEPS)
    whole = metrics_from_journals(long.folder, long.name)
    assert len(rows) < len(whole) / 5
    for name in ("diagnostics-layers", "loss-by-position"):
        ours, theirs = (DRAWINGS[name](each, variants(long), "long", BEFORE_SPECS) for each in (rows, whole))
        assert ours is not None
        assert theirs is not None
        assert_same(ours, theirs)
    figure = DRAWINGS["diagnostics-training"](rows, variants(long), "long", BEFORE_SPECS)
    assert figure is not None
    axes = next(axes for axes in figure.axes if axes.get_title().startswith("attention/entropy"))
    line = next(line for line in axes.get_lines() if line.get_label() == "position=none")
    values = whole.filter(pc.and_(pc.equal(whole["name"], "attention/entropy"), pc.is_null(whole["layer"])))
    mine = [
        np.array([row["value"] for row in values.to_pylist() if row["trial"] == long.id(0, seed)]) for seed in (0, 1)
    ]
    assert line.get_xdata()[:2].tolist() == [4, 8]
    assert line.get_ydata()[0] == pytest.approx(np.mean([each[:4].mean() for each in mine]))


def test_stability_is_that_of_all_values(long: Any) -> None:
    """Scores see every step, lines every extreme, although no two trials were in memory at once."""
    runs, rows, found = read_stability(long.folder, long.name)
    every = runs_from_journals(long.folder, long.name), metrics_from_journals(long.folder, long.name)
    assert runs.equals(every[0])
    assert repr(found) == repr(stability(*every, settings_from(study_descriptions(long.folder, long.record))))
    assert len(rows) < len(every[1]) / 1.5
    ours, theirs = figures(found, runs, rows), figures(found, *every)
    assert ours.keys() == theirs.keys() == {"stability-training"}
    assert_same(ours["stability-training"], theirs["stability-training"])


def test_some_variants_are_read_alone(long: Any) -> None:
    """`--variant` leaves nothing of another variant in the numbers or in the figures."""
    runs, rows, found = read_stability(long.folder, long.name, ["position=sdpa"])
    assert set(runs["variant"].to_pylist()) == set(rows["variant"].to_pylist()) == {"position=sdpa"}
    [one] = found.variants
    assert (one.variant, one.trials, one.diverged) == ("position=sdpa", 2, 1)
