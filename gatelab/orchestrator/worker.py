"""One trial, carried out: folder, lock, log, journal, training, outcome. Runs in a Ray actor or in any process."""

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from gatelab.ablations.shared_prefix import Fork
from gatelab.metrics import dump_specs
from gatelab.orchestrator import system_metrics
from gatelab.orchestrator.provenance import code_version
from gatelab.orchestrator.system_metrics import SystemMetrics
from gatelab.results.store.journal import Journal, continue_from
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.metric_specs import sums_up
from gatelab.results.store.records import read_json, write_json
from gatelab.training.checkpoint import is_written
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
    config: dict[str, Any]
    data_identity: str
    root: str  # of the runs folder
    stop_file: str  # training stops at the next look once it exists
    checkpoint_seconds: float
    device: str = "auto"
    parent: str | None = None  # id of the trial whose final weights this one starts from
    branch: Fork | None = None  # where it leaves a longer trial, which keeps a checkpoint there
    milestones: tuple[int, ...] = ()  # steps at which shorter trials leave this one
    system_metrics: bool = False


class EvaluationPrinter:
    """A recorder that passes everything on, and shows the validation metrics."""

    def __init__(self, recorder: Recorder, show: Callable[[int, Mapping[str, float]], None]) -> None:
        self._recorder, self._show = recorder, show
        self.flush, self.commit = recorder.flush, recorder.commit

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        """Pass on, and show what is evaluated."""
        self._recorder.record(step, values, layer)
        shown = {name: value for name, value in values.items() if name.startswith("validation/") and sums_up(name)}
        if shown:
            self._show(step, shown)


class TrialWorker:
    """A process that carries out trials one after another, with its share of the cores."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def run(self, task: Task) -> dict[str, Any]:
        """The outcome of a task. See `run_task`."""
        return run_task(task)


def run_task(task: Task, recorder: Callable[[Journal], Recorder] = lambda journal: journal) -> dict[str, Any]:
    """Train a trial and return its outcome; one that is over is also written to its folder.

    `status` is that of `train`'s Outcome, or failed (with `reason` and `log`), or busy if another process has the
    trial. `recorder` may wrap the journal, to see what is recorded.
    """
    folder = RunsFolder(Path(task.root)).trial(task.trial_id)
    if not Path(task.root).is_dir():
        return _failure(folder, f"{task.root} is not visible on {os.uname().nodename}: --runs must be on a shared disk")
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.lock, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return {"status": "busy"}
    try:
        done = read_json(folder.outcome)
        if done is not None and done["status"] != "failed":
            return done
        if (outcome := _outcome_of_parent(task, folder)) is not None:
            return outcome
        with _logging_to(folder.log):
            return _train(task, folder, recorder)
    finally:
        lock.release()


def _outcome_of_parent(task: Task, folder: TrialFolder) -> dict[str, Any] | None:
    """The outcome of a trial that cannot begin, because the one that it continues has left no final weights."""
    if task.parent is None:
        return None
    done = read_json(RunsFolder(Path(task.root)).trial(task.parent).outcome)
    if done is None or done["status"] not in ("finished", "diverged"):
        return _failure(folder, "the trial it continues has not finished")
    if done["status"] == "finished":
        return None
    reason = f"the trial it continues diverged: {done['reason']}"
    # It would have begun with the loss of a model that has not learnt anything.
    initial = {name: value for name, value in done["metrics"].items() if name == "train/initial_loss"}
    report = {"status": "diverged", "step": 0, "metrics": initial, "reason": reason, "ended": time.time()}
    write_json(folder.outcome, report)
    return report


def _train(task: Task, folder: TrialFolder, recorder: Callable[[Journal], Recorder]) -> dict[str, Any]:
    folder.outcome.unlink(missing_ok=True)  # of an attempt that failed
    try:
        trial = TrialConfig.model_validate(task.config)
        device = choose_device(task.device)
        runs = RunsFolder(Path(task.root))
        trunk = _trunk(task, runs)
        machine = environment(device, compute_dtype(trial.training, device))
        _describe_attempt(task, trial, folder, machine, trunk is not None)
        dataset = Dataset(runs.data / task.data_identity)
        parent = None if task.parent is None else runs.trial(task.parent)
        if trunk is not None and task.branch is not None:
            continue_from(folder.journal, runs.trial(task.branch.trunk).journal, task.branch.step)
        with Journal(folder.journal) as journal:
            watched = recorder(journal)
            outcome = train(
                trial,
                SystemMetrics(watched, device) if task.system_metrics else watched,
                folder.path,
                str(device),
                dataset=dataset,
                warm_start=None if parent is None else parent.checkpoints,
                warm_start_step=None if parent is None else (read_json(parent.outcome) or {})["step"],
                fork=trunk,
                fork_steps=task.milestones,
                checkpoint_seconds=task.checkpoint_seconds,
                should_stop=Path(task.stop_file).exists,
            )
    except Exception:
        logging.getLogger("gatelab").exception("the trial failed")
        lines = traceback.format_exc().strip().splitlines()
        return _failure(folder, "\n".join(lines[-ERROR_LINES:]))
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    report = {**asdict(outcome), "ended": time.time()}
    if outcome.status != "stopped":
        write_json(folder.outcome, report)
    return report


def _trunk(task: Task, runs: RunsFolder) -> Path | None:
    """Folder of the checkpoint at which a trial leaves a longer one; None where there is none, as when that diverged
    before: then it is trained from its own start, to the same end."""
    if task.branch is None:
        return None
    folder = fork_checkpoint(runs.trial(task.branch.trunk).path, task.branch.step)
    return folder if is_written(folder) else None


def _describe_attempt(
    task: Task, trial: TrialConfig, folder: TrialFolder, machine: dict[str, str], branches_off: bool
) -> None:
    """Add this attempt to the trial's description: when, with which code, where, and what its metrics are.

    Attempts of a trunk that the trial leaves come first.
    """
    provenance = {**code_version(), "data": task.data_identity, **machine}
    parent = {} if task.parent is None else {"parent": task.parent}
    known = read_json(folder.description) or {"id": task.trial_id, "config": task.config, **parent, "attempts": []}
    if branches_off and task.branch is not None and not known["attempts"]:
        trunk = read_json(RunsFolder(Path(task.root)).trial(task.branch.trunk).description)
        known |= {"branch": asdict(task.branch), "attempts": trunk["attempts"] if trunk else []}
    known["attempts"].append({"started": time.time(), "provenance": provenance})
    specs = trial_metric_specs(trial) | (system_metrics.SPECS if task.system_metrics else {})
    known["metrics"] = dump_specs(specs)
    write_json(folder.description, known)


def _failure(folder: TrialFolder, reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "log": str(folder.log), "ended": time.time()}


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Append this process's log records, warnings included, to a file."""
    handler = logging.FileHandler(path)
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
