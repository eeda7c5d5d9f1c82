"""gatelab evaluate and gatelab attention-map: questions to trained models."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape

from gatelab.ablations.errors import nearest
from gatelab.cli import arguments as args
from gatelab.cli.console import DONE, SOME_FAILED, console, fail, plural, print_grid, reporting_errors
from gatelab.configuration import parse_count
from gatelab.results.folders import RunsFolder

if TYPE_CHECKING:
    from gatelab.orchestrator.evaluating import Examination, Report

LINE_SECONDS = 15.0  # between two lines of progress
RETRIEVAL = "needle,needles,variables,common_words"

Value = TypeVar("Value")
Variants = Annotated[list[str], typer.Option("--variant", help="Only this variant; repeatable.")]


def evaluate(
    study: args.StudyName,
    lengths: Annotated[
        str | None, typer.Option(help="Sequence lengths: 128,512,2k [default: 1, 2 and 4 times the training's].")
    ] = None,
    ropes: Annotated[str, typer.Option(help="How RoPE is stretched: plain, ntk, yarn, base=NUMBER.")] = "plain,yarn",
    tokens: Annotated[str, typer.Option(help="Held-out tokens for each length.")] = "64k",
    retrieval: Annotated[str, typer.Option(help="Synthetic tasks, or none.")] = RETRIEVAL,
    examples: Annotated[int, typer.Option(min=2, help="Of each synthetic task at each length.")] = 64,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-eval: hellaswag,arc_easy (pip install 'gatelab[evaluation]').")
    ] = None,
    include: Annotated[Path | None, typer.Option(help="A folder of lm-eval task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most documents of each lm-eval task.")] = None,
    variant: Variants = [],
    runs: args.Runs = args.DEFAULT_RUNS,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Questions at a time.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, max=1, help="A GPU, or a part of one.")] = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster [default: Ray is started here].")
    ] = None,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Ask the trained models of a study: loss beyond the training length, synthetic retrieval, lm-eval's tasks.

    Answers are kept with the trials: the same question is asked once.

    Example: gatelab evaluate quickstart --lengths 128,256,512 --ropes plain,ntk,yarn
    Example: gatelab evaluate quickstart --lengths none --retrieval none --tasks hellaswag --limit 200
    """
    from gatelab.orchestrator import evaluating
    from gatelab.orchestrator.cluster import CannotRun
    from gatelab.orchestrator.mirroring import add_to_mlflow
    from gatelab.results.publish import MEASURED_FORMATS, write_evaluation
    from gatelab.training.examination import check_rope

    folder, name = RunsFolder(runs), args.study_name(study)
    console.quiet = json
    with reporting_errors():
        request = evaluating.Request(
            lengths=None if lengths is None else tuple(_each("--lengths", lengths, _count)),
            ropes=tuple(_each("--ropes", ropes, check_rope)),
            tokens=_each("--tokens", tokens, _count)[0],
            retrieval=tuple(_each("--retrieval", retrieval, _retrieval_task)),
            examples=examples,
            tasks=tuple(_each("--tasks", tasks or "none", str)),
            include=include,
            limit=limit,
        )
        exams, refused = evaluating.assign(folder, _trained(folder, name, variant), request)
        if refused and lengths is not None:
            fail("; ".join(f"{question}: {reason}" for question, reason in refused.items()))
        for question, reason in refused.items():
            console.print(f"[yellow]left out[/] {escape(f'{question}: {reason}')}")
        try:
            report = evaluating.ask(
                folder, exams, concurrency=concurrency, gpus_per_trial=gpus_per_trial, address=address,
                show=_Progress(),
            )  # fmt: skip
        except CannotRun as error:
            fail(str(error), error)
        except ConnectionError as error:
            fail(f"--address {address}: {error}", error)
    for what, reason in report.failures.items():
        console.print(f"[red]no answer[/] {escape(what)}: {escape(reason)}")
    if report.known + report.answered == 0:
        fail("no question was answered")
    found = write_evaluation(folder, name)
    problem = add_to_mlflow(folder, name, tracking_uri, found.plots)
    if json:
        sys.stdout.write(MEASURED_FORMATS["json"](found) + "\n")
    else:
        print_grid(found.grid)
        for path in found.plots:
            console.print(escape(str(path)))
        if problem:
            console.print(f"[yellow]{escape(problem)}[/]")
    raise typer.Exit(SOME_FAILED if report.failures else DONE)


def _each(flag: str, text: str, read: Callable[[str], Value]) -> list[Value]:
    """The values of a comma-separated option; none of them for "none". Exits where one cannot be read."""
    if text == "none":
        return []
    values = []
    for part in text.split(","):
        try:
            values.append(read(part.strip()))
        except ValueError as error:
            fail(f"{flag}: {error}", error)
    return values


def _count(text: str) -> int:
    count: int = parse_count(text)
    if count < 2:
        raise ValueError(f"expected at least 2 (got {text!r})")
    return count


def _retrieval_task(name: str) -> str:
    from gatelab.training.retrieval import TASKS

    if name not in TASKS:
        raise ValueError(f"expected none, or some of {', '.join(TASKS)} (got {name!r})")
    return name


def _trained(folder: RunsFolder, study: str, variants: list[str]) -> "list[Examination]":
    """The finished trials of a study, or of some of its variants."""
    from gatelab.orchestrator.evaluating import examinations

    known = list(folder.study(study).read()["variants"])
    for variant in variants:
        if variant not in known:
            fail(f"--variant {variant!r}: {nearest(variant, known)}")

    def wanted(trial: Mapping[str, Any]) -> bool:
        return not variants or trial["variant"] in variants

    found = examinations(folder, study, wanted)
    if not found:
        fail(f"no trial of study {study!r} has finished yet")
    return found


class _Progress:
    """Says now and then how many questions have been answered."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, report: "Report") -> None:
        done = report.known + report.answered + len(report.failures)
        if time.monotonic() >= self._next or done == report.asked:
            self._next = time.monotonic() + LINE_SECONDS
            known = f", {report.known} of them before" if report.known else ""
            console.print(f"{done} of {plural(report.asked, 'question')} answered{known}")
