"""What a trial records of its metrics is what tables, figures, MLflow and Parquet say of them, whatever their names."""

from typing import Any

import pyarrow.parquet as pq
import pytest

from gatelab.metrics import MetricSpec, find_spec
from gatelab.results.analyses.comparison import compare
from gatelab.results.analyses.curves import read_curves
from gatelab.results.report.parquet import export_study, runs_from_parquet
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.runs import metrics_of, runs_from_journals
from gatelab.results.tracking.client import RunIndex
from gatelab.results.tracking.runs import runs_from_mlflow
from gatelab.results.tracking.sync import Mirror
from gatelab.results.views.comparison import comparison_table
from gatelab.results.views.curves import plot_curves
from gatelab.training.config import TrialConfig
from gatelab.training.metric_specs import trial_metric_specs

FURLONGS = MetricSpec("furlongs", "higher", logarithmic=True, mirrored_by_layer=True)
MADE_UP = {
    "race/distance": FURLONGS,
    "race/lap/*": MetricSpec(kind="detail"),
    "race/pace": MetricSpec("furlongs/fortnight", kind="series"),
    "race/time": MetricSpec("fortnights", "lower", kind="outcome"),
}


@pytest.fixture
def raced(laboratory: Any) -> Any:
    """A study of two variants whose trials measure what results have never heard of; the second one gets farther."""
    lab = laboratory(("none", "sdpa"), seeds=3)
    lab.specs = trial_metric_specs(TrialConfig()) | MADE_UP
    for variant in (0, 1):
        for seed in range(3):
            lab.plant(
                variant,
                seed,
                {
                    step: {
                        None: {"race/distance": (2.0**step + seed) * (1 + variant), "race/lap/1": 1.0}
                        | {"race/pace": 0.5, "validation/loss": 2.0},
                        0: {"race/distance": 1.0, "race/pace": 1.0},
                    }
                    for step in (1, 5, 10)
                },
            )
            values = {"race/distance": (1024.0 + seed) * (1 + variant), "race/time": 3.0, "validation/loss": 2.0}
            lab.end(variant, seed, "finished", 10, metrics=values | {"race/lap/1": 1.0, "race/pace": 0.5})
    return lab


def test_a_table_has_its_unit_and_its_direction(raced: Any) -> None:
    """More furlongs are better, so that the variant that gets farther is, and stands first."""
    found = compare(runs_from_journals(raced.folder, raced.name), "race/distance")
    assert [(row.variant, row.verdict, row.best) for row in found.rows] == [
        ("position=sdpa", "better", True),
        ("position=none", "baseline", False),
    ]
    table = comparison_table(found)
    assert "race/distance [furlongs]" in [column.heading for column in table.columns]
    assert "better or worse" in " ".join(table.notes)


def test_only_what_sums_a_trial_up_is_a_column(raced: Any) -> None:
    """A detail of a figure and a value of each step are none."""
    known = metrics_of(runs_from_journals(raced.folder, raced.name))
    assert [name for name in known if name.startswith("race/")] == ["race/distance", "race/time"]


def test_curves_have_its_unit_and_its_axis(raced: Any) -> None:
    """Both panels have the unit; only values, which differ by more than a factor of ten, are on a logarithmic axis."""
    runs = runs_from_journals(raced.folder, raced.name)
    metrics = read_curves(raced.folder, raced.name, "race/distance", 10)
    variants = {row.variant: row.baseline for row in compare(runs).rows}
    spec = find_spec("race/distance", specs_of(runs))
    top, bottom = plot_curves(metrics, "race/distance", variants, "race", spec).axes
    assert (top.get_ylabel(), bottom.get_ylabel()) == (
        "race/distance [furlongs]",
        "difference\nfrom baseline [furlongs]",
    )
    assert (top.get_yscale(), bottom.get_yscale()) == ("log", "linear")


def test_parquet_says_what_it_is(raced: Any, tmp_path: Any) -> None:
    """Its column of runs has unit, direction and axis; comparisons have the unit and the verdict."""
    paths = {path.parent.parent.name: path for path in export_study(raced.folder, raced.name, tmp_path)}
    said = pq.read_schema(paths["runs"]).field("race/distance").metadata
    assert said == {b"unit": b"furlongs", b"better": b"higher", b"axis": b"logarithmic"}
    rows = [row for row in pq.ParquetFile(paths["comparisons"]).read().to_pylist() if row["metric"] == "race/distance"]
    assert {row["unit"] for row in rows} == {"furlongs"}
    assert {row["variant"]: row["verdict"] for row in rows} == {"position=sdpa": "better", "position=none": "baseline"}


def test_mlflow_gets_what_the_specs_say(raced: Any) -> None:
    """Of layers what is marked; of the whole model all but details, and what only the outcome has."""
    Mirror(raced.folder, raced.record, raced.folder.tracking_uri).sync()
    run = RunIndex.open(raced.folder.tracking_uri, raced.name).runs[raced.id(0, 0)]
    assert {name for name in run.latest if "race/" in name} == {
        "race/distance",
        "race/pace",
        "race/time",
        "layer/00/race/distance",
    }


def test_all_stores_say_the_same(raced: Any, tmp_path: Any) -> None:
    """`runs` from journals, MLflow and Parquet are equal, with what they say of metrics, and so are comparisons."""
    Mirror(raced.folder, raced.record, raced.folder.tracking_uri).sync()
    export_study(raced.folder, raced.name, tmp_path)
    here = runs_from_journals(raced.folder, raced.name)
    for there in (
        runs_from_mlflow(raced.folder.tracking_uri, raced.name),
        runs_from_parquet(tmp_path, raced.name),
    ):
        assert there.equals(here, check_metadata=True)
        assert dict(specs_of(there)) == dict(raced.specs)
        assert repr(compare(there, "race/distance")) == repr(compare(here, "race/distance"))


def test_trials_of_an_older_version_are_as_they_were(laboratory: Any) -> None:
    """In a study of which some trials recorded no specs, all names have what is known of them."""
    lab = laboratory(("none",), seeds=2)
    lab.finish(0, 0)
    lab.specs = MADE_UP
    lab.finish(0, 1)
    specs = specs_of(runs_from_journals(lab.folder, lab.name))
    assert find_spec("race/distance", specs) == FURLONGS
    assert find_spec("validation/loss", specs) == MetricSpec("nats/token", "lower")
    assert find_spec("never/seen", specs) == MetricSpec()
