"""A study as it runs: its trials are given to an executor's workers until all are over.

Metrics do not pass through here: trials write journals, which are read for the display and copied to MLflow.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gatelab.ablations.matrix import Matrix, Trial
from gatelab.ablations.shared_prefix import forks
from gatelab.atomic import make_folder, remove_temporaries
from gatelab.errors import Unavailable
from gatelab.orchestrator.attempts import Attempts
from gatelab.orchestrator.executor import CannotRun, Executor
from gatelab.orchestrator.failures import FailureKind, Lost
from gatelab.orchestrator.notify import Event, notifier
from gatelab.orchestrator.pool import POLL_SECONDS, Pool
from gatelab.orchestrator.preregistration import register_claims
from gatelab.orchestrator.progress import Progress, TrialProgress
from gatelab.orchestrator.study_manifest import study_record, write_record, write_study_file
from gatelab.orchestrator.tracking import SyncThread, check_tracking_uri
from gatelab.orchestrator.worker import EvaluationPrinter, Task, TrialWorker, run_task
from gatelab.results.store.journal import JournalTail
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import Held, Holder, Lease, LeaseLost, acquire, holder_of
from gatelab.results.store.records import Outcome, write_json
from gatelab.status import Status
from gatelab.training.checkpoint import is_written
from gatelab.training.config import DataConfig
from gatelab.training.data import Dataset
from gatelab.training.loop import fork_checkpoint
from gatelab.training.preparation import prepare

STOP_SECONDS = 60.0
"""For trials to reach a checkpoint after an interrupt."""
LOOK_SECONDS = 2.0
"""Between two looks at a trial that another process holds."""
BELIEF_SECONDS = 10.0
"""A trial whose outcome has been there for so long is over, whatever its worker says."""


@dataclass(frozen=True)
class RunOptions:
    """How to run a study, wherever it runs: none of this enters a trial's identity."""

    tracking_uri: str | None = None
    """URI of an MLflow store; None: SQLite in the runs folder."""
    retries: int = 1
    """Number of times that a trial is tried again after an error; see `failures.retries` for other kinds."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints."""
    system_metrics: bool = False
    """True if trials record what their machine is doing."""
    keep_going: bool = False
    """True if a study goes on though the same error has ended several of its trials."""
    notify: tuple[str, ...] = ()
    """Commands and web addresses that are told of failures, of a diverged baseline and of the end."""


def run_matrix(
    matrix: Matrix,
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    show: Callable[[Progress], None] = lambda _: None,
    exhausted: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Progress:
    """Run the trials of a study that are not over yet, and bring MLflow up to date.

    An interrupt (KeyboardInterrupt) lets trials in other processes write a checkpoint and then returns; a second one
    returns at once.

    Args:
        matrix: the trials.
        folder: where they are written.
        executor: where they run.
        options: how they run.
        show: is called with the progress, twice a second or so.
        exhausted: ids of trials that failed and are not tried again.
        only: ids of the trials to run; None: all that are not over.

    Raises:
        CannotRun: the study is being run already, or the executor has nowhere to run it.
        DataError: its data cannot be used.
        RegisterChanged: what it claimed before is not as it was written.
        WrongRequest: the tracking URI is none.
    """
    check_tracking_uri(options.tracking_uri)
    study = folder.study(matrix.plan.study.name)
    for path in (folder.trials, study.path.parent):
        make_folder(path)
    try:
        lease = acquire(study.path, wait_seconds=1.0)  # another command may be writing to MLflow
    except Held as error:
        raise CannotRun(f"study {matrix.plan.study.name!r} is being run by another process: {error}") from error
    with lease:
        for path in study.stop_files:  # of drivers that were killed: nobody else holds the lease
            path.unlink(missing_ok=True)
        remove_temporaries(study.path, unchanged_seconds=3600)  # commands that hold no lease write tables here
        progress = Progress({trial.id: _known_state(folder, trial, exhausted) for trial in matrix.trials})
        waiting = [entry.trial for entry in progress.trials.values() if entry.state is Status.WAITING]
        pending = [trial for trial in waiting if only is None or trial.id in only]
        if pending and matrix.plan.study.imported is not None:
            raise CannotRun(not_imported(matrix.plan.study.name, folder))
        _prepare_data(pending, folder)
        record = study_record(matrix)
        write_record(folder, record)
        write_study_file(folder, matrix.plan)
        register_claims(folder, matrix)
        tell = notifier(options.notify)
        with SyncThread(folder, record, options.tracking_uri or folder.tracking_uri) as sync:
            progress.tracking_lines = sync.lines
            if pending:
                # For all trials, not for what is left of them: a study that is resumed runs with as many threads.
                with executor.open_pool(TrialWorker, len(matrix.trials), _has_failed) as pool:
                    _StudyRun(matrix, pending, folder, options, progress, sync, show, pool, lease, tell).run()
        progress.tracking_problem = sync.problem
        show(progress)
        if pending:
            tell(Event("end", matrix.plan.study.name, str(progress)))
        return progress


def not_imported(study: str, folder: RunsFolder) -> str:
    """Say that the models of a study of imported ones are missing: they cannot be trained."""
    return f"the model of {study} is an imported one, and is not in {folder.root}: gatelab import-model brings it there"


def run_trial(
    trial: Trial,
    folder: RunsFolder,
    device: str,
    checkpoint_seconds: float,
    show: Callable[[int, Mapping[str, float]], None],
) -> Outcome:
    """Train one trial in this process and return its outcome; `show` gets its validation metrics as they come."""
    _prepare_data([trial], folder)
    runs = RunsFolder(folder.root.resolve())
    task = Task(
        trial.id, trial.config, trial.data_id, runs, runs.root / "never", checkpoint_seconds, parent=trial.parent
    )
    return run_task(task, device, lambda journal: EvaluationPrinter(journal, show))


def _has_failed(outcome: Outcome) -> bool:
    return outcome.status is Status.FAILED


def _known_state(folder: RunsFolder, trial: Trial, exhausted: Collection[str]) -> TrialProgress:
    outcome = Outcome.read(folder.trial(trial.id).outcome)
    if outcome is None or not (outcome.status.is_over or trial.id in exhausted):
        return TrialProgress(trial)
    return TrialProgress(trial, outcome.status, outcome.step, reason=outcome.reason, log=outcome.log)


def _prepare_data(trials: list[Trial], folder: RunsFolder) -> None:
    """Prepare what trials train on, and see that it suffices. Raises DataError."""
    datasets: dict[DataConfig, Dataset] = {}
    for data, data_id, sequence_length in {
        (trial.config.data, trial.data_id, trial.config.training.sequence_length): None for trial in trials
    }:
        if data not in datasets:
            datasets[data] = prepare(data, folder.data, data_id)
        datasets[data].require(sequence_length)


class _StudyRun:
    """The loop that gives trials to workers, and its state."""

    def __init__(
        self,
        matrix: Matrix,
        pending: list[Trial],
        folder: RunsFolder,
        options: RunOptions,
        progress: Progress,
        sync: SyncThread,
        show: Callable[[Progress], None],
        pool: Pool[Task, Outcome],
        lease: Lease,
        tell: Callable[[Event], None],
    ) -> None:
        self.matrix, self.folder, self.options = matrix, folder, options
        self.lease, self.tell = lease, tell
        self.progress, self.sync, self.show, self.pool = progress, sync, show, pool
        self.forks = forks(matrix.trials)
        self.fork_steps: dict[str, set[int]] = {}  # of a longer trial: where shorter ones leave it
        for fork in self.forks.values():
            self.fork_steps.setdefault(fork.trunk, set()).add(fork.step)
        # Seed by seed, and of each seed first the longer trials that others wait for.
        place = {seed: index for index, seed in enumerate(dict.fromkeys(trial.seed for trial in matrix.trials))}
        self.pending = sorted(pending, key=lambda trial: (place[trial.seed], trial.id in self.forks))
        self.trials = {trial.id: trial for trial in pending}
        self.attempts = Attempts(options.retries, matrix.plan.hash)
        self.over_since: dict[str, float] = {}  # trial that is running -> when its outcome was first seen
        self.baselines = {variant.baseline for variant in matrix.variants}
        self.polled_at = float("-inf")
        self.runs = RunsFolder(folder.root.resolve())
        self.stop_file = self.runs.study(matrix.plan.study.name).stop_file(f"{os.getpid()}-{time.time_ns()}")
        self.tails: dict[str, JournalTail] = {}
        progress.concurrency = pool.concurrency

    def run(self) -> None:
        """Run all pending trials."""
        try:
            try:
                self._loop()
            except KeyboardInterrupt:
                self._stop()
        except LeaseLost as error:
            raise CannotRun(str(error)) from error
        finally:
            self.stop_file.unlink(missing_ok=True)

    def _loop(self) -> None:
        while self.pending or self.pool.busy:
            while self.pool.busy < self.pool.concurrency and (
                trial := next(filter(self._is_ready, self.pending), None)
            ):
                self.pending.remove(trial)
                self._submit(trial)
            if not self.pool.busy:
                time.sleep(POLL_SECONDS)
            self._wait()

    def _is_ready(self, trial: Trial) -> bool:
        """Return whether a trial can begin.

        One that failed waits a while, one that another process holds until it does no more, and one that forks from a
        longer one until that is there, or is over.
        """
        if not self.attempts.is_due(trial.id):
            return False
        entry = self.progress.trials[trial.id]
        if entry.held:
            holder = self._holder(trial)
            entry.held = "" if holder is None else str(holder)
            self.attempts.put_off(trial.id, LOOK_SECONDS)
            if holder is not None:
                return False
        fork = self.forks.get(trial.id)
        if fork is None or self.progress.trials[fork.trunk].state not in (Status.WAITING, Status.RUNNING):
            return True
        return is_written(fork_checkpoint(self.folder.trial(fork.trunk).path, fork.step))

    def _holder(self, trial: Trial) -> Holder | None:
        return holder_of(self.folder.trial(trial.id).path, now=self.lease.clock())

    def _submit(self, trial: Trial) -> None:
        self.tails.setdefault(trial.id, JournalTail(self.folder.trial(trial.id).journal))
        self.progress.trials[trial.id].state = Status.RUNNING
        self.pool.submit(
            Task(
                trial.id,
                trial.config,
                trial.data_id,
                self.runs,
                self.stop_file,
                self.options.checkpoint_seconds,
                parent=trial.parent,
                fork=self.forks.get(trial.id),
                fork_steps=tuple(sorted(self.fork_steps.get(trial.id, ()))),
                system_metrics=self.options.system_metrics,
            )
        )

    def _wait(self) -> None:
        """Wait until a trial has ended or it is time to show something."""
        for task, outcome in self.pool.wait(self._poll):
            if isinstance(outcome, Unavailable):
                outcome = self._outcome_of_lost(task, outcome)
            self._take(self.trials[task.trial_id], outcome)
        if time.monotonic() - self.polled_at >= POLL_SECONDS:
            self._poll()

    def _outcome_of_lost(self, task: Task, lost: Unavailable) -> Outcome:
        """Return the outcome of a task whose worker is gone: what it wrote, if it came to that, else a failure."""
        files = self.folder.trial(task.trial_id)
        written = Outcome.read(files.outcome)
        if written is not None and written.status.is_over:
            return written
        if (holder := self._holder(self.trials[task.trial_id])) is not None:
            return Outcome(status=Status.BUSY, reason=str(holder))
        kind = lost.kind if isinstance(lost, Lost) else FailureKind.ERROR
        log = str(files.log) if files.log.exists() else ""
        return Outcome(status=Status.FAILED, reason=lost.reason, kind=kind.value, log=log)

    def _take(self, trial: Trial, outcome: Outcome) -> None:
        """Note the end of an attempt."""
        entry = self.progress.trials[trial.id]
        self.over_since.pop(trial.id, None)
        if outcome.status is Status.FAILED:
            self._take_failure(trial, outcome)
        elif outcome.status is Status.BUSY:
            entry.held = outcome.reason
            self.attempts.put_off(trial.id, LOOK_SECONDS)
            self._again(trial)
        elif outcome.status is Status.STOPPED:
            entry.state = Status.WAITING
        else:
            entry.state, entry.step, entry.reason = outcome.status, outcome.step, outcome.reason
            if entry.state is Status.DIVERGED and trial.variant in self.baselines:
                self._tell("baseline diverged", trial, outcome.reason)

    def _again(self, trial: Trial) -> None:
        """Let a trial wait for another attempt, unless the study is about to end."""
        self.progress.trials[trial.id].state = Status.WAITING
        if not (self.progress.stopping or self.progress.halted):
            self.pending.insert(0, trial)  # what is wrong shows before all others have met it

    def _take_failure(self, trial: Trial, outcome: Outcome) -> None:
        entry = self.progress.trials[trial.id]
        kind = FailureKind(outcome.kind or FailureKind.ERROR)
        if (kind is FailureKind.PREEMPTED and self.progress.stopping) or self.attempts.fail(trial.id, kind):
            self._again(trial)
            return
        failed = outcome.model_copy(update={"trial": trial.id, "step": entry.step, "kind": kind.value})
        if (other := self._write_failure(trial, failed)) is not None:
            self._take(trial, other)
            return
        entry.state, entry.reason, entry.log, entry.kind = outcome.status, outcome.reason, outcome.log, kind.value
        self._tell("failure", trial, outcome.reason)
        if kind is FailureKind.ERROR and outcome.cause and not self.options.keep_going:
            reason = self.attempts.end(f"{trial.variant}, seed={trial.seed}", outcome.cause)
            if reason:
                self.progress.halted = reason
                self.pending.clear()

    def _write_failure(self, trial: Trial, failed: Outcome) -> Outcome | None:
        """Write down that a trial has failed, if that is possible: the disk may be the reason why.

        Returns what another process has made of the trial meanwhile: it is over, or being trained.
        """
        files = self.folder.trial(trial.id)
        try:
            with acquire(files.path) as lease:
                known = Outcome.read(files.outcome)
                if known is not None and known.status.is_over:
                    return known
                lease.check()
                write_json(files.outcome, failed.to_json())
        except Held as error:
            return Outcome(status=Status.BUSY, reason=str(error.holder))
        except OSError as error:
            self.progress.disk_problem = f"{files.outcome}: {error.strerror or error}"
        return None

    def _tell(self, what: str, trial: Trial, reason: str) -> None:
        text = f"{trial.variant}, seed={trial.seed}: {reason}"
        self.tell(Event(what, self.matrix.plan.study.name, text))

    def _poll(self) -> None:
        """Bring the running trials' progress up to date from their journals, and show it."""
        self.polled_at = time.monotonic()
        self.lease.check()
        for entry in self.progress.running:
            rows = self.tails[entry.trial.id].read()
            if len(rows):
                names, values = rows["name"].to_pylist(), rows["value"].to_pylist()
                latest = dict(zip(names, values, strict=True))
                entry.step = rows["step"][-1].as_py()
                entry.loss = latest.get("train/loss", entry.loss)
                entry.tokens_per_second = latest.get("train/tokens_per_second", entry.tokens_per_second)
            self._believe(entry)
        self.progress.tracking_problem = self.sync.problem
        self.show(self.progress)

    def _believe(self, entry: TrialProgress) -> None:
        """Take a running trial for over when its outcome has been there a while, though its worker does not return."""
        trial = entry.trial
        files = self.folder.trial(trial.id)
        if not files.outcome.exists():
            return
        since = self.over_since.setdefault(trial.id, time.monotonic())
        if time.monotonic() - since < BELIEF_SECONDS or self._holder(trial) is not None:
            return
        outcome = Outcome.read(files.outcome)
        if outcome is not None and outcome.status.is_over:
            self.pool.abandon(lambda task: task.trial_id == trial.id)
            self._take(trial, outcome)

    def _stop(self) -> None:
        """Let running trials write a checkpoint, and wait for them."""
        self.progress.stopping = True
        self.pending.clear()
        until = time.monotonic() + STOP_SECONDS
        try:
            self.stop_file.touch()
        except OSError:  # a full disk: then there is no checkpoint to wait for
            until = time.monotonic()
        try:
            while self.pool.busy and time.monotonic() < until:
                self._wait()
        except KeyboardInterrupt:
            pass  # at once, then; every trial goes on from its last checkpoint
        for entry in self.progress.running:
            entry.state = Status.WAITING
