"""gatelab report: a study as one page."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gatelab.cli import arguments as args
from gatelab.cli.console import SOME_FAILED, console, fail
from gatelab.errors import WrongRequest
from gatelab.results.store.layout import RunsFolder


def report(
    study: args.StudyName,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="The file \\[default: report.html in the study's folder]."),
    ] = None,
    metric: Annotated[str, typer.Option(help="The summary metric to compare variants by.")] = "validation/loss",
    check: Annotated[
        bool, typer.Option("--check", help="Check that written tables still follow from the trials.")
    ] = False,
    file: Annotated[
        list[Path],
        typer.Option(help="A table to check, for instance in a paper; repeatable \\[default: the study's]."),
    ] = [],
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
) -> None:
    """Write a study as one HTML page that needs no network: verdicts, tables, figures, failures, provenance.

    The figures are also written into the study's folder, as SVG, PDF and PNG.

    With --check nothing is written: each table is made again and compared, and the exit code is 1 if one differs.

    Example: gatelab report quickstart --open
    Example: gatelab report gate-position -o gate-position.html
    Example: gatelab report gate-position --check --file paper/tables/gates.tex
    """
    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    if check or file:
        _check(folder, name, file)
        return
    from gatelab.orchestrator.tracking import add_to_mlflow
    from gatelab.results.report.page import write_report

    try:
        page, figures = write_report(folder, name, output, metric)
    except WrongRequest as error:
        fail(f"--metric: {error}", error)
    problem = add_to_mlflow(folder, name, tracking_uri, [page, *figures])
    console.print(escape(str(page)))
    if problem:
        console.print(f"[yellow]{escape(problem)}[/]")
    if open_:
        webbrowser.open(page.resolve().as_uri())


def _check(folder: RunsFolder, study: str, files: list[Path]) -> None:
    """Report tables that no longer follow from the trials; exit with 1 if there is one."""
    from gatelab.results.report.verify import check, stamped_tables

    paths = files or stamped_tables(folder, study)
    if not paths:
        fail(f"no table in {folder.study(study).path} has a stamp: gatelab run {study}, or gatelab compare -o FILE")
    found = list(check(folder, study, paths))
    for checked in found:
        state = f"[red]{checked.state}[/]" if checked.problem else f"[green]{checked.state}[/]"
        console.print(f"{state}  {escape(str(checked.path))}")
        for line in checked.problem.splitlines():
            console.print(f"       {escape(line)}")
    if any(checked.problem for checked in found):
        raise typer.Exit(SOME_FAILED)
