"""gatelab init: a study file to start from."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gatelab.ablations.template import study_template
from gatelab.cli.console import console, fail


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("study.yaml"),
    name: Annotated[str | None, typer.Option(help="Name of the study \\[default: the file's].")] = None,
) -> None:
    """Write a commented study file to start from, and say what to do next.

    Example: gatelab init gates.yaml --name gate-position
    """
    if path.suffix not in (".yaml", ".yml"):
        fail(f"{path}: the name of a study file ends in .yaml")
    text = study_template(path.stem if name is None else name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        fail(f"{path} exists already, and is left as it is: name another file", error)
    except OSError as error:
        fail(f"{path}: {error.strerror}", error)
    console.print(f"{escape(str(path))} is written. Say in it what you ask, then:")
    for command, what in (("plan", "shows what would run: trials, parameters, memory, time"), ("run", "runs it")):
        console.print(f"  gatelab {command} {escape(str(path))}  [dim]{what}[/]")
