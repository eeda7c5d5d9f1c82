"""gatelab import-model: a model of Hugging Face transformers as a study whose trials have its weights."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gatelab.ablations.flags import overrides_from_flags
from gatelab.cli import arguments as args
from gatelab.cli.console import console, print_json, warn
from gatelab.results.store.layout import RunsFolder


def import_model(
    path: Annotated[Path, typer.Argument(help="The folder of the model: config.json, safetensors, tokenizer.json.")],
    name: Annotated[str | None, typer.Option(help="Name of the study \\[default: the folder's].")] = None,
    data: Annotated[str | None, typer.Option(help="Text to evaluate on, and to train on: data.source.")] = None,
    set_: args.Sets = [],
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds at which a study may continue it.")] = 1,
    runs: args.Runs = args.DEFAULT_RUNS,
    json: args.Json = False,
) -> None:
    """Bring in a model: Qwen3, the authors' gated Qwen3, dense gated Qwen3.5 or Laguna, or one that gatelab exported.

    It becomes a study that has been run, of one variant, which other studies continue, and which evaluate, diagnose,
    attention-map, sample and export-model take as any other.

    Example: gatelab import-model models/qwen3-0.6b --data corpus --set evaluation.tokens=32k
    """
    from gatelab.orchestrator.model_import import import_model as bring_in

    console.quiet = json
    overrides = overrides_from_flags([*set_, *([] if data is None else [f"data.source={data}"])])
    named = name or re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-")
    folder = RunsFolder(runs)
    found = bring_in(path, folder, named, seeds, overrides)
    if found.read.note:
        warn([found.read.note])
    variant = found.matrix.variants[0]
    file = folder.study(found.name).file
    if json:
        print_json(
            {
                "study": found.name,
                "file": str(file),
                "family": found.read.family.name,
                "parameters": variant.parameters,
                "trials": [trial.id for trial in found.matrix.trials],
                "metrics": found.metrics,
            }
        )
        return
    gate = variant.config.model.gate
    shape = "no gate" if gate.position == "none" else f"{gate.activation} gate at {gate.position}, {gate.granularity}"
    console.print(
        f"imported {escape(str(path))} ({found.read.family.name}): {variant.parameters:,} parameters, {shape}"
    )
    console.print(f"validation loss {found.metrics['validation/loss']:.4f} nats/token")
    console.print(f"study    {escape(found.name)}, for evaluate, diagnose, attention-map, sample, export-model")
    console.print(f"continue {escape(f'continues: {file}')}")
