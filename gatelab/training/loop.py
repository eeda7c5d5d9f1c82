"""The training loop: a plain function that runs in a notebook, in a test, under Ray."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gatelab.models.decoder import Decoder, initialize
from gatelab.training.checkpoint import load_checkpoint, save_checkpoint
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset, prepare
from gatelab.training.device import choose_device, compute_dtype, peak_memory, precision_context
from gatelab.training.evaluation import language_model_loss, validation_metrics
from gatelab.training.optimizer import build_optimizer, learning_rate
from gatelab.training.recorder import Recorder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Literal["finished", "diverged", "stopped"]
    """stopped: asked to stop before its end; it can go on from its checkpoint."""
    step: int
    """Optimiser steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of each summary metric."""
    reason: str = ""
    """Why it diverged."""


def train(
    trial: TrialConfig,
    recorder: Recorder,
    workdir: Path,
    device: str = "auto",
    *,
    dataset: Dataset | None = None,
    checkpoint_seconds: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train one trial, from its newest checkpoint if there is one, to its end.

    Args:
        trial: the complete configuration.
        recorder: takes the metrics. For each step: train/loss (nats per token) and train/gradient_norm (before
            clipping); at each look, every `log_every` steps: train/learning_rate and train/tokens_per_second;
            at each evaluation: validation/loss, validation/bits_per_byte and, by layer, gradient_norm.
        workdir: where checkpoints are written and looked for.
        device: auto, cpu, cuda or cuda:N.
        dataset: the prepared data of `trial.data`; prepared under `workdir/data` by default.
        checkpoint_seconds: time between two checkpoints; there is one at the end, too.
        should_stop: asked at each look; when it says yes, a checkpoint is written and training stops.

    Returns:
        The outcome. Divergence is an outcome, not an error.

    Raises:
        DataError: the data cannot be used. ValueError: the device is not there.
    """
    where = choose_device(device)
    dataset = dataset or prepare(trial.data, workdir / "data")
    return _Run(trial, recorder, workdir / "checkpoints", where, dataset).run(checkpoint_seconds, should_stop)


class _Run:
    """The state of one trial in training."""

    def __init__(
        self, trial: TrialConfig, recorder: Recorder, checkpoints: Path, device: torch.device, dataset: Dataset
    ) -> None:
        self.trial, self.recorder, self.checkpoints, self.device = trial, recorder, checkpoints, device
        self.training, self.dataset = trial.training, dataset
        self.dtype = compute_dtype(trial.training, device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats(device)
        model = Decoder(trial.model)
        initialize(model, trial.seed)
        self.model = model.to(device).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, self.training.optimizer)
        self.windows = dataset.validation_windows(trial.evaluation.tokens, self.training.sequence_length)
        steps, points = self.training.steps, trial.evaluation.points
        self.evaluation_steps = {math.ceil(steps * (i + 1) / points) for i in range(points)}
        self.step = 0
        self.seconds = 0.0  # of training, over all attempts, without evaluation and checkpoints
        self.metrics: dict[str, float] = {}
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []

    def run(self, checkpoint_seconds: float, should_stop: Callable[[], bool]) -> Outcome:
        self._resume()
        saved_at, look_at = time.monotonic(), time.perf_counter()
        while self.step < self.training.steps:
            self._train_step()
            evaluate = self.step in self.evaluation_steps
            if not evaluate and self.step % self.training.log_every:
                continue
            reason = self._look(look_at)
            if reason:
                self.recorder.commit()
                return Outcome("diverged", self.step, self.metrics, reason)
            if evaluate:
                self._evaluate()
            self.recorder.flush()
            last = self.step == self.training.steps
            stop = not last and should_stop()
            if last or stop or time.monotonic() - saved_at >= checkpoint_seconds:
                self._save()
                saved_at = time.monotonic()
            if stop:
                return Outcome("stopped", self.step, self.metrics)
            look_at = time.perf_counter()
        return Outcome("finished", self.step, self.metrics)

    def _train_step(self) -> None:
        """One optimiser step. Nothing waits for the device; values are collected for the next look."""
        training = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, self.step)
        loss = torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        for part in self._batch().chunk(training.accumulation):
            with precision_context(self.dtype, self.device):
                part_loss = language_model_loss(self.model, part) / training.accumulation
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if training.optimizer.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, training.optimizer.clip_norm, norm)
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss)
        self.norms.append(norm)

    def _batch(self) -> Tensor:
        training = self.training
        windows = self.dataset.batch(
            self.trial.seed, self.step, training.batch_size, training.sequence_length
        )
        return torch.from_numpy(windows).to(self.device, non_blocking=True)

    def _look(self, since: float) -> str:
        """Record the steps since the last look; the reason if they show that training has diverged, else ''."""
        losses, norms = (torch.stack(values).tolist() for values in (self.losses, self.norms))
        elapsed = time.perf_counter() - since
        self.losses.clear()
        self.norms.clear()
        self.seconds += elapsed
        first = self.step - len(losses) + 1
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            self.recorder.record(step, {"train/loss": loss, "train/gradient_norm": norm})
        mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.nan
        self.metrics |= {
            "train/loss": mean,
            "train/tokens_per_second": self.step * self.training.tokens_per_step / self.seconds,
            "train/seconds": self.seconds,
            "peak_memory_bytes": float(peak_memory(self.device)),
        }
        self.recorder.record(
            self.step,
            {
                "train/learning_rate": learning_rate(self.training, self.step - 1),
                "train/tokens_per_second": len(losses) * self.training.tokens_per_step / elapsed,
            },
        )
        return self._divergence(losses, mean, first)

    def _divergence(self, losses: list[float], mean: float, first: int) -> str:
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                return f"the training loss was {loss} at step {step}"
        assert self.trial.model.vocab_size is not None
        bound = self.training.loss_bound * math.log(self.trial.model.vocab_size)
        if mean > bound:
            return f"the training loss averaged {mean:.3g} over steps {first}-{self.step}, above its bound {bound:.3g}"
        return ""

    def _evaluate(self) -> None:
        metrics = validation_metrics(
            self.model,
            self.windows,
            self.training.batch_size // self.training.accumulation,
            self.dataset.bytes_per_token,
            self.device,
            self.dtype,
        )
        self.metrics |= metrics
        self.recorder.record(self.step, metrics)
        for layer, norm in self._layer_gradient_norms():
            self.recorder.record(self.step, {"gradient_norm": norm}, layer)

    def _layer_gradient_norms(self) -> Iterator[tuple[int, float]]:
        """Gradient norm of each layer in the last step, after clipping."""
        for index, layer in enumerate(self.model.layers):
            gradients = [p.grad for p in layer.parameters() if p.grad is not None]
            yield index, nn.utils.get_total_norm(gradients).item()

    def _save(self) -> None:
        # First the journal: a checkpoint must never be ahead of the record of how it was reached.
        self.recorder.commit()
        state: dict[str, Any] = {"seconds": self.seconds, "metrics": self.metrics}
        save_checkpoint(self.checkpoints, self.step, self.model, self.optimizer, state)

    def _resume(self) -> None:
        restored = load_checkpoint(self.checkpoints, self.model, self.optimizer)
        if restored is not None:
            self.step, state = restored
            self.seconds, self.metrics = state["seconds"], state["metrics"]
            logger.info("resumed from the checkpoint of step %d", self.step)
