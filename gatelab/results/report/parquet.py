"""Results as Parquet that anything can read, written and read again: see docs/results.md for the columns.

A table is a folder, and in it a folder for each study, `runs/study=NAME/`: many studies lie side by side, and readers
of the whole get a column `study` and skip the others' files.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatelab.atomic import replacing
from gatelab.checksums import content_checksum
from gatelab.errors import AnalysisUnavailable
from gatelab.metrics import Specs, find_spec
from gatelab.results.analyses.comparison import compare
from gatelab.results.analyses.fits import FITS
from gatelab.results.analyses.learning_rates import learning_rates_from_record
from gatelab.results.analyses.scaling import scaling_from_record
from gatelab.results.store.layout import NotFound, RunsFolder
from gatelab.results.store.metric_specs import SPECS_KEY, specs_json, specs_of
from gatelab.results.store.metrics import METRICS, TEXT, each_journal
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import AXIS, evaluations_frame, metrics_of, runs_of_record
from gatelab.results.store.trials import PROVENANCE, EvaluationResults, study_evaluations

SCHEMA_VERSION = 4


TABLES = ("runs", "metrics", "layers", "evaluations", "comparisons", "fits")


PACKAGES = ("gatelab", "torch", "ray", "mlflow", "pyarrow", "numpy")


CHECKSUM_KEY = "gatelab.checksum"
"""Key of the checksum of a table that is written at once, in its file's metadata."""


FILE = "part-0.parquet"
"""The only file of a study in a table."""


ROW_GROUP = 1 << 16
"""Most rows of a row group; no two trials share one."""


VALUES = pa.schema([pa.field(each.name, pa.utf8() if each.type == TEXT else each.type) for each in METRICS])
"""Columns of `layers`, and of `metrics` but for `layer`."""


COMPARISONS = pa.schema(
    [
        *((name, pa.utf8()) for name in ("metric", "unit", "variant", "baseline")),
        *((name, pa.float64()) for name in ("mean", "low", "high")),
        ("n", pa.int64()),
        *((name, pa.float64()) for name in ("delta", "delta_low", "delta_high", "delta_sd")),
        ("pairs", pa.int64()),
        *((name, pa.utf8()) for name in ("verdict", "why")),
        *((name, pa.float64()) for name in ("p_t", "p_sign_flip", "p_sign_flip_smallest", "p_dunnett")),
        ("dunnett_variants", pa.int64()),
        *((name, pa.float64()) for name in ("q_benjamini_hochberg", "margin", "p_equivalence")),
        *((name, pa.float64()) for name in ("detectable", "correlation")),
        *((name, pa.int64()) for name in ("finished", "diverged", "failed", "unfinished")),
        *((name, pa.int64()) for name in ("parameters", "added_parameters")),
        ("tokens_per_second", pa.float64()),
    ]
)
"""Columns of `comparisons`. Axes are columns of `runs` alone, so that this is the same for all studies."""


COLUMNS = {
    "study_hash": ("", "SHA-256 of what was asked"),
    "trial": ("", "id: a hash of the configuration and of the data trained on"),
    "variant": ("", "label"),
    "baseline": ("", "label of the variant to compare with; null: none"),
    "seed": ("", ""),
    "outcome": ("", "finished, diverged, failed, running, interrupted or waiting"),
    "reason": ("", "why it diverged or failed"),
    "step": ("steps", "optimiser steps done"),
    "steps": ("steps", "optimiser steps planned"),
    "parameters": ("parameters", "of the model"),
    "added_parameters": ("parameters", "over the baseline"),
    "flops_per_token": ("FLOPs/token", "to train on a token, forward and backward"),
    "tokens": ("tokens", "to train on"),
    "layer": ("", "the first is 0"),
    "name": ("", "of the metric; its unit is that of docs/results.md"),
    "value": ("", ""),
    "time": ("UTC", "at which it was recorded"),
}
"""Column -> its unit and what it is, as files say it of themselves."""


def export_study(folder: RunsFolder, study: str, target: Path) -> list[Path]:
    """Write a study as Parquet: `runs`, `metrics`, `layers`, `evaluations`, `comparisons`, `fits`; return the paths.

    Takes the place of what an earlier export wrote of this study, file by file, and leaves other studies alone. Each
    file's metadata says which study, code and data its numbers come from. Raises NotFound.
    """
    record = folder.study(study).read()
    answers = study_evaluations(folder, record)
    return export_record(folder, record, runs_of_record(folder, record, answers), answers, target)


def export_record(
    folder: RunsFolder, record: StudyRecord, runs: pa.Table, answers: EvaluationResults, target: Path
) -> list[Path]:
    """Write a study as Parquet, from its record, its `runs` and the answers of its trials. See `export_study`."""
    origin, specs = _provenance(record, runs), specs_of(runs)
    tables = {
        "runs": runs.drop_columns("study"),
        "evaluations": evaluations_frame(record, answers),
        "comparisons": _comparisons(runs),
        "fits": fits(record, runs),
    }
    for name, table in tables.items():
        with _written(target, name, table.schema, origin, specs) as writer:
            written = table.cast(writer.schema)
            said = {key.decode(): value.decode() for key, value in writer.schema.metadata.items()}
            writer.write_table(written)
            writer.add_key_value_metadata({CHECKSUM_KEY: _checksum(written, said)})
    of_model = VALUES.remove(VALUES.get_field_index("layer"))
    with ExitStack() as stack:
        metrics = stack.enter_context(_written(target, "metrics", of_model, origin, specs))
        layers = stack.enter_context(_written(target, "layers", VALUES, origin, specs))
        for rows in map(_sorted, each_journal(folder, record.trials)):
            whole = pc.is_null(rows["layer"])
            _append(metrics, rows.filter(whole).drop_columns("layer"))
            _append(layers, rows.filter(pc.invert(whole)))
    return [_path(target, name, record.name) for name in TABLES]


def _comparisons(runs: pa.Table) -> pa.Table:
    """Return the comparison of a study by each metric that sums up its trials, in `COMPARISONS`."""
    frames = [COMPARISONS.empty_table()]
    for metric in metrics_of(runs):
        found = compare(runs, metric)
        frame = found.frame()
        unit = pa.repeat(pa.scalar(found.spec.unit, pa.utf8()), len(frame))
        frames.append(frame.append_column("unit", unit).select(COMPARISONS.names))
    return pa.concat_tables(frames)


def fits(record: StudyRecord, runs: pa.Table) -> pa.Table:
    """Return what the ladder and the search of a study's record found, of its `runs`; no rows where it has neither."""
    frames = [FITS.empty_table()]
    with contextlib.suppress(AnalysisUnavailable):
        frames.append(scaling_from_record(record, runs).fits())
    with contextlib.suppress(AnalysisUnavailable):
        frames.append(learning_rates_from_record(record, runs).fits())
    return pa.concat_tables(frames)


def runs_from_parquet(target: Path, study: str) -> pa.Table:
    """Read `runs` of a study that was exported into a folder, equal to what was read from journals then. Raises
    NotFound.
    """
    path = _path(target, "runs", study)
    if not path.exists():
        known = sorted(each.parent.name.partition("=")[2] for each in target.glob(f"runs/study=*/{FILE}"))
        hint = f"there are: {', '.join(known)}" if known else f"there is none: gatelab export {study}"
        raise NotFound(f"no Parquet of study {study!r} in {target} ({hint})")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        table = file.read()
        table.validate(full=True)
        said = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
        version = said.get("gatelab.schema", "none")
        whole = said.get(CHECKSUM_KEY) in (None, _checksum(table, said))
    except Exception as error:  # of Arrow, which raises whatever it comes upon in damaged bytes
        raise NotFound(f"{path} is no whole Parquet file: gatelab export {study}") from error
    if version != str(SCHEMA_VERSION):
        raise NotFound(f"{path} has schema version {version}, not {SCHEMA_VERSION}: gatelab export {study}")
    if not whole or said.get("gatelab.study") != study:
        raise NotFound(f"{path} is not as it was written for study {study!r}: gatelab export {study}")
    carried = {SPECS_KEY: said[SPECS_KEY]} if SPECS_KEY in said else None
    plain = pa.schema([each.remove_metadata() for each in table.schema], carried)
    return table.cast(plain).add_column(0, pa.field("study", pa.utf8()), pa.repeat(pa.scalar(study), len(table)))


def _checksum(table: pa.Table, said: Mapping[str, str]) -> str:
    """Return the checksum of a table's columns, their descriptions and what its file says of itself."""
    columns = [[field.name, str(field.type), str(sorted((field.metadata or {}).items()))] for field in table.schema]
    own = {key: value for key, value in said.items() if key.startswith("gatelab.") and key != CHECKSUM_KEY}
    return content_checksum({"columns": columns, "values": list(table.to_pydict().values()), "said": own})


def _path(target: Path, table: str, study: str) -> Path:
    return target / table / f"study={study}" / FILE


@contextmanager
def _written(
    target: Path, table: str, schema: pa.Schema, origin: Mapping[str, str], specs: Specs
) -> Iterator[pq.ParquetWriter]:
    """Write a table of a study to a temporary file, and put it in place of the old one once it is whole."""
    with (
        replacing(_path(target, table, origin["gatelab.study"])) as path,
        pq.ParquetWriter(
            path,
            _described(schema, specs).with_metadata({**origin, SPECS_KEY: specs_json(specs), "gatelab.table": table}),
            compression="zstd",
            use_dictionary=[each.name for each in schema if each.type == pa.utf8()],
            column_encoding={name: "DELTA_BINARY_PACKED" for name in ("step", "time") if name in schema.names},
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
    ):
        yield writer


def _described(schema: pa.Schema, specs: Specs) -> pa.Schema:
    """Return a schema whose columns say what they are, in which unit, which way is better, and their axis."""
    fields = []
    for field in schema:
        spec = find_spec(field.name, specs)
        unit, text = COLUMNS.get(field.name, (spec.unit, ""))
        if field.name.startswith(AXIS):
            text = "its level; null: makes no difference to this variant"
        elif field.name in PROVENANCE:
            text = "provenance; what attempts differ in is joined by 'then'"
        axis = "logarithmic" if spec.logarithmic else ""
        said = {"unit": unit, "better": spec.better, "axis": axis, "description": text}
        fields.append(field.with_metadata({key: value for key, value in said.items() if value}))
    return pa.schema(fields)


def _sorted(rows: pa.Table) -> pa.Table:
    """Sort a trial's values by name and layer, steps ascending, so that what is read together lies together."""
    if not len(rows):
        return rows
    names = rows["name"].combine_chunks()
    order = np.argsort(np.argsort(np.array(names.dictionary.to_pylist())))
    layers = pc.fill_null(rows["layer"], -1).to_numpy()
    return rows.take(np.argsort(order[names.indices.to_numpy()] * (1 << 16) + layers, kind="stable"))


def _append(writer: pq.ParquetWriter, rows: pa.Table) -> None:
    """Add a trial's values, texts written out."""
    if not len(rows):
        return
    columns = []
    for column in rows.columns:
        if column.type == TEXT:
            texts = column.combine_chunks()
            column = texts.dictionary.take(texts.indices)  # many times as fast as to decode it
        columns.append(column)
    writer.write_table(pa.table(columns, writer.schema), row_group_size=ROW_GROUP)


def _provenance(record: StudyRecord, runs: pa.Table) -> dict[str, str]:
    def all_of(column: str) -> str:
        return json.dumps(sorted({value for value in runs[column].to_pylist() if value is not None}))

    return {
        "gatelab.schema": str(SCHEMA_VERSION),
        "gatelab.study": record.name,
        "gatelab.study_hash": record.hash,
        "gatelab.code": all_of("code"),
        "gatelab.data": all_of("data"),
        "gatelab.packages": json.dumps(_versions()),
    }


def _versions() -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
