"""What a study leaves behind: Parquet that anything can read, tables, figures, each saying where it comes from."""

import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gatelab.cli.main import app
from gatelab.errors import AnalysisUnavailable
from gatelab.orchestrator.study_manifest import write_record
from gatelab.results.analyses.comparison import compare
from gatelab.results.report import parquet
from gatelab.results.report.parquet import COMPARISONS, TABLES, export_study, runs_from_parquet
from gatelab.results.report.write import write_curves, write_study
from gatelab.results.store.layout import NotFound
from gatelab.results.store.metrics import metrics_from_journals
from gatelab.results.store.runs import runs_from_journals

COLUMNS = [  # as in docs/results.md: readers of the files rely on these
    *("study_hash", "trial", "variant", "baseline", "seed", "outcome", "reason", "step", "steps"),
    *("parameters", "added_parameters", "flops_per_token", "tokens", "axis/model.gate.position"),
    *("validation/loss", "validation/bits_per_byte", "train/final_loss", "train/mean_tokens_per_second"),
    *("train/seconds", "memory/peak_bytes"),
    *("code", "commit", "data", "device", "precision", "threads", "torch", "python", "host"),
]
NAME = "train/loss"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where exports go."""
    return tmp_path / "out"


@pytest.fixture
def studied(laboratory: Any) -> Any:
    """A study of two variants at two seeds, of which one trial is on the way and one has not begun."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    lab.finish(0, 0)
    lab.finish(1, 0)
    lab.begin(0, 1, code="other code")
    lab.write(0, 1, range(1, 8))
    return lab


def test_parquet_has_everything_in_plain_columns(studied: Any, out: Path) -> None:
    """pandas, and whatever else reads Parquet, gets every trial and every value, without gatelab."""
    paths = export_study(studied.folder, studied.name, out)
    assert paths == [out / table / f"study={studied.name}" / "part-0.parquet" for table in TABLES]
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(paths)
    runs, metrics, layers, evaluations, _, fits = (pq.ParquetFile(path).read().to_pandas() for path in paths)
    assert not len(evaluations)
    assert not len(fits)
    assert runs["outcome"].tolist() == ["finished", "finished", "interrupted", "waiting"]
    assert runs.columns.tolist() == COLUMNS
    common = ["trial", "variant", "seed", "step"]
    assert metrics.columns.tolist() == [*common, "name", "value", "time"]
    assert layers.columns.tolist() == [*common, "layer", "name", "value", "time"]
    everything = metrics_from_journals(studied.folder, studied.name)
    assert len(metrics) + len(layers) == len(everything) == 2 * (20 + 4 * 3) + (7 + 3)
    assert set(metrics["name"]) == {"train/loss", "validation/loss", "validation/bits_per_byte"}
    assert set(layers["name"]) == {"gradient_norm"}
    assert layers["layer"].tolist() == [1] * 9
    mine = metrics[(metrics["trial"] == studied.id(1, 0)) & (metrics["name"] == NAME)]
    assert mine["value"].tolist() == [studied.loss(1, 0, step) for step in range(1, 21)]
    assert str(metrics["time"].dtype).startswith("datetime64[ms")


def by_pandas(root: Path, table: str, study: str, variant: str, name: str) -> list[tuple[Any, ...]]:
    filters = [("study", "=", study), ("variant", "=", variant), ("name", "=", name)]
    frame = pd.read_parquet(root / table, filters=filters)
    return list(zip(frame["study"], frame["seed"], frame["step"], frame["value"], strict=True))


def by_polars(root: Path, table: str, study: str, variant: str, name: str) -> list[tuple[Any, ...]]:
    wanted = (pl.col("study") == study) & (pl.col("variant") == variant) & (pl.col("name") == name)
    frame = pl.scan_parquet(root / table, hive_partitioning=True).filter(wanted)
    return frame.select("study", "seed", "step", "value").collect().rows()


def by_duckdb(root: Path, table: str, study: str, variant: str, name: str) -> list[tuple[Any, ...]]:
    files = str(root / table / "*" / "*.parquet")
    query = "SELECT study, seed, step, value FROM read_parquet(?) WHERE study = ? AND variant = ? AND name = ?"
    return duckdb.execute(query, [files, study, variant, name]).fetchall()


Reader = Callable[[Path, str, str, str, str], list[tuple[Any, ...]]]


@pytest.mark.parametrize("read", [by_pandas, by_polars, by_duckdb])
def test_readers_filter_two_studies_in_one_folder(read: Reader, laboratory: Any, out: Path) -> None:
    """pandas, polars and DuckDB get the numbers of one variant of one study by name, of all that lie side by side."""
    labs = [laboratory(("none", "sdpa"), seeds=2, steps=steps) for steps in (10, 20)]
    for lab in labs:
        for variant, seed in ((0, 0), (1, 0), (1, 1)):
            lab.finish(variant, seed)
        export_study(lab.folder, lab.name, out)
    for lab in labs:
        found = read(out, "metrics", lab.name, "position=sdpa", NAME)
        steps = range(1, lab.steps + 1)
        assert sorted(found) == [(lab.name, seed, step, lab.loss(1, seed, step)) for seed in (0, 1) for step in steps]
        found = read(out, "layers", lab.name, "position=none", "gradient_norm")
        steps = range(5, lab.steps + 1, 5)
        assert sorted(found) == [(lab.name, 0, step, lab.loss(0, 0, step) / 2) for step in steps]


def test_readers_agree_on_every_table(studied: Any, out: Path) -> None:
    """Whichever library opens a table finds the same columns, rows and numbers, nulls included."""
    export_study(studied.folder, studied.name, out)
    for table in TABLES:
        theirs = pd.read_parquet(out / table)
        by = {
            "polars": pl.scan_parquet(out / table, hive_partitioning=True).collect().to_pandas(),
            "duckdb": duckdb.execute("SELECT * FROM read_parquet(?)", [f"{out}/{table}/*/*.parquet"]).df(),
        }
        for frame in by.values():
            assert set(frame.columns) == set(theirs.columns)
            for name in theirs.columns:
                ours, other = theirs[name].astype(object), frame[name].astype(object)
                assert ours.where(ours.notna(), None).tolist() == other.where(other.notna(), None).tolist()


def test_what_is_read_together_lies_together(studied: Any, out: Path) -> None:
    """Row groups of one trial each, sorted by name: a filter skips what it does not ask for by statistics alone."""
    export_study(studied.folder, studied.name, out)
    file = pq.ParquetFile(out / "metrics" / f"study={studied.name}" / "part-0.parquet")
    column = file.schema_arrow.get_field_index("trial")
    bounds = [file.metadata.row_group(group).column(column).statistics for group in range(file.num_row_groups)]
    assert [(each.min, each.max) for each in bounds] == [(studied.id(*one),) * 2 for one in ((0, 0), (1, 0), (0, 1))]
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group).to_pydict()
        keys = list(zip(rows["name"], rows["step"], strict=True))
        assert keys == sorted(keys)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_export_takes_the_place_of_the_last_and_of_no_other(laboratory: Any, out: Path) -> None:
    """A folder of many studies can be kept up to date study by study: no row twice, none of a trial that has gone."""
    first, second = (laboratory(("none", "sdpa"), seeds=2) for _ in range(2))
    for lab in (first, second):
        lab.finish(0, 0)
        lab.finish(1, 1)
        export_study(lab.folder, lab.name, out)
    before = contents(out)
    trials = [trial for trial in first.record.trials if trial.seed == 0]
    write_record(first.folder, first.record.restricted_to(trials))
    export_study(first.folder, first.name, out)
    after = contents(out)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {name for name in after if first.name in name}
    assert set(pd.read_parquet(out / "metrics")["trial"]) == {
        first.id(0, 0),
        second.id(0, 0),
        second.id(1, 1),
    }


def test_an_export_that_breaks_off_leaves_whole_files(studied: Any, out: Path, monkeypatch: Any) -> None:
    """Whoever reads while an export is written, or after it was killed, reads the last one that was whole."""
    export_study(studied.folder, studied.name, out)
    before = contents(out)
    each_journal = parquet.each_journal

    def broken(*arguments: Any) -> Any:
        yield next(each_journal(*arguments))
        assert len(contents(out)) > len(before)
        assert len(pd.read_parquet(out / "metrics")) == 2 * (20 + 4 * 2) + 7 + 2  # what is half written is no part
        raise OSError("no space left")

    studied.finish(1, 1)
    monkeypatch.setattr(parquet, "each_journal", broken)
    with pytest.raises(OSError, match="no space"):
        export_study(studied.folder, studied.name, out)
    after = contents(out)
    assert after.keys() == before.keys()
    assert {name for name in after if name.startswith(("metrics", "layers")) and after[name] != before[name]} == set()


def test_parquet_says_where_its_numbers_come_from(studied: Any, out: Path) -> None:
    """A file that has lost its folder still names its study, code, data and the versions of what made it."""
    for table, path in zip(TABLES, export_study(studied.folder, studied.name, out), strict=True):
        found = {key.decode(): value.decode() for key, value in pq.read_schema(path).metadata.items()}
        assert found["gatelab.table"] == table
        assert (found["gatelab.study"], found["gatelab.study_hash"]) == (studied.name, studied.record.hash)
        assert json.loads(found["gatelab.code"]) == ["other code", "this code"]
        assert json.loads(found["gatelab.data"]) == ["this data"]
        packages = json.loads(found["gatelab.packages"])
        assert packages["pyarrow"] == metadata.version("pyarrow")
        assert {"gatelab", "torch", "mlflow"} <= packages.keys()
        assert found["gatelab.schema"] == "4"


def test_every_column_is_documented(studied: Any, out: Path) -> None:
    """docs/results.md names each column of each table; files say of units and meanings what they can themselves."""
    document = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")
    section = document.partition("## Parquet")[2].partition("\n## ")[0]
    known = set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", section, flags=re.DOTALL)))
    for path in export_study(studied.folder, studied.name, out):
        schema = pq.read_schema(path)
        assert {name for name in schema.names if not name.startswith("axis/")} <= known
    said = pq.read_schema(out / "runs" / f"study={studied.name}" / "part-0.parquet")
    assert said.field("validation/loss").metadata[b"unit"] == b"nats/token"
    assert said.field("flops_per_token").metadata[b"unit"] == b"FLOPs/token"
    assert b"null" in said.field("axis/model.gate.position").metadata[b"description"]


def test_comparisons_are_those_of_every_metric(studied: Any, out: Path) -> None:
    """Whoever collects studies gets every difference that gatelab would print, with its tests, as one long table."""
    lab = studied
    lab.finish(1, 1)
    lab.finish(0, 1)
    export_study(lab.folder, lab.name, out)
    rows = pd.read_parquet(out / "comparisons")
    runs = pd.read_parquet(out / "runs")
    metrics = [name for name in COLUMNS if name.startswith(("validation/", "train/", "memory/"))]
    assert sorted(zip(rows["metric"], rows["variant"], strict=True)) == sorted(
        (metric, variant) for metric in metrics for variant in lab.variants
    )
    assert set(rows["study"]) == {lab.name}
    for metric in metrics:
        mine = rows[rows["metric"] == metric].set_index("variant")
        wide = runs.pivot_table(index="seed", columns="variant", values=metric)
        assert mine["mean"].to_dict() == pytest.approx(wide.mean().to_dict())
        apart = wide["position=sdpa"] - wide["position=none"]
        assert mine.loc["position=sdpa", ["delta", "pairs"]].tolist() == pytest.approx([apart.mean(), 2])
        assert mine.loc["position=none", ["delta", "delta_low", "p_t"]].isna().all()
    assert dict(zip(rows["metric"], rows["unit"], strict=True))["validation/loss"] == "nats/token"
    axes, also = {"study", "model.gate.position"}, {"unit"}
    assert set(compare(runs_from_journals(lab.folder, lab.name)).frame().column_names) - axes | also == set(
        COMPARISONS.names
    )


@pytest.mark.parametrize("form", ["md", "tex", "html", "csv", "json"])
def test_a_table_is_the_same_from_parquet(form: str, studied: Any, out: Path) -> None:
    """What was exported, or sent to somebody else, gives the table that the journals give, byte for byte."""
    studied.answer(1, 0, "far", 1.0, {"length/000064/plain/loss": np.nextafter(2.0, 3.0)})
    studied.finish(1, 1)
    studied.finish(0, 1)
    name, runs = studied.name, str(studied.folder.root)
    assert CliRunner().invoke(app, ["export", name, "--runs", runs, "-o", str(out)]).exit_code == 0
    frame = runs_from_parquet(out, name)
    assert frame.equals(runs_from_journals(studied.folder, name), check_metadata=True)
    for metric in ("validation/loss", "length/000064/plain/loss"):
        common = ["compare", name, "--metric", metric, "--format", form]
        ours = CliRunner().invoke(app, [*common, "--runs", runs])
        theirs = CliRunner().invoke(
            app, [*common, "--runs", str(out / "nowhere"), "--from", "parquet", "--parquet", str(out)]
        )
        assert (ours.exit_code, theirs.exit_code) == (0, 0)
        assert ours.stdout_bytes == theirs.stdout_bytes != b""


def test_parquet_that_is_not_there_is_named(studied: Any, out: Path) -> None:
    """A study that was not exported, one of another version and a torn file are answered with what to do."""
    with pytest.raises(NotFound, match=r"no Parquet of study 'other' in .*there is none: gatelab export other"):
        runs_from_parquet(out, "other")
    path = export_study(studied.folder, studied.name, out)[0]
    with pytest.raises(NotFound, match=f"no Parquet of study 'other' in .*there are: {studied.name}"):
        runs_from_parquet(out, "other")
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata({"gatelab.schema": "3"}), path)
    with pytest.raises(NotFound, match=f"has schema version 3, not 4: gatelab export {studied.name}"):
        runs_from_parquet(out, studied.name)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(NotFound, match="is no whole Parquet file"):
        runs_from_parquet(out, studied.name)


def test_a_study_without_results_can_be_exported(laboratory: Any, out: Path) -> None:
    """Scripts that read the files need no case of their own for a study that has just begun."""
    lab = laboratory(seeds=1)
    export_study(lab.folder, lab.name, out)
    frames = {table: pd.read_parquet(out / table) for table in TABLES}
    assert {table: len(frame) for table, frame in frames.items()} == {
        "runs": 2,
        "metrics": 0,
        "layers": 0,
        "evaluations": 0,
        "comparisons": 2 * 6,
        "fits": 0,
    }
    assert frames["evaluations"].columns.tolist() == ["trial", "variant", "seed", "name", "value", "study"]
    assert "value" in frames["metrics"].columns
    assert "layer" in frames["layers"].columns
    assert frames["comparisons"]["mean"].isna().all()
    assert runs_from_parquet(out, lab.name).equals(runs_from_journals(lab.folder, lab.name))


def test_a_study_is_published_in_its_folder(studied: Any) -> None:
    """At the end of a study its table, in every form, its curves and its Parquet files lie where the study lies."""
    published = write_study(studied.folder, studied.name)
    folder = studied.folder.study(studied.name).path
    assert {
        path.relative_to(folder).as_posix() for path in (*published.tables, *published.plots, *published.parquet)
    } == {
        *(f"comparison.{suffix}" for suffix in ("md", "tex", "html", "csv", "json")),
        *(f"curves-validation-loss.{suffix}" for suffix in ("png", "svg", "pdf")),
        *(f"parquet/{name}/study={studied.name}/part-0.parquet" for name in TABLES),
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
    published = write_study(lab.folder, lab.name)
    assert published.plots == []
    assert [row.outcomes for row in published.result.rows] == [{"diverged": 1}] * 2
    assert {path.stem for path in published.tables} == {"comparison"}


def test_curves_of_an_unknown_metric_name_the_known(studied: Any, out: Path) -> None:
    """A typing mistake is no empty figure; a study that has not begun is no error."""
    with pytest.raises(
        AnalysisUnavailable, match=r"'train/los' was not recorded, .*: train/loss, validation/bits_per_byte, vali"
    ):
        write_curves(studied.folder, studied.name, "train/los", out)
    paths, problems = write_curves(studied.folder, studied.name, "train/loss", out)
    assert problems == []
    assert [path.name for path in paths] == [f"curves-train-loss.{suffix}" for suffix in ("png", "svg", "pdf")]
    with pytest.raises(NotFound):
        write_curves(studied.folder, "nothing", "train/loss", out)


def test_a_damaged_export_is_no_other_table(studied: Any, out: Path) -> None:
    """Wherever in the file a bit is flipped, or its end is missing: the same table, or a sentence."""
    export_study(studied.folder, studied.name, out)
    path, expected = parquet._path(out, "runs", studied.name), runs_from_parquet(out, studied.name)
    assert parquet.CHECKSUM_KEY.encode() in pq.ParquetFile(path).metadata.metadata
    content = path.read_bytes()
    damaged = [content[: len(content) // 2], b"", bytes(len(content)), content[:-1]]
    for place in range(0, len(content), len(content) // 300):
        damaged.append(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    refused = 0
    for each in damaged:
        path.write_bytes(each)
        try:
            found = runs_from_parquet(out, studied.name)
        except NotFound as error:
            assert "part-0.parquet" in str(error) and f"gatelab export {studied.name}" in str(error)
            refused += 1
        else:
            assert repr(found.to_pylist()) == repr(expected.to_pylist())
    assert refused > len(damaged) / 2


def test_an_export_of_another_study_is_not_taken_for_it(laboratory: Any, out: Path) -> None:
    """Folders that were exchanged by hand."""
    one, other = laboratory(seeds=1), laboratory(seeds=1)
    for lab in (one, other):
        export_study(lab.folder, lab.name, out)
    parquet._path(out, "runs", other.name).replace(parquet._path(out, "runs", one.name))
    with pytest.raises(NotFound, match="is not as it was written for study"):
        runs_from_parquet(out, one.name)
