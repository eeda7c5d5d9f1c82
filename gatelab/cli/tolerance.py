"""gatelab lr-tolerance: which learning rates each variant bears."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from gatelab.ablations.flags import study_from_flags
from gatelab.cli import arguments as args
from gatelab.cli.console import (
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    console,
    fail,
    plural,
    print_grid,
    reporting_errors,
    show_written,
)
from gatelab.cli.run import end_politely, show_study, watch
from gatelab.errors import Unavailable
from gatelab.results.store.layout import RunsFolder
from gatelab.status import Status

if TYPE_CHECKING:
    from gatelab.orchestrator.learning_rates import Round
    from gatelab.orchestrator.workflow import Reported


def lr_tolerance(
    study: args.StudyToRun = None,
    preset: args.Preset = None,
    axis: args.Axes = [],
    set_: args.Sets = [],
    seeds: args.Seeds = None,
    baseline: args.Baseline = [],
    match: args.Match = None,
    name: args.Name = None,
    rates: Annotated[
        str | None, typer.Option(help="The window: 1e-3,3e-3,… \\[default: the study's, or 3e-4 to 3e-1].")
    ] = None,
    extend: Annotated[int | None, typer.Option(help="Most rates beyond it on each side \\[default: 3].")] = None,
    margin: Annotated[float | None, typer.Option(help="Tolerated excess of the loss \\[default: 0.02].")] = None,
    resolution: Annotated[float | None, typer.Option(help="Decades to locate within \\[default: 0.15].")] = None,
    runs: args.Runs = args.DEFAULT_RUNS,
    concurrency: args.Concurrency = None,
    gpus_per_trial: args.GpusPerTrial = None,
    address: args.Address = None,
    tracking_uri: args.TrackingUri = None,
    retries: args.Retries = 1,
    checkpoint_seconds: args.CheckpointSeconds = 60.0,
    system_metrics: args.SystemMetrics = False,
    json: args.Json = False,
) -> None:
    """Search the learning rates of each variant: optimum, sensitivity, edges, with intervals over seeds.

    Every variant is trained at each learning rate of a window; then its optimum and the edges of what it tolerates
    are located. The same command again goes on where it was.

    Example: gatelab lr-tolerance studies/learning-rates.yaml
    Example: gatelab lr-tolerance learning-rates    (what has been found so far for the study of that name)
    Example: gatelab lr-tolerance --axis model.gate.position=none,sdpa --seeds 3 --rates 1e-3,1e-2,1e-1
    """
    from gatelab.orchestrator.ray_executor import RayExecutor
    from gatelab.orchestrator.study_run import RunOptions
    from gatelab.orchestrator.workflow import report_learning_rates, search_learning_rates
    from gatelab.results.analyses.learning_rates import NotSearched

    end_politely()
    folder = RunsFolder(runs)
    options = RunOptions(tracking_uri, retries, checkpoint_seconds, system_metrics)
    console.quiet = json
    how = {"rates": _numbers(rates), "extend": extend, "margin": margin, "resolution": resolution}
    with reporting_errors():
        if study is not None and not args.is_file(study):
            said = {"axis": axis, "set": set_, "seeds": seeds, "baseline": baseline, "match": match, "name": name}
            args.refuse_with_name(study, preset=preset, **said, **how)
            try:
                _show(folder, report_learning_rates(folder, study, tracking_uri), json)
            except NotSearched as error:
                fail(str(error), error)
            return
        plan = study_from_flags(
            None if study is None else Path(study),
            preset=preset,
            axes=axis,
            sets=set_,
            seeds=seeds,
            baseline=baseline,
            match=match,
            name=name,
            tolerance={key: value for key, value in how.items() if value is not None},
        )
        try:
            result = search_learning_rates(
                plan,
                folder,
                RayExecutor(address, gpus_per_trial, concurrency),
                options,
                watch=watch,
                report=functools.partial(show_study, folder, tracking_uri),
                announce=_announce,
            )
        except NotSearched as error:
            fail(str(error), error)
    if result.search is None:
        raise typer.Exit(INTERRUPTED)
    if isinstance(result.found, Unavailable):
        console.print(escape(result.found.reason))
    else:
        _show(folder, result.found, json)
    if result.interrupted:
        console.print("[yellow]interrupted[/]: the same command goes on from here")
    elif result.search.unfinished:
        console.print(f"[yellow]not at its end[/]: {escape(result.search.unfinished)}")
    failed = result.search.progress.count(Status.FAILED)
    raise typer.Exit(INTERRUPTED if result.interrupted else SOME_FAILED if failed else DONE)


def _numbers(text: str | None) -> list[Any] | None:
    """The numbers of a comma-separated option; what is none stays, for the check of the study to refuse."""

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


def _show(folder: RunsFolder, reported: "Reported", json: bool) -> None:
    """Show what was found."""
    from gatelab.results.views.learning_rates import summary

    if json:
        show_written(reported.written, "json", reported.tracking_problem)
        return
    for grid in reported.written.grids:
        print_grid(grid)
    for line in summary(reported.written.report):
        console.print(escape(line))
    path = folder.study(reported.study).path
    console.print(f"\ntables   {escape(str(path))}/tolerance.md; .tex, .html, .csv, .json")
    console.print(f"plots    {escape(str(path))}/tolerance, tolerance-measures; .png, .svg, .pdf")
    console.print(
        f"Optuna   {escape(str(path))}/optuna.log (to look: pip install optuna-dashboard; optuna-dashboard FILE)"
    )
    if reported.tracking_problem:
        console.print(f"[yellow]{escape(reported.tracking_problem)}[/]")
