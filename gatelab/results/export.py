"""Results as Parquet files that anything can read: see docs/results.md for the columns."""

import json
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatelab.results.folders import RunsFolder
from gatelab.results.frames import evaluation_rows, metrics_from_journals, runs_from_journals

SCHEMA_VERSION = 3
PACKAGES = ("gatelab", "torch", "ray", "mlflow", "pyarrow", "numpy")


def export_study(folder: RunsFolder, study: str, target: Path) -> list[Path]:
    """Write `runs`, `metrics`, `layers` and `evaluations` of a study as Parquet; return the paths. Raises NotFound.

    Each file's metadata says which study, code and data its numbers come from.
    """
    runs, metrics = runs_from_journals(folder, study), metrics_from_journals(folder, study)
    return export_frames(runs, metrics, evaluation_rows(folder, study), target)


def export_frames(runs: pa.Table, metrics: pa.Table, evaluations: pa.Table, target: Path) -> list[Path]:
    """Write a study's `runs`, all its values in long form and what was asked of its models. See `export_study`."""
    of_model = pc.is_null(metrics["layer"])
    frames = {
        "runs": runs,
        "metrics": metrics.filter(of_model).drop_columns("layer"),
        "layers": metrics.filter(pc.invert(of_model)),
        "evaluations": evaluations,
    }
    provenance = _provenance(runs)
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, frame in frames.items():
        path = target / f"{name}.parquet"
        temporary = path.with_suffix(".tmp")
        pq.write_table(
            frame.replace_schema_metadata(provenance | {"gatelab.table": name}), temporary, compression="zstd"
        )
        temporary.replace(path)
        paths.append(path)
    return paths


def _provenance(runs: pa.Table) -> dict[str, str]:
    def all_of(column: str) -> str:
        return json.dumps(sorted({value for value in runs[column].to_pylist() if value is not None}))

    return {
        "gatelab.schema": str(SCHEMA_VERSION),
        "gatelab.study": runs["study"][0].as_py(),
        "gatelab.study_hash": runs["study_hash"][0].as_py(),
        "gatelab.code": all_of("code"),
        "gatelab.data": all_of("data"),
        "gatelab.packages": json.dumps({name: metadata.version(name) for name in PACKAGES}),
    }
