"""gatelab list, status, compare, claims, curves, diagnose, export, ui: show results."""

import enum
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatelab.cli import arguments as args
from gatelab.cli.analysis import show_analysis
from gatelab.cli.console import console, fail, print_json, print_table, show_files, warn
from gatelab.errors import AnalysisUnavailable, WrongRequest
from gatelab.results.store.layout import RunsFolder
from gatelab.status import Status

if TYPE_CHECKING:
    import pyarrow as pa


MOST_LISTED = 500
"""Trials that `status` lists one by one."""


class Source(enum.StrEnum):
    """The source of results."""

    journal = "journal"
    mlflow = "mlflow"
    parquet = "parquet"


def list_(runs: args.Runs = args.DEFAULT_RUNS, json: args.Json = False) -> None:
    """List the studies of a runs folder: how many trials each has, how they stand, when the last one ended.

    Nothing is removed by a command: to forget a study, delete its folder in gatelab-runs/studies.

    Example: gatelab list
    """
    from gatelab.results.report.overview import overview, overview_table

    folder = RunsFolder(runs)
    found = list(overview(folder))
    if json:
        print_json([asdict(one) for one in found])
    elif found:
        print_table(overview_table(folder, found))
    else:
        fail(f"no study in {runs} yet: gatelab run STUDY.yaml")


def status(
    study: args.StudyName,
    failures: Annotated[bool, typer.Option("--failures", help="Show what failed, by what ended it.")] = False,
    runs: args.Runs = args.DEFAULT_RUNS,
    json: args.Json = False,
) -> None:
    """Show the progress of each trial of a study.

    Example: gatelab status quickstart
    Example: gatelab status quickstart --failures
    """
    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    if failures:
        _show_failures(folder, name, json)
        return
    from gatelab.results.store.runs import STATUSES, runs_from_journals
    from gatelab.results.views.table import Column, Table

    trials = runs_from_journals(folder, name).to_pylist()
    counts = {outcome: sum(trial["outcome"] == outcome for trial in trials) for outcome in STATUSES}
    if json:
        shown = ("trial", "variant", "seed", "outcome", "reason", "step", "steps")
        print_json({"counts": counts, "trials": [{key: trial[key] for key in shown} for trial in trials]})
        return
    listed = trials
    if len(trials) > MOST_LISTED:
        listed = sorted(trials, key=lambda trial: bool(trial["outcome"] == Status.FINISHED))[:MOST_LISTED]
    columns = (Column("variant"), Column("seed", True), Column("outcome"), Column("step", True), Column("trial"))
    rows = tuple(
        (
            trial["variant"],
            str(trial["seed"]),
            trial["outcome"],
            f"{trial['step']}/{trial['steps']}",
            trial["trial"][:12],
        )
        for trial in listed
    )
    notes = [f"{t['variant']}, seed={t['seed']}: {t['reason']}" for t in listed if t["reason"]]
    if len(listed) < len(trials):
        notes.append(f"{len(trials) - len(listed)} more trials are not listed, finished ones first: --json lists all")
    title = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    print_table(Table(title, columns, rows, notes=tuple(notes)))


def _show_failures(folder: RunsFolder, study: str, json: bool) -> None:
    from gatelab.results.analyses.failures import read_failures
    from gatelab.results.views import failures as view

    found = read_failures(folder, study)
    if json:
        print_json(found.to_dict())
        return
    if not found.groups:
        console.print("no trial has failed")
        return
    for table in view.tables(found):
        print_table(table)


def compare(
    study: args.StudyName,
    metric: Annotated[str, typer.Option(help="The summary metric to compare.")] = "validation/loss",
    source: Annotated[
        Source, typer.Option("--from", help="Where to read trials: their own files, MLflow, or an export.")
    ] = Source.journal,
    parquet: Annotated[
        Path | None, typer.Option(help="Folder of an export, for --from parquet \\[default: the study's].")
    ] = None,
    format: args.TableFormat = args.Format.terminal,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Write to a file instead.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="A smaller difference, in the metric's unit, counts as equivalent.")
    ] = None,
    tests: Annotated[bool, typer.Option("--tests", help="Also show each test of each difference.")] = False,
    rows: Annotated[str | None, typer.Option(help="Axes of the rows of a pivot table: AXIS,…; with --columns.")] = None,
    columns: Annotated[str | None, typer.Option(help="Axes of the columns of a pivot table: AXIS,…")] = None,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Compare a study's variants with its baseline: means, paired differences, intervals, tests, verdicts.

    Example: gatelab compare quickstart --format tex -o table.tex
    Example: gatelab compare gate-position --rows position --columns granularity --margin 0.005
    """
    from gatelab.results.analyses.analysis import Analysis
    from gatelab.results.analyses.comparison import compare
    from gatelab.results.analyses.pivot import pivot
    from gatelab.results.report.artifacts import TABLES, render
    from gatelab.results.report.stamp import make_stamp
    from gatelab.results.views.comparison import tests_table

    form = args.Format.json if json else format
    _check_flags(form, margin, tests, parquet, source, output)
    folder = RunsFolder(runs)
    frame = _read_runs(folder, args.study_name(study, folder), source, parquet, tracking_uri)
    try:
        comparison = compare(frame, metric, margin)
    except WrongRequest as error:
        fail(f"--metric: {error}", error)
    result: Analysis = comparison
    stamp = make_stamp(frame, "comparison", metric=metric, margin=margin)
    if rows is not None or columns is not None:
        down, across = ([name for name in (given or "").split(",") if name] for given in (rows, columns))
        try:
            result = pivot(comparison, down, across)
        except WrongRequest as error:
            fail(f"--rows, --columns: {error}", error)
        stamp = make_stamp(frame, "pivot", metric=metric, margin=margin, rows=down, columns=across)
    if form is args.Format.terminal:
        for table in (*TABLES[stamp.table].tables(result), *([tests_table(comparison)] if tests else [])):
            print_table(table)
    elif output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(render(result, form.value, stamp), encoding="utf-8")
    else:
        sys.stdout.write(render(result, form.value, stamp))


def _check_flags(
    form: args.Format, margin: float | None, tests: bool, parquet: Path | None, source: Source, output: Path | None
) -> None:
    """Exit if flags of a comparison contradict each other."""
    wrong = {
        f"--margin {margin}: expected a number": margin is not None and not math.isfinite(margin),
        "--tests is for the terminal: csv and json hold all tests": tests and form is not args.Format.terminal,
        "--parquet needs --from parquet": parquet is not None and source is not Source.parquet,
        "--output needs --format md, tex, html, csv or json": output is not None and form is args.Format.terminal,
    }
    for message, applies in wrong.items():
        if applies:
            fail(message)


def _read_runs(
    folder: RunsFolder, study: str, source: Source, parquet: Path | None, tracking_uri: str | None
) -> "pa.Table":
    """Return the `runs` of a study, from its trials, MLflow or an export. Exit if there are none."""
    from gatelab.results.report.parquet import runs_from_parquet
    from gatelab.results.store.runs import runs_from_journals

    if source is Source.mlflow:
        from gatelab.results.tracking.runs import runs_from_mlflow

        if not tracking_uri:
            from gatelab.results.tracking.own_store import check_place

            check_place(folder)
        return runs_from_mlflow(tracking_uri or folder.tracking_uri, study)
    if source is Source.parquet:
        return runs_from_parquet(parquet or folder.study(study).path / "parquet", study)
    return runs_from_journals(folder, study)


def claims(
    study: args.StudyName,
    format: args.TableFormat = args.Format.terminal,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Show the verdict on each claim: supported, refuted, equivalent, undecided or not evaluable.

    Example: gatelab claims quickstart
    """
    folder = RunsFolder(runs)
    show_analysis("claims", folder, args.study_name(study, folder), tracking_uri, args.Format.json if json else format)


def curves(
    study: args.StudyName,
    metric: Annotated[list[str], typer.Option(help="A recorded metric; repeatable.")] = [
        "validation/loss",
        "train/loss",
    ],
    output: args.OutputFolder = None,
    runs: args.Runs = args.DEFAULT_RUNS,
) -> None:
    """Plot metrics over training, a line for each variant and a band over its seeds, as PNG, SVG and PDF.

    Example: gatelab curves quickstart --metric train/gradient_norm
    """
    from gatelab.results.report.write import write_curves

    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    for wanted in metric:
        try:
            paths, problems = write_curves(folder, name, wanted, output or folder.study(name).path)
        except AnalysisUnavailable as error:
            fail(f"--metric: {error}", error)
        show_files(paths)
        warn(problems)


def diagnose(
    study: args.StudyName,
    format: args.TableFormat = args.Format.terminal,
    output: args.OutputFolder = None,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Show diagnostics of attention, activations and gates: plots by layer and over training, and a table.

    Example: gatelab diagnose gate-diagnostics -o figures/
    """
    folder = RunsFolder(runs)
    show_analysis(
        "diagnostics",
        folder,
        args.study_name(study, folder),
        tracking_uri,
        args.Format.json if json else format,
        output,
    )


def export(
    study: args.StudyName,
    output: args.OutputFolder = None,
    runs: args.Runs = args.DEFAULT_RUNS,
) -> None:
    """Write a study's results as Parquet: runs, metrics, layers, evaluations, comparisons, fits.

    Several studies can be exported into one folder.

    Example: gatelab export quickstart -o results/
    """
    from gatelab.results.report.parquet import export_study

    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    show_files(export_study(folder, name, output or folder.study(name).path / "parquet"))


def ui(
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
) -> None:
    """Serve MLflow's own pages on the tracking store; Ctrl-C stops them.

    Example: gatelab ui --port 5001
    """
    from gatelab.cli.serving import serve_mlflow

    folder = RunsFolder(runs)
    if not tracking_uri and not folder.database.exists():
        fail(f"there is no tracking store in {folder.root} yet: gatelab run STUDY.yaml")
    serve_mlflow(folder, tracking_uri, host, port)
