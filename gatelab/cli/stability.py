"""gatelab stability: how stable training was, and what led to a divergence."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gatelab.cli import arguments as args
from gatelab.cli.console import console, fail, print_grid, reporting_errors
from gatelab.cli.results import Format
from gatelab.results.folders import RunsFolder


def stability(
    study: args.StudyName,
    variant: args.Variants = [],
    format: Annotated[Format, typer.Option("--format", "-f", help="How to write the table.")] = Format.terminal,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder \\[default: the study's].")] = None,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Show how stable training was: spike scores, divergence, what grew, and which layer left its band first.

    Example: gatelab stability quickstart -o figures/
    Example: gatelab stability learning-rates-lr-tolerance --variant "arm=none, learning_rate=1"
    """
    from gatelab.orchestrator.mirroring import add_to_mlflow
    from gatelab.results.publish import STABILITY_FORMATS, write_stability
    from gatelab.results.stability import NoSteps

    folder, name = RunsFolder(runs), args.study_name(study)
    with reporting_errors():
        args.check_variants(folder, name, variant)
        try:
            written = write_stability(folder, name, output, variant)
        except NoSteps as error:
            fail(f"{name}: {error}", error)
    problem = add_to_mlflow(folder, name, tracking_uri, [*written.tables, *written.plots])
    chosen = Format.json if json else format
    if chosen is not Format.terminal:
        sys.stdout.write(STABILITY_FORMATS[chosen.value](written.report))
        return
    for grid in written.grids:
        print_grid(grid)
    for path in [*written.tables, *written.plots]:
        console.print(escape(str(path)))
    if problem:
        console.print(f"[yellow]{escape(problem)}[/]")
