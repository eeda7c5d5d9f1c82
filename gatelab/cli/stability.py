"""gatelab stability: how stable training was, and what led to a divergence."""

from gatelab.cli import arguments as args
from gatelab.cli.console import fail, reporting_errors, show_written
from gatelab.results.store.layout import RunsFolder


def stability(
    study: args.StudyName,
    variant: args.Variants = [],
    format: args.TableFormat = args.Format.terminal,
    output: args.OutputFolder = None,
    runs: args.Runs = args.DEFAULT_RUNS,
    tracking_uri: args.TrackingUri = None,
    json: args.Json = False,
) -> None:
    """Show how stable training was: spike scores, divergence, what grew, and which layer left its band first.

    Example: gatelab stability quickstart -o figures/
    Example: gatelab stability learning-rates-lr-tolerance --variant "arm=none, learning_rate=1"
    """
    from gatelab.orchestrator.tracking import add_to_mlflow
    from gatelab.results.analyses.stability import NoSteps
    from gatelab.results.report.write import write_stability

    folder, name = RunsFolder(runs), args.study_name(study)
    with reporting_errors():
        args.check_variants(folder, name, variant)
        try:
            written = write_stability(folder, name, output, variant)
        except NoSteps as error:
            fail(f"{name}: {error}", error)
    problem = add_to_mlflow(folder, name, tracking_uri, [*written.tables, *written.plots])
    show_written(written, args.Format.json if json else format, problem)
