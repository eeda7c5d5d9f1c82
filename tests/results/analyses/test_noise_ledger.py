"""The noise ledger: what earlier studies teach about how metrics scatter, pooled, and never a study twice."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatelab.orchestrator.reporting import write_analysis
from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.analyses.noise_ledger import SCHEMA, KnownNoise, known_noise, update_ledger
from gatelab.results.store.layout import RunsFolder
from tests.results.analyses.test_comparison import build_frame

SPEED = "train/mean_tokens_per_second"


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    """A runs folder that does not exist yet."""
    return RunsFolder(tmp_path / "runs")


def study(name: str, spread: float, seeds: int = 3, variants: int = 1, **row: Any) -> pa.Table:
    """A study whose variants scatter by a spread against a baseline that scatters by 1 over seeds."""
    generator = np.random.default_rng(len(name) + seeds)
    base = generator.normal(2, 1, seeds)
    values = {"base": dict(enumerate(base.tolist()))}
    for variant in range(variants):
        values[f"v{variant}"] = dict(enumerate((base + generator.normal(0, spread, seeds)).tolist()))
    scale = {"parameters": 1_000_000, "tokens": 1_000_000, "data": "these data"} | row
    return build_frame(values, study=name, **scale)


def ledger(folder: RunsFolder) -> list[dict[str, Any]]:
    return pq.read_table(folder.noise).to_pylist()


def sd_of_differences(runs: pa.Table) -> float:
    """Of a study with one variant, computed from its rows."""
    value = {(row["variant"], row["seed"]): row[DEFAULT_METRIC] for row in runs.to_pylist()}
    return float(np.std([value["v0", seed] - value["base", seed] for name, seed in value if name == "v0"], ddof=1))


def ask(folder: RunsFolder, **other: Any) -> KnownNoise | None:
    """What is known of the loss, on these data at this scale unless another is asked for."""
    wanted = {"metric": DEFAULT_METRIC, "data": "these data", "parameters": 1_000_000, "tokens": 1_000_000} | other
    return known_noise(folder, **wanted)


def test_a_study_leaves_its_noise(folder: RunsFolder) -> None:
    """A row for each metric that varied, with the sizes that a plan looks studies up by."""
    assert ask(folder) is None
    runs = study("first", 0.25, seeds=5)
    update_ledger(folder, runs)
    [row] = ledger(folder)
    assert pq.read_schema(folder.noise).equals(SCHEMA)
    assert {name: row[name] for name in ("study", "baseline", "metric", "data", "parameters", "tokens")} == {
        "study": "first",
        "baseline": "base",
        "metric": DEFAULT_METRIC,
        "data": "these data",
        "parameters": 1_000_000,
        "tokens": 1_000_000,
    }
    assert (row["df"], row["variants"], row["seeds"]) == (4, 2, 5)
    assert row["sd_of_differences"] == pytest.approx(sd_of_differences(runs))
    values = np.array([trial[DEFAULT_METRIC] for trial in runs.to_pylist()]).reshape(2, 5)
    [[first, both], [_, second]] = np.cov(values)
    # Of two variants the intraclass correlation is the covariance over the mean of the variances.
    assert row["correlation"] == pytest.approx(both / ((first + second) / 2))
    assert row["sd_of_seeds"] == pytest.approx(math.sqrt((first + second) / 2))
    found = ask(folder)
    assert found is not None
    assert (found.sd, found.df, found.studies) == (pytest.approx(row["sd_of_differences"]), 4, ("first",))
    assert (found.decades, found.same_data) == (0.0, True)


def test_every_metric_is_kept_beside_the_others(folder: RunsFolder) -> None:
    """A claim may be about speed: the noise of the loss says nothing of that."""
    rows = study("both", 0.25).to_pylist()
    runs = pa.Table.from_pylist([{**row, SPEED: 100.0 + row["seed"] ** 2 * (row["variant"] == "v0")} for row in rows])
    update_ledger(folder, runs.cast(study("both", 0.25).schema))
    assert {row["metric"] for row in ledger(folder)} == {DEFAULT_METRIC, SPEED}
    found = ask(folder, metric=SPEED)
    assert found is not None
    assert found.sd == pytest.approx(np.std([0, 1, 4], ddof=1))
    assert ask(folder, metric="memory/peak_bytes") is None


def test_studies_are_pooled_by_their_degrees_of_freedom(folder: RunsFolder) -> None:
    """A study of three seeds counts for less than one of nine; variances are bin_means, not deviations."""
    small, large = study("small", 0.5, seeds=3), study("large", 0.1, seeds=9)
    for runs in (small, large):
        update_ledger(folder, runs)
    found = ask(folder)
    assert found is not None
    expected = math.sqrt((2 * sd_of_differences(small) ** 2 + 8 * sd_of_differences(large) ** 2) / 10)
    assert (found.sd, found.df) == (pytest.approx(expected), 10)
    correlations = {row["study"]: row["correlation"] for row in ledger(folder)}
    assert found.correlation == pytest.approx((2 * correlations["small"] + 8 * correlations["large"]) / 10)
    assert set(found.studies) == {"small", "large"}


def test_the_same_data_come_first_then_the_nearest_scale(folder: RunsFolder) -> None:
    """Noise of other text, or of a model a thousand times as large, is used only where there is no other, and said."""
    update_ledger(folder, study("far", 0.3, parameters=30_000_000))
    update_ledger(folder, study("further", 0.2, parameters=1_000_000_000))
    update_ledger(folder, study("elsewhere", 0.1, data="other data"))

    def found(**other: Any) -> tuple[tuple[str, ...], float, bool]:
        known = ask(folder, **other)
        assert known is not None
        return known.studies, round(known.decades, 3), known.same_data

    assert found() == (("far",), round(math.log10(30), 3), True)
    assert found(parameters=9_000_000_000) == (("further",), round(-math.log10(9), 3), True)
    assert found(parameters=500_000_000) == (("further",), 0.0, True)
    assert found(tokens=20_000_000) == (("far",), 0.0, True)  # compute counts, whichever of its parts is larger
    assert found(data="new data") == (("elsewhere",), 0.0, False)
    update_ledger(folder, study("near", 0.4, parameters=3_000_000))
    update_ledger(folder, study("here", 0.4))
    assert found() == (("near", "here"), 0.0, True)
    assert str(ask(folder, parameters=9_000_000_000)).endswith("in further (9 times less compute)")
    assert str(ask(folder, tokens=1000)).endswith("in here (1e+03 times more compute)")
    assert str(ask(folder, data="new data")).endswith("in elsewhere, near, here (other data)")


def test_a_study_that_is_published_again_counts_once(folder: RunsFolder) -> None:
    """More seeds replace what was known of a study; others stay as they were."""
    update_ledger(folder, study("other", 0.3))
    other = ledger(folder)
    update_ledger(folder, study("mine", 0.5, seeds=3))
    update_ledger(folder, study("mine", 0.2, seeds=7))
    rows = {row["study"]: row for row in ledger(folder)}
    assert len(ledger(folder)) == 2
    assert (rows["mine"]["seeds"], rows["other"]) == (7, other[0])
    update_ledger(folder, build_frame({"base": {0: 1.0}}, study="mine", data="these data"))  # nothing to tell any more
    assert ledger(folder) == other


@pytest.mark.parametrize("content", ["torn", "no Parquet", "another table", "empty"])
def test_a_ledger_that_cannot_be_read_is_an_empty_one(
    content: str, folder: RunsFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """A study's end must not fail for what other studies left there: it is said, and the ledger starts anew."""
    update_ledger(folder, study("lost", 0.3))
    if content == "another table":
        pq.write_table(pa.table({"study": [1.5]}), folder.noise)
    else:
        whole = folder.noise.read_bytes()
        folder.noise.write_bytes({"torn": whole[: len(whole) // 2], "no Parquet": b"x" * 100, "empty": b""}[content])
    assert ask(folder) is None
    assert f"{folder.noise} cannot be read" in caplog.text
    update_ledger(folder, study("next", 0.3))
    assert [row["study"] for row in ledger(folder)] == ["next"]
    found = ask(folder)
    assert found is not None
    assert found.studies == ("next",)


def test_studies_that_end_at_once_are_all_kept(folder: RunsFolder) -> None:
    """Two studies that finish in one runs folder must not overwrite what the other wrote."""
    names = [f"study-{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: update_ledger(folder, study(name, 0.2)), names))
    assert sorted(row["study"] for row in ledger(folder)) == sorted(names)
    assert not list(folder.root.glob("*.tmp"))


@pytest.mark.parametrize(
    "row", [{"data": None}, {"tokens": None}, {"tokens": 0}, {"baseline": None}, {"outcome": "diverged"}]
)
def test_what_has_no_noise_or_no_origin_leaves_nothing(row: dict[str, Any], folder: RunsFolder) -> None:
    """Without a baseline, data or values there is nothing that a plan could use."""
    update_ledger(folder, study("odd", 0.3, **row))
    assert ledger(folder) == []
    assert ask(folder) is None


def test_answers_of_trained_models_are_planned_by(laboratory: Any) -> None:
    """A claim about the loss at a length has a power once an earlier study was evaluated; it need not run again."""
    lab = laboratory(("none", "sdpa"), seeds=3)
    for variant, seed in itertools.product((0, 1), (0, 1, 2)):
        lab.finish(variant, seed, data="these data")
        lab.answer(variant, seed, "length-16", 1.0, {"length/000016/plain/loss": 2 + variant + seed * seed / 8})
    write_analysis("evaluation", lab.folder, lab.name, None)
    assert "length/000016/plain/loss" in {row["metric"] for row in ledger(lab.folder)}
