"""The training loop: a plain function that runs in a notebook, in a test, under Ray."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gatelab.metrics import MetricSpec
from gatelab.status import Status
from gatelab.training.checkpoint import Checkpoint, load_weights, save_checkpoint, sweep, whole_checkpoints
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.device import choose_device, peak_memory
from gatelab.training.divergence import TRACED_SPIKES, StepHistory, divergence_reason
from gatelab.training.evaluator import Evaluator
from gatelab.training.optimizer import learning_rate
from gatelab.training.preparation import prepare
from gatelab.training.progress import Progress
from gatelab.training.recorder import NullRecorder, Recorder
from gatelab.training.train_state import TrainState

SPECS = {
    "train/loss": MetricSpec("nats/token", "lower", kind="series"),
    "train/gradient_norm": MetricSpec(kind="series"),
    "train/learning_rate": MetricSpec(kind="series"),
    "train/tokens_per_second": MetricSpec("tokens/s", "higher", kind="series"),
}
"""Metrics that are recorded between evaluations."""

HISTORY = "history"
"""The history of the last steps in checkpoints."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Status
    """FINISHED, DIVERGED or STOPPED."""
    step: int
    """Optimiser steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics that sum the trial up: validation/* and the diagnostics of the whole model, of the last evaluation;
    train/initial_loss, of the first batch before any step; train/final_loss, the mean over the steps since metrics
    were logged last but one; train/mean_tokens_per_second and train/seconds, of training alone; memory/peak_bytes; of
    the losses of all steps train/loss_spikes, train/loss_spike_steps and train/loss_nonfinite_steps (see
    `SpikeCounter`), and the same of their gradient norms."""
    reason: str = ""
    """Why it diverged."""


def train(
    config: TrialConfig,
    recorder: Recorder | None = None,
    workdir: Path | str | None = None,
    device: str = "auto",
    *,
    dataset: Dataset | None = None,
    warm_start: Path | None = None,
    warm_start_step: int | None = None,
    fork: Path | None = None,
    fork_steps: Collection[int] = (),
    recorded: int | None = None,
    checkpoint_seconds: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train one trial, from its newest checkpoint if there is one, to its end.

    Example:
        >>> config = TrialConfig.model_validate(
        ...     {"model": {"layers": 2, "gate": {"position": "sdpa"}}, "training": {"tokens": "50k"}}
        ... )
        >>> outcome = train(config)
        >>> outcome.status, outcome.metrics["validation/loss"]

    Args:
        config: the complete configuration.
        recorder: takes the metrics; by default nothing does. For each step: train/loss (nats per token) and
            train/gradient_norm (before clipping); every `log_every` steps: train/learning_rate and
            train/tokens_per_second; at each evaluation: validation/… (see `loss_metrics`), validation/position/…,
            attention/…, activation/…, sdpa/… and gate/… of the whole model and by layer (see `diagnose`), and by layer
            gradient_norm and the norms of its parts (see `norms`); at a divergence and at the first loss spikes by
            layer autopsy/… of the last steps (see `StepHistory`).
        workdir: where checkpoints are written and looked for. By default a temporary folder, gone when training ends.
        device: auto, cpu, cuda or cuda:N.
        dataset: the prepared data of `config.data`; prepared under `workdir/data` by default.
        warm_start: folder of the checkpoints whose newest weights training starts from; by default they are drawn from
            the seed. Step, optimiser state and schedule start anew.
        warm_start_step: the step that these weights must be of.
        fork: folder of a checkpoint of a longer trial that is this one up to there; training goes on from it, as from
            a checkpoint of its own.
        fork_steps: steps, multiples of `log_every`, at which a checkpoint for such shorter trials is kept, under
            `fork_checkpoint(workdir, step)`.
        recorded: the step up to which the recorder has everything of earlier attempts. Checkpoints of later steps are
            passed over, so that what it lost is recorded again. By default it may be any.
        checkpoint_seconds: time between two checkpoints; there is one at the end, too.
        should_stop: asked whenever metrics are logged; when it says yes, a checkpoint is written and training stops.

    Returns:
        The outcome. Divergence is an outcome, not an error.

    Raises:
        DataError: the data cannot be used. ValueError: the device is not there, or `warm_start` holds another model.
        FileNotFoundError: `warm_start` holds no checkpoint, or its newest is of another step than `warm_start_step`.
    """
    where = choose_device(device)
    with _folder(workdir) as folder:
        if dataset is None:
            dataset = prepare(config.data, folder / "data")
        run = _Run(config, NullRecorder() if recorder is None else recorder, folder, where, dataset)
        run.resume(fork, warm_start, warm_start_step, recorded)
        return run.run(frozenset(fork_steps), checkpoint_seconds, should_stop)


def fork_checkpoint(workdir: Path, step: int) -> Path:
    """Return the folder of the checkpoint that a trial keeps for shorter ones that branch off at a step."""
    return workdir / "milestones" / f"step-{step:09d}"


@contextmanager
def _folder(given: Path | str | None) -> Iterator[Path]:
    """Yield the folder that was given, or a temporary one."""
    if given is not None:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="gatelab-") as temporary:
        yield Path(temporary)


class _Run:
    """One trial in training."""

    def __init__(
        self, config: TrialConfig, recorder: Recorder, workdir: Path, device: torch.device, dataset: Dataset
    ) -> None:
        self.config, self.training, self.dataset = config, config.training, dataset
        self.recorder, self.workdir, self.device = recorder, workdir, device
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats(device)
        dataset.require(self.training.sequence_length)
        self.state = TrainState(config, device)
        self.evaluator = Evaluator(config, dataset)
        self.history = StepHistory(self.state.model) if config.evaluation.diagnostic_tokens else None
        self.progress = Progress()
        self.pending: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of steps that were not logged yet

    def resume(
        self, fork: Path | None, warm_start: Path | None, warm_start_step: int | None, recorded: int | None
    ) -> None:
        """Go on from the newest checkpoint, or from a fork; or else start warm; or else from the seed's weights."""
        for own in (self.checkpoints, *self.workdir.glob("milestones/*")):
            sweep(own)
        for folder in (self.checkpoints, *([] if fork is None else [fork])):
            for checkpoint in whole_checkpoints(folder, recorded):
                try:
                    self._restore(checkpoint)
                except ValueError as error:
                    logger.warning("checkpoint of step %d in %s passed over: %s", checkpoint.step, folder, error)
                    continue
                logger.info("resumed from the checkpoint of step %d", checkpoint.step)
                return
        if warm_start is not None:
            load_weights(warm_start, self.state.model, warm_start_step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises ValueError, and has changed nothing, where it is not of such a trial."""
        progress = Progress.restored(checkpoint.step, checkpoint.state)
        checkpoint.restore(self.state.model, self.state.optimizer)
        self.progress = progress
        if self.history:
            self.history.restore(checkpoint.state.get("history"), checkpoint.tensors.get(HISTORY))

    def run(self, fork_steps: Collection[int], checkpoint_seconds: float, should_stop: Callable[[], bool]) -> Outcome:
        """Train to the end, to a divergence, or until training should stop."""
        progress, steps = self.progress, self.training.steps
        saved_at, logged_at = time.monotonic(), time.perf_counter()
        while progress.step < steps:
            self._train_step()
            evaluates = progress.step in self.evaluator.steps
            if not evaluates and progress.step % self.training.log_every:
                continue
            reason = self._log_metrics(time.perf_counter() - logged_at)
            if not reason and evaluates:
                reason = self._evaluate()
            if reason:
                if self.history:
                    self.history.write(self.recorder, progress.step)
                self.recorder.commit()
                return Outcome(Status.DIVERGED, progress.step, progress.metrics, reason)
            self.recorder.flush()
            last = progress.step == steps
            stops = not last and should_stop()
            if progress.step in fork_steps:
                self._save(fork_checkpoint(self.workdir, progress.step))
            if last or stops or time.monotonic() - saved_at >= checkpoint_seconds:
                self._save(self.checkpoints)
                saved_at = time.monotonic()
            if stops:
                return Outcome(Status.STOPPED, progress.step, progress.metrics)
            logged_at = time.perf_counter()
        return Outcome(Status.FINISHED, progress.step, progress.metrics)

    def _train_step(self) -> None:
        training, progress = self.training, self.progress
        windows = self.dataset.batch(self.config.seed, progress.step, training.batch_size, training.sequence_length)
        batch = torch.from_numpy(windows).to(self.device, non_blocking=True)
        self.pending.append(self.state.step(progress.step, batch))
        progress.step += 1
        if self.history:
            self.history.take(progress.step, self.state.gradient_norms)

    def _log_metrics(self, elapsed: float) -> str:
        """Record the steps since metrics were logged last.

        Returns the reason if they show that training has diverged, else ''.
        """
        losses, norms = torch.tensor(self.pending, dtype=torch.float64).T.tolist()
        self.pending.clear()
        progress, tokens_per_step = self.progress, self.training.tokens_per_step
        progress.seconds += elapsed
        first = progress.step - len(losses) + 1
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            self.recorder.record(step, {"train/loss": loss, "train/gradient_norm": norm})
        known = progress.losses.spikes
        progress.losses.count(losses)
        progress.gradients.count(norms)
        if self.history and known < min(progress.losses.spikes, TRACED_SPIKES):
            self.history.write(self.recorder, progress.step)
        mean = progress.summarise(losses, tokens_per_step, peak_memory(self.device))
        self.recorder.record(
            progress.step,
            {
                "train/learning_rate": learning_rate(self.training, progress.step - 1),
                "train/tokens_per_second": len(losses) * tokens_per_step / elapsed,
            },
        )
        return divergence_reason(self.config, losses, mean, first)

    def _evaluate(self) -> str:
        """Record an evaluation; return the reason if it shows that training has diverged, else ''."""
        step, found = self.progress.step, self.evaluator.evaluate(self.state)
        self.progress.metrics |= found.summary
        self.recorder.record(step, {**found.summary, **found.positions})
        for layer, values in enumerate(found.layers):
            self.recorder.record(step, values, layer)
        loss = found.summary["validation/loss"]
        return "" if math.isfinite(loss) else f"the validation loss was {loss} at step {step}"

    @property
    def checkpoints(self) -> Path:
        """Folder of the trial's own checkpoints."""
        return self.workdir / "checkpoints"

    def _save(self, folder: Path) -> None:
        # First the journal: a checkpoint must never be ahead of the record of how it was reached.
        self.recorder.commit()
        state, others = self.progress.state(), {}
        if self.history:
            state["history"], others[HISTORY] = self.history.state()
        save_checkpoint(folder, self.progress.step, self.state.model, self.state.optimizer, state, others)
