"""Everything that is written when a study ends: tables, curves, diagnostics, Parquet, in the study's folder."""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from gatelab.results import beyond
from gatelab.results.autopsies import autopsies_grid
from gatelab.results.comparison import DEFAULT_METRIC, Comparison, compare
from gatelab.results.curves import plot_curves
from gatelab.results.diagnosis import FIGURES, NoDiagnostics, diagnosis, diagnosis_grid
from gatelab.results.export import export_frames
from gatelab.results.figures import save_figure
from gatelab.results.folders import RunsFolder
from gatelab.results.frames import evaluation_rows, metrics_from_journals, runs_from_journals, runs_of_record
from gatelab.results.scaling import Scaling, scaling
from gatelab.results.scaling_report import plot_scaling, scaling_csv, scaling_dict, scaling_grids
from gatelab.results.stability import (
    Stability,
    plot_all,
    settings_of,
    stability,
    stability_csv,
    stability_dict,
    stability_grid,
)
from gatelab.results.tables import (
    Grid,
    comparison_csv,
    comparison_dict,
    comparison_grid,
    comparison_json,
    measures_grid,
    to_latex,
    to_markdown,
)
from gatelab.results.tolerance import Tolerance, tolerance
from gatelab.results.tolerance_report import plot_by_rate, plot_tolerance, tolerance_csv, tolerance_grid, tolerance_json

FORMATS: dict[str, Callable[[Comparison], str]] = {
    "md": lambda comparison: to_markdown(comparison_grid(comparison)),
    "tex": lambda comparison: to_latex(comparison_grid(comparison)),
    "csv": comparison_csv,
    "json": comparison_json,
}


@dataclass(frozen=True)
class Measured:
    """A study compared by several measures: each comparison, all of them for people, and the files that show them."""

    comparisons: list[Comparison]
    grid: Grid
    tables: list[Path] = field(default_factory=list)
    plots: list[Path] = field(default_factory=list)


MEASURED_FORMATS: dict[str, Callable[[Measured], str]] = {
    "md": lambda found: to_markdown(found.grid),
    "tex": lambda found: to_latex(found.grid),
    "csv": lambda found: comparison_csv(*found.comparisons),
    "json": lambda found: json.dumps([comparison_dict(comparison) for comparison in found.comparisons], indent=1),
}


TOLERANCE_FORMATS: dict[str, Callable[[Tolerance], str]] = {
    "md": lambda found: to_markdown(tolerance_grid(found)),
    "tex": lambda found: to_latex(tolerance_grid(found)),
    "csv": tolerance_csv,
    "json": tolerance_json,
}

STABILITY_FORMATS: dict[str, Callable[[Stability], str]] = {
    "md": lambda found: "\n".join(map(to_markdown, _stability_grids(found))),
    "tex": lambda found: "\n".join(map(to_latex, _stability_grids(found))),
    "csv": stability_csv,
    "json": lambda found: json.dumps(stability_dict(found), indent=1),
}

SCALING_FORMATS: dict[str, Callable[[Scaling], str]] = {
    "md": lambda report: "\n".join(map(to_markdown, scaling_grids(report))),
    "tex": lambda report: "\n".join(map(to_latex, scaling_grids(report))),
    "csv": scaling_csv,
    "json": lambda report: json.dumps(scaling_dict(report), indent=1),
}


@dataclass(frozen=True)
class Published:
    """What was written."""

    comparison: Comparison
    tables: list[Path]
    plots: list[Path]
    parquet: list[Path]


def publish(folder: RunsFolder, study: str) -> Published:
    """Write a study's comparison, curves, diagnostics and Parquet files into its folder. Raises NotFound."""
    target = folder.study(study).path
    runs, metrics = runs_from_journals(folder, study), metrics_from_journals(folder, study)
    comparison = compare(runs)
    tables = _write(target / "comparison", comparison, FORMATS)
    evaluated = DEFAULT_METRIC in metrics["name"].unique().to_pylist()  # not so if it was interrupted early
    plots = _draw(metrics, comparison, DEFAULT_METRIC, target) if evaluated else []
    with contextlib.suppress(NoDiagnostics):
        found = _diagnose(runs, metrics, target)
        tables += found.tables
        plots += found.plots
    parquet = export_frames(runs, metrics, evaluation_rows(folder, study), target / "parquet")
    return Published(comparison, tables, plots, parquet)


def write_diagnosis(folder: RunsFolder, study: str, target: Path) -> Measured:
    """Compare a study by its diagnostics; write tables, and plots as PNG and SVG. Raises NotFound, NoDiagnostics."""
    return _diagnose(runs_from_journals(folder, study), metrics_from_journals(folder, study), target)


def _diagnose(runs: pa.Table, metrics: pa.Table, target: Path) -> Measured:
    comparisons = diagnosis(runs)
    figures = {name: draw(metrics, _variants(comparisons), comparisons[0].study) for name, draw in FIGURES.items()}
    return _write_measured(target, "diagnostics", Measured(comparisons, diagnosis_grid(comparisons, runs)), figures)


def write_evaluation(folder: RunsFolder, study: str) -> Measured:
    """Compare a study by what was asked of its trained models; write tables and plots into its folder.

    Raises NotFound, NotEvaluated.
    """
    comparisons = beyond.beyond(runs_from_journals(folder, study))
    rows = evaluation_rows(folder, study)
    figures = {name: draw(rows, _variants(comparisons), study) for name, draw in beyond.FIGURES.items()}
    found = Measured(comparisons, measures_grid("evaluation", comparisons, beyond.answer_notes(folder, study)))
    return _write_measured(folder.study(study).path, "evaluation", found, figures)


@dataclass(frozen=True)
class Written:
    """A report for people, and the files that hold it."""

    report: Any
    grids: tuple[Grid, ...]
    tables: list[Path]
    plots: list[Path]


def read_tolerance(folder: RunsFolder, study: str) -> Tolerance:
    """What a learning-rate search found. Raises NotFound, NotSearched."""
    return _tolerance(folder.study(study).read(), runs_from_journals(folder, study))


def _tolerance(record: Mapping[str, Any], runs: pa.Table) -> Tolerance:
    rules = record["tolerance"]
    return tolerance(runs, rules["lattice"], rules["rates"], rules["margin"])


def write_tolerance(folder: RunsFolder, study: str, target: Path | None = None) -> Written:
    """What a learning-rate search found: tables and plots, into its folder. Raises NotFound, NotSearched."""
    runs, target = runs_from_journals(folder, study), target or folder.study(study).path
    found = _tolerance(folder.study(study).read(), runs)
    figures = {"tolerance": plot_tolerance(found), "tolerance-measures": plot_by_rate(runs, study)}
    plots = [path for stem, figure in figures.items() if figure for path in save_figure(figure, target / stem)]
    return Written(found, (tolerance_grid(found),), _write(target / "tolerance", found, TOLERANCE_FORMATS), plots)


def write_scaling(folder: RunsFolder, study: str, bootstraps: int, target: Path | None = None) -> Written:
    """Laws fitted to a study's ladder: tables and the plot, into its folder. Raises NotFound, NotScalable."""
    record = folder.study(study).read()
    report = scaling(runs_of_record(folder, record), record.get("ladder", []), bootstraps=bootstraps)
    report = replace(report, notes=(*report.notes, _learning_rates(record)))
    stem = (target or folder.study(study).path) / "scaling"
    plots = save_figure(plot_scaling(report, study), stem)
    return Written(report, tuple(scaling_grids(report)), _write(stem, report, SCALING_FORMATS), plots)


def write_stability(
    folder: RunsFolder, study: str, target: Path | None = None, variants: Collection[str] = ()
) -> Written:
    """How stable a study's trials were, of some of its variants or of all: tables and plots, into its folder.

    Raises NotFound, NoSteps.
    """
    runs, metrics = runs_from_journals(folder, study), metrics_from_journals(folder, study)
    if variants:
        wanted = pa.array(variants)
        runs, metrics = (each.filter(pc.is_in(each["variant"], wanted)) for each in (runs, metrics))
    found = stability(runs, metrics, settings_of(folder, study))
    target = target or folder.study(study).path
    tables = _write(target / "stability", found, STABILITY_FORMATS)
    figures = plot_all(runs, metrics, found)
    plots = [path for stem, figure in figures.items() for path in save_figure(figure, target / stem)]
    return Written(found, _stability_grids(found), tables, plots)


def _stability_grids(found: Stability) -> tuple[Grid, ...]:
    autopsies = [autopsies_grid(found.study, found.autopsies)] if found.autopsies else []
    return (stability_grid(found), *autopsies)


def _learning_rates(record: Mapping[str, Any]) -> str:
    """At which learning rates a study's sizes were trained, and why at these."""
    axis = record["ladder"][0]
    levels: dict[float, set[str]] = {}
    for variant in record["variants"].values():
        levels.setdefault(variant["learning_rate"], set()).add(variant["levels"].get(axis, "–"))
    rules = {"given": "as given", "search": "each the optimum of a search"}
    each = "; ".join(f"{rate:g} ({', '.join(sorted(of))})" for rate, of in levels.items())
    return f"Learning rates, {rules.get(record['learning_rate'], record['learning_rate'])}: {each}."


def _write_measured(target: Path, name: str, found: Measured, figures: Mapping[str, Figure | None]) -> Measured:
    plots = [path for stem, figure in figures.items() if figure for path in save_figure(figure, target / stem)]
    return replace(found, tables=_write(target / name, found, MEASURED_FORMATS), plots=plots)


def _variants(comparisons: list[Comparison]) -> dict[str, str | None]:
    return {row.variant: row.baseline for row in comparisons[0].rows}


def _write(stem: Path, content: Any, formats: Mapping[str, Callable[[Any], str]]) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, render in formats.items():
        path = stem.with_suffix(f".{suffix}")
        path.write_text(render(content), encoding="utf-8")
        paths.append(path)
    return paths


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
