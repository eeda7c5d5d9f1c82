"""What commands that show an analysis share: write it, add it to MLflow, show it."""

from pathlib import Path
from typing import Any

from gatelab.cli import arguments as args
from gatelab.cli.console import reporting_errors, show_written
from gatelab.results.store.layout import RunsFolder


def show_analysis(
    kind: str,
    study: str,
    runs: Path,
    tracking_uri: str | None,
    form: args.Format,
    output: Path | None = None,
    **options: Any,
) -> None:
    """Write a kind of table of a study, with its figures, and show it. Exits where the study has none."""
    from gatelab.orchestrator.reporting import write_analysis

    with reporting_errors():
        report = write_analysis(kind, RunsFolder(runs), args.study_name(study), tracking_uri, output, **options)
    show_written(report.written, form, report.tracking_problem)
