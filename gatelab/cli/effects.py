"""gatelab effects: what each axis of a study does, and which two depend on each other."""

from typing import Annotated

import typer

from gatelab.cli import arguments as args
from gatelab.cli.console import fail, reporting_errors, show_written
from gatelab.results.store.layout import RunsFolder


def effects(
    study: args.StudyName,
    metric: Annotated[str, typer.Option(help="The summary metric that axes have an effect on.")] = "validation/loss",
    format: args.TableFormat = args.Format.terminal,
    output: args.OutputFolder = None,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Show what each axis does and which depend on each other: effects, interactions, F tests, aliases, importance.

    Example: gatelab effects gate-position --metric validation/bits_per_byte -o figures/
    """
    from gatelab.errors import AnalysisUnavailable
    from gatelab.orchestrator.tracking import add_to_mlflow
    from gatelab.results.report.write import write_effects

    folder, name = RunsFolder(runs), args.study_name(study)
    with reporting_errors():
        try:
            written = write_effects(folder, name, metric, output)
        except AnalysisUnavailable as error:
            fail(f"{name}: {error}", error)
    problem = add_to_mlflow(folder, name, tracking_uri, [*written.tables, *written.plots])
    show_written(written, args.Format.json if json else format, problem)
