"""Everything that is written when a study ends: tables, curves, diagnostics, Parquet, in the study's folder."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from gatelab.results.analyses.claims import NoClaims
from gatelab.results.analyses.comparison import DEFAULT_METRIC, Comparison, compare
from gatelab.results.analyses.curves import NotRecorded, read_curves
from gatelab.results.analyses.diagnostics import NoDiagnostics, read_diagnostics
from gatelab.results.analyses.learning_rates import Tolerance, tolerance_of_record
from gatelab.results.analyses.noise_ledger import remember
from gatelab.results.analyses.stability import read_stability
from gatelab.results.report.artifacts import KINDS, Measured, Trials, read_trials, stability_grids, write_table
from gatelab.results.report.parquet import export_record
from gatelab.results.report.stamp import stamp_of
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.runs import evaluations_frame, runs_from_journals
from gatelab.results.views import evaluation
from gatelab.results.views.claims import claims_grid
from gatelab.results.views.curves import plot_curves
from gatelab.results.views.diagnostics import FIGURES
from gatelab.results.views.effects import effects_grids
from gatelab.results.views.effects_figures import plot_effects, plot_interaction
from gatelab.results.views.learning_rates import plot_by_rate, plot_tolerance, tolerance_grid
from gatelab.results.views.scaling import plot_scaling, scaling_grids
from gatelab.results.views.stability import plot_all
from gatelab.results.views.style import save_figure
from gatelab.results.views.table import Grid


@dataclass(frozen=True)
class Published:
    """What was written."""

    comparison: Comparison
    claims: tuple[Grid, ...]
    """What became of them, if the study makes any."""
    tables: list[Path]
    plots: list[Path]
    parquet: list[Path]


def publish(folder: RunsFolder, study: str) -> Published:
    """Write a study's comparison, curves, diagnostics and Parquet files into its folder. Raises NotFound."""
    trials, target = read_trials(folder, study), folder.study(study).path
    runs = trials.runs
    comparison, tables = _write(trials, "comparison", target / "comparison")
    claims: tuple[Grid, ...] = ()
    with contextlib.suppress(NoClaims):
        written = _write_claims(trials)
        register = folder.study(study).claims
        tables += [*written.tables, *([register] if register.exists() else [])]
        claims = written.grids
    remember(folder, runs)
    plots = []
    with contextlib.suppress(NotRecorded):  # no trial was evaluated, if it was interrupted early
        plots += _draw(folder, comparison, DEFAULT_METRIC, _reached(runs), target)
    with contextlib.suppress(NoDiagnostics):
        found = _diagnose(trials, target)
        tables += found.tables
        plots += found.plots
    parquet = export_record(folder, trials.record, runs, trials.answers, target / "parquet")
    return Published(comparison, claims, tables, plots, parquet)


def _write(trials: Trials, kind: str, stem: Path, **options: Any) -> tuple[Any, list[Path]]:
    """Make a table of a study's trials, as `gatelab report --check` makes it again, and write it in all its forms."""
    content = KINDS[kind].make(trials, options)
    return content, write_table(content, stem, stamp_of(trials.runs, kind, **options))


def _save(figures: Mapping[str, Figure | None], target: Path) -> list[Path]:
    """Write figures, those that there are, under their names."""
    return [path for stem, figure in figures.items() if figure for path in save_figure(figure, target / stem)]


def write_diagnosis(folder: RunsFolder, study: str, target: Path) -> Measured:
    """Compare a study by its diagnostics; write tables and plots. Raises NotFound, NoDiagnostics."""
    return _diagnose(read_trials(folder, study), target)


def _diagnose(trials: Trials, target: Path) -> Measured:
    found, tables = _write(trials, "diagnostics", target / "diagnostics")
    metrics = read_diagnostics(trials.folder, trials.study, _reached(trials.runs))
    figures = {name: draw(metrics, _variants(found.comparisons), trials.study) for name, draw in FIGURES.items()}
    return Measured(found.comparisons, found.grid, tables, _save(figures, target))


def write_evaluation(folder: RunsFolder, study: str) -> Measured:
    """Compare a study by what was asked of its trained models; write tables and plots into its folder.

    Raises NotFound, NotEvaluated.
    """
    trials, target = read_trials(folder, study), folder.study(study).path
    found, tables = _write(trials, "evaluation", target / "evaluation")
    rows = evaluations_frame(trials.record, trials.answers)
    figures = {name: draw(rows, _variants(found.comparisons), study) for name, draw in evaluation.FIGURES.items()}
    return Measured(found.comparisons, found.grid, tables, _save(figures, target))


@dataclass(frozen=True)
class Written:
    """A report for people, and the files that hold it."""

    report: Any
    grids: tuple[Grid, ...]
    tables: list[Path]
    plots: list[Path]


def read_tolerance(folder: RunsFolder, study: str) -> Tolerance:
    """What a learning-rate search found. Raises NotFound, NotSearched."""
    return tolerance_of_record(folder.study(study).read(), runs_from_journals(folder, study))


def write_tolerance(folder: RunsFolder, study: str, target: Path | None = None) -> Written:
    """What a learning-rate search found: tables and plots, into its folder. Raises NotFound, NotSearched."""
    trials, target = read_trials(folder, study), target or folder.study(study).path
    found, tables = _write(trials, "tolerance", target / "tolerance")
    figures = {"tolerance": plot_tolerance(found), "tolerance-measures": plot_by_rate(trials.runs, study)}
    return Written(found, (tolerance_grid(found),), tables, _save(figures, target))


def write_scaling(folder: RunsFolder, study: str, bootstraps: int, target: Path | None = None) -> Written:
    """Laws fitted to a study's ladder: tables and the plot, into its folder. Raises NotFound, NotScalable."""
    target = target or folder.study(study).path
    found, tables = _write(read_trials(folder, study), "scaling", target / "scaling", bootstraps=bootstraps)
    return Written(found, tuple(scaling_grids(found)), tables, _save({"scaling": plot_scaling(found, study)}, target))


def write_effects(folder: RunsFolder, study: str, metric: str = DEFAULT_METRIC, target: Path | None = None) -> Written:
    """What a study's axes do to a metric: tables and plots, into its folder. Raises NotFound, AnalysisUnavailable."""
    name = "effects" if metric == DEFAULT_METRIC else f"effects-{metric.replace('/', '-')}"
    target = target or folder.study(study).path
    found, tables = _write(read_trials(folder, study), "effects", target / name, metric=metric)
    figures = {name: plot_effects(found), f"{name}-interaction": plot_interaction(found)}
    return Written(found, tuple(effects_grids(found)), tables, _save(figures, target))


def write_stability(
    folder: RunsFolder, study: str, target: Path | None = None, variants: Collection[str] = ()
) -> Written:
    """How stable a study's trials were, of some of its variants or of all: tables and plots, into its folder.

    Raises NotFound, NoSteps.
    """
    runs, metrics, found = read_stability(folder, study, variants)
    target = target or folder.study(study).path
    whole = runs_from_journals(folder, study) if variants else runs
    tables = write_table(found, target / "stability", stamp_of(whole, "stability", variants=list(variants)))
    return Written(found, stability_grids(found), tables, _save(plot_all(runs, metrics, found), target))


def write_claims(folder: RunsFolder, study: str) -> Written:
    """What became of a study's claims: tables, into its folder. Raises NotFound, NoClaims, RegisterChanged."""
    return _write_claims(read_trials(folder, study))


def _write_claims(trials: Trials) -> Written:
    found, tables = _write(trials, "claims", trials.folder.study(trials.study).path / "claim-verdicts")
    return Written(found, (claims_grid(found),), tables, [])


def _variants(comparisons: list[Comparison]) -> dict[str, str | None]:
    return {row.variant: row.baseline for row in comparisons[0].rows}


def write_curves(folder: RunsFolder, study: str, metric: str, target: Path) -> list[Path]:
    """Plot a metric of a study over training, as PNG, SVG and PDF; return the paths.

    Raises NotFound, or ValueError naming the metrics that there are.
    """
    runs = runs_from_journals(folder, study)
    return _draw(folder, compare(runs), metric, _reached(runs), target)


def _draw(folder: RunsFolder, comparison: Comparison, metric: str, last: int, target: Path) -> list[Path]:
    metrics = read_curves(folder, comparison.study, metric, last)
    variants = {row.variant: row.baseline for row in comparison.rows}
    figure = plot_curves(metrics, metric, variants, comparison.study)
    return save_figure(figure, target / f"curves-{metric.replace('/', '-')}")


def _reached(runs: pa.Table) -> int:
    """The last step that any trial of a `runs` frame has reached."""
    return int(pc.max(runs["step"]).as_py())
