"""The table of fits holds the numbers that laws and searches give, each with what it is a number of."""

import json
import math
from typing import Any

import pytest
import scipy.stats
from typer.testing import CliRunner

from gatelab.cli.console import console
from gatelab.cli.main import app
from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.fits import FITS
from gatelab.results.analyses.learning_rates import learning_rates_from_record
from gatelab.results.report.parquet import export_study, fits
from gatelab.results.store.records import StudyRecord, write_json
from gatelab.results.store.runs import runs_from_journals

TOKENS = {"model.hidden_size": [16, 32, 64, 128], "model.gate.position": ["none", "sdpa"]}
RATES = [1e-3, 1e-2, 1e-1]


def rows_of(lab: Any) -> list[dict[str, Any]]:
    """The table of a study, from its runs."""
    table = fits(lab.record, runs_from_journals(lab.folder, lab.name))
    assert table.schema == FITS
    return table.to_pylist()


def one(rows: list[dict[str, Any]], **where: Any) -> dict[str, Any]:
    [row] = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return row


@pytest.fixture
def ladder(laboratory: Any) -> Any:
    """Four sizes at three seeds whose losses follow a law in compute, the gate's curve 1 % lower above the floor."""
    lab = laboratory(seeds=3, axes=TOKENS, baseline={"model.gate.position": "none"})
    for index, label in enumerate(lab.variants):
        entry = lab.record.variants[label]
        compute = float(entry.tokens * entry.flops_per_token)
        for seed in range(3):
            scale = (0.99 if "sdpa" in label else 1.0) * (1 + 1e-4 * (seed - 1))
            lab.begin(index, seed)
            metrics = {"validation/loss": 1.5 + scale * 40 / compute**0.2, "train/mean_tokens_per_second": 100.0}
            lab.end(index, seed, "finished", lab.steps, metrics=metrics)
    return lab


def test_a_ladder_gives_the_constants_of_its_law(ladder: Any) -> None:
    """The law that was planted, arm by arm, in the units that the table says."""
    rows = rows_of(ladder)
    assert {row["law"] for row in rows} == {"L = E + A / C^α (C: compute)"}
    shared = one(rows, quantity="E")
    assert (shared["arm"], shared["rung"], shared["unit"]) == (None, None, "nats/token")
    assert shared["value"] == pytest.approx(1.5, rel=1e-2)
    base, gate = "position=none", "position=sdpa"
    for arm, scale in ((base, 40), (gate, 39.6)):
        assert one(rows, quantity="alpha", arm=arm)["value"] == pytest.approx(0.2, rel=2e-2)
        assert one(rows, quantity="A", arm=arm)["value"] == pytest.approx(scale, rel=0.2)
    for row in rows:
        assert row["n"] == 4000
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]
    assert one(rows, quantity="alpha, difference", arm=gate)["baseline"] == base
    gains = [row for row in rows if row["quantity"] == "gain"]
    assert [(row["arm"], row["rung"]) for row in gains] == [(gate, f"hidden_size={size}") for size in (16, 32, 64, 128)]
    for (
        row
    ) in gains:  # 1 % less of the loss above the floor is worth (1 / 0.99)^(1 / 0.2) of the compute, at equal compute
        assert row["value"] == pytest.approx(ratio(ladder, row["rung"]) * 0.99 ** (-1 / 0.2), rel=2e-2)
        assert row["unit"] == "x"


def ratio(lab: Any, rung: str) -> float:
    """Compute of the gated variant at a rung over that of its baseline, which its planted loss follows."""
    flops = [
        entry.flops_per_token
        for position in ("none", "sdpa")
        for label, entry in lab.record.variants.items()
        if rung in label.split(", ") and f"position={position}" in label.split(", ")
    ]
    return flops[1] / flops[0]


def test_a_search_gives_what_its_seeds_give(laboratory: Any) -> None:
    """Optima as learning rates with their t-interval over seeds, differences in decades, bounds said to be bounds."""
    axes = {"model.gate.position": ["none", "sdpa"], "training.optimizer.learning_rate": RATES}
    lab = laboratory(
        seeds=3, axes=axes, baseline={"model.gate.position": "none"}, tolerance={"rates": RATES, "extend": 0}
    )
    # Of a parabola in log10 of the learning rate, at places that differ between seeds and arms.
    best = {"none": [-2.1, -2.0, -1.9], "sdpa": [-1.8, -1.75, -1.85]}
    for index, label in enumerate(lab.variants):
        levels = lab.record.variants[label].levels
        rate, arm = float(levels["training.optimizer.learning_rate"]), levels["model.gate.position"]
        for seed in range(3):
            loss = 2.0 + (math.log10(rate) - best[arm][seed]) ** 2
            lab.begin(index, seed)
            metrics = {"validation/loss": loss, "train/initial_loss": 5.0}
            lab.end(index, seed, "finished", lab.steps, metrics=metrics)
    rows = [row for row in rows_of(lab) if row["law"] == "learning rates"]
    for arm, places in best.items():
        row = one(rows, arm=f"position={arm}", quantity="optimal learning rate")
        interval = scipy.stats.ttest_1samp(places, 0).confidence_interval()
        assert [math.log10(row[name]) for name in ("value", "low", "high")] == pytest.approx(
            [sum(places) / 3, interval.low, interval.high]
        )
        assert (row["bound"], row["n"], row["unit"], row["baseline"]) == ("", 3, "", "position=none")
    difference = one(rows, quantity="optimal learning rate, difference")
    apart = [ours - theirs for ours, theirs in zip(best["sdpa"], best["none"], strict=True)]
    assert (difference["value"], difference["unit"]) == (pytest.approx(sum(apart) / 3), "decades")
    stable = one(rows, arm="position=sdpa", quantity="largest stable, all seeds")
    assert (stable["value"], stable["bound"], stable["low"]) == (pytest.approx(0.1), "≥", None)


def test_a_study_that_has_neither_has_no_rows(laboratory: Any) -> None:
    """Most studies fit nothing: an empty table, not a missing one."""
    lab = laboratory(seeds=1)
    lab.finish(0, 0)
    assert rows_of(lab) == []


def test_a_ladder_whose_trials_have_not_run_has_no_rows(laboratory: Any) -> None:
    """A law needs losses; a study that has just begun is no error."""
    assert rows_of(laboratory(seeds=1, axes=TOKENS)) == []


def test_a_record_from_before_there_were_searches_has_none(laboratory: Any) -> None:
    """An old study of learning rates can still be exported: it has no rules by which a search would be judged."""
    lab = laboratory(seeds=1, axes={"training.optimizer.learning_rate": RATES})
    for index in range(len(RATES)):
        lab.finish(index, 0)
    runs = runs_from_journals(lab.folder, lab.name)
    assert lab.record.tolerance is not None
    content = {name: value for name, value in lab.record.to_json().items() if name != "tolerance"}
    old = StudyRecord.from_json(content, "study.json")
    with pytest.raises(AnalysisUnavailable, match=f"{lab.name} was last run before there were searches"):
        learning_rates_from_record(old, runs)
    table = fits(old, runs)
    assert (table.num_rows, table.schema) == (0, FITS)
    write_json(lab.folder.study(lab.name).record, content)
    paths = export_study(lab.folder, lab.name, lab.folder.root / "out")
    assert [path.stat().st_size > 0 for path in paths] == [True] * 6


def test_the_report_of_a_ladder_for_programs_is_the_file(ladder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gatelab scaling --json` prints what it wrote, the stamp included: whoever keeps it can have it checked."""
    monkeypatch.setattr(console, "quiet", False)  # put back afterwards
    asked = ["scaling", ladder.name, "--runs", str(ladder.folder.root), "--bootstraps", "100", "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert result.stdout == (ladder.folder.study(ladder.name).path / "scaling.json").read_text(encoding="utf-8")
    stamp = json.loads(result.stdout)["stamp"]
    assert (stamp["study"], stamp["table"], stamp["options"]) == (ladder.name, "scaling", {"bootstraps": 100})
