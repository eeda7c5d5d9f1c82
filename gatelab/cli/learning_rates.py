"""gatelab lr-tolerance: search each variant's learning rates."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from gatelab.cli import arguments as args
from gatelab.cli.console import (
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    console,
    plural,
    show_written,
)
from gatelab.cli.options import RunFlags, StudyFlags, with_groups
from gatelab.cli.run import end_politely, show_study, watch
from gatelab.errors import Unavailable
from gatelab.status import Status

if TYPE_CHECKING:
    from gatelab.orchestrator.learning_rates import Round
    from gatelab.orchestrator.reporting import AnalysisReport


@with_groups
def lr_tolerance(
    *,
    study: args.StudyToRun = None,
    flags: StudyFlags,
    rates: Annotated[
        str | None, typer.Option(help="Window of rates: 1e-3,3e-3,… \\[default: the study's, or 3e-4 to 3e-1].")
    ] = None,
    extend: Annotated[int | None, typer.Option(help="Most rates beyond the window, each side \\[default: 3].")] = None,
    margin: Annotated[float | None, typer.Option(help="Tolerated share of extra loss \\[default: 0.02].")] = None,
    resolution: Annotated[float | None, typer.Option(help="Precision in decades \\[default: 0.15].")] = None,
    run: RunFlags,
    json: args.Json = False,
) -> None:
    """Search the learning rates of each variant: optimum, sensitivity, edges, with intervals over seeds.

    Train every variant at each learning rate of a window, then locate its optimum and the edges of what it
    tolerates. Run the command again to resume.

    Example: gatelab lr-tolerance studies/learning-rates.yaml
    Example: gatelab lr-tolerance learning-rates    (show what the search of this study has so far)
    Example: gatelab lr-tolerance --axis model.gate.position=none,sdpa --seeds 3 --rates 1e-3,1e-2,1e-1
    """
    from gatelab.orchestrator.workflow import report_learning_rates, search_learning_rates

    end_politely()
    console.quiet = json
    how = {"rates": _numbers(rates), "extend": extend, "margin": margin, "resolution": resolution}
    if study is not None and not args.is_file(study):
        args.refuse_with_name(study, **flags.given, **how)
        _show(report_learning_rates(run.folder, study, run.tracking_uri), run, json)
        return
    tolerance = {key: value for key, value in how.items() if value is not None}
    plan = flags.plan(None if study is None else Path(study), tolerance)
    show = functools.partial(show_study, run.folder, run.tracking_uri)
    result = search_learning_rates(
        plan, run.folder, run.executor(), run.options(), watch=watch, report=show, announce=_announce
    )
    if result.search is None:
        raise typer.Exit(INTERRUPTED)
    if isinstance(result.found, Unavailable):
        console.print(escape(result.found.reason))
    else:
        _show(result.found, run, json)
    if result.interrupted:
        console.print("[yellow]interrupted[/]: the same command goes on from here")
    elif result.search.unfinished:
        console.print(f"[yellow]not at its end[/]: {escape(result.search.unfinished)}")
    failed = result.search.progress.count(Status.FAILED)
    raise typer.Exit(INTERRUPTED if result.interrupted else SOME_FAILED if failed else DONE)


def _numbers(text: str | None) -> list[Any] | None:
    """Parse the numbers of a comma-separated option; leave other text, which the study's check refuses."""

    def number(part: str) -> Any:
        try:
            return float(part)
        except ValueError:
            return part

    return None if text is None else [number(part) for part in text.split(",")]


def _announce(next_round: "Round") -> None:
    new = sum(map(len, next_round.new.values()))
    counts = f"{plural(new, 'learning rate')} to try, of {next_round.cells} in all"
    console.print(f"[bold]round {next_round.number}[/]: {counts}")
    if next_round.number > 1:
        for variant, rates in next_round.new.items():
            console.print(f"  {escape(variant)}: {', '.join(f'{rate:g}' for rate in rates)}")


def _show(report: "AnalysisReport", run: RunFlags, json: bool) -> None:
    """Show the results of a search, and the path of Optuna's account of it."""
    from gatelab.results.views.learning_rates import sentences

    show_written(report.written, args.Format.json if json else args.Format.terminal, report.tracking_problem)
    for line in sentences(report.written.result):
        console.print(escape(line))
    path = escape(str(run.folder.study(report.study).path))
    console.print(f"Optuna   {path}/optuna.log (to look: pip install optuna-dashboard; optuna-dashboard FILE)")
