"""gatelab run and gatelab train: carrying trials out."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.matrix import Matrix, Trial
from gatelab.cli import arguments as args
from gatelab.cli.console import (
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    console,
    fail,
    plural,
    print_grid,
    print_json,
    reporting_errors,
    running_on,
)
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.trials import is_over

if TYPE_CHECKING:
    from gatelab.orchestrator import driver
    from gatelab.results.report import write


def run(
    study: args.StudyFile = None,
    preset: args.Preset = None,
    axis: args.Axes = [],
    set_: args.Sets = [],
    seeds: args.Seeds = None,
    baseline: args.Baseline = [],
    match: args.Match = None,
    name: args.Name = None,
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
    """Run a study: what is finished is kept, what was interrupted goes on, what is new runs.

    Example: gatelab run studies/quickstart.yaml
    Example: gatelab run --axis model.gate.position=none,value,sdpa --seeds 3 --set training.tokens=2M
    """
    from gatelab.orchestrator import driver, planning

    folder = RunsFolder(runs)
    options = driver.Options(
        concurrency, gpus_per_trial, address, tracking_uri, retries, checkpoint_seconds, system_metrics
    )
    console.quiet = json
    with reporting_errors():
        plan = study_from_flags(
            study, preset=preset, axes=axis, sets=set_, seeds=seeds, baseline=baseline, match=match, name=name
        )
        report, code = run_chain(planning.plan_study(plan, planning.searched(folder)).chain, folder, options)
    if json:
        print_json(report)
    raise typer.Exit(code)


def run_chain(chain: tuple[Matrix, ...], folder: RunsFolder, options: "driver.Options") -> tuple[dict[str, Any], int]:
    """Run studies, each of which continues the one before; return what a program reads of them, and the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is an interrupt
    refuse_early(chain, folder, options.concurrency)
    report: dict[str, Any] = {}
    for matrix in chain:
        if len(chain) > 1:
            console.print(f"[bold]{escape(matrix.plan.study.name)}[/]")
        progress, published = _run_matrix(matrix, folder, options)
        # What a study continues is reported within it.
        report = _report(progress, matrix.plan.study.name, published) | ({"continues": report} if report else {})
        if progress.stopping:
            return report, INTERRUPTED
    return report, SOME_FAILED if _failed(report) else DONE


def refuse_early(chain: tuple[Matrix, ...], folder: RunsFolder, concurrency: int | None) -> None:
    """What a study lacks must show before those that it continues are run, not after."""
    from gatelab.orchestrator import planning

    for matrix in chain:
        if matrix.plan.study.budget.hours is not None:
            planning.estimate(matrix, folder, concurrency)  # refuses what exceeds the budget
    for matrix in chain if len(chain) > 1 else ():
        planning.check_data(matrix, folder)


def _run_matrix(
    matrix: Matrix, folder: RunsFolder, options: "driver.Options"
) -> "tuple[driver.Progress, write.Published]":
    """Run one study, publish what came out and show it."""
    from gatelab.cli.live import LiveView
    from gatelab.orchestrator import driver
    from gatelab.orchestrator.study_manifest import changed_since
    from gatelab.orchestrator.tracking import add_to_mlflow
    from gatelab.results.report import write
    from gatelab.results.views.comparison import comparison_grid

    name = matrix.plan.study.name
    for change in changed_since(folder, matrix):
        console.print(f"[yellow]changed since it was last run[/] {escape(change)}")
    for note in matrix.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    done = sum(is_over(folder.trial(trial.id)) for trial in matrix.trials)
    if done:
        console.print(f"{done} of {plural(len(matrix.trials), 'trial')} done already")
    with running_on(options.address), LiveView() as view:
        progress = driver.run_study(matrix, folder, options, view)
    published = write.publish(folder, name)
    if not progress.mirror_problem:
        files = [*published.tables, *published.plots]
        verdicts = {row.variant: row.verdict for row in published.comparison.rows}
        progress.mirror_problem = add_to_mlflow(folder, name, options.tracking_uri, files, verdicts)
    for grid in (comparison_grid(published.comparison), *published.claims):
        print_grid(grid)
    _where(folder, name, published.plots, options.tracking_uri)
    if progress.mirror_problem:
        console.print(f"[yellow]{escape(progress.mirror_problem)}[/]; run again to catch up")
    if progress.stopping:
        console.print("[yellow]interrupted[/]: the same command goes on from here")
    return progress, published


def _report(progress: "driver.Progress", study: str, published: "write.Published") -> dict[str, Any]:
    """What a program reads of a study that was run."""
    counts = {state: progress.count(state) for state in ("finished", "diverged", "failed", "waiting")}
    paths = {kind: [str(path) for path in getattr(published, kind)] for kind in ("tables", "plots", "parquet")}
    return {"study": study, **counts, "mirror_problem": progress.mirror_problem, **paths}


def _failed(report: Mapping[str, Any]) -> int:
    """Trials that failed, of a study and of those that it continues."""
    failed: int = report["failed"]
    return failed + (_failed(report["continues"]) if "continues" in report else 0)


def _where(folder: RunsFolder, study: str, plots: list[Path], tracking_uri: str | None) -> None:
    path = folder.study(study).path
    console.print()
    console.print(f"tables   {escape(str(path))}/comparison.md, diagnostics.md; .tex, .html, .csv, .json")
    if plots:
        names = dict.fromkeys(plot.stem for plot in plots)
        console.print(f"plots    {escape(str(path))}/{escape(', '.join(names))}; .png, .svg, .pdf")
    console.print(f"Parquet  {escape(str(path / 'parquet'))}/runs, metrics, layers, comparisons, fits, …")
    store = tracking_uri or f"{folder.tracking_uri} (to look: gatelab ui)"
    console.print(f"MLflow   {escape(store)}")
    console.print(f"report   gatelab report {escape(study)}")


def train(
    study: args.StudyFile = None,
    preset: args.Preset = None,
    axis: args.Axes = [],
    set_: args.Sets = [],
    variant: Annotated[str | None, typer.Option(help="Label of the variant \\[default: the first].")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    runs: args.Runs = args.DEFAULT_RUNS,
    checkpoint_seconds: args.CheckpointSeconds = 60.0,
) -> None:
    """Train one trial in this process, without Ray and MLflow: for debugging.

    It is the same trial that `gatelab run` would train, in the same folder.

    Example: gatelab train studies/quickstart.yaml --variant position=none
    """
    from gatelab.ablations.errors import nearest
    from gatelab.orchestrator import driver, planning

    folder = RunsFolder(runs)
    with reporting_errors():
        plan = study_from_flags(study, preset=preset, axes=axis, sets=set_, seeds=f"{seed},")
        matrix = planning.plan_study(plan, planning.searched(folder))
        labels = [entry.label for entry in matrix.variants]
        label = variant or labels[0]
        if label not in labels:
            fail(f"--variant {label!r}: {nearest(label, labels)}")
        trial = next(entry for entry in matrix.trials if entry.variant == label)
        _refuse_without_parent(matrix, trial, folder)
        console.print(f"{escape(label)}, seed={seed}: {trial.config.training.steps} steps, trial {trial.id[:12]}")
        outcome = driver.run_here(trial, folder, device, checkpoint_seconds, _print_values)
    console.print(f"[bold]{outcome['status']}[/] {escape(outcome.get('reason', ''))}")
    for key, value in outcome.get("metrics", {}).items():
        console.print(f"  {key} {value:.6g}")
    console.print(f"folder {escape(str(folder.trial(trial.id).path))}")
    raise typer.Exit(SOME_FAILED if outcome["status"] == "failed" else DONE)


def _refuse_without_parent(matrix: Matrix, trial: Trial, folder: RunsFolder) -> None:
    """A trial that continues another cannot be trained before that one is."""
    if matrix.parent is None:
        return
    parent = next(entry for entry in matrix.parent.trials if entry.id == trial.parent)
    if not is_over(folder.trial(parent.id)):
        fail(
            f"it continues {parent.variant}, seed={parent.seed} of {matrix.parent.plan.study.name}, which has not "
            f"finished in {folder.root}: gatelab run trains that first"
        )


def _print_values(step: int, values: Mapping[str, float]) -> None:
    console.print(f"step {step:>7}  " + "  ".join(f"{name} {value:.5g}" for name, value in values.items()))
