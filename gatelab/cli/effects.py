"""gatelab effects: what each axis of a study does, and which two depend on each other."""

from typing import Annotated

import typer

from gatelab.cli import arguments as args
from gatelab.cli.analysis import show_analysis


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
    form = args.Format.json if json else format
    show_analysis("effects", study, runs, tracking_uri, form, output, metric=metric)
