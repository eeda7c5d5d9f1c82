"""A trained model and what it does beyond its training: at other lengths, under another RoPE, on tasks.

A spec names one thing to measure; the result is a set of metrics with names of their own. No weight changes.
"""

from dataclasses import asdict
from pathlib import Path

from gatelab.metrics import prefixed
from gatelab.models.decoder import Decoder, set_rope
from gatelab.training import evaluation
from gatelab.training.checkpoint import load_weights
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.device import choose_device, compute_dtype
from gatelab.training.evals import lm_eval_tasks, retrieval
from gatelab.training.evals.retrieval_tasks import Example, make_examples
from gatelab.training.evals.spec import EvalSpec, extend_rope
from gatelab.training.evaluation import loss_metrics, position_losses, token_losses

SPECS = {
    **prefixed("length/*/", evaluation.SPECS),
    **prefixed("retrieval/*/", retrieval.SPECS),
    **prefixed("tasks/", lm_eval_tasks.SPECS),
}
"""Metrics that `TrainedModel.evaluate` measures."""
HAYSTACK = 1 << 22  # tokens of the held-out text that synthetic tasks are hidden in, at most


class TrainedModel:
    """A trial's model with its final weights, on a device. Raises FileNotFoundError without them."""

    def __init__(self, trial: TrialConfig, checkpoints: Path, dataset: Dataset, device: str = "auto") -> None:
        self.trial, self.dataset, self.device = trial, dataset, choose_device(device)
        self.dtype = compute_dtype(trial.training, self.device)
        self.model = Decoder(trial.model)
        self.step = load_weights(checkpoints, self.model, trial.training.steps)
        self.model.to(self.device).eval()

    def evaluate(self, spec: EvalSpec) -> dict[str, float]:
        """Measure the metrics of a spec, by name. Raises ValueError or DataError if that is impossible."""
        training = self.trial.training
        set_rope(self.model, extend_rope(self.trial.model, spec.rope, training.sequence_length, spec.length))
        in_training = training.batch_size // training.accumulation * training.sequence_length
        batch = max(1, in_training // spec.length)  # as many tokens at a time as training had
        measure = {"length": self._length, "retrieval": self._retrieval, "tasks": self._tasks}[spec.kind]
        return {f"{spec.stem}/{name}": value for name, value in measure(spec, batch).items()}

    def _length(self, spec: EvalSpec, batch: int) -> dict[str, float]:
        held_out = self.dataset.held_out(spec.amount, spec.length)
        losses = token_losses(self.model, held_out, batch, self.device, self.dtype)
        return {**loss_metrics(losses, held_out, self.dataset.bytes_per_token), **position_losses(losses)}

    def _retrieval(self, spec: EvalSpec, batch: int) -> dict[str, float]:
        return asdict(retrieval.score(self.model, _examples(spec, self.dataset), self.device, self.dtype, batch))

    def _tasks(self, spec: EvalSpec, batch: int) -> dict[str, float]:
        return lm_eval_tasks.run_tasks(
            [spec.task],
            self.model,
            self.dataset.tokenizer,
            self.device,
            self.dtype,
            max_length=spec.length,
            batch_size=batch,
            limit=spec.amount or None,
            include=Path(spec.folder) if spec.folder else None,
            seed=0,
        )


def refusal(spec: EvalSpec, trial: TrialConfig, dataset: Dataset) -> str:
    """Say why a spec is impossible for a trial on its data, or return ''. Tasks of lm-eval are not looked at."""
    try:
        extend_rope(trial.model, spec.rope, trial.training.sequence_length, spec.length)
        if spec.kind == "length":
            dataset.held_out(1, spec.length)
        elif spec.kind == "retrieval":
            _examples(spec, dataset)
    except ValueError as error:
        return str(error)
    return ""


def _examples(spec: EvalSpec, dataset: Dataset) -> list[Example]:
    haystack = dataset.validation.window(0, min(len(dataset.validation), HAYSTACK))
    seed = 0  # the same examples for every trial: differences are paired
    return make_examples(spec.task, spec.length, spec.amount, dataset.tokenizer, haystack, seed)
