"""gatelab scaling: how loss falls with size and training, for each variant."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from gatelab.ablations.flags import study_from_flags
from gatelab.cli import arguments as args
from gatelab.cli.console import DONE, console, fail, print_grid, reporting_errors, show_written
from gatelab.cli.run import end_politely, exit_code, show_study, watch
from gatelab.results.store.layout import RunsFolder

if TYPE_CHECKING:
    from gatelab.orchestrator.workflow import Reported


def scaling(
    study: args.StudyToRun = None,
    preset: args.Preset = None,
    axis: args.Axes = [],
    set_: args.Sets = [],
    seeds: args.Seeds = None,
    baseline: args.Baseline = [],
    match: args.Match = None,
    name: args.Name = None,
    bootstraps: Annotated[int, typer.Option(min=100, help="Resamples behind the intervals.")] = 4000,
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
    """Fit how loss falls with size and training: exponents, compute-equivalent gain, crossover, with intervals.

    The ladder is made of the axes that set sizes of the model or training.tokens; all others are compared on it.

    Example: gatelab scaling studies/scaling.yaml
    Example: gatelab scaling scaling    (what has been run so far of the study of that name)
    """
    from gatelab.orchestrator.ray_executor import RayExecutor
    from gatelab.orchestrator.study_run import RunOptions
    from gatelab.orchestrator.workflow import report_scaling, run_scaling
    from gatelab.results.analyses.scaling import NotScalable

    end_politely()
    folder = RunsFolder(runs)
    options = RunOptions(tracking_uri, retries, checkpoint_seconds, system_metrics)
    console.quiet = json
    code, named = DONE, study
    with reporting_errors():
        try:
            if study is not None and not args.is_file(study):
                said = {"axis": axis, "set": set_, "seeds": seeds, "baseline": baseline, "match": match, "name": name}
                args.refuse_with_name(study, preset=preset, **said)
                laws: Reported | None = report_scaling(folder, study, bootstraps, tracking_uri)
            else:
                path = None if study is None else Path(study)
                plan = study_from_flags(
                    path, preset=preset, axes=axis, sets=set_, seeds=seeds, baseline=baseline, match=match, name=name
                )
                named = plan.study.name
                result = run_scaling(
                    plan,
                    folder,
                    RayExecutor(address, gpus_per_trial, concurrency),
                    options,
                    bootstraps,
                    watch=watch,
                    report=functools.partial(show_study, folder, tracking_uri),
                )
                laws, code = result.laws, exit_code(result.run)
        except NotScalable as error:
            fail(f"{named}: {error}", error)
    if laws is not None:
        _show(folder, laws, json)
    raise typer.Exit(code)


def _show(folder: RunsFolder, reported: "Reported", json: bool) -> None:
    """Show the laws."""
    if json:
        show_written(reported.written, "json", reported.tracking_problem)
        return
    for grid in reported.written.grids:
        print_grid(grid)
    path = escape(str(folder.study(reported.study).path))
    console.print(f"\ntables   {path}/scaling.md; .tex, .html, .csv, .json")
    console.print(f"plot     {path}/scaling.png; .svg, .pdf")
    if reported.tracking_problem:
        console.print(f"[yellow]{escape(reported.tracking_problem)}[/]")
