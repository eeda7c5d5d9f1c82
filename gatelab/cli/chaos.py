"""gatelab chaos: whether a study survives that its processes are killed."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gatelab.ablations.flags import study_from_flags
from gatelab.cli import arguments as args
from gatelab.cli.console import DONE, SOME_FAILED, console, fail, print_json
from gatelab.cli.run import end_politely

UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


def chaos(
    study: Annotated[Path, typer.Argument(help="A study file (YAML) of few and short trials.", show_default=False)],
    kills: Annotated[int, typer.Option(min=1, help="Number of kills.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Draws what is killed, and when.")] = 0,
    command: Annotated[
        list[str],
        typer.Option(
            help="run, lr-tolerance, scaling or evaluate, as in 'run --system-metrics'; repeatable, in this order "
            "\\[default: run]."
        ),
    ] = [],
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Write to a real tracking server, and kill it, too.")
    ] = False,
    disk: Annotated[
        str | None, typer.Option(help="Run on a small disk of this size, 200M say, that is full now and then.")
    ] = None,
    gap: Annotated[float, typer.Option(min=0.01, help="Mean seconds between two kills.")] = 2.0,
    checkpoint_seconds: args.CheckpointSeconds = 1.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 2,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder \\[default: chaos/STUDY-seed-SEED].")
    ] = None,
    json: args.Json = False,
) -> None:
    """Run a study twice, once undisturbed and once under kills, compare what both left, and certify it.

    Workers, the command itself, Ray's processes and the tracking store are hit at random moments, also within writes.
    The exit code is 0 only if every row, number, table and checkpoint is the same and nothing was trained again.

    Example: gatelab chaos studies/quickstart.yaml --kills 10 --seed 1
    """
    from gatelab.orchestrator.chaos.chaos import COMMANDS, ChaosOptions, is_command, run_chaos

    end_politely()
    console.quiet = json
    for text in command:
        if not is_command(text):
            fail(f"--command {text!r}: expected one of {', '.join(COMMANDS)}, with options of its own or without")
    plan = study_from_flags(study)
    folder = output or Path("chaos") / f"{plan.study.name}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    small = None if disk is None else _small_disk(folder.resolve() / "disk", disk)
    options = ChaosOptions(kills, seed, gap, checkpoint_seconds, concurrency, mlflow, folder, small)
    commands = list(dict.fromkeys(command)) or ["run"]
    certificate = run_chaos(study, plan, commands, options, lambda line: console.print(escape(line)))
    if json:
        print_json(certificate.to_json())
    else:
        console.print(escape(certificate.to_markdown()))
        console.print(f"certificate {escape(str(folder / 'certificate.json'))}")
    raise typer.Exit(DONE if certificate.holds else SOME_FAILED)


def _small_disk(folder: Path, size: str) -> Path:
    """Return the folder, on a file system of its own in memory: this command is started anew where there is one.

    Exit where that is not possible without privileges.
    """
    folder.mkdir(exist_ok=True)
    if folder.is_mount():
        return folder
    if shutil.which(UNSHARE[0]) is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        fail(f"--disk {size}: this system does not let a user mount a file system in a namespace of its own (unshare)")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run([*UNSHARE, *mount], capture_output=True).returncode:
        fail(f"--disk {size}: expected a size such as 200M, and a system that lets a user mount one")
    again = [sys.executable, "-m", "gatelab", *sys.argv[1:]]
    script = f"{shlex.join(mount)} && exec {shlex.join(again)}"
    return os.execvp(UNSHARE[0], [*UNSHARE, "sh", "-c", script])
