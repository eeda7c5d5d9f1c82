"""Arguments and options that several commands take."""

import enum
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from gatelab.ablations.errors import nearest
from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.study_file import differences
from gatelab.cli.console import fail, warn
from gatelab.results.store.layout import DEFAULT_ROOT, RunsFolder
from gatelab.results.store.records import StudyRecord


class Format(enum.StrEnum):
    """The format of a table."""

    terminal = "terminal"
    markdown = "md"
    latex = "tex"
    html = "html"
    csv = "csv"
    json = "json"


TableFormat = Annotated[Format, typer.Option("--format", "-f", help="Format of the table.")]
StudyFile = Annotated[Path | None, typer.Argument(help="A study file (YAML).", show_default=False)]
StudyName = Annotated[str, typer.Argument(help="A study's name, or its file.", show_default=False)]
StudyToRun = Annotated[
    str | None, typer.Argument(help="A study file, which is run first, or a study's name.", show_default=False)
]
Preset = Annotated[str | None, typer.Option(help="A named study or base instead of a file (see: gatelab presets).")]
Axes = Annotated[list[str], typer.Option("--axis", help="PATH=LEVEL,LEVEL,…: add or replace an axis; repeatable.")]
Sets = Annotated[list[str], typer.Option("--set", help="PATH=VALUE: set a base configuration field; repeatable.")]
Seeds = Annotated[str | None, typer.Option(help="Number of seeds, or a list: 3, or 0,1,5.")]
Baseline = Annotated[list[str], typer.Option("--baseline", help="PATH=LEVEL: compare with this level; repeatable.")]
Match = Annotated[str | None, typer.Option(help="Match variants by width: none, parameters or flops.")]
Name = Annotated[str | None, typer.Option(help="Name of the study.")]
Runs = Annotated[
    Path,
    typer.Option("--runs", envvar="GATELAB_RUNS", file_okay=False, help="The folder of studies, trials and data."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store \\[default: SQLite in the runs folder]."),
]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Trials at a time \\[default: one for each core or GPU].")]
GpusPerTrial = Annotated[float | None, typer.Option(min=0, max=1, help="GPUs for each trial: 1, or a fraction.")]
Retries = Annotated[
    int, typer.Option(min=0, help="Number of times to retry a trial after an error; lost machines are retried oftener.")
]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Go on though the same error has ended two trials.")]
Notify = Annotated[
    list[str],
    typer.Option(help="A command, or an address, that is told of failures, divergence and the end; repeatable."),
]
CheckpointSeconds = Annotated[float, typer.Option(min=0.1, help="Seconds between two checkpoints.")]
SystemMetrics = Annotated[
    bool, typer.Option("--system-metrics", help="Record processor, memory and GPU as trials train.")
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="HOST:PORT of a Ray cluster \\[default: start Ray here]."),
]
Variants = Annotated[list[str], typer.Option("--variant", help="Only this variant; repeatable.")]
OutputFolder = Annotated[
    Path | None, typer.Option("--output", "-o", file_okay=False, help="Folder \\[default: the study's].")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

DEFAULT_RUNS = DEFAULT_ROOT
MOST_NAMED = 8  # fields that a note names


def study_name(given: str, folder: RunsFolder) -> str:
    """Return the name of a study that is given by name or by file. Raises StudyError if the file cannot be read.

    Says so where the file is not what was run: what is shown is of what was run.
    """
    if not is_file(given):
        return given
    plan = study_from_flags(Path(given))
    name = plan.study.name
    study = folder.study(name)
    record = StudyRecord.read(study.record)
    if record is not None and record.hash != plan.hash:
        changed = differences(study.file, plan) if study.file.is_file() else []
        listed = ", ".join(changed[:MOST_NAMED]) + (", …" if len(changed) > MOST_NAMED else "")
        warn([f"{given} is not what was run, which is what is shown" + (f"; it differs in {listed}" if listed else "")])
    return name


def refuse_with_name(study: str, **flags: Any) -> None:
    """Exit if flags that define a study come with the name of one that has been run."""
    given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value not in (None, [])]
    if given:
        fail(f"{', '.join(given)}: needs the file of the study; {study!r} is the name of one that has been run")


def is_file(given: str | None) -> bool:
    """Return whether a study is given by file, not by name."""
    return given is not None and given.endswith((".yaml", ".yml"))


def check_variants(folder: RunsFolder, study: str, given: Collection[str]) -> None:
    """Exit if a study lacks one of the given variants. Raises NotFound."""
    known = list(folder.study(study).read().variants)
    for variant in given:
        if variant not in known:
            fail(f"--variant {variant!r}: {nearest(variant, known)}")
