"""The driver: gives a study's trials to Ray, one to each free worker, until all are over.

Ray places workers and limits them by resources; workers are kept between trials. Metrics do not pass through here:
trials write journals, which the driver reads for its display and one mirror copies to MLflow.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import ray
from ray.exceptions import RayError

from gatelab.ablations.matrix import Matrix, Trial
from gatelab.ablations.shared_prefix import Fork, forks
from gatelab.orchestrator.cluster import CannotRun, connected, share
from gatelab.orchestrator.preregistration import register_claims
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.orchestrator.tracking import SyncThread
from gatelab.orchestrator.worker import EvaluationPrinter, Task, TrialWorker, run_task
from gatelab.results.store.journal import JournalTail
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import read_json, write_json
from gatelab.results.store.trials import is_over
from gatelab.training.checkpoint import is_written
from gatelab.training.config import DataConfig
from gatelab.training.data import Dataset
from gatelab.training.loop import fork_checkpoint
from gatelab.training.preparation import prepare

POLL_SECONDS = 0.5  # between two looks at the journals, for the display
STOP_SECONDS = 60.0  # for trials to reach a checkpoint after an interrupt


@dataclass(frozen=True)
class Options:
    """How to run a study, as opposed to what it is: none of this enters a trial's identity."""

    concurrency: int | None = None
    """Trials at a time; None: one for each core, or as many as the GPUs hold."""
    gpus_per_trial: float | None = None
    """None: 1 where Ray has GPUs, else 0."""
    address: str | None = None
    """Of a Ray cluster; None: Ray is started here and stopped at the end."""
    tracking_uri: str | None = None
    """Of an MLflow store; None: SQLite in the runs folder."""
    retries: int = 1
    """How often a trial that failed is tried again."""
    checkpoint_seconds: float = 60.0
    system_metrics: bool = False
    """Whether trials record what their machine is doing."""


@dataclass
class TrialProgress:
    """What is known of a trial while a study runs."""

    trial: Trial
    state: str = "waiting"  # or running, finished, diverged, failed
    step: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    reason: str = ""
    log: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to its end."""
        training = self.trial.config.training
        if not self.tokens_per_second:
            return None
        return (training.steps - self.step) * training.tokens_per_step / self.tokens_per_second


@dataclass
class Progress:
    """A study as it runs: what the driver shows."""

    trials: dict[str, TrialProgress]  # by id
    concurrency: int = 1
    mirror_problem: str = ""
    stopping: bool = False
    started: float = field(default_factory=time.monotonic)

    def count(self, state: str) -> int:
        """Trials in a state."""
        return sum(trial.state == state for trial in self.trials.values())

    @property
    def running(self) -> list[TrialProgress]:
        """Trials that are being trained."""
        return [trial for trial in self.trials.values() if trial.state == "running"]

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end of the study, from the speed of what runs."""
        speeds = [trial.tokens_per_second for trial in self.running if trial.tokens_per_second]
        if not speeds:
            return None
        left = sum(
            (trial.trial.config.training.steps - trial.step) * trial.trial.config.training.tokens_per_step
            for trial in self.trials.values()
            if trial.state in ("waiting", "running")
        )
        return left / (sum(speeds) / len(speeds)) / self.concurrency


def run_study(
    matrix: Matrix,
    folder: RunsFolder,
    options: Options,
    show: Callable[[Progress], None] = lambda _: None,
    given_up: Collection[str] = (),
) -> Progress:
    """Run what is not over yet of a study, and bring MLflow up to date. Trials that are given up stay failed.

    An interrupt (KeyboardInterrupt) lets running trials write a checkpoint and then returns; a second one returns
    at once. Raises CannotRun if the study is being run already or no GPU is there, DataError if its data cannot be
    used, RegisterChanged if what it claimed before is not as it was written.
    """
    study = folder.study(matrix.plan.study.name)
    study.path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(study.lock, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise CannotRun(
            f"study {matrix.plan.study.name!r} is being run by another process ({lock.lock_file})"
        ) from error
    try:
        progress = Progress({trial.id: _known_state(folder, trial, trial.id in given_up) for trial in matrix.trials})
        pending = [entry.trial for entry in progress.trials.values() if entry.state == "waiting"]
        identities = _prepare_data(pending, folder)
        record = study_record(matrix)
        write_record(folder, record)
        register_claims(folder, matrix)
        with SyncThread(folder, record, options.tracking_uri or folder.tracking_uri) as mirror:
            if pending:
                with connected(options.address):
                    _Driver(matrix, pending, identities, folder, options, progress, mirror, show).run()
        progress.mirror_problem = mirror.problem
        show(progress)
        return progress
    finally:
        lock.release()


def run_here(
    trial: Trial,
    folder: RunsFolder,
    device: str,
    checkpoint_seconds: float,
    show: Callable[[int, Mapping[str, float]], None],
) -> dict[str, Any]:
    """Train one trial in this process and return its outcome; `show` gets its validation metrics as they come."""
    identity = _prepare_data([trial], folder)[trial.id]
    task = _task(trial, identity, folder, folder.root / "never", checkpoint_seconds, device=device)
    return run_task(task, lambda journal: EvaluationPrinter(journal, show))


def _known_state(folder: RunsFolder, trial: Trial, given_up: bool) -> TrialProgress:
    outcome = read_json(folder.trial(trial.id).outcome)
    if outcome is None or not (is_over(folder.trial(trial.id)) or given_up):
        return TrialProgress(trial)
    reason, log = outcome.get("reason", ""), outcome.get("log", "")
    return TrialProgress(trial, outcome["status"], outcome["step"], reason=reason, log=log)


def _prepare_data(trials: list[Trial], folder: RunsFolder) -> dict[str, str]:
    """Prepare what trials train on; return the identity of each trial's data. Raises DataError."""
    datasets: dict[DataConfig, Dataset] = {}
    for data, data_id, sequence_length in {
        (t.config.data, t.data_id, t.config.training.sequence_length): None for t in trials
    }:
        if data not in datasets:
            datasets[data] = prepare(data, folder.data, data_id)
        datasets[data].require(sequence_length)
    return {trial.id: datasets[trial.config.data].manifest.identity for trial in trials}


def _task(
    trial: Trial,
    identity: str,
    folder: RunsFolder,
    stop_file: Path,
    checkpoint_seconds: float,
    branch: Fork | None = None,
    milestones: Iterable[int] = (),
    device: str = "auto",
    system_metrics: bool = False,
) -> Task:
    return Task(
        trial_id=trial.id,
        config=trial.config.model_dump(mode="json"),
        data_identity=identity,
        root=str(folder.root.resolve()),
        stop_file=str(stop_file),
        checkpoint_seconds=checkpoint_seconds,
        device=device,
        parent=trial.parent,
        branch=branch,
        milestones=tuple(sorted(milestones)),
        system_metrics=system_metrics,
    )


class _Driver:
    """The loop and its state."""

    def __init__(
        self,
        matrix: Matrix,
        pending: list[Trial],
        identities: dict[str, str],
        folder: RunsFolder,
        options: Options,
        progress: Progress,
        mirror: SyncThread,
        show: Callable[[Progress], None],
    ) -> None:
        self.identities, self.folder, self.options = identities, folder, options
        self.progress, self.mirror, self.show = progress, mirror, show
        self.branches = forks(matrix.trials)
        self.milestones: dict[str, set[int]] = {}  # of a trunk: where others leave it
        for branch in self.branches.values():
            self.milestones.setdefault(branch.trunk, set()).add(branch.step)
        # Seed by seed, and of each seed first the trunks that others wait for.
        place = {seed: index for index, seed in enumerate(dict.fromkeys(trial.seed for trial in matrix.trials))}
        self.pending = sorted(pending, key=lambda trial: (place[trial.seed], trial.id in self.branches))
        self.failures: dict[str, int] = {}
        self.stop_file = folder.root.resolve() / f"stop-{os.getpid()}-{time.time_ns()}"
        self.workers: dict[Any, Any] = {}  # running task -> its worker
        self.tasks: dict[Any, Trial] = {}
        self.idle: list[Any] = []
        self.tails: dict[str, JournalTail] = {}
        # From the whole matrix, not from what is left of it: a study that is resumed runs with as many threads.
        self.share = share(options.concurrency, options.gpus_per_trial, len(matrix.trials))
        progress.concurrency = self.share.concurrency

    def run(self) -> None:
        """Run all pending trials."""
        try:
            try:
                self._loop()
            except KeyboardInterrupt:
                self._stop()
        finally:
            self.stop_file.unlink(missing_ok=True)

    def _loop(self) -> None:
        for _ in range(min(self.share.concurrency, len(self.pending))):
            self.idle.append(self._new_worker())
        while self.pending or self.tasks:
            while self.idle and (trial := next(filter(self._is_ready, self.pending), None)):
                self.pending.remove(trial)
                self._dispatch(trial, self.idle.pop())
            self._wait()

    def _is_ready(self, trial: Trial) -> bool:
        """Whether a trial can begin: one that leaves a longer one waits until that has got there, or is over."""
        branch = self.branches.get(trial.id)
        if branch is None or self.progress.trials[branch.trunk].state not in ("waiting", "running"):
            return True
        return is_written(fork_checkpoint(self.folder.trial(branch.trunk).path, branch.step))

    def _new_worker(self) -> Any:
        remote = ray.remote(TrialWorker).options(num_cpus=self.share.cpus, num_gpus=self.share.gpus)
        return remote.remote(self.share.threads)

    def _dispatch(self, trial: Trial, worker: Any) -> None:
        task = _task(
            trial,
            self.identities[trial.id],
            self.folder,
            self.stop_file,
            self.options.checkpoint_seconds,
            self.branches.get(trial.id),
            self.milestones.get(trial.id, ()),
            system_metrics=self.options.system_metrics,
        )
        reference = worker.run.remote(task)
        self.workers[reference], self.tasks[reference] = worker, trial
        self.tails.setdefault(trial.id, JournalTail(self.folder.trial(trial.id).journal))
        self.progress.trials[trial.id].state = "running"

    def _wait(self) -> None:
        """Until a task is over or it is time to show something."""
        ready, _ = ray.wait(list(self.tasks), num_returns=1, timeout=POLL_SECONDS)
        for reference in ready:
            self._collect(reference)
        self._look()

    def _collect(self, reference: Any) -> None:
        worker, trial = self.workers.pop(reference), self.tasks.pop(reference)
        entry = self.progress.trials[trial.id]
        try:
            outcome = ray.get(reference)
        except RayError as error:
            # The process is gone: out of memory, a lost machine, a crash below Python.
            outcome = {"status": "failed", "reason": str(error).strip(), "log": str(self.folder.trial(trial.id).log)}
        if outcome["status"] == "failed":
            ray.kill(worker)  # what a failure leaves behind is nobody's business
            worker = None if self.progress.stopping else self._new_worker()
            self._fail(trial, outcome)
        elif outcome["status"] in ("busy", "stopped"):
            entry.state = "waiting"
            if outcome["status"] == "busy":
                self.pending.append(trial)
                time.sleep(POLL_SECONDS)
        else:
            entry.state, entry.step, entry.reason = outcome["status"], outcome["step"], outcome.get("reason", "")
        if worker is not None:
            self.idle.append(worker)

    def _fail(self, trial: Trial, outcome: dict[str, Any]) -> None:
        entry = self.progress.trials[trial.id]
        self.failures[trial.id] = self.failures.get(trial.id, 0) + 1
        if self.failures[trial.id] <= self.options.retries:
            entry.state = "waiting"
            self.pending.append(trial)
            return
        entry.state, entry.reason, entry.log = "failed", outcome["reason"], outcome["log"]
        write_json(self.folder.trial(trial.id).outcome, {"step": entry.step, **outcome})

    def _look(self) -> None:
        """Bring the running trials' progress up to date from their journals, and show it."""
        for entry in self.progress.running:
            rows = self.tails[entry.trial.id].read()
            if len(rows):
                names, values = rows["name"].to_pylist(), rows["value"].to_pylist()
                latest = dict(zip(names, values, strict=True))
                entry.step = rows["step"][-1].as_py()
                entry.loss = latest.get("train/loss", entry.loss)
                entry.tokens_per_second = latest.get("train/tokens_per_second", entry.tokens_per_second)
        self.progress.mirror_problem = self.mirror.problem
        self.show(self.progress)

    def _stop(self) -> None:
        """Let running trials write a checkpoint, and wait for them."""
        self.progress.stopping = True
        self.pending.clear()
        self.stop_file.touch()
        until = time.monotonic() + STOP_SECONDS
        try:
            while self.tasks and time.monotonic() < until:
                self._wait()
        except KeyboardInterrupt:
            pass  # at once, then; every trial goes on from its last checkpoint
        for entry in self.progress.running:
            entry.state = "waiting"
