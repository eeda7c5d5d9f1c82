"""What commands that show an analysis share: write it, add it to MLflow, show it."""

from pathlib import Path
from typing import Any

from gatelab.cli import arguments as args
from gatelab.cli.console import show_written
from gatelab.results.store.layout import RunsFolder


def show_analysis(
    kind: str,
    folder: RunsFolder,
    study: str,
    tracking_uri: str | None,
    form: args.Format,
    output: Path | None = None,
    **options: Any,
) -> None:
    """Write a kind of table of a study, with its figures, and show it. Raises NotFound, AnalysisUnavailable."""
    from gatelab.orchestrator.reporting import write_analysis

    report = write_analysis(kind, folder, study, tracking_uri, output, **options)
    show_written(report.written, form, report.tracking_problem)
