"""gatelab export-model: a trained model as a folder that other libraries load."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gatelab.cli import arguments as args
from gatelab.cli.console import console, fail, print_json
from gatelab.cli.trained import load, of_one_seed, trained
from gatelab.results.store.layout import RunsFolder


def export_model(
    study: args.StudyName,
    out: Annotated[Path, typer.Argument(help="The folder to write, which must not be there yet.", show_default=False)],
    variant: Annotated[str | None, typer.Option(help="The variant \\[default: the only one].")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the model \\[default: the first].")] = None,
    as_: Annotated[
        str,
        typer.Option("--as", help="auto, qwen3, qwen3_5, laguna, authors or gatelab: how its weights are laid out."),
    ] = "auto",
    runs: args.Runs = args.DEFAULT_RUNS,
    json: args.Json = False,
) -> None:
    """Write a trained model, with its tokenizer, as a folder that Hugging Face transformers loads.

    Where transformers has a family that computes the same, the model is written as one of it, and loads without further
    code; otherwise a file of Python goes with it.

    Example: gatelab export-model quickstart model --variant "gate=sdpa elementwise" --seed 0
    """
    from gatelab.interchange.export import export_model as write

    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    console.quiet = json
    jobs = of_one_seed(trained(folder, name, [] if variant is None else [variant]), seed)
    if len(jobs) > 1:
        fail(f"--variant: say which: {'; '.join(job.name.rpartition(', seed=')[0] for job in jobs)}")
    job = jobs[0]
    model = load(folder, job)
    origin = {"study": name, "trial": job.trial_id, "name": job.name, "step": model.step}
    length = job.config.training.sequence_length
    family = write(model.model, model.dataset.tokenizer, out, as_, length=length, origin=origin)
    if json:
        print_json(
            {"folder": str(out), "family": family.name, "architecture": family.architecture, "code": family.code}
        )
        return
    console.print(f"written {escape(str(out))}: {escape(job.name)} as {family.architecture}")
    if family.name == "authors":
        console.print("[dim]it is read by the modelling code of the authors' release, which is not part of gatelab[/]")
    else:
        code = ", trust_remote_code=True" if family.code else ""
        console.print(f"[dim]AutoModelForCausalLM.from_pretrained({escape(repr(str(out)))}{code})[/]")
