"""The `gatelab` command."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from gatelab import __version__
from gatelab.cli import effects, evaluate, init, learning_rates, machine, plan, report, results, run, scaling, stability
from gatelab.cli.console import BAD_REQUEST, errors, show_damage
from gatelab.extras import missing_extra

app = typer.Typer(
    name="gatelab",
    help="Systematic ablations of gated attention: plan, run, compare. Start with: gatelab run --preset quickstart",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

for command in (
    init.init,
    plan.plan,
    run.run,
    run.retry,
    learning_rates.lr_tolerance,
    scaling.scaling,
    results.status,
    results.compare,
    results.claims,
    results.curves,
    results.diagnose,
    effects.effects,
    stability.stability,
    evaluate.evaluate,
    evaluate.attention_map,
    report.report,
    results.export,
    results.ui,
    run.train,
    machine.presets,
    machine.data,
    machine.doctor,
):
    app.command()(command)


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
