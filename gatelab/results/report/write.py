"""Everything that is written when a study ends: tables, curves, diagnostics, Parquet, in the study's folder."""

import contextlib
from dataclasses import replace
from pathlib import Path

from gatelab.errors import AnalysisUnavailable
from gatelab.metrics import find_spec
from gatelab.results.analyses.comparison import DEFAULT_METRIC, compare
from gatelab.results.analyses.curves import read_curves
from gatelab.results.analyses.noise_ledger import update_ledger
from gatelab.results.report.artifacts import Artifacts, write
from gatelab.results.report.context import StudyResults, read_results
from gatelab.results.report.parquet import export_record
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.views.curves import plot_curves
from gatelab.results.views.style import draw, save_files
from gatelab.text import file_stem


def write_study(folder: RunsFolder, study: str) -> Artifacts:
    """Write a study's comparison, claims, curves, diagnostics and Parquet files into its folder.

    The result is its comparison; what is shown, that and its claims. Raises NotFound.
    """
    results, files = read_results(folder, study), folder.study(study)
    written = write("comparison", results)
    with contextlib.suppress(AnalysisUnavailable):
        claims = write("claims", results)
        written = _joined(written, replace(claims, tables=[*claims.tables, *filter(Path.exists, [files.claims])]))
    update_ledger(folder, results.runs)
    with contextlib.suppress(AnalysisUnavailable):  # no trial was evaluated, if it was interrupted early
        plots, problems = _draw_curves(results, DEFAULT_METRIC, files.path)
        written = replace(written, plots=[*written.plots, *plots], problems=[*written.problems, *problems])
    with contextlib.suppress(AnalysisUnavailable):
        written = _joined(written, replace(write("diagnostics", results), shown=[]))
    return replace(
        written, parquet=export_record(folder, results.record, results.runs, results.answers, files.path / "parquet")
    )


def _joined(first: Artifacts, second: Artifacts) -> Artifacts:
    return replace(
        first,
        shown=[*first.shown, *second.shown],
        tables=[*first.tables, *second.tables],
        plots=[*first.plots, *second.plots],
        problems=[*first.problems, *second.problems],
    )


def write_curves(folder: RunsFolder, study: str, metric: str, target: Path) -> tuple[list[Path], list[str]]:
    """Plot a metric of a study over training, as PNG, SVG and PDF; return the paths, and what could not be drawn.

    Raises NotFound, or AnalysisUnavailable naming the metrics that there are.
    """
    return _draw_curves(read_results(folder, study), metric, target)


def _draw_curves(results: StudyResults, metric: str, target: Path) -> tuple[list[Path], list[str]]:
    metrics = read_curves(results.folder, results.study, metric, results.last_step)
    variants = {row.variant: row.baseline for row in compare(results.runs).rows}
    spec, name = find_spec(metric, specs_of(results.runs)), f"curves-{file_stem(metric)}"
    drawn, problems = draw(lambda: {name: plot_curves(metrics, metric, variants, results.study, spec)}, "curves")
    return [path for drawing in drawn.values() for path in save_files(drawing.files, target / name)], problems
