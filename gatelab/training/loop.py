"""The training loop: a plain function that runs in a notebook, in a test, under Ray."""

import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gatelab.training.autopsy import SPIKES, Ring
from gatelab.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset, prepare
from gatelab.training.device import choose_device, peak_memory
from gatelab.training.diagnostics import diagnose, norms
from gatelab.training.evaluation import loss_metrics, position_losses, token_losses
from gatelab.training.optimizer import learning_rate
from gatelab.training.recorder import Recorder
from gatelab.training.spikes import SpikeCounter
from gatelab.training.step import Learner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Literal["finished", "diverged", "stopped"]
    """stopped: asked to stop before its end; it can go on from its checkpoint."""
    step: int
    """Optimiser steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What sums the trial up: validation/* and the diagnostics of the whole model, of the last evaluation;
    train/initial_loss, of the first batch before any step; train/final_loss, the mean over the steps since the last
    look but one; train/mean_tokens_per_second and train/seconds, of training alone; memory/peak_bytes; of the losses
    of all steps train/loss_spikes, train/loss_spike_steps and train/loss_nonfinite_steps (see `SpikeCounter`), and the
    same of their gradient norms."""
    reason: str = ""
    """Why it diverged."""


def train(
    trial: TrialConfig,
    recorder: Recorder,
    workdir: Path,
    device: str = "auto",
    *,
    dataset: Dataset | None = None,
    start: Path | None = None,
    start_step: int | None = None,
    trunk: Path | None = None,
    milestones: Collection[int] = (),
    checkpoint_seconds: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train one trial, from its newest checkpoint if there is one, to its end.

    Args:
        trial: the complete configuration.
        recorder: takes the metrics. For each step: train/loss (nats per token) and train/gradient_norm (before
            clipping); at each look, every `log_every` steps: train/learning_rate and train/tokens_per_second;
            at each evaluation: validation/… (see `loss_metrics`), validation/position/…, attention/…, activation/…,
            sdpa/… and gate/… of the whole model and by layer (see `diagnose`), and by layer gradient_norm and
            the norms of its parts (see `norms`); at a divergence and at the first loss spikes by layer autopsy/… of the
            last steps (see `Ring`).
        workdir: where checkpoints are written and looked for.
        device: auto, cpu, cuda or cuda:N.
        dataset: the prepared data of `trial.data`; prepared under `workdir/data` by default.
        start: folder of the checkpoints whose newest weights training starts from; by default they are drawn from the
            seed. Step, optimiser state and schedule start anew.
        start_step: the step that these weights must be of.
        trunk: folder of a checkpoint of a longer trial that is this one up to there; training goes on from it, as from
            a checkpoint of its own.
        milestones: steps, multiples of `log_every`, at which a checkpoint for such shorter trials is kept, under
            `milestone(workdir, step)`.
        checkpoint_seconds: time between two checkpoints; there is one at the end, too.
        should_stop: asked at each look; when it says yes, a checkpoint is written and training stops.

    Returns:
        The outcome. Divergence is an outcome, not an error.

    Raises:
        DataError: the data cannot be used. ValueError: the device is not there, or `start` holds another model.
        FileNotFoundError: `start` holds no checkpoint, or its newest is of another step than `start_step`.
    """
    where = choose_device(device)
    dataset = dataset or prepare(trial.data, workdir / "data")
    run = _Run(trial, recorder, workdir, where, dataset, start, start_step, trunk, frozenset(milestones))
    return run.run(checkpoint_seconds, should_stop)


def milestone(workdir: Path, step: int) -> Path:
    """Folder of the checkpoint that a trial keeps for shorter ones that branch off at a step."""
    return workdir / "milestones" / f"step-{step:09d}"


class _Run:
    """The state of one trial in training."""

    def __init__(
        self,
        trial: TrialConfig,
        recorder: Recorder,
        workdir: Path,
        device: torch.device,
        dataset: Dataset,
        start: Path | None,
        start_step: int | None,
        trunk: Path | None,
        milestones: frozenset[int],
    ) -> None:
        self.trial, self.training, self.dataset = trial, trial.training, dataset
        self.recorder, self.workdir, self.device = recorder, workdir, device
        self.start, self.start_step, self.trunk, self.milestones = start, start_step, trunk, milestones
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats(device)
        dataset.require(self.training.sequence_length)
        self.learner = Learner(trial, device)
        self.held_out = dataset.held_out(trial.evaluation.tokens, self.training.sequence_length)
        self.probes = dataset.held_out(trial.evaluation.diagnostic_tokens, self.training.sequence_length).windows
        steps, points = self.training.steps, trial.evaluation.points
        self.evaluation_steps = {math.ceil(steps * (i + 1) / points) for i in range(points)}
        self.step = 0
        self.seconds = 0.0  # of training, over all attempts, without evaluation and checkpoints
        self.metrics: dict[str, float] = {}
        self.spikes = {"loss": SpikeCounter(), "gradient": SpikeCounter()}
        self.ring = Ring(self.learner.model) if trial.evaluation.diagnostic_tokens else None
        self.unseen: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of the steps since the last look

    def run(self, checkpoint_seconds: float, should_stop: Callable[[], bool]) -> Outcome:
        self._resume()
        saved_at, looked_at = time.monotonic(), time.perf_counter()
        while self.step < self.training.steps:
            self._train_step()
            evaluate = self.step in self.evaluation_steps
            if not evaluate and self.step % self.training.log_every:
                continue
            reason = self._look(time.perf_counter() - looked_at)
            if not reason and evaluate:
                reason = self._evaluate()
            if reason:
                if self.ring:
                    self.ring.write(self.recorder, self.step)
                self.recorder.commit()
                return Outcome("diverged", self.step, self.metrics, reason)
            self.recorder.flush()
            last = self.step == self.training.steps
            stop = not last and should_stop()
            if self.step in self.milestones:
                self._save(milestone(self.workdir, self.step))
            if last or stop or time.monotonic() - saved_at >= checkpoint_seconds:
                self._save(self.checkpoints)
                saved_at = time.monotonic()
            if stop:
                return Outcome("stopped", self.step, self.metrics)
            looked_at = time.perf_counter()
        return Outcome("finished", self.step, self.metrics)

    def _train_step(self) -> None:
        windows = self.dataset.batch(
            self.trial.seed, self.step, self.training.batch_size, self.training.sequence_length
        )
        batch = torch.from_numpy(windows).to(self.device, non_blocking=True)
        self.unseen.append(self.learner.step(self.step, batch))
        self.step += 1
        if self.ring:
            self.ring.take(self.step, self.learner.gradient_norms)

    def _look(self, elapsed: float) -> str:
        """Record the steps since the last look; the reason if they show that training has diverged, else ''."""
        losses, norms = torch.tensor(self.unseen, dtype=torch.float64).T.tolist()
        self.unseen.clear()
        self.seconds += elapsed
        first = self.step - len(losses) + 1
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            self.recorder.record(step, {"train/loss": loss, "train/gradient_norm": norm})
        known = self.spikes["loss"].spikes
        self.spikes["loss"].count(losses)
        if self.ring and known < min(self.spikes["loss"].spikes, SPIKES):
            self.ring.write(self.recorder, self.step)
        self.spikes["gradient"].count(norms)
        mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.nan
        self.metrics.setdefault("train/initial_loss", losses[0])
        self.metrics |= {
            "train/final_loss": mean,
            "train/mean_tokens_per_second": self.step * self.training.tokens_per_step / self.seconds,
            "train/seconds": self.seconds,
            "memory/peak_bytes": float(peak_memory(self.device)),
        }
        for name, counter in self.spikes.items():
            self.metrics[f"train/{name}_spikes"] = float(counter.spikes)
            self.metrics[f"train/{name}_spike_steps"] = float(counter.spike_steps)
            self.metrics[f"train/{name}_nonfinite_steps"] = float(counter.nonfinite_steps)
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

    def _evaluate(self) -> str:
        """Record the validation metrics; the reason if they show that training has diverged, else ''."""
        model, sequences = self.learner.model, self.training.batch_size // self.training.accumulation
        losses = token_losses(model, self.held_out, sequences, self.device, self.learner.dtype)
        summary = _validation(loss_metrics(losses, self.held_out, self.dataset.bytes_per_token))
        layers = norms(model)
        if self.trial.evaluation.diagnostic_tokens:
            whole, of_layers = diagnose(model, self.probes, sequences, self.device, self.learner.dtype)
            summary |= whole
            layers = [{**one, **other} for one, other in zip(layers, of_layers, strict=True)]
        self.metrics |= summary
        self.recorder.record(self.step, {**summary, **_validation(position_losses(losses))})
        for layer, values in enumerate(layers):
            self.recorder.record(self.step, values, layer)
        loss = summary["validation/loss"]
        return "" if math.isfinite(loss) else f"the validation loss was {loss} at step {self.step}"

    @property
    def checkpoints(self) -> Path:
        return self.workdir / "checkpoints"

    def _save(self, folder: Path) -> None:
        # First the journal: a checkpoint must never be ahead of the record of how it was reached.
        self.recorder.commit()
        spikes = {name: counter.state() for name, counter in self.spikes.items()}
        state: dict[str, Any] = {"seconds": self.seconds, "metrics": self.metrics, "spikes": spikes}
        save_checkpoint(folder, self.step, self.learner.model, self.learner.optimizer, state)

    def _resume(self) -> None:
        restored = load_checkpoint(self.checkpoints, self.learner.model, self.learner.optimizer)
        if restored is None and self.trunk is not None:
            restored = load_checkpoint(self.trunk, self.learner.model, self.learner.optimizer)
        if restored is None and self.start is not None:
            load_weights(self.start, self.learner.model, self.start_step)
        elif restored is not None:
            self.step, state = restored
            self.seconds, self.metrics = state["seconds"], state["metrics"]
            self.spikes = {name: SpikeCounter(kept) for name, kept in state["spikes"].items()}
            logger.info("resumed from the checkpoint of step %d", self.step)


def _validation(values: dict[str, float]) -> dict[str, float]:
    return {f"validation/{name}": value for name, value in values.items()}
