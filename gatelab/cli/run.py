"""gatelab run and gatelab train: carrying trials out."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

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
    print_json,
    reporting_errors,
)
from gatelab.results.folders import RunsFolder


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
    concurrency: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, max=1, help="A GPU, or a part of one.")] = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster [default: Ray is started here].")
    ] = None,
    tracking_uri: args.TrackingUri = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a trial that fails is tried again.")] = 1,
    checkpoint_seconds: Annotated[float, typer.Option(min=1, help="Time between two checkpoints.")] = 60.0,
    json: args.Json = False,
) -> None:
    """Run a study: what is finished is kept, what was interrupted goes on, what is new runs.

    Example: gatelab run studies/quickstart.yaml
    Example: gatelab run --axis model.gate.position=none,value,sdpa --seeds 3 --set training.tokens=2M
    """
    from gatelab.cli.live import LiveView
    from gatelab.orchestrator import driver, planning
    from gatelab.results.publish import publish
    from gatelab.results.tables import comparison_grid

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is an interrupt
    folder = RunsFolder(runs)
    options = driver.Options(concurrency, gpus_per_trial, address, tracking_uri, retries, checkpoint_seconds)
    with reporting_errors():
        plan = study_from_flags(
            study, preset=preset, axes=axis, sets=set_, seeds=seeds, baseline=baseline, match=match, name=name
        )
        matrix = planning.plan_study(plan)
        if plan.study.budget.hours is not None:
            planning.estimate(matrix, folder, concurrency)  # refuses what exceeds the budget
        console.quiet = json
        for note in matrix.notes:
            console.print(f"[yellow]note[/] {escape(note)}")
        done = sum(planning.is_over_in(folder, trial) for trial in matrix.trials)
        if done:
            console.print(f"{done} of {plural(len(matrix.trials), 'trial')} done already")
        try:
            with LiveView() as view:
                progress = driver.run_study(matrix, folder, options, view)
        except driver.CannotRun as error:
            fail(str(error), error)
        except ConnectionError as error:
            fail(f"--address {address}: {error}", error)
    published = publish(folder, plan.study.name)
    failed = progress.count("failed")
    if json:
        counts = {state: progress.count(state) for state in ("finished", "diverged", "failed", "waiting")}
        paths = {kind: [str(path) for path in getattr(published, kind)] for kind in ("tables", "plots", "parquet")}
        print_json({"study": plan.study.name, **counts, "mirror_problem": progress.mirror_problem, **paths})
    else:
        print_grid(comparison_grid(published.comparison))
        _where(folder, plan.study.name, published.plots, tracking_uri)
        if progress.mirror_problem:
            console.print(f"[yellow]{escape(progress.mirror_problem)}[/]; run again to catch up")
        if progress.stopping:
            console.print("[yellow]interrupted[/]: the same command goes on from here")
    raise typer.Exit(INTERRUPTED if progress.stopping else SOME_FAILED if failed else DONE)


def _where(folder: RunsFolder, study: str, plots: list[Path], tracking_uri: str | None) -> None:
    path = folder.study(study).path
    console.print()
    console.print(f"tables   {escape(str(path))}/comparison.md, .tex, .csv, .json")
    if plots:
        console.print(f"plots    {escape(', '.join(map(str, plots)))}")
    console.print(f"Parquet  {escape(str(path / 'parquet'))}/runs.parquet, metrics.parquet, layers.parquet")
    store = tracking_uri or f"{folder.tracking_uri} (to look: gatelab ui)"
    console.print(f"MLflow   {escape(store)}")


def train(
    study: args.StudyFile = None,
    preset: args.Preset = None,
    axis: args.Axes = [],
    set_: args.Sets = [],
    variant: Annotated[str | None, typer.Option(help="Label of the variant [default: the first].")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    runs: args.Runs = args.DEFAULT_RUNS,
    checkpoint_seconds: Annotated[float, typer.Option(min=1, help="Time between two checkpoints.")] = 60.0,
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
        matrix = planning.plan_study(plan)
        labels = [entry.label for entry in matrix.variants]
        label = variant or labels[0]
        if label not in labels:
            fail(f"--variant {label!r}: {nearest(label, labels)}")
        trial = next(entry for entry in matrix.trials if entry.variant == label)
        console.print(f"{escape(label)}, seed={seed}: {trial.config.training.steps} steps, trial {trial.id[:12]}")
        outcome = driver.run_here(trial, folder, device, checkpoint_seconds, _print_values)
    console.print(f"[bold]{outcome['status']}[/] {escape(outcome.get('reason', ''))}")
    for key, value in outcome.get("metrics", {}).items():
        console.print(f"  {key} {value:.6g}")
    console.print(f"folder {escape(str(folder.trial(trial.id).path))}")
    raise typer.Exit(SOME_FAILED if outcome["status"] == "failed" else DONE)


def _print_values(step: int, values: Mapping[str, float]) -> None:
    console.print(f"step {step:>7}  " + "  ".join(f"{name} {value:.5g}" for name, value in values.items()))
