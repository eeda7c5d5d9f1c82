"""Evaluation after training: questions to the trained models of a study, each asked once, its answer kept."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from gatelab.ablations.identity import digest
from gatelab.ablations.wording import readable
from gatelab.errors import DataError, Unavailable
from gatelab.orchestrator.executor import Executor
from gatelab.orchestrator.pool import WorkerSetup, do_nothing
from gatelab.orchestrator.provenance import code_version
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.records import TrialRecord, write_json
from gatelab.results.store.trials import read_description, read_evaluation, read_outcome
from gatelab.status import Status
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.device import choose_device, device_name
from gatelab.training.evals.spec import EvalSpec
from gatelab.training.evals.trained_model import TrainedModel, refusal

MULTIPLES = (1, 2, 4)
"""Lengths at which a trial is evaluated by default, as multiples of the length at which it was trained."""


@dataclass(frozen=True)
class EvalJob:
    """A trained trial and what is still to be asked of it."""

    trial_id: str
    name: str  # for people
    config: TrialConfig
    data_identity: str
    questions: tuple[EvalSpec, ...]


@dataclass(frozen=True)
class EvalTask:
    """What a worker needs to answer one question."""

    runs: RunsFolder
    job: EvalJob
    question: EvalSpec


@dataclass
class EvalProgress:
    """How far the evaluation of a study is."""

    asked: int  # questions, of all trials
    known: int = 0  # of them, answered before
    answered: int = 0
    failed: int = 0
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (trial, reason) -> questions


def eval_jobs(
    folder: RunsFolder, study: str, wanted: Callable[[TrialRecord], bool] = lambda trial: True
) -> list[EvalJob]:
    """List the finished trials of a study that are wanted, with nothing to ask yet.

    Raises:
        NotFound: there is no such study.
        DataError: the configuration of a trial cannot be read here.
    """
    found = []
    for trial in folder.study(study).read().trials:
        files = folder.trial(trial.id)
        outcome, description = read_outcome(files), read_description(files)
        if wanted(trial) and outcome.status is Status.FINISHED and description is not None:
            identity = description.attempts[-1].provenance["data"]
            config = _configuration(trial.id, description.config)
            found.append(EvalJob(trial.id, f"{trial.variant}, seed={trial.seed}", config, identity, ()))
    return found


def _configuration(trial_id: str, config: dict[str, Any]) -> TrialConfig:
    try:
        return TrialConfig.read_recorded(config)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {readable(detail)}" for detail in error.errors())
        raise DataError(f"the configuration of trial {trial_id[:12]} cannot be read here: {wrong}") from error


@dataclass(frozen=True)
class EvalRequest:
    """What to ask of every trial."""

    lengths: tuple[int, ...] | None = None
    """None: `MULTIPLES` of the length that each was trained on."""
    ropes: tuple[str, ...] = ("plain",)
    tokens: int = 64_000
    retrieval: tuple[str, ...] = ()
    examples: int = 64
    tasks: tuple[str, ...] = ()
    include: Path | None = None
    limit: int | None = None

    def questions(self, trained: int) -> tuple[EvalSpec, ...]:
        """Return the questions to a trial that was trained on sequences of a length, each once."""
        lengths = [multiple * trained for multiple in MULTIPLES] if self.lengths is None else self.lengths
        folder = "" if self.include is None else str(self.include.resolve())
        questions = (
            *(EvalSpec("length", length, rope, self.tokens) for length in lengths for rope in self.ropes),
            *(
                EvalSpec("retrieval", length, rope, self.examples, task)
                for task in self.retrieval
                for length in lengths
                for rope in self.ropes
            ),
            *(EvalSpec("tasks", trained, "plain", self.limit or 0, task, folder) for task in self.tasks),
        )
        return tuple(dict.fromkeys(questions))  # what is named twice is asked once


def assign(
    folder: RunsFolder, jobs: Iterable[EvalJob], request: EvalRequest
) -> tuple[list[EvalJob], dict[EvalSpec, str]]:
    """Give each job its questions.

    Returns:
        The jobs; and the questions that their models or data do not allow, with the reasons.
    """
    assigned = []
    refusals: dict[tuple[EvalSpec, str], str] = {}
    for job in jobs:
        questions = []
        for question in request.questions(job.config.training.sequence_length):
            # What is refused depends on the data, the length of the training and whether the model has YaRN.
            trained = job.config.training.sequence_length
            key = question, f"{job.data_identity} {job.config.model.yarn_length} {trained}"
            if key not in refusals:
                refusals[key] = refusal(question, job.config, Dataset(folder.data / job.data_identity))
            if not refusals[key]:
                questions.append(question)
        assigned.append(replace(job, questions=tuple(questions)))
    return assigned, {question: reason for (question, _), reason in refusals.items() if reason}


def load_model(folder: RunsFolder, job: EvalJob, device: str = "auto") -> TrainedModel:
    """Load the trained model of a trial into this process. Raises FileNotFoundError without a checkpoint."""
    dataset = Dataset(folder.data / job.data_identity)
    return TrainedModel(job.config, folder.trial(job.trial_id).checkpoints, dataset, device)


def unanswered(files: TrialFolder, questions: Iterable[EvalSpec]) -> tuple[EvalSpec, ...]:
    """Return the questions that a trial has not answered."""
    return tuple(question for question in questions if read_evaluation(_answer_file(files, question)) is None)


def run_evals(
    folder: RunsFolder,
    jobs: Iterable[EvalJob],
    executor: Executor,
    show: Callable[[EvalProgress], None] = lambda progress: None,
) -> EvalProgress:
    """Ask every trial its questions; answers are written as they come, and never asked for again.

    What fails is in the progress that is returned. Raises CannotRun if there is nowhere to run.
    """
    runs = RunsFolder(folder.root.resolve())
    pending: deque[EvalTask] = deque()
    progress = EvalProgress(0)
    for job in jobs:
        left = unanswered(folder.trial(job.trial_id), job.questions)
        progress.asked += len(job.questions)
        progress.known += len(job.questions) - len(left)
        pending += [EvalTask(runs, job, question) for question in left]
    show(progress)
    if not pending:
        return progress
    with executor.open_pool(EvalWorker, len(pending)) as pool:
        while pending or pool.busy:
            while pending and pool.busy < pool.concurrency:
                pool.submit(pending.popleft())
            for task, failure in pool.wait():
                if failure is None:
                    progress.answered += 1
                else:
                    progress.failed += 1
                    key = task.job.name, failure.reason.splitlines()[0]
                    progress.failures.setdefault(key, []).append(task.question.stem)
                show(progress)
    return progress


class EvalWorker:
    """Answers one question after another, and keeps the model of the last."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        self._loaded: tuple[str, TrainedModel] | None = None

    def run(self, task: EvalTask, meanwhile: Callable[[], None] = do_nothing) -> Unavailable | None:
        """Write the answer to the trial's folder; return why there is none, if there is none."""
        job = task.job
        try:
            if self._loaded is None or self._loaded[0] != job.trial_id:
                self._loaded = None  # one model at a time
                self._loaded = job.trial_id, load_model(task.runs, job, self._setup.device)
            model = self._loaded[1]
            self._write(task, model.evaluate(task.question), model.step)
        except Exception as error:
            if self._setup.raise_errors:
                raise
            return Unavailable(f"{type(error).__name__}: {(str(error) or repr(error)).splitlines()[0]}")
        return None

    def _write(self, task: EvalTask, metrics: dict[str, float], step: int) -> None:
        device = device_name(choose_device(self._setup.device))
        origin = {**code_version(), "data": task.job.data_identity, "device": device}
        write_json(
            _answer_file(task.runs.trial(task.job.trial_id), task.question),
            {
                "question": asdict(task.question),
                "trial": task.job.trial_id,
                "step": step,
                "evaluated": time.time(),
                "provenance": origin,
                "metrics": metrics,
            },
        )


def _answer_file(files: TrialFolder, question: EvalSpec) -> Path:
    name = f"{question.stem}/{question.task}" if question.kind == "tasks" else question.stem
    return files.evaluations / f"{name.replace('/', '-')}-{digest(asdict(question))[:8]}.json"
