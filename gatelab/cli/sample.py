"""gatelab sample: what trained models say."""

from typing import Annotated

import typer
from rich.markup import escape

from gatelab.cli import arguments as args
from gatelab.cli.console import console, fail, print_json
from gatelab.cli.trained import load, of_one_seed, trained
from gatelab.results.store.layout import RunsFolder


def sample(
    study: args.StudyName,
    prompt: Annotated[str, typer.Option(help="The text to continue \\[default: the beginning of a document].")] = "",
    variant: args.Variants = [],
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the models \\[default: the first].")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="Divides the logits; 0: the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the likeliest tokens of this share.")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token, always: --temperature 0.")] = False,
    draw: Annotated[int, typer.Option(min=0, help="Seed of the draws: equal ones draw equal tokens.")] = 0,
    runs: args.Runs = args.DEFAULT_RUNS,
    json: args.Json = False,
) -> None:
    """Write what trained models say after a prompt, until a document ends or there are enough tokens.

    Example: gatelab sample quickstart --prompt "def add(a, b):" --greedy
    Example: gatelab sample quickstart --variant gate=none --temperature 0.8 --top-p 0.95 --draw 3
    """
    from gatelab.training.evals.generation import Sampling, generate

    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    console.quiet = json
    sampling = Sampling(0.0 if greedy else temperature, top_p, draw)
    said = []
    for job in of_one_seed(trained(folder, name, variant), seed):
        model = load(folder, job)
        tokenizer, length = model.dataset.tokenizer, job.config.training.sequence_length
        start = tokenizer.tokens(prompt).tolist()
        if prompt and not start:
            fail(f"--prompt {prompt!r}: has no token")
        end = tokenizer.separator
        written = list(generate(model.model, start or [end], tokens, end, sampling, model.device, model.dtype))
        text = tokenizer.text(written)
        said.append({"trial": job.trial_id, "name": job.name, "prompt": prompt, "text": text, "tokens": len(written)})
        console.print(f"[bold]{escape(job.name)}[/]")
        console.print(f"[dim]{escape(prompt)}[/]{escape(text)}")
        if len(start) + len(written) > length:
            console.print(f"[dim]it was trained on sequences of {length} tokens; what is beyond may be poor[/]")
    if json:
        print_json(said)
