"""Everything that is written when a study ends: table, curves, Parquet, in the study's folder."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gatelab.results.comparison import DEFAULT_METRIC, Comparison, compare
from gatelab.results.curves import plot_curves, save_figure
from gatelab.results.export import export_frames
from gatelab.results.folders import RunsFolder
from gatelab.results.frames import metrics_from_journals, runs_from_journals
from gatelab.results.tables import comparison_csv, comparison_grid, comparison_json, to_latex, to_markdown

FORMATS = {
    "md": lambda comparison: to_markdown(comparison_grid(comparison)),
    "tex": lambda comparison: to_latex(comparison_grid(comparison)),
    "csv": comparison_csv,
    "json": comparison_json,
}


@dataclass(frozen=True)
class Published:
    """What was written."""

    comparison: Comparison
    tables: list[Path]
    plots: list[Path]
    parquet: list[Path]


def publish(folder: RunsFolder, study: str) -> Published:
    """Write a study's comparison, curves and Parquet files into its folder. Raises NotFound."""
    target = folder.study(study).path
    runs, metrics = runs_from_journals(folder, study), metrics_from_journals(folder, study)
    comparison = compare(runs)
    tables = []
    for suffix, render in FORMATS.items():
        path = target / f"comparison.{suffix}"
        path.write_text(render(comparison), encoding="utf-8")
        tables.append(path)
    evaluated = DEFAULT_METRIC in metrics["name"].unique().to_pylist()  # not so if it was interrupted early
    plots = _draw(metrics, comparison, DEFAULT_METRIC, target) if evaluated else []
    return Published(comparison, tables, plots, export_frames(runs, metrics, target / "parquet"))


def write_curves(folder: RunsFolder, study: str, metric: str, target: Path) -> list[Path]:
    """Plot a metric of a study over training, as PNG and SVG; return the paths.

    Raises NotFound, or ValueError naming the metrics that there are.
    """
    metrics = metrics_from_journals(folder, study)
    return _draw(metrics, compare(runs_from_journals(folder, study)), metric, target)


def _draw(metrics: pa.Table, comparison: Comparison, metric: str, target: Path) -> list[Path]:
    variants = {row.variant: row.baseline for row in comparison.rows}
    figure = plot_curves(metrics, metric, variants, comparison.study)
    return save_figure(figure, target / f"curves-{metric.replace('/', '-')}")
