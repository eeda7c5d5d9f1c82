"""gatelab stability: the stability of training, and divergence traces."""

from gatelab.cli import arguments as args
from gatelab.cli.analysis import show_analysis
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
    """Show the stability of training: spike scores, divergence, growth, and which layer left its band first.

    Example: gatelab stability quickstart -o figures/
    Example: gatelab stability learning-rates-lr-tolerance --variant "arm=none, learning_rate=1"
    """
    folder = RunsFolder(runs)
    name = args.study_name(study, folder)
    args.check_variants(folder, name, variant)
    form = args.Format.json if json else format
    show_analysis("stability", folder, name, tracking_uri, form, output, variants=list(variant))
