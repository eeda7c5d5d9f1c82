"""gatelab scaling: how loss falls with size and training, for each variant."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.ladder import ladder
from gatelab.ablations.study import SIZES
from gatelab.cli import arguments as args
from gatelab.cli.console import DONE, INTERRUPTED, console, fail, print_grid, reporting_errors, show_written
from gatelab.cli.run import run_chain
from gatelab.results.store.layout import RunsFolder

if TYPE_CHECKING:
    from gatelab.orchestrator import driver


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
    from gatelab.orchestrator import driver, planning

    folder = RunsFolder(runs)
    options = driver.Options(
        concurrency, gpus_per_trial, address, tracking_uri, retries, checkpoint_seconds, system_metrics
    )
    console.quiet = json
    code = DONE
    with reporting_errors():
        if study is not None and not args.is_file(study):
            said = {"axis": axis, "set": set_, "seeds": seeds, "baseline": baseline, "match": match, "name": name}
            args.refuse_with_name(study, preset=preset, **said)
            named = study
        else:
            path = None if study is None else Path(study)
            plan = study_from_flags(
                path, preset=preset, axes=axis, sets=set_, seeds=seeds, baseline=baseline, match=match, name=name
            )
            named = plan.study.name
            if not ladder(plan):
                message = f"none makes a ladder, as one would that sets {', '.join(sorted(SIZES))} and is not compared"
                raise plan.error(plan.source.problem(("axes",), message))
            _, code = run_chain(planning.plan_study(plan, planning.searched(folder)).chain, folder, options)
        if code != INTERRUPTED:
            _report(folder, named, bootstraps, options, json)
    raise typer.Exit(code)


def _report(folder: RunsFolder, study: str, bootstraps: int, options: "driver.Options", json: bool) -> None:
    from gatelab.orchestrator.tracking import add_to_mlflow
    from gatelab.results.analyses.scaling import NotScalable
    from gatelab.results.report.write import write_scaling

    try:
        written = write_scaling(folder, study, bootstraps)
    except NotScalable as error:
        fail(f"{study}: {error}", error)
    problem = add_to_mlflow(folder, study, options.tracking_uri, [*written.tables, *written.plots])
    if json:
        show_written(written, "json", problem)
        return
    for grid in written.grids:
        print_grid(grid)
    path = escape(str(folder.study(study).path))
    console.print(f"\ntables   {path}/scaling.md; .tex, .html, .csv, .json")
    console.print(f"plot     {path}/scaling.png; .svg, .pdf")
    if problem:
        console.print(f"[yellow]{escape(problem)}[/]")
