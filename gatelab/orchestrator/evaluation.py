"""Questions to the trained models of a study, asked on Ray: each of each trial once, its answer kept with the trial."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import ValidationError
from ray.exceptions import RayError

from gatelab.ablations.identity import digest
from gatelab.orchestrator.cluster import Share, connected, share
from gatelab.orchestrator.provenance import code_version
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.records import TrialRecord, write_json
from gatelab.results.store.trials import read_description, read_outcome
from gatelab.status import Status
from gatelab.training.config import TrialConfig
from gatelab.training.corpus import DataError
from gatelab.training.data import Dataset
from gatelab.training.device import choose_device, device_name
from gatelab.training.evals.spec import EvalSpec
from gatelab.training.evals.trained_model import TrainedModel, refusal

MULTIPLES = (1, 2, 4)
"""Of the length of a trial's training: the lengths at which it is asked by default."""


@dataclass(frozen=True)
class Examination:
    """A trained trial and what is still to be asked of it."""

    trial_id: str
    name: str  # for people
    config: TrialConfig
    data_identity: str
    questions: tuple[EvalSpec, ...]


@dataclass
class Report:
    """How far the questions to a study are."""

    asked: int  # questions, of all trials
    known: int = 0  # of them, answered before
    answered: int = 0
    failed: int = 0
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (trial, reason) -> questions


def examinations(
    folder: RunsFolder, study: str, wanted: Callable[[TrialRecord], bool] = lambda trial: True
) -> list[Examination]:
    """The finished trials of a study that are wanted, with nothing to ask yet. Raises NotFound."""
    found = []
    for trial in folder.study(study).read().trials:
        files = folder.trial(trial.id)
        outcome, description = read_outcome(files), read_description(files)
        if wanted(trial) and outcome.status == Status.FINISHED and description is not None:
            identity = description.attempts[-1].provenance["data"]
            config = _configuration(trial.id, description.config)
            found.append(Examination(trial.id, f"{trial.variant}, seed={trial.seed}", config, identity, ()))
    return found


def _configuration(trial_id: str, config: dict[str, Any]) -> TrialConfig:
    try:
        return TrialConfig.model_validate(config)
    except ValidationError as error:  # its tokenizer file may lie elsewhere now
        reasons = "; ".join(detail["msg"] for detail in error.errors())
        raise DataError(f"the configuration of trial {trial_id[:12]} cannot be read here: {reasons}") from error


@dataclass(frozen=True)
class Request:
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
        """The questions to a trial that was trained on sequences of a length."""
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
    folder: RunsFolder, exams: Iterable[Examination], request: Request
) -> tuple[list[Examination], dict[EvalSpec, str]]:
    """Trials with their questions; and the questions that their models or data do not allow, with the reasons."""
    assigned = []
    refusals: dict[tuple[EvalSpec, str], str] = {}
    for exam in exams:
        questions = []
        for question in request.questions(exam.config.training.sequence_length):
            # What is refused depends on the data, the length of the training and whether the model has YaRN.
            trained = exam.config.training.sequence_length
            key = question, f"{exam.data_identity} {exam.config.model.yarn_length} {trained}"
            if key not in refusals:
                refusals[key] = refusal(question, exam.config, Dataset(folder.data / exam.data_identity))
            if not refusals[key]:
                questions.append(question)
        assigned.append(replace(exam, questions=tuple(questions)))
    return assigned, {question: reason for (question, _), reason in refusals.items() if reason}


def examinee(folder: RunsFolder, exam: Examination) -> TrainedModel:
    """The trained model of a trial, in this process. Raises FileNotFoundError without a checkpoint."""
    dataset = Dataset(folder.data / exam.data_identity)
    return TrainedModel(exam.config, folder.trial(exam.trial_id).checkpoints, dataset)


def unanswered(files: TrialFolder, questions: Iterable[EvalSpec]) -> tuple[EvalSpec, ...]:
    """The questions that a trial has not answered."""
    return tuple(question for question in questions if not _answer_file(files, question).exists())


def ask(
    folder: RunsFolder,
    exams: Iterable[Examination],
    *,
    concurrency: int | None = None,
    gpus_per_trial: float | None = None,
    address: str | None = None,
    show: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Ask every trial its questions; answers are written as they come, and never asked for again.

    Raises CannotRun if there is nowhere to run. What fails is in the report.
    """
    pending = []
    report = Report(0)
    for exam in exams:
        left = unanswered(folder.trial(exam.trial_id), exam.questions)
        report.asked += len(exam.questions)
        report.known += len(exam.questions) - len(left)
        pending += [(exam, question) for question in left]
    show(report)
    if not pending:
        return report
    with connected(address):
        part = share(concurrency, gpus_per_trial, len(pending))
        for exam, question, reason in _answers(folder, pending, part):
            if reason:
                report.failed += 1
                report.failures.setdefault((exam.name, reason), []).append(question.stem)
            else:
                report.answered += 1
            show(report)
    return report


def _answers(
    folder: RunsFolder, pending: Iterable[tuple[Examination, EvalSpec]], part: Share
) -> Iterator[tuple[Examination, EvalSpec, str]]:
    """Give questions to free examiners; of each that is over, why it has no answer, or ''."""
    remote = ray.remote(Examiner).options(num_cpus=part.cpus, num_gpus=part.gpus)
    root = str(folder.root.resolve())
    queue, idle = deque(pending), [remote.remote(root, part.threads) for _ in range(part.concurrency)]
    running: dict[Any, tuple[Any, Examination, EvalSpec]] = {}
    while queue or running:
        while queue and idle:
            examiner, (exam, question) = idle.pop(), queue.popleft()
            running[examiner.answer.remote(exam, question)] = examiner, exam, question
        (ready,), _ = ray.wait(list(running), num_returns=1)
        examiner, exam, question = running.pop(ready)
        try:
            reason = ray.get(ready)
        except RayError as error:  # the process is gone: out of memory, a lost machine
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            examiner = remote.remote(root, part.threads)
        idle.append(examiner)
        yield exam, question, reason


class Examiner:
    """A process that asks one question after another, and keeps the model of the last."""

    def __init__(self, root: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._folder = RunsFolder(Path(root))
        self._examinee: tuple[str, TrainedModel] | None = None

    def answer(self, exam: Examination, question: EvalSpec) -> str:
        """Write the answer to a trial's folder; return why there is none, or ''."""
        files = self._folder.trial(exam.trial_id)
        try:
            if self._examinee is None or self._examinee[0] != exam.trial_id:
                self._examinee = None  # one model at a time
                self._examinee = exam.trial_id, examinee(self._folder, exam)
            model = self._examinee[1]
            self._write(exam, files, question, model.evaluate(question), model.step)
        except Exception as error:
            return f"{type(error).__name__}: {(str(error) or repr(error)).splitlines()[0]}"
        return ""

    def _write(
        self, exam: Examination, files: TrialFolder, question: EvalSpec, metrics: dict[str, float], step: int
    ) -> None:
        origin = {**code_version(), "data": exam.data_identity, "device": device_name(choose_device())}
        write_json(
            _answer_file(files, question),
            {
                "question": asdict(question),
                "step": step,
                "evaluated": time.time(),
                "provenance": origin,
                "metrics": metrics,
            },
        )


def _answer_file(files: TrialFolder, question: EvalSpec) -> Path:
    name = f"{question.stem}/{question.task}" if question.kind == "tasks" else question.stem
    return files.evaluations / f"{name.replace('/', '-')}-{digest(asdict(question))[:8]}.json"
