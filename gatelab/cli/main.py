"""The `gatelab` command."""

import io
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from gatelab import __version__
from gatelab.cli import (
    chaos,
    effects,
    evaluate,
    export_model,
    import_model,
    init,
    learning_rates,
    machine,
    plan,
    report,
    results,
    run,
    sample,
    scaling,
    stability,
)
from gatelab.cli.console import BAD_REQUEST, errors, reported, show_damage
from gatelab.extras import missing_extra

NO_COMMAND = {
    "clean": "nothing is removed by a command: delete what is not needed, a folder in gatelab-runs/studies or all of "
    "gatelab-runs; the next run makes anew what it lacks",
}
"""What people type that is no command -> what to do instead."""


class _Commands(TyperGroup):
    """The commands: what cannot be written in the encoding of the output is replaced, not refused."""

    def main(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in NO_COMMAND:
            ctx.fail(f"there is no command {args[0]!r}: {NO_COMMAND[args[0]]}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="gatelab",
    cls=_Commands,
    help="Systematic ablations of gated attention: plan, run, compare. Start with: gatelab run --preset quickstart",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    init.init,
    plan.plan,
    run.run,
    run.retry,
    learning_rates.lr_tolerance,
    scaling.scaling,
    results.list_,
    results.status,
    results.compare,
    results.claims,
    results.curves,
    results.diagnose,
    effects.effects,
    stability.stability,
    evaluate.evaluate,
    evaluate.attention_map,
    sample.sample,
    export_model.export_model,
    import_model.import_model,
    report.report,
    results.export,
    results.ui,
    run.train,
    chaos.chaos,
    machine.presets,
    machine.data,
    machine.doctor,
):
    app.command(command.__name__.rstrip("_").replace("_", "-"))(reported(command))


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"gatelab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that go before a command."""
    show_damage()


def main() -> None:
    """Run the command line; where an optional package is missing, name the command that installs it."""
    try:
        app()
    except ImportError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        errors.print(f"[red]error[/] {escape(str(missing))}")
        sys.exit(BAD_REQUEST)
