"""Evaluation during training: when it is due, and what it measures of a model."""

import math
from dataclasses import dataclass

from gatelab.metrics import prefixed
from gatelab.training import evaluation
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.diagnostics import diagnose, norms
from gatelab.training.evaluation import loss_metrics, position_losses, token_losses
from gatelab.training.train_state import TrainState

SPECS = prefixed("validation/", evaluation.SPECS)
"""Metrics of held-out text; layers have `diagnostics.NORM_SPECS` and, as the whole, `diagnostics.SPECS`."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found, by name."""

    summary: dict[str, float]
    """Metrics of the whole model: the last evaluation's sum a trial up."""
    positions: dict[str, float]
    """validation/position/…"""
    layers: list[dict[str, float]]


class Evaluator:
    """Evaluates a trial's model on held-out text, always the same. Raises DataError if there is too little of it."""

    def __init__(self, trial: TrialConfig, dataset: Dataset) -> None:
        length, steps, points = trial.training.sequence_length, trial.training.steps, trial.evaluation.points
        self._bytes_per_token = dataset.bytes_per_token
        self._held_out = dataset.held_out(trial.evaluation.tokens, length)
        self._probes = dataset.held_out(trial.evaluation.diagnostic_tokens, length).windows
        self._diagnoses = trial.evaluation.diagnostic_tokens > 0
        self._sequences = trial.training.batch_size // trial.training.accumulation
        self.steps = frozenset(math.ceil(steps * (i + 1) / points) for i in range(points))
        """Steps after which an evaluation is due: evenly spaced, the last step among them."""

    def evaluate(self, state: TrainState) -> Evaluation:
        """Measure a model after a step, whose gradients it still has."""
        losses = token_losses(state.model, self._held_out, self._sequences, state.device, state.dtype)
        summary = _validation(loss_metrics(losses, self._held_out, self._bytes_per_token))
        layers = norms(state.model)
        if self._diagnoses:
            whole, of_layers = diagnose(state.model, self._probes, self._sequences, state.device, state.dtype)
            summary |= whole
            layers = [{**one, **other} for one, other in zip(layers, of_layers, strict=True)]
        return Evaluation(summary, _validation(position_losses(losses)), layers)


def _validation(values: dict[str, float]) -> dict[str, float]:
    return {f"validation/{name}": value for name, value in values.items()}
