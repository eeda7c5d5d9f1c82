"""What a study leaves behind: Parquet that anything can read, tables, figures, each saying where it comes from."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from gatelab.results.export import export_study
from gatelab.results.folders import NotFound
from gatelab.results.frames import metrics_from_journals, runs_from_journals
from gatelab.results.publish import publish, write_curves

COLUMNS = [  # as in docs/results.md: readers of the files rely on these
    *("study", "study_hash", "trial", "variant", "baseline", "seed", "outcome", "reason", "step", "steps"),
    *("parameters", "added_parameters", "flops_per_token", "tokens", "axis/model.gate.position"),
    *("validation/loss", "validation/bits_per_byte", "train/final_loss", "train/mean_tokens_per_second"),
    *("train/seconds", "memory/peak_bytes"),
    *("code", "commit", "data", "device", "precision", "threads", "torch", "python", "host"),
]


@pytest.fixture
def studied(laboratory: Any) -> Any:
    """A study of two variants at two seeds, of which one trial is on the way and one has not begun."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    lab.finish(0, 0)
    lab.finish(1, 0)
    lab.begin(0, 1, code="other code")
    lab.write(0, 1, range(1, 8))
    return lab


def test_parquet_has_everything_in_plain_columns(studied: Any, tmp_path: Path) -> None:
    """pandas, and whatever else reads Parquet, gets every trial and every value, without gatelab."""
    paths = export_study(studied.folder, studied.name, tmp_path / "out")
    assert [path.stem for path in paths] == ["runs", "metrics", "layers", "evaluations"]
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    runs, metrics, layers, evaluations = (pd.read_parquet(path) for path in paths)
    assert not len(evaluations)
    assert runs["outcome"].tolist() == ["finished", "finished", "interrupted", "waiting"]
    assert runs.columns.tolist() == COLUMNS
    assert pq.read_table(paths[0]).equals(runs_from_journals(studied.folder, studied.name))
    common = ["trial", "variant", "seed", "step"]
    assert metrics.columns.tolist() == [*common, "name", "value", "time"]
    assert layers.columns.tolist() == [*common, "layer", "name", "value", "time"]
    everything = metrics_from_journals(studied.folder, studied.name)
    assert len(metrics) + len(layers) == len(everything) == 2 * (20 + 4 * 3) + (7 + 3)
    assert set(metrics["name"]) == {"train/loss", "validation/loss", "validation/bits_per_byte"}
    assert set(layers["name"]) == {"gradient_norm"}
    assert layers["layer"].tolist() == [1] * 9
    mine = metrics[(metrics["trial"] == studied.id(1, 0)) & (metrics["name"] == "train/loss")]
    assert mine["value"].tolist() == [studied.loss(1, 0, step) for step in range(1, 21)]
    assert str(metrics["time"].dtype).startswith("datetime64[ms")


def test_parquet_says_where_its_numbers_come_from(studied: Any, tmp_path: Path) -> None:
    """A file that has lost its folder still names its study, code, data and the versions of what made it."""
    for path in export_study(studied.folder, studied.name, tmp_path):
        found = {key.decode(): value.decode() for key, value in pq.read_schema(path).metadata.items()}
        assert found["gatelab.table"] == path.stem
        assert (found["gatelab.study"], found["gatelab.study_hash"]) == (studied.name, studied.record["hash"])
        assert json.loads(found["gatelab.code"]) == ["other code", "this code"]
        assert json.loads(found["gatelab.data"]) == ["this data"]
        packages = json.loads(found["gatelab.packages"])
        assert packages["pyarrow"] == metadata.version("pyarrow")
        assert {"gatelab", "torch", "mlflow"} <= packages.keys()
        assert found["gatelab.schema"].isdigit()


def test_a_study_without_results_can_be_exported(laboratory: Any, tmp_path: Path) -> None:
    """Scripts that read the files need no case of their own for a study that has just begun."""
    lab = laboratory(seeds=1)
    frames = [pd.read_parquet(path) for path in export_study(lab.folder, lab.name, tmp_path)]
    _, metrics, layers, evaluations = frames
    assert [len(frame) for frame in frames] == [2, 0, 0, 0]
    assert evaluations.columns.tolist() == ["trial", "variant", "seed", "name", "value"]
    assert "value" in metrics.columns
    assert "layer" in layers.columns


def test_a_study_is_published_in_its_folder(studied: Any) -> None:
    """At the end of a study its table, in every form, its curves and its Parquet files lie where the study lies."""
    published = publish(studied.folder, studied.name)
    folder = studied.folder.study(studied.name).path
    assert {
        path.relative_to(folder).as_posix() for path in (*published.tables, *published.plots, *published.parquet)
    } == {
        *(f"comparison.{suffix}" for suffix in ("md", "tex", "csv", "json")),
        *(f"curves-validation-loss.{suffix}" for suffix in ("png", "svg")),
        *(f"parquet/{name}.parquet" for name in ("runs", "metrics", "layers", "evaluations")),
    }
    for path in (*published.tables, *published.plots, *published.parquet):
        assert path.stat().st_size > 0
    rows = {row["variant"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}
    assert rows["position=sdpa"]["delta"]["mean"] == pytest.approx(1 / 32)
    assert "position" in (folder / "comparison.md").read_text()


def test_a_study_that_was_never_evaluated_is_published(laboratory: Any) -> None:
    """Where every trial diverges before its first evaluation, that is the result: a table, and no curve of it."""
    lab = laboratory(seeds=1)
    for variant in (0, 1):
        lab.begin(variant, 0)
        lab.write(variant, 0, range(1, 4))
        lab.end(variant, 0, "diverged", 3, "the training loss was nan at step 3")
    published = publish(lab.folder, lab.name)
    assert published.plots == []
    assert [row.outcomes for row in published.comparison.rows] == [{"diverged": 1}] * 2
    assert len(published.tables) == 4


def test_curves_of_an_unknown_metric_name_the_known(studied: Any, tmp_path: Path) -> None:
    """A typing mistake is no empty figure; a study that has not begun is no error."""
    with pytest.raises(ValueError, match=r"'train/los' was not recorded .*train/loss"):
        write_curves(studied.folder, studied.name, "train/los", tmp_path)
    [png, svg] = write_curves(studied.folder, studied.name, "train/loss", tmp_path)
    assert (png.name, svg.name) == ("curves-train-loss.png", "curves-train-loss.svg")
    with pytest.raises(NotFound):
        write_curves(studied.folder, "nothing", "train/loss", tmp_path)
