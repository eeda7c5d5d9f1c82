"""The `gatelab` command."""

import typer

from gatelab.cli import effects, evaluate, machine, plan, report, results, run, scaling, stability, tolerance

app = typer.Typer(
    name="gatelab",
    help="Systematic ablations of gated attention: plan, run, compare. Start with: gatelab run --preset quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

for command in (
    plan.plan,
    run.run,
    tolerance.lr_tolerance,
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


def main() -> None:
    """Run the command line."""
    app()
