"""gatelab evaluate and gatelab attention-map: evaluations of trained models."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape

from gatelab.cli import arguments as args
from gatelab.cli.analysis import show_analysis
from gatelab.cli.console import DONE, SOME_FAILED, console, fail, plural, show_files, told
from gatelab.cli.trained import load, of_one_seed, trained
from gatelab.configuration import parse_count
from gatelab.results.store.layout import RunsFolder

if TYPE_CHECKING:
    from gatelab.orchestrator.evaluation import EvalProgress, EvalRequest
    from gatelab.training.evals.spec import EvalSpec

LINE_SECONDS = 15.0  # between two lines of progress
ROPES = "plain,yarn"
SHOWN_LAYERS = 6
RETRIEVAL = "needle,needles,variables,common_words"

Value = TypeVar("Value")


def evaluate(
    study: args.StudyName,
    lengths: Annotated[
        str | None, typer.Option(help="Sequence lengths: 128,512,2k \\[default: 1, 2 and 4 times the training's].")
    ] = None,
    ropes: Annotated[
        str | None, typer.Option(help="How RoPE is stretched: plain, ntk, yarn, base=NUMBER \\[default: plain,yarn].")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Held-out tokens for each length.")] = "64k",
    retrieval: Annotated[
        str | None, typer.Option(help="Synthetic retrieval tasks, or none \\[default: all that fit the lengths].")
    ] = None,
    examples: Annotated[int, typer.Option(min=2, help="Examples of each synthetic task at each length.")] = 64,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-eval: hellaswag,arc_easy (pip install 'gatelab\\[evaluation]').")
    ] = None,
    include: Annotated[Path | None, typer.Option(help="A folder of lm-eval task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of documents of each lm-eval task.")] = None,
    variant: args.Variants = [],
    runs: args.Runs = args.DEFAULT_RUNS,
    concurrency: args.Concurrency = None,
    gpus_per_trial: args.GpusPerTrial = None,
    address: args.Address = None,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Evaluate the trained models of a study: loss beyond the training length, synthetic retrieval, lm-eval tasks.

    Results are kept with the trials: the same evaluation runs once.

    Example: gatelab evaluate quickstart --lengths 128,256,512 --ropes plain,ntk,yarn
    Example: gatelab evaluate quickstart --lengths none --retrieval none --tasks hellaswag --limit 200
    """
    from gatelab.orchestrator import evaluation
    from gatelab.orchestrator.ray_executor import RayExecutor
    from gatelab.training.evals.spec import parse_rope

    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    console.quiet = json
    if lengths == "none" and retrieval not in (None, "none"):
        fail(f"--retrieval {retrieval}: its lengths are those of --lengths, which are none")
    request = evaluation.EvalRequest(
        lengths=None if lengths is None else tuple(_each("--lengths", lengths, _count)),
        ropes=tuple(_each("--ropes", ropes or ROPES, parse_rope)),
        tokens=_one("--tokens", tokens, _count),
        retrieval=tuple(_each("--retrieval", retrieval or RETRIEVAL, _retrieval_task)),
        examples=examples,
        tasks=tuple(_each("--tasks", tasks or "none", str)),
        include=include,
        limit=limit,
    )
    if request.tasks:
        _check_tasks(request)
    jobs, refused = evaluation.assign(folder, trained(folder, name, variant), request)
    _leave_out(refused, {"length": bool(lengths or ropes), "retrieval": bool(retrieval)})
    executor = RayExecutor(address, gpus_per_trial, concurrency)
    progress = evaluation.run_evals(folder, jobs, executor, _Printer())
    for (trial, reason), questions in progress.failures.items():
        more = f" and {len(questions) - 1} more" if len(questions) > 1 else ""
        console.print(f"[red]failed[/] {escape(trial)}: {escape(questions[0])}{more}: {escape(reason)}")
    if progress.known + progress.answered == 0:
        fail("no evaluation succeeded")
    show_analysis("evaluation", folder, name, tracking_uri, args.Format.json if json else args.Format.terminal)
    raise typer.Exit(SOME_FAILED if progress.failures else DONE)


def _each(flag: str, text: str, read: Callable[[str], Value]) -> list[Value]:
    """Parse the values of a comma-separated option; "none" gives none. Exit if one cannot be read."""
    if text == "none":
        return []
    return [_one(flag, part.strip(), read) for part in text.split(",")]


def _one(flag: str, text: str, read: Callable[[str], Value]) -> Value:
    """Parse the value of an option. Exit if it cannot be read."""
    try:
        return read(text)
    except ValueError as error:
        fail(f"{flag}: {error}", error)


def _count(text: str) -> int:
    count: int = parse_count(text)
    if count < 2:
        raise ValueError(f"expected at least 2 (got {text!r})")
    return count


def _retrieval_task(name: str) -> str:
    from gatelab.training.evals.retrieval_tasks import TASKS

    if name not in TASKS:
        raise ValueError(f"expected none, or some of {', '.join(TASKS)} (got {name!r})")
    return name


def _leave_out(refused: "Mapping[EvalSpec, str]", by_name: Mapping[str, bool]) -> None:
    """Exit if an evaluation that the user named is impossible; skip a default that does not apply, with a note."""
    for question, reason in refused.items():
        if by_name[question.kind]:
            fail(f"{question.stem}: {reason}")
    for question, reason in refused.items():
        console.print(f"[yellow]left out[/] {escape(question.stem)}: {escape(reason)}")


def _check_tasks(request: "EvalRequest") -> None:
    from gatelab.training.evals.lm_eval_tasks import check_tasks

    try:
        check_tasks(request.tasks, request.include)
    except ValueError as error:
        fail(f"--tasks: {error}", error)


class _Printer:
    """Prints now and then how many evaluations are done."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: "EvalProgress") -> None:
        done = progress.known + progress.answered + progress.failed
        if time.monotonic() >= self._next or done == progress.asked:
            self._next = time.monotonic() + LINE_SECONDS
            known = f", {progress.known} of them earlier" if progress.known else ""
            console.print(f"{done} of {plural(progress.asked, 'evaluation')} done{known}")


def attention_map(
    study: args.StudyName,
    text: Annotated[str | None, typer.Option(help="The text to show attention on.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the text, instead of --text.")] = None,
    variant: args.Variants = [],
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the models shown \\[default: the first].")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers, from 0: 0,3 or all \\[default: all, or six of them].")
    ] = None,
    heads: Annotated[str, typer.Option(help="Heads, from 0: 0,1; mean of all; or all.")] = "mean",
    tokens: Annotated[int, typer.Option(min=2, help="Maximum number of tokens of the text.")] = 256,
    output: args.OutputFolder = None,
    runs: args.Runs = args.DEFAULT_RUNS,
) -> None:
    """Draw attention maps of trained models on a text, variants side by side, as PNG, SVG and PDF.

    Example: gatelab attention-map quickstart --text "def add(a, b):" --layers 0,3
    Example: gatelab attention-map quickstart --file notes.txt --variant gate=none --variant "gate=sdpa elementwise"
    """
    from gatelab.results.views.attention_map import plot_attention
    from gatelab.results.views.style import draw, save_files
    from gatelab.training.evals.attention_map import attention_of_text

    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    if (text is None) == (file is None):
        fail("give --text or --file")
    try:
        content = file.read_text(encoding="utf-8") if file is not None else text or ""
    except OSError as error:
        fail(f"--file {told(error)}", error)
    except UnicodeDecodeError as error:
        fail(f"--file {file}: is no UTF-8 text", error)
    jobs = of_one_seed(trained(folder, name, variant), seed)
    maps = {}
    for job in jobs:
        shown_model = load(folder, job)
        tokenizer = shown_model.dataset.tokenizer
        ids = tokenizer.tokens(content)[:tokens].tolist()
        if len(ids) < 2:
            fail("--text: expected at least two tokens")
        there = job.config.model.layers
        chosen = _spread(there) if layers is None else _chosen("--layers", layers, there)
        weights = attention_of_text(shown_model.model, ids, chosen)
        maps[job.name] = {
            (layer, head): weights[layer].mean(0).numpy() if head == "mean" else weights[layer][int(head)].numpy()
            for layer in chosen
            for head in _heads(heads, job.config.model.query_heads)
        }
    shown = [tokenizer.text([token]) for token in ids]
    drawn, problems = draw(lambda: {"attention-map": plot_attention(maps, shown, name)}, "attention")
    for stem, drawing in drawn.items():
        show_files(save_files(drawing.files, (output or folder.study(name).path) / stem))
    if problems:
        fail("\n".join(problems))


def _spread(count: int) -> list[int]:
    """Return layers from the first to the last: all, or evenly spaced ones."""
    shown = min(count, SHOWN_LAYERS)
    return [round(index * (count - 1) / max(1, shown - 1)) for index in range(shown)]


def _heads(given: str, count: int) -> list[str]:
    return ["mean"] if given == "mean" else [str(head) for head in _chosen("--heads", given, count)]


def _chosen(flag: str, given: str, count: int) -> list[int]:
    """Return numbers below a count: the given ones, or all."""

    def number(text: str) -> int:
        if not text.isdigit() or int(text) >= count:
            raise ValueError(f"expected numbers from 0 to {count - 1}, or all (got {text!r})")
        return int(text)

    return list(range(count)) if given == "all" else [_one(flag, part.strip(), number) for part in given.split(",")]
