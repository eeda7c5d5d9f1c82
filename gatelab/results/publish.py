"""Everything that is written when a study ends: tables, curves, diagnostics, Parquet, in the study's folder."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from gatelab.results import beyond
from gatelab.results.claims import NoClaims, claims_grid
from gatelab.results.comparison import DEFAULT_METRIC, Comparison, compare
from gatelab.results.curves import NotRecorded, plot_curves, read_curves
from gatelab.results.diagnosis import FIGURES, NoDiagnostics, read_diagnostics
from gatelab.results.effects import effects, shared_trunks
from gatelab.results.effects_report import effects_grids, plot_effects, plot_interaction
from gatelab.results.export import export_record
from gatelab.results.figures import save_figure
from gatelab.results.folders import RunsFolder
from gatelab.results.forms import KINDS, Measured, Trials, stability_grids, write_table
from gatelab.results.frames import evaluations_of_record, runs_from_journals, runs_of_record, study_answers
from gatelab.results.noise import remember
from gatelab.results.scaling import scaling_of_record
from gatelab.results.scaling_report import plot_scaling, scaling_grids
from gatelab.results.stability import plot_all, read_stability
from gatelab.results.stamps import stamp_of
from gatelab.results.tables import Grid
from gatelab.results.tolerance import Tolerance, tolerance_of_record
from gatelab.results.tolerance_report import plot_by_rate, plot_tolerance, tolerance_grid


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
    target = folder.study(study).path
    record = folder.study(study).read()
    answers = study_answers(folder, record)
    runs = runs_of_record(folder, record, answers)
    comparison = compare(runs)
    tables = write_table(comparison, target / "comparison", stamp_of(runs, "comparison"))
    claims: tuple[Grid, ...] = ()
    register = folder.study(study).claims
    if record.get("claims") or register.exists():
        written = _write_claims(folder, record, runs)
        tables += [*written.tables, *([register] if register.exists() else [])]
        claims = written.grids
    remember(folder, runs)
    plots = []
    with contextlib.suppress(NotRecorded):  # no trial was evaluated, if it was interrupted early
        plots += _draw(folder, comparison, DEFAULT_METRIC, _reached(runs), target)
    with contextlib.suppress(NoDiagnostics):
        found = _diagnose(folder, runs, target)
        tables += found.tables
        plots += found.plots
    parquet = export_record(folder, record, runs, answers, target / "parquet")
    return Published(comparison, claims, tables, plots, parquet)


def write_diagnosis(folder: RunsFolder, study: str, target: Path) -> Measured:
    """Compare a study by its diagnostics; write tables and plots. Raises NotFound, NoDiagnostics."""
    return _diagnose(folder, runs_from_journals(folder, study), target)


def _diagnose(folder: RunsFolder, runs: pa.Table, target: Path) -> Measured:
    study = runs["study"][0].as_py()
    found: Measured = KINDS["diagnostics"].make(Trials(folder, {"name": study}, runs), {})
    metrics = read_diagnostics(folder, study, _reached(runs))
    figures = {name: draw(metrics, _variants(found.comparisons), study) for name, draw in FIGURES.items()}
    return _write_measured(target / "diagnostics", runs, found, figures)


def write_evaluation(folder: RunsFolder, study: str) -> Measured:
    """Compare a study by what was asked of its trained models; write tables and plots into its folder.

    Raises NotFound, NotEvaluated.
    """
    record = folder.study(study).read()
    answers = study_answers(folder, record)
    runs, rows = runs_of_record(folder, record, answers), evaluations_of_record(record, answers)
    found: Measured = KINDS["evaluation"].make(Trials(folder, record, runs, answers), {})
    figures = {name: draw(rows, _variants(found.comparisons), study) for name, draw in beyond.FIGURES.items()}
    return _write_measured(folder.study(study).path / "evaluation", runs, found, figures)


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
    runs, target = runs_from_journals(folder, study), target or folder.study(study).path
    found = tolerance_of_record(folder.study(study).read(), runs)
    figures = {"tolerance": plot_tolerance(found), "tolerance-measures": plot_by_rate(runs, study)}
    plots = [path for stem, figure in figures.items() if figure for path in save_figure(figure, target / stem)]
    tables = write_table(found, target / "tolerance", stamp_of(runs, "tolerance"))
    return Written(found, (tolerance_grid(found),), tables, plots)


def write_scaling(folder: RunsFolder, study: str, bootstraps: int, target: Path | None = None) -> Written:
    """Laws fitted to a study's ladder: tables and the plot, into its folder. Raises NotFound, NotScalable."""
    record = folder.study(study).read()
    runs = runs_of_record(folder, record)
    report = scaling_of_record(record, runs, bootstraps)
    stem = (target or folder.study(study).path) / "scaling"
    plots = save_figure(plot_scaling(report, study), stem)
    tables = write_table(report, stem, stamp_of(runs, "scaling", bootstraps=bootstraps))
    return Written(report, tuple(scaling_grids(report)), tables, plots)


def write_effects(folder: RunsFolder, study: str, metric: str = DEFAULT_METRIC, target: Path | None = None) -> Written:
    """What a study's axes do to a metric: tables and plots, into its folder. Raises NotFound, NotFactorial."""
    record = folder.study(study).read()
    runs = runs_of_record(folder, record)
    found = effects(runs, metric, shared_trunks(folder, record))
    name = "effects" if metric == DEFAULT_METRIC else f"effects-{metric.replace('/', '-')}"
    target = target or folder.study(study).path
    figures = {name: plot_effects(found), f"{name}-interaction": plot_interaction(found)}
    plots = [path for stem, figure in figures.items() if figure for path in save_figure(figure, target / stem)]
    tables = write_table(found, target / name, stamp_of(runs, "effects", metric=metric))
    return Written(found, tuple(effects_grids(found)), tables, plots)


def write_stability(
    folder: RunsFolder, study: str, target: Path | None = None, variants: Collection[str] = ()
) -> Written:
    """How stable a study's trials were, of some of its variants or of all: tables and plots, into its folder.

    Raises NotFound, NoSteps.
    """
    runs, metrics, found = read_stability(folder, study, variants)
    target = target or folder.study(study).path
    stamp = stamp_of(runs_from_journals(folder, study), "stability", variants=list(variants))
    tables = write_table(found, target / "stability", stamp)
    figures = plot_all(runs, metrics, found)
    plots = [path for stem, figure in figures.items() for path in save_figure(figure, target / stem)]
    return Written(found, stability_grids(found), tables, plots)


def write_claims(folder: RunsFolder, study: str) -> Written:
    """What became of a study's claims: tables, into its folder. Raises NotFound, NoClaims, RegisterChanged."""
    record = folder.study(study).read()
    if not record.get("claims") and not folder.study(study).claims.exists():
        raise NoClaims(f"{study} makes no claims: say them in its file, under claims")
    return _write_claims(folder, record, runs_of_record(folder, record))


def _write_claims(folder: RunsFolder, record: Mapping[str, Any], runs: pa.Table) -> Written:
    found = KINDS["claims"].make(Trials(folder, record, runs), {})
    tables = write_table(found, folder.study(record["name"]).path / "claim-verdicts", stamp_of(runs, "claims"))
    return Written(found, (claims_grid(found),), tables, [])


def _write_measured(stem: Path, runs: pa.Table, found: Measured, figures: Mapping[str, Figure | None]) -> Measured:
    plots = [path for name, figure in figures.items() if figure for path in save_figure(figure, stem.parent / name)]
    return replace(found, tables=write_table(found, stem, stamp_of(runs, stem.name)), plots=plots)


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
