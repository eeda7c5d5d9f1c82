"""gatelab effects: the effect of each axis of a study, and interactions between axes."""

from typing import Annotated

import typer

from gatelab.cli import arguments as args
from gatelab.cli.analysis import show_analysis
from gatelab.results.store.layout import RunsFolder


def effects(
    study: args.StudyName,
    metric: Annotated[str, typer.Option(help="The summary metric to analyse.")] = "validation/loss",
    format: args.TableFormat = args.Format.terminal,
    output: args.OutputFolder = None,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Show the effect of each axis and their interactions, with F tests, aliases and importance.

    Example: gatelab effects gate-position --metric validation/bits_per_byte -o figures/
    """
    form = args.Format.json if json else format
    folder = RunsFolder(runs)
    show_analysis("effects", folder, args.study_name(study, folder), tracking_uri, form, output, metric=metric)
