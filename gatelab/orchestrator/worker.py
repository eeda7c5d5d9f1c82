"""One trial, carried out: folder, lease, log, journal, training, outcome. Runs in any process."""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gatelab.ablations.shared_prefix import Fork
from gatelab.atomic import remove_temporaries
from gatelab.metrics import dump_specs, find_spec
from gatelab.orchestrator import system_metrics
from gatelab.orchestrator.failures import FailureKind, cause_of, kind_of
from gatelab.orchestrator.pool import WorkerSetup, do_nothing, never
from gatelab.orchestrator.provenance import code_version
from gatelab.orchestrator.system_metrics import SystemMetrics
from gatelab.results.store.journal import Journal, compact, continue_from, mend
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.lease import Held, Lease, LeaseLost, acquire
from gatelab.results.store.records import Attempt, ForkRecord, Outcome, TrialDescription, write_json
from gatelab.results.store.trials import forgotten_attempts, read_description, reopened_description, write_end
from gatelab.status import Status
from gatelab.training import evaluator
from gatelab.training.checkpoint import is_written, keep_newest
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.device import choose_device, compute_dtype, environment
from gatelab.training.loop import fork_checkpoint, train
from gatelab.training.metric_specs import trial_metric_specs
from gatelab.training.recorder import Recorder

ERROR_LINES = 6  # of a traceback, in a report


@dataclass(frozen=True)
class Task:
    """What a worker needs to carry out a trial."""

    trial_id: str
    config: TrialConfig
    data_identity: str
    runs: RunsFolder
    stop_file: Path
    """Training stops at the next look once it exists."""
    checkpoint_seconds: float
    parent: str | None = None
    """Id of the trial whose final weights this one starts from."""
    fork: Fork | None = None
    """Where it leaves a longer trial, which keeps a checkpoint there."""
    fork_steps: tuple[int, ...] = ()
    """Steps at which shorter trials leave this one."""
    system_metrics: bool = False

    @property
    def files(self) -> TrialFolder:
        """The trial's folder."""
        return self.runs.trial(self.trial_id)


class EvaluationPrinter:
    """A recorder that passes everything on, and shows the validation metrics."""

    def __init__(self, recorder: Recorder, show: Callable[[int, Mapping[str, float]], None]) -> None:
        self._recorder, self._show = recorder, show
        self.flush, self.commit = recorder.flush, recorder.commit

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        """Pass on, and show what is evaluated."""
        self._recorder.record(step, values, layer)
        shown = {
            name: value
            for name, value in values.items()
            if name.startswith("validation/") and find_spec(name, evaluator.SPECS).sums_up
        }
        if shown:
            self._show(step, shown)


class _Pulse:
    """A recorder that passes everything on, and makes a call between two steps."""

    def __init__(self, recorder: Recorder, call: Callable[[], None]) -> None:
        self._recorder, self._call = recorder, call
        self.record, self.commit = recorder.record, recorder.commit

    def flush(self) -> None:
        self._recorder.flush()
        self._call()


class TrialWorker:
    """Carries out trials one after another, with the threads that it is given.

    In a process of its own, a request to end it (SIGTERM) lets its trial write a checkpoint first.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._busy = self._told_to_end = False
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        if setup.own_process:
            self._before: Any = signal.signal(signal.SIGTERM, self._on_terminate)

    def run(self, task: Task, meanwhile: Callable[[], None] = do_nothing) -> Outcome:
        """Return the outcome of a task. See `run_task`."""
        self._busy = True
        try:
            outcome = run_task(
                task,
                self._setup.device,
                lambda journal: _Pulse(journal, meanwhile),
                should_stop=lambda: self._told_to_end or self._setup.should_stop(),
                raise_errors=self._setup.raise_errors,
            )
        finally:
            self._busy = False
        if outcome.status is Status.STOPPED and self._told_to_end:
            reason = f"its process was told to end (SIGTERM) at step {outcome.step}"
            return _failure(task.files, reason, FailureKind.PREEMPTED)
        return outcome

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        if self._busy and not self._told_to_end:
            self._told_to_end = True
        elif callable(self._before):
            self._before(number, frame)
        else:
            sys.exit(128 + number)


def run_task(
    task: Task,
    device: str = "auto",
    recorder: Callable[[Journal], Recorder] = lambda journal: journal,
    *,
    should_stop: Callable[[], bool] = never,
    raise_errors: bool = False,
) -> Outcome:
    """Train a trial and return its outcome; write it to the trial's folder if the trial is over.

    Args:
        task: the trial.
        device: auto, cpu, cuda or cuda:N.
        recorder: may wrap the journal, to see what is recorded.
        should_stop: is asked when metrics are logged, beside the task's stop file; when it says yes, a checkpoint is
            written and the outcome is stopped.
        raise_errors: whether an error is raised once it has been logged. By default the outcome is `failed`, with the
            end of its traceback as the reason.

    Returns:
        An outcome that is finished, diverged, stopped, failed, or busy if another process has the trial.
    """
    runs, files = task.runs, task.files
    if not runs.root.is_dir():
        node = os.uname().nodename
        return _failure(
            files, f"{runs.root} is not visible on {node}: --runs must be on a shared disk", FailureKind.DISK
        )
    try:
        with acquire(files.path) as lease:
            return _run_held(task, lease, device, recorder, should_stop, raise_errors)
    except Held as error:
        return Outcome(status=Status.BUSY, reason=str(error.holder))
    except LeaseLost as error:
        return Outcome(status=Status.BUSY, reason=str(error))
    except OSError as error:  # the folder or its lease could not be written
        if raise_errors:
            raise
        return _failure(files, str(error), kind_of(error), cause_of(error))


def _run_held(
    task: Task,
    lease: Lease,
    device: str,
    recorder: Callable[[Journal], Recorder],
    should_stop: Callable[[], bool],
    raise_errors: bool,
) -> Outcome:
    """Run a trial whose folder this process may write."""
    files = task.files
    done = Outcome.read(files.outcome)
    if done is not None and done.status is not Status.FAILED:
        return done
    if (outcome := _outcome_of_parent(task)) is not None:
        return outcome
    with _logging_to(files.log):
        try:
            return _train(task, lease, device, recorder, should_stop)
        except LeaseLost:
            raise
        except Exception as error:
            logging.getLogger("gatelab").exception("the trial failed")
            if raise_errors:
                raise
            lines = traceback.format_exc().strip().splitlines()
            return _failure(files, "\n".join(lines[-ERROR_LINES:]), kind_of(error), cause_of(error))
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _outcome_of_parent(task: Task) -> Outcome | None:
    """Return the outcome of a trial that cannot begin, because the one that it continues has left no final weights."""
    if task.parent is None:
        return None
    done = Outcome.read(task.runs.trial(task.parent).outcome)
    if done is None or not done.status.is_over:
        return _failure(task.files, "the trial it continues has not finished", FailureKind.DATA)
    if done.status is Status.FINISHED:
        return None
    reason = f"the trial it continues diverged: {done.reason}"
    # It would have begun with the loss of a model that has not learnt anything.
    initial = {name: value for name, value in done.metrics.items() if name == "train/initial_loss"}
    outcome = Outcome(status=Status.DIVERGED, step=0, metrics=initial, reason=reason, ended=time.time())
    write_json(task.files.outcome, outcome.to_json())
    return outcome


def _train(
    task: Task,
    lease: Lease,
    device_name: str,
    recorder: Callable[[Journal], Recorder],
    should_stop: Callable[[], bool],
) -> Outcome:
    files, runs = task.files, task.runs
    files.outcome.unlink(missing_ok=True)  # of an attempt that failed
    remove_temporaries(files.path, unchanged_seconds=3600)
    device = choose_device(device_name)
    prefix = _prefix_checkpoint(task)
    machine = environment(device, compute_dtype(task.config.training, device))
    description = _describe_attempt(task, machine, forks=prefix is not None)
    dataset = Dataset(runs.data / task.data_identity)
    parent = None if task.parent is None else runs.trial(task.parent)
    begun = None if parent is None else Outcome.read(parent.outcome)
    recorded = mend(files.journal, task.trial_id)
    if prefix is not None and task.fork is not None:
        trunk = runs.trial(task.fork.trunk).journal
        recorded = continue_from(files.journal, trunk, task.fork.step, task.trial_id)
    with Journal(files.journal, trial=task.trial_id, fence=lease.check) as journal:
        watched = recorder(journal)
        ended = train(
            task.config,
            SystemMetrics(watched, device) if task.system_metrics else watched,
            files.path,
            str(device),
            dataset=dataset,
            warm_start=None if parent is None else parent.checkpoints,
            warm_start_step=None if begun is None else begun.step,
            fork=prefix,
            fork_steps=task.fork_steps,
            recorded=recorded,
            checkpoint_seconds=task.checkpoint_seconds,
            should_stop=lambda: task.stop_file.exists() or should_stop(),
        )
    outcome = Outcome(**asdict(ended), trial=task.trial_id, ended=time.time())
    if outcome.status is not Status.STOPPED:
        compact(files.journal, task.trial_id, lease.check)
        keep_newest(files.checkpoints)
        lease.check()
        write_end(files, outcome, description)
    return outcome


def _prefix_checkpoint(task: Task) -> Path | None:
    """Return the folder of the fork checkpoint at which a trial leaves a longer one.

    None where there is none, as when the longer one diverged before: then the trial is trained from its own start, to
    the same end.
    """
    if task.fork is None:
        return None
    folder = fork_checkpoint(task.runs.trial(task.fork.trunk).path, task.fork.step)
    return folder if is_written(folder) else None


def _describe_attempt(task: Task, machine: Mapping[str, str], *, forks: bool) -> TrialDescription:
    """Add this attempt to the trial's description, and return it: when, with which code, where, what its metrics are.

    A trial that forks from a longer one has the attempts of that one first. What earlier attempts measured stays
    described, as it stays in the journal.
    """
    attempt = Attempt(started=time.time(), provenance={**code_version(), "data": task.data_identity, **machine})
    known = reopened_description(task.files)
    if known is None:
        parent = {} if task.parent is None else {"parent": task.parent}
        config = task.config.model_dump(mode="json")
        known = TrialDescription(id=task.trial_id, config=config, attempts=forgotten_attempts(task.files), **parent)
    earlier, fork, told = known.attempts, {}, known.metrics or {}
    if forks and task.fork is not None and not earlier:
        longer = read_description(task.runs.trial(task.fork.trunk))
        fork = {"branch": ForkRecord(**asdict(task.fork))}
        if longer is not None:
            earlier, told = longer.attempts, longer.metrics or {}
    specs = trial_metric_specs(task.config) | (system_metrics.SPECS if task.system_metrics else {})
    metrics = told | dump_specs(specs)
    known = known.model_copy(update={"attempts": [*earlier, attempt], **fork, "metrics": metrics})
    write_json(task.files.description, known.to_json())
    return known


def _failure(files: TrialFolder, reason: str, kind: FailureKind, cause: str = "") -> Outcome:
    log = str(files.log) if files.log.exists() else ""
    return Outcome(status=Status.FAILED, reason=reason, kind=kind.value, cause=cause, log=log, ended=time.time())


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Append this process's log records, warnings included, to a file, which the first of them creates."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
