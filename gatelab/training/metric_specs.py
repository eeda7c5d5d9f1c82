"""What the metrics of a trial are: the specs of all that measure it, in one table."""

from collections.abc import Iterator

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


_COUNTS = [
    f"train/{name}_{what}" for name in ("loss", "gradient") for what in ("spikes", "spike_steps", "nonfinite_steps")
]
_LENGTH = "[0-9]" * 6


def summary_metrics(trial: TrialConfig) -> Iterator[str]:
    """Yield the metrics that can sum a trial up, as patterns: of training, and of evaluations of its model afterwards.

    Those of domains are among them, although only the data say which domains there are.
    """
    positions = trial.model.gate.positions
    for pattern, spec in trial_metric_specs(trial).items():
        family = pattern.partition("/")[0]
        if (
            not spec.sums_up
            or pattern in diagnostics.NORM_SPECS
            or (family == "sdpa_ungated" and "sdpa" not in positions)
        ):
            continue  # norms are of each layer only
        if family == "gate":
            yield from (pattern.replace("*", position, 1) for position in positions)
        elif family in ("length", "retrieval"):
            yield pattern.replace("/*/", f"/{_LENGTH}/*/", 1)
        elif family != "tasks" and not pattern.startswith("train/*"):
            yield pattern
    yield from _COUNTS
    yield "tasks/*"  # whatever a task of lm-eval measures
