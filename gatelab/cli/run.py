"""gatelab run and gatelab train: run trials."""

import functools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

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
    print_json,
    print_table,
    warn,
)
from gatelab.cli.options import RunFlags, StudyFlags, with_groups
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.trials import is_over
from gatelab.status import Status
from gatelab.text import without_secrets

if TYPE_CHECKING:
    from gatelab.cli.live import LiveView
    from gatelab.orchestrator import workflow
    from gatelab.results.store.records import Outcome

COUNTED = (Status.FINISHED, Status.DIVERGED, Status.FAILED, Status.WAITING)
WRITTEN = ("tables", "plots", "parquet")


@with_groups
def run(*, study: args.StudyFile = None, flags: StudyFlags, run: RunFlags, json: args.Json = False) -> None:
    """Run a study. Finished trials are kept, interrupted ones resume, new ones start.

    Example: gatelab run studies/quickstart.yaml
    Example: gatelab run --axis model.gate.position=none,value,sdpa --seeds 3 --set training.tokens=2M
    """
    from gatelab.orchestrator.workflow import run_study

    _carry_out(run_study, study, flags, run, json)


@with_groups
def retry(
    *,
    study: args.StudyFile = None,
    flags: StudyFlags,
    kind: Annotated[list[str], typer.Option(help="Only failures of this kind, as status --failures names it.")] = [],
    variant: Annotated[list[str], typer.Option(help="Only this variant; repeatable.")] = [],
    run: RunFlags,
    json: args.Json = False,
) -> None:
    """Run failed trials of a study again, and nothing else.

    `gatelab run` tries all of them again, too, beside what has not run yet.

    Example: gatelab retry studies/gate-position.yaml --kind "out of memory" --concurrency 1
    """
    from gatelab.orchestrator.failures import FailureKind
    from gatelab.orchestrator.workflow import retry_failed

    for given in kind:
        if given not in list(FailureKind):
            fail(f"--kind {given!r}: expected one of {', '.join(FailureKind)}")

    def chosen(trial: Trial, outcome: "Outcome") -> bool:
        return (not kind or outcome.kind in kind) and (not variant or trial.variant in variant)

    _carry_out(functools.partial(retry_failed, chosen=chosen), study, flags, run, json)


def _carry_out(
    job: "Callable[..., workflow.RunResult]", study: Path | None, flags: StudyFlags, run: RunFlags, json: bool
) -> Never:
    """Run a study by a job of `workflow`, show what came out of it, and exit."""
    end_politely()
    console.quiet = json
    show = functools.partial(show_study, run.folder, run.tracking_uri)
    result = job(flags.plan(study), run.folder, run.executor(), run.options(), watch=watch, report=show)
    if json:
        print_json(_report(result.studies))
    raise typer.Exit(exit_code(result))


def end_politely() -> None:
    """Treat SIGTERM as an interrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def exit_code(result: "workflow.RunResult") -> int:
    """Return the exit code of studies that were run."""
    return INTERRUPTED if result.interrupted else SOME_FAILED if result.failed else DONE


@contextmanager
def watch(start: "workflow.StudyStart") -> "Iterator[LiveView]":
    """Announce what is about to run, and yield its live view."""
    from gatelab.cli.live import LiveView

    if start.chain > 1:
        console.print(f"[bold]{escape(start.matrix.plan.study.name)}[/]")
    for change in start.changes:
        console.print(f"[yellow]changed since it was last run[/] {escape(change)}")
    for note in start.matrix.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    if start.done:
        console.print(f"{start.done} of {plural(len(start.matrix.trials), 'trial')} done already")
    with LiveView() as view:
        yield view


def show_study(folder: RunsFolder, tracking_uri: str | None, result: "workflow.StudyResult") -> None:
    """Show the results of a study, and the paths of their files."""
    for table in result.written.shown:
        print_table(table)
    _where(folder, result.matrix.plan.study.name, result.written.plots, tracking_uri)
    warn(result.written.problems)
    if result.tracking_problem and result.tracking_problem != result.progress.tracking_problem:  # else said already
        console.print(f"[yellow]{escape(result.tracking_problem)}[/]; run again to catch up")
    if result.progress.halted:
        console.print(f"[yellow]stopped[/]: {escape(result.progress.halted)}")
        console.print("mend it and run the same command again, or add --keep-going")
    if result.progress.disk_problem:
        console.print(f"[yellow]could not be written[/]: {escape(result.progress.disk_problem)}")
    if result.progress.stopping:
        console.print("[yellow]interrupted[/]: the same command goes on from here")


def _report(studies: "Sequence[workflow.StudyResult]") -> dict[str, Any]:
    """Return the JSON of studies that were run: that of the last, which contains the one before it."""
    report: dict[str, Any] = {}
    for result in studies:
        counts = {str(state): result.progress.count(state) for state in COUNTED}
        paths = {kind: [str(path) for path in getattr(result.written, kind)] for kind in WRITTEN}
        name, continues = result.matrix.plan.study.name, {"continues": report} if report else {}
        report = {"study": name, **counts, "mirror_problem": result.tracking_problem, **paths, **continues}
    return report


def _where(folder: RunsFolder, study: str, plots: list[Path], tracking_uri: str | None) -> None:
    path = folder.study(study).path
    console.print()
    console.print(f"tables   {escape(str(path))}/comparison.md, diagnostics.md; .tex, .html, .csv, .json")
    if plots:
        names = dict.fromkeys(plot.stem for plot in plots)
        console.print(f"plots    {escape(str(path))}/{escape(', '.join(names))}; .png, .svg, .pdf")
    console.print(f"Parquet  {escape(str(path / 'parquet'))}/runs, metrics, layers, comparisons, fits, …")
    store = without_secrets(tracking_uri) if tracking_uri else f"{folder.tracking_uri} (to look: gatelab ui)"
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

    Example: gatelab train studies/quickstart.yaml --variant gate=none
    """
    from gatelab.ablations.errors import nearest
    from gatelab.orchestrator import planning
    from gatelab.orchestrator.study_run import run_trial
    from gatelab.training.device import choose_device

    try:
        choose_device(device)
    except ValueError as error:
        fail(f"--{error}", error)
    folder = RunsFolder(runs)
    plan = study_from_flags(study, preset=preset, axes=axis, sets=set_, seeds=f"{seed},")
    matrix = planning.plan_study(plan, planning.searched(folder))
    labels = [entry.label for entry in matrix.variants]
    label = variant or labels[0]
    if label not in labels:
        fail(f"--variant {label!r}: {nearest(label, labels)}")
    trial = next(entry for entry in matrix.trials if entry.variant == label)
    _refuse_without_parent(matrix, trial, folder)
    console.print(f"{escape(label)}, seed={seed}: {trial.config.training.steps} steps, trial {trial.id[:12]}")
    outcome = run_trial(trial, folder, device, checkpoint_seconds, _print_values)
    console.print(f"[bold]{outcome.status}[/] {escape(outcome.reason)}")
    for key, value in outcome.metrics.items():
        console.print(f"  {key} {value:.6g}")
    console.print(f"folder {escape(str(folder.trial(trial.id).path))}")
    raise typer.Exit(SOME_FAILED if outcome.status is Status.FAILED else DONE)


def _refuse_without_parent(matrix: Matrix, trial: Trial, folder: RunsFolder) -> None:
    """Exit if a trial continues one that has not been trained, or would have to be imported."""
    if matrix.plan.study.imported is not None and not is_over(folder.trial(trial.id)):
        from gatelab.orchestrator.study_run import not_imported

        fail(not_imported(matrix.plan.study.name, folder))
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
