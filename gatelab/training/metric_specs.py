"""What the metrics of a trial are: the specs of all that measure it, in one table."""

from gatelab.metrics import MetricSpec
from gatelab.training import diagnostics, divergence, evaluator, loop, progress
from gatelab.training.config import TrialConfig
from gatelab.training.evals import trained_model


def trial_metric_specs(trial: TrialConfig) -> dict[str, MetricSpec]:
    """Return what a trial records, sums up and can be evaluated by, by pattern of a name; the first that fits holds."""
    specs = {**progress.SPECS, **loop.SPECS, **evaluator.SPECS, **diagnostics.NORM_SPECS}
    if trial.evaluation.diagnostic_tokens:
        specs |= diagnostics.SPECS | divergence.SPECS
    return specs | trained_model.SPECS
