"""The scaling report says of a ladder what its trials allow to be said, and shows the rungs where that is nothing."""

import csv
import io
import json
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.scaling import Rung, Scaling, scaling
from gatelab.results.statistics.power_law import Law
from gatelab.results.store.runs import runs_schema
from gatelab.results.views.scaling import plot_scaling, tables
from gatelab.results.views.table import Table, to_csv, to_latex, to_markdown

LADDER = ("size", "training.tokens")
AXES = ["model.gate.position", *LADDER]
ARMS = ("none", "sdpa", "value")
SIZES = (1_000_000, 4_000_000, 16_000_000, 64_000_000, 256_000_000)
POWER = Law(np.array([1.6]), np.array([60.0, 60.5, 66.0]), np.array([0.09, 0.0906, 0.092]))
THREE = Law(np.array([1.69]), np.array([406.4, 380.0, 420.0]), np.array([0.34, 0.337, 0.342]), np.array([410.7, 0.28]))

Change = dict[tuple[str, int, int], Any]
"""(arm, number of its rung, seed) -> an outcome or columns; seed -1: each."""


def build_frame(
    law: Law = POWER,
    budgets: Sequence[int] = (),
    noise: float = 1e-3,
    seeds: int = 3,
    sizes: Sequence[int] = SIZES,
    arms: Sequence[str] = ARMS,
    change: Change | None = None,
    without: Collection[str] = (),
) -> pa.Table:
    """A `runs` frame with a row for each arm, size, number of tokens (20 for each parameter without) and seed."""
    random, rows = np.random.default_rng(0), []
    rungs = [(size, tokens) for size in sizes for tokens in (budgets or (20 * size,))]
    for number, (size, tokens) in enumerate(rungs):
        shared = random.normal(0, noise, seeds)
        for index, arm in enumerate(arms):
            x, own = (6 * size * tokens, ()) if law.data is None else (size, (tokens,))
            levels = {"size": f"{size:g}", "training.tokens": f"{tokens:g}", "model.gate.position": arm}
            rung = f"size={size:g}, tokens={tokens:g}"
            for seed in range(seeds):
                row = {"study": "ladder", "study_hash": "h", "variant": f"position={arm}, {rung}", "seed": seed}
                row |= {"baseline": f"position={arms[0]}, {rung}", "outcome": "finished", "tokens": tokens}
                row |= {
                    "parameters": size,
                    "flops_per_token": 6 * size,
                    "train/mean_tokens_per_second": 1e4 - 500 * index,
                }
                loss = law.losses([index], [x], *own)[0] * math.exp(shared[seed] + random.normal(0, noise / 2))
                row |= {"validation/loss": loss, **{f"axis/{axis}": level for axis, level in levels.items()}}
                for key in ((arm, number, seed), (arm, number, -1)):
                    changed = (change or {}).get(key, {})
                    if isinstance(changed, str):
                        changed = {"outcome": changed, "validation/loss": None}
                    row |= changed
                rows.append({name: value for name, value in row.items() if name not in without})
    return pa.Table.from_pylist(rows, runs_schema(AXES))


def report(ladder: Sequence[str] = LADDER, bootstraps: int = 200, **frame: Any) -> Scaling:
    """The report of a frame."""
    return scaling(build_frame(**frame), ladder, bootstraps=bootstraps)


def rungs_of(found: Scaling, arm: str) -> list[Rung]:
    """Its rungs of an arm."""
    return [rung for rung in found.rungs if rung.arm == arm]


def cell(grid: Table, heading: str, *begins: str) -> str:
    """The cell of the row that begins with these."""
    [row] = [row for row in grid.rows if row[: len(begins)] == begins]
    return row[[column.heading for column in grid.columns].index(heading)]


def test_a_ladder_of_sizes_recovers_its_law() -> None:
    """The constants of a law in compute, and of each arm how it differs from the baseline."""
    found = report(noise=1e-4)
    assert found.fit is not None
    assert (found.fit.kind, found.fit.caveat) == ("compute", "")
    assert found.fit.shared.keys() == {"E"}
    assert found.fit.shared["E"].value == pytest.approx(1.6, rel=0.02)
    assert [arm.arm for arm in found.fit.arms] == [f"position={arm}" for arm in ARMS]
    base, sdpa, value = found.fit.arms
    assert (base.exponent_difference, base.crossover, base.better) == (None, None, None)
    for arm, exponent in zip(found.fit.arms, POWER.exponent, strict=True):
        assert arm.exponent.value == pytest.approx(exponent, rel=0.02)
        assert arm.exponent.low < arm.exponent.value < arm.exponent.high
    assert value.exponent_difference is not None
    assert value.exponent_difference.low < 0.002 < value.exponent_difference.high
    assert value.crossover is not None
    assert value.crossover.low < (66 / 60) ** (1 / 0.002) < value.crossover.high
    assert value.better is not None
    assert value.better[2] > 0.9
    assert sdpa.better == (1, 1, 1)
    assert sdpa.offset_difference is not None
    assert sdpa.offset_difference.low < 0 < sdpa.offset_difference.high


def test_gains_are_those_of_the_law() -> None:
    """At each rung the compute-equivalent gain that follows from the truth, in time at the arm's lower speed."""
    found = report(noise=1e-4)
    for rung in rungs_of(found, "position=sdpa"):
        truth = [POWER.losses([arm], [rung.compute])[0] - 1.6 for arm in (0, 1)]
        gain = (truth[0] / truth[1]) ** (1 / 0.09)
        assert rung.gain is not None
        assert rung.gain_in_time is not None
        assert rung.gain.value == pytest.approx(gain, rel=0.03)
        assert rung.gain.low < rung.gain.value < rung.gain.high
        assert rung.gain_in_time.value == pytest.approx(rung.gain.value * 0.95)
    assert all(rung.gain is None for rung in rungs_of(found, "position=none"))


def test_sizes_and_tokens_apart_make_a_law_of_both() -> None:
    """A ladder with several numbers of tokens for each size is fitted by approach 3."""
    sizes, budgets = (50_000_000, 300_000_000, 2_000_000_000), (10**9, 10**10, 10**11)
    found = report(law=THREE, sizes=sizes, budgets=budgets, noise=1e-4)
    assert found.fit is not None
    assert found.fit.kind == "parameters and tokens"
    assert found.fit.shared["B"].value == pytest.approx(410.7, rel=0.05)
    assert found.fit.shared["β"].value == pytest.approx(0.28, rel=0.02)
    assert found.fit.arms[0].exponent.value == pytest.approx(0.34, rel=0.02)
    # With tokens a gain is along optimal parameters and tokens.
    [*_, top] = rungs_of(found, "position=sdpa")
    truth = [THREE.losses([arm], [sizes[2]], [budgets[2]])[0] - 1.69 for arm in (0, 1)]
    assert top.gain is not None
    assert top.gain.value == pytest.approx((truth[0] / truth[1]) ** ((0.34 + 0.28) / (0.34 * 0.28)), rel=0.03)
    value = found.fit.arms[1]
    assert value.crossover is not None  # 380 and 406.4, 0.337 and 0.34: in parameters, as a compute
    meet = (380 / 406.4) ** (1 / (0.337 - 0.34))
    compute = 6 * sizes[2] * budgets[2] * (meet / sizes[2]) ** 2
    assert value.crossover.low < compute < value.crossover.high


def test_rungs_are_compared_by_seed() -> None:
    """Measured differences are the paired ones of the comparison, whatever a fit says."""
    found = report(noise=5e-3)
    frame = build_frame(noise=5e-3).to_pylist()
    [first, *_] = rungs_of(found, "position=value")
    losses = {
        arm: [row["validation/loss"] for row in frame if row["variant"] == f"position={arm}, {first.rung}"]
        for arm in ARMS
    }
    assert first.rung == "size=1e+06, tokens=2e+07"
    assert first.row.delta is not None
    assert first.row.delta.mean == pytest.approx(np.mean(np.subtract(losses["value"], losses["none"])))
    assert list(first.losses.values()) == losses["value"]
    assert first.compute == 6 * 1e6 * 2e7
    assert [rung.compute for rung in rungs_of(found, "position=none")] == sorted(
        rung.compute for rung in rungs_of(found, "position=none")
    )


def test_a_baseline_at_one_rung_is_the_baseline_at_each() -> None:
    """A study whose baseline names a size, too, compares each rung with the baseline's arm at that rung."""
    frame = build_frame()
    place = frame.schema.get_field_index("baseline")
    small = frame["baseline"][0].as_py()
    fixed = frame.set_column(place, frame.schema.field(place), pa.array([small] * len(frame), pa.utf8()))
    found, expected = scaling(fixed, LADDER, bootstraps=20), scaling(frame, LADDER, bootstraps=20)
    assert [rung.row.delta for rung in found.rungs] == [rung.row.delta for rung in expected.rungs]
    assert found.baselines == dict.fromkeys(found.baselines, "position=none")


def test_lost_trials_are_counted_and_left_out() -> None:
    """A rung without a loss is left out of the fit; a seed that diverged is counted; both are said."""
    change: Change = {("sdpa", 0, -1): "diverged", ("value", 4, 1): "diverged", ("none", 2, 0): "failed"}
    found = report(change={**change, ("value", 1, 2): "waiting"}, noise=1e-4)
    assert found.fit is not None
    assert found.fit.arms[1].exponent.value == pytest.approx(0.0906, rel=0.02)
    rungs = tables(found)[0]
    lost, cut = rungs_of(found, "position=sdpa")[0], rungs_of(found, "position=value")[4]
    assert (lost.gain, lost.losses) == (None, {})
    assert cell(rungs, "seeds", lost.arm, lost.rung) == "0 + 3 diverged"
    assert cell(rungs, "validation/loss [nats/token]", lost.arm, lost.rung) == "–"
    assert cell(rungs, "verdict", lost.arm, lost.rung) == "not evaluable"
    assert cell(rungs, "seeds", cut.arm, cut.rung) == "2 + 1 diverged"
    notes = "\n".join(found.notes)
    assert f"{lost.arm}, {lost.rung}: left out of the fit, as no trial has a loss (3 diverged)." in notes
    assert f"Some seeds diverged, and the loss is that of the others: {cut.arm}, {cut.rung}." in notes
    assert "1 trials have not finished" in notes


def test_gains_are_paired_where_seeds_are_missing() -> None:
    """Where an arm lacks a seed its gain is from the seeds that both have: the baseline's others say nothing of it."""
    law = Law(POWER.offset, np.repeat(60.0, 3), np.repeat(0.09, 3))  # no arm differs
    change: Change = {("value", 4, 0): "diverged"}
    found = scaling(_without_own_noise(build_frame(law, noise=0.02, change=change)), LADDER, bootstraps=20)
    gain = rungs_of(found, "position=value")[4].gain
    assert gain is not None
    assert gain.value == pytest.approx(1, abs=1e-9)


def _without_own_noise(frame: pa.Table) -> pa.Table:
    """Equal seeds of a rung have the baseline's loss in all arms."""
    rows = frame.to_pylist()
    shared = {
        (row["baseline"], row["seed"]): row["validation/loss"] for row in rows if row["variant"] == row["baseline"]
    }
    for row in rows:
        if row["outcome"] == "finished":
            row["validation/loss"] = shared[row["baseline"], row["seed"]]
    return pa.Table.from_pylist(rows, frame.schema)


def test_an_arm_without_a_fit_is_shown_with_its_rungs() -> None:
    """Too few rungs of an arm refuse its curve alone."""
    change: Change = {("value", 0, -1): "failed", ("value", 3, -1): "diverged"}
    found = report(change=change)
    assert found.fit is not None
    assert [arm.arm for arm in found.fit.arms] == ["position=none", "position=sdpa"]
    assert any("position=value: no fit, a law with three parameters needs 4 rungs" in note for note in found.notes)
    shown = [rung for rung in rungs_of(found, "position=value") if rung.losses]
    assert len(shown) == 3
    assert all(rung.row.delta is not None and rung.row.delta.n == 3 and rung.gain is None for rung in shown)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"sizes": SIZES[:3]}, "needs 4 rungs"),
        ({"law": Law(POWER.offset, POWER.scale, np.full(3, 1e-9))}, "do not fall"),
    ],
    ids=["rungs", "flat"],
)
def test_without_a_fit_the_rungs_are_left(frame: dict[str, Any], reason: str) -> None:
    """No law, no number that comes of one: paired differences of rungs, and why."""
    found = report(noise=2e-3, **frame)
    assert found.fit is None
    assert all(rung.gain is None for rung in found.rungs)
    assert all(any(reason in note and note.startswith(arm) for note in found.notes) for arm in found.baselines)
    [grid] = tables(found)
    assert cell(grid, "CEG", "position=sdpa", found.rungs[0].rung) == "–"
    assert cell(grid, "Δ 95 %", "position=sdpa", found.rungs[0].rung).startswith("[")
    assert found.to_dict()["fit"] is None
    assert isinstance(plot_scaling(found, "t"), Figure)


def test_an_undetermined_offset_is_no_number() -> None:
    """Where E = 0 fits as well, tables show none and say it."""
    found = report(noise=5e-3, sizes=[1_000_000 * 2**power for power in range(4)])
    assert found.fit is not None
    assert "not determined" in found.fit.caveat
    fit = tables(found)[1]
    assert cell(fit, "value", "all arms", "E") == "–"
    assert cell(fit, "Δ to baseline", "position=value", "own E") == "–"
    assert any("not determined" in note for note in fit.notes)
    assert found.to_dict()["fit"]["shared"]["E"]["determined"] is False


def test_single_seeds_are_said() -> None:
    """One seed has no t-interval, and a fit knows only how far it is missed."""
    found = report(seeds=1)
    assert found.fit is not None
    assert any(note.startswith("A single seed at every rung") for note in found.notes)
    assert {rung.row.verdict for rung in found.rungs} == {"baseline", "not evaluable"}
    assert cell(tables(found)[0], "Δ 95 %", "position=sdpa", found.rungs[0].rung) == "–"
    assert isinstance(plot_scaling(found, "t"), Figure)


def test_an_axis_without_a_difference_is_not_in_a_name() -> None:
    """Null levels are those that make no difference to a variant."""
    frame = build_frame()
    rows = frame.to_pylist()
    for row in rows:
        row["axis/model.gate.granularity"] = None if "position=none" in row["variant"] else "headwise"
    found = scaling(pa.Table.from_pylist(rows, runs_schema([*AXES, "model.gate.granularity"])), LADDER, bootstraps=20)
    assert list(found.baselines) == ["position=none", *(f"position={arm}, granularity=headwise" for arm in ARMS[1:])]
    for row in rows:
        row["axis/training.tokens"] = None
    tokenless = scaling(pa.Table.from_pylist(rows, frame.schema), LADDER, bootstraps=20)
    assert tokenless.rungs[0].rung == "size=1e+06"


def test_one_arm_or_no_baseline_compare_nothing() -> None:
    """A law can still be fitted; the report says what it lacks."""
    one, none = report(arms=("none",)), report(change={key: {"baseline": None} for key in ARM_KEYS})
    assert one.fit is not None
    assert any("one arm only" in note for note in one.notes)
    assert none.fit is not None
    assert all(arm.better is None for arm in none.fit.arms)
    assert any("no baseline" in note for note in none.notes)
    for found in (one, none):
        assert all(rung.gain is None for rung in found.rungs)
        assert not any("crossover" in row[1] for row in tables(found)[1].rows)
        assert len(plot_scaling(found, "t").axes) == 1


ARM_KEYS = [(arm, number, -1) for arm in ARMS for number in range(len(SIZES))]


def test_studies_without_axes_in_common_are_one_arm() -> None:
    """Where every axis is of the ladder there is nothing to name an arm by."""
    frame = build_frame(arms=("none",))
    found = scaling(frame.drop_columns("axis/model.gate.position"), LADDER, bootstraps=20)
    assert found.baselines == {"base": "base"}


NOT_SCALABLE: dict[str, tuple[Sequence[str], dict[str, Any], str]] = {
    "no ladder": ((), {}, r"no axis sets a size .* \(its axes: model.gate.position, size"),
    "another axis": (("sizes",), {}, r"it has no axis sizes \(its axes: "),
    "nothing finished": (LADDER, {"change": dict.fromkeys(ARM_KEYS, "diverged")}, r"no trial has .* \(45 diverged\)"),
    "no tokens": (LADDER, {"without": ("tokens",)}, r"lacks its tokens"),
}


@pytest.mark.parametrize(("ladder", "frame", "message"), NOT_SCALABLE.values(), ids=NOT_SCALABLE)
def test_what_is_no_ladder_is_said(ladder: Sequence[str], frame: dict[str, Any], message: str) -> None:
    """Errors say what was expected and what there is."""
    with pytest.raises(AnalysisUnavailable, match=message):
        report(ladder, **frame)


def test_a_law_in_compute_says_what_it_mixes() -> None:
    """Two numbers of tokens for each size do not make a law of both, and one in compute does not know of them."""
    found = report(law=THREE, sizes=SIZES, budgets=(10**8, 10**9))
    assert found.fit is not None
    assert found.fit.kind == "compute"
    assert any(note.startswith("Tokens per parameter go from") for note in found.notes)
    assert not any(note.startswith("Tokens per parameter") for note in report().notes)


def test_tables_and_values_are_complete() -> None:
    """Every form can be written, and JSON has no number that does not exist."""
    found = report(change={("sdpa", 0, -1): "diverged", ("value", 2, -1): {"train/mean_tokens_per_second": None}})
    rungs, fit = tables(found)
    for grid in (rungs, fit):
        assert all(len(row) == len(grid.columns) for row in grid.rows)
        assert grid.title in to_markdown(grid)
        assert to_latex(grid)
        assert not any("nan" in text or "inf" in text for row in grid.rows for text in row)
    third = rungs_of(found, "position=value")[2]
    assert cell(rungs, "CEG in time", third.arm, third.rung) == "–"
    assert cell(fit, "value", "position=sdpa", "P(lower loss) at 100× (extrapolated)")[0] in "0123456789><"
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["fit"]["arms"][1]["better"].keys() == {"1x", "10x", "100x"}
    assert len(values["rungs"]) == 15
    assert values["rungs"][5]["row"]["value"]["mean"] is None


def test_a_loss_at_the_offset_is_worth_any_compute() -> None:
    """An arm whose measured loss is not above E has no finite gain, which tables and JSON must survive."""
    law = Law(np.array([2.5]), POWER.scale, POWER.exponent)
    found = report(law=law, noise=1e-4, bootstraps=50, change={("value", 4, -1): {"validation/loss": 1.5}})
    top = rungs_of(found, "position=value")[4]
    assert top.gain is not None
    assert top.gain.value == math.inf
    assert cell(tables(found)[0], "CEG", top.arm, top.rung) == "∞"
    json.dumps(found.to_dict(), allow_nan=False)


def test_spreadsheets_have_a_row_for_each_rung() -> None:
    """With full precision, and empty where there is no number."""
    found = report(change={("sdpa", 0, -1): "diverged"})
    rows = list(csv.DictReader(io.StringIO(to_csv(found.frame()))))
    assert len(rows) == 15
    for row, rung in zip(rows, found.rungs, strict=True):
        assert (row["arm"], row["rung"], row["baseline"]) == (rung.arm, rung.rung, "position=none")
        assert float(row["compute"]) == rung.compute
        assert (row["loss"] == "") == (not rung.losses)
        assert row["gain_high"] == ("" if rung.gain is None else str(rung.gain.high))
        assert row["delta_low"] == (str(rung.row.delta.low) if rung.row.delta and rung.row.delta.n else "")
    assert [rows[5][name] for name in ("finished", "diverged", "verdict")] == ["0", "3", "not evaluable"]


def test_no_share_of_replicates_is_certain() -> None:
    """All of 200 replicates are more than 199 of 200, not a certainty."""
    fit = tables(report(noise=1e-4))[1]
    assert cell(fit, "value", "position=sdpa", "P(lower loss) at 1×") == "> 0.995"


def test_a_seed_makes_a_report() -> None:
    """The same runs give the same report."""
    one, other = (json.dumps(report(bootstraps=50).to_dict()) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("both", [False, True], ids=["compute", "parameters and tokens"])
def test_the_figure_shows_what_was_measured_and_what_was_not(both: bool) -> None:
    """Seeds and means at their compute, curves that change to dashes where rungs end, differences with intervals."""
    sizes, budgets = (50_000_000, 300_000_000, 2_000_000_000), (10**9, 10**10, 10**11)
    found = report(law=THREE, sizes=sizes, budgets=budgets) if both else report()
    figure = plot_scaling(found, "a ladder")
    above, below = figure.axes
    assert above.get_xscale() == "log"
    assert below.get_xlabel() == "training compute [FLOPs]"
    rungs = rungs_of(found, "position=value")
    [means] = [line for line in above.lines if line.get_label() == "position=value"]
    np.testing.assert_allclose(means.get_xdata(), [rung.compute for rung in rungs])
    np.testing.assert_allclose(means.get_ydata(), [rung.row.value.mean for rung in rungs])
    colour = means.get_color()
    curves = {line.get_linestyle(): line for line in above.lines if line.get_color() == colour}
    top = max(rung.compute for rung in rungs)
    assert max(curves["-"].get_xdata()) == pytest.approx(top)
    assert [bound(curves["--"].get_xdata()) for bound in (min, max)] == pytest.approx([top, 10 * top])
    if not both:
        expected = POWER.losses([2] * len(curves["-"].get_xdata()), curves["-"].get_xdata())
        np.testing.assert_allclose(curves["-"].get_ydata(), expected, rtol=0.01)
    [differences] = [line for line in below.lines if line.get_color() == colour and line.get_marker() == "D"]
    np.testing.assert_allclose(
        differences.get_ydata(orig=False), [rung.row.delta.mean for rung in rungs if rung.row.delta]
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        *(f"position={arm}" for arm in ARMS),
        "law at optimal N, D" if both else "law",
        "extrapolated",
    ]


def test_one_size_is_compared_and_fitted_with_nothing() -> None:
    """A partial answer: the paired differences of the one rung, and why there is no law."""
    found = report(sizes=SIZES[:1])
    assert found.fit is None
    assert len({rung.rung for rung in found.rungs}) == 1
    assert any(rung.row.delta is not None and rung.row.delta.n for rung in found.rungs)
    assert any("needs 4 rungs with a loss (got 1)" in note for note in found.notes)
    assert isinstance(plot_scaling(found, "one"), Figure)
