"""gatelab scaling: scaling laws of each variant."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from gatelab.cli import arguments as args
from gatelab.cli.console import DONE, console, show_written
from gatelab.cli.options import RunFlags, StudyFlags, with_groups
from gatelab.cli.run import end_politely, exit_code, show_study, watch


@with_groups
def scaling(
    *,
    study: args.StudyToRun = None,
    flags: StudyFlags,
    bootstraps: Annotated[int, typer.Option(min=100, help="Bootstrap replicates for the intervals.")] = 4000,
    run: RunFlags,
    json: args.Json = False,
) -> None:
    """Fit scaling laws: exponents, compute-equivalent gain and crossover, with intervals.

    Axes that set model sizes or training.tokens make the ladder. Levels of all other axes are compared on it.

    Example: gatelab scaling studies/scaling.yaml
    Example: gatelab scaling scaling    (fit the trials that this study has so far)
    """
    from gatelab.orchestrator.workflow import report_scaling, run_scaling

    end_politely()
    console.quiet, code = json, DONE
    if study is not None and not args.is_file(study):
        args.refuse_with_name(study, **flags.given)
        laws = report_scaling(run.folder, study, bootstraps, run.tracking_uri)
    else:
        show = functools.partial(show_study, run.folder, run.tracking_uri)
        plan = flags.plan(None if study is None else Path(study))
        result = run_scaling(plan, run.folder, run.executor(), run.options(), bootstraps, watch=watch, report=show)
        code = exit_code(result.run)
        if result.laws is None:
            raise typer.Exit(code)
        laws = result.laws
    show_written(laws.written, args.Format.json if json else args.Format.terminal, laws.tracking_problem)
    raise typer.Exit(code)
