"""An analysis of a study that is written where people look: in the study's folder and in MLflow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatelab.orchestrator.tracking import add_to_mlflow
from gatelab.results.analyses.noise_ledger import update_ledger
from gatelab.results.report.artifacts import Artifacts, write
from gatelab.results.report.context import read_results
from gatelab.results.store.layout import RunsFolder


@dataclass(frozen=True)
class AnalysisReport:
    """An analysis of a study that was written and added to MLflow."""

    study: str
    written: Artifacts
    tracking_problem: str
    """The problem that kept it from MLflow, or ''."""


def write_analysis(
    kind: str, folder: RunsFolder, study: str, tracking_uri: str | None, target: Path | None = None, **options: Any
) -> AnalysisReport:
    """Write one analysis of a study, its tables and its figures, and add them to MLflow.

    That of evaluations adds to the noise ledger, too: they bring metrics that claims of later studies may be about.

    Args:
        kind: see `gatelab.results.report.artifacts.TABLES`.
        folder: where the study's trials are.
        study: its name.
        tracking_uri: of an MLflow store; None: that of the runs folder, if there is one.
        target: the folder of the files. Default: the study's.
        options: what beside the trials makes the table.

    Raises:
        NotFound: there is no such study.
        AnalysisUnavailable: the study has no such table.
    """
    results = read_results(folder, study)
    written = write(kind, results, target, **options)
    if kind == "evaluation":
        update_ledger(folder, results.runs)
    return AnalysisReport(study, written, add_to_mlflow(folder, study, tracking_uri, written.files))
