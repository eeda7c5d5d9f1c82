"""gatelab lr-tolerance: which learning rates each variant bears."""

import signal
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
    running_on,
    show_written,
)
from gatelab.cli.run import refuse_early, run_chain
from gatelab.results.store.layout import RunsFolder

if TYPE_CHECKING:
    from gatelab.ablations.matrix import Matrix
    from gatelab.orchestrator import driver
    from gatelab.orchestrator.learning_rates import Round, Searched


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
    from gatelab.orchestrator import driver, planning
    from gatelab.orchestrator.learning_rates import window_matrix
    from gatelab.orchestrator.study_manifest import changed_since

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is an interrupt
    folder = RunsFolder(runs)
    options = driver.Options(
        concurrency, gpus_per_trial, address, tracking_uri, retries, checkpoint_seconds, system_metrics
    )
    console.quiet = json
    how = {"rates": _numbers(rates), "extend": extend, "margin": margin, "resolution": resolution}
    with reporting_errors():
        if study is not None and not args.is_file(study):
            said = {"axis": axis, "set": set_, "seeds": seeds, "baseline": baseline, "match": match, "name": name}
            args.refuse_with_name(study, preset=preset, **said, **how)
            _report(folder, study, options, json)
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
        matrix = planning.plan_search(plan, planning.searched(folder))
        if matrix.parent is not None:
            _, code = run_chain(matrix.parent.chain, folder, options)
            if code == INTERRUPTED:
                raise typer.Exit(code)
        first = window_matrix(matrix)
        refuse_early((first,), folder, concurrency)
        for change in changed_since(folder, first):
            console.print(f"[yellow]changed since it was last run[/] {escape(change)}")
        found = _search(matrix, folder, options)
        _report(folder, matrix.plan.study.name, options, json, found.progress.stopping)
    if found.progress.stopping:
        console.print("[yellow]interrupted[/]: the same command goes on from here")
    elif found.unfinished:
        console.print(f"[yellow]not at its end[/]: {escape(found.unfinished)}")
    raise typer.Exit(
        INTERRUPTED if found.progress.stopping else SOME_FAILED if found.progress.count("failed") else DONE
    )


def _numbers(text: str | None) -> list[Any] | None:
    """The numbers of a comma-separated option; what is none stays, for the check of the study to refuse."""

    def number(part: str) -> Any:
        try:
            return float(part)
        except ValueError:
            return part

    return None if text is None else [number(part) for part in text.split(",")]


def _search(matrix: "Matrix", folder: RunsFolder, options: "driver.Options") -> "Searched":
    from gatelab.cli.live import LiveView
    from gatelab.orchestrator.learning_rates import search

    with running_on(options.address), LiveView() as view:
        return search(matrix, folder, options, view, _announce)


def _announce(next_round: "Round") -> None:
    new = sum(map(len, next_round.new.values()))
    counts = f"{plural(new, 'learning rate')} to try, of {next_round.cells} in all"
    console.print(f"[bold]round {next_round.number}[/]: {counts}")
    if next_round.number > 1:
        for variant, rates in next_round.new.items():
            console.print(f"  {escape(variant)}: {', '.join(f'{rate:g}' for rate in rates)}")


def _report(
    folder: RunsFolder, searched: str, options: "driver.Options", json: bool, interrupted: bool = False
) -> None:
    """Write what was found, show it, and add it to MLflow."""
    from gatelab.ablations.learning_rate_grid import SUFFIX
    from gatelab.orchestrator.tracking import add_to_mlflow
    from gatelab.results.analyses.learning_rates import NotSearched
    from gatelab.results.report.write import write_tolerance
    from gatelab.results.views.learning_rates import summary

    study = searched.removesuffix(SUFFIX) + SUFFIX
    try:
        written = write_tolerance(folder, study)
    except NotSearched as error:
        if interrupted:
            console.print(escape(str(error)))
            return
        fail(str(error), error)
    problem = add_to_mlflow(folder, study, options.tracking_uri, [*written.tables, *written.plots])
    if json:
        show_written(written, "json", problem)
        return
    for grid in written.grids:
        print_grid(grid)
    for line in summary(written.report):
        console.print(escape(line))
    path = folder.study(study).path
    console.print(f"\ntables   {escape(str(path))}/tolerance.md; .tex, .html, .csv, .json")
    console.print(f"plots    {escape(str(path))}/tolerance, tolerance-measures; .png, .svg, .pdf")
    console.print(
        f"Optuna   {escape(str(path))}/optuna.log (to look: pip install optuna-dashboard; optuna-dashboard FILE)"
    )
    if problem:
        console.print(f"[yellow]{escape(problem)}[/]")
