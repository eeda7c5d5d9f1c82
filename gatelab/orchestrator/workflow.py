"""Whole jobs, from a plan to what is written: run a study, search its learning rates, fit its scaling laws.

Commands and the Python API call these. Nothing is rendered here: results are returned, and callers may watch.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from gatelab.ablations.ladder import ladder
from gatelab.ablations.matrix import Matrix, Trial
from gatelab.ablations.study import SIZES, StudyPlan
from gatelab.errors import AnalysisUnavailable, Unavailable, WrongRequest
from gatelab.names import search_of
from gatelab.orchestrator import planning
from gatelab.orchestrator.executor import Executor
from gatelab.orchestrator.inline import InlineExecutor
from gatelab.orchestrator.learning_rates import Round, SearchResult, search, window_matrix
from gatelab.orchestrator.progress import Progress
from gatelab.orchestrator.ray_executor import RayExecutor
from gatelab.orchestrator.reporting import AnalysisReport, write_analysis
from gatelab.orchestrator.study_manifest import changed_since
from gatelab.orchestrator.study_run import RunOptions, run_matrix
from gatelab.orchestrator.tracking import add_to_mlflow
from gatelab.results.report.artifacts import Artifacts
from gatelab.results.report.write import write_study
from gatelab.results.statistics.law_bootstrap import LEAST_RUNGS
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import Outcome
from gatelab.results.store.trials import is_over
from gatelab.status import Status


@dataclass(frozen=True)
class StudyStart:
    """A study that is about to run."""

    matrix: Matrix
    changes: Sequence[str]
    """Its differences from when it was last run, for people."""
    done: int
    """Number of its trials that are over already."""
    chain: int = 1
    """Number of studies that are run one after another, this one included."""


Watch = Callable[[StudyStart], AbstractContextManager[Callable[[Progress], None]]]
"""Is told of each study that is about to run; its context is held while it runs, and its value shown the progress."""


def unwatched(start: StudyStart) -> AbstractContextManager[Callable[[Progress], None]]:
    """Show nothing."""
    return nullcontext(lambda progress: None)


@dataclass(frozen=True)
class StudyResult:
    """A study that was run."""

    matrix: Matrix
    progress: Progress
    written: Artifacts
    """Its comparison, and the files that were written."""
    tracking_problem: str
    """The problem that kept MLflow from being up to date, or ''."""


@dataclass(frozen=True)
class RunResult:
    """Studies that were run, each of which continues the one before it."""

    studies: tuple[StudyResult, ...]
    """In the order in which they ran: the last is the one that was asked for, unless it was interrupted before."""

    @property
    def interrupted(self) -> bool:
        """Return whether it was stopped before its end."""
        return any(study.progress.stopping for study in self.studies)

    @property
    def failed(self) -> int:
        """Count the trials that failed, of all studies."""
        return sum(study.progress.count(Status.FAILED) for study in self.studies)


@dataclass(frozen=True)
class SearchReport:
    """A search of learning rates, and what it found."""

    parents: RunResult
    """The studies that it continues."""
    search: SearchResult | None
    """None: it was interrupted before."""
    found: AnalysisReport | Unavailable

    @property
    def interrupted(self) -> bool:
        """Return whether it was stopped before its end."""
        return self.search is None or self.search.progress.stopping


@dataclass(frozen=True)
class ScalingReport:
    """A ladder that was run, and the laws that were fitted to it."""

    run: RunResult
    laws: AnalysisReport | None
    """None: it was interrupted before."""


def make_executor(executor: Executor | Literal["inline", "ray"]) -> Executor:
    """Return an executor that is given by name, or as it is. Raises WrongRequest."""
    if executor == "inline":
        return InlineExecutor()
    if executor == "ray":
        return RayExecutor()
    if isinstance(executor, str) or not hasattr(executor, "open_pool"):
        known = "'inline', 'ray' or an executor such as RayExecutor(...)"
        raise WrongRequest(f"executor {executor!r}: expected {known}")
    return executor


def run_study(
    plan: StudyPlan,
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    *,
    watch: Watch = unwatched,
    report: Callable[[StudyResult], None] = lambda result: None,
) -> RunResult:
    """Run a study, those that it continues first: what is finished is kept, what was interrupted goes on.

    Args:
        plan: the study.
        folder: where trials, tables and plots are written.
        executor: where trials run.
        options: how they run.
        watch: is told of each study before it runs, and shown its progress.
        report: is given each result as soon as its tables and plots are written.

    Raises:
        StudyError: the study cannot be run as it is written, or exceeds its budget.
        CannotRun, DataError, RegisterChanged: see `run_matrix`.
    """
    chain = planning.plan_study(plan, planning.searched(folder)).chain
    return _run_chain(chain, folder, executor, options, watch, report)


def search_learning_rates(
    plan: StudyPlan,
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    *,
    watch: Watch = unwatched,
    report: Callable[[StudyResult], None] = lambda result: None,
    announce: Callable[[Round], None] = lambda new: None,
) -> SearchReport:
    """Run what a study continues, search the learning rates of its variants and report what was found.

    `announce` is given each round before it runs; the other arguments, and what is raised, are those of `run_study`.
    Raises AnalysisUnavailable, too, if nothing was found and it was not interrupted.
    """
    matrix = planning.plan_search(plan, planning.searched(folder))
    parents = RunResult(())
    if matrix.parent is not None:
        parents = _run_chain(matrix.parent.chain, folder, executor, options, watch, report)
        if parents.interrupted:
            return SearchReport(parents, None, Unavailable("it was interrupted"))
    window = window_matrix(matrix)
    preflight((window,), folder, executor.concurrency)
    with watch(_start(window, folder)) as show:
        found = search(matrix, folder, executor, options, show, announce)
    try:
        reported = report_learning_rates(folder, matrix.plan.study.name, options.tracking_uri)
    except AnalysisUnavailable as error:
        if not found.progress.stopping:
            raise
        return SearchReport(parents, found, Unavailable(str(error)))
    return SearchReport(parents, found, reported)


def report_learning_rates(folder: RunsFolder, study: str, tracking_uri: str | None) -> AnalysisReport:
    """Write what has been found so far of a study's learning rates. Raises NotFound, AnalysisUnavailable."""
    return write_analysis("tolerance", folder, search_of(study), tracking_uri)


def run_scaling(
    plan: StudyPlan,
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    bootstraps: int,
    *,
    watch: Watch = unwatched,
    report: Callable[[StudyResult], None] = lambda result: None,
) -> ScalingReport:
    """Run a study that has a ladder, and fit scaling laws to it with intervals from so many `bootstraps`.

    The other arguments, and what is raised, are those of `run_study`; AnalysisUnavailable, too, if nothing can be
    fitted.
    """
    axes = ladder(plan)
    if not axes:
        message = f"none makes a ladder, as one would that sets {', '.join(sorted(SIZES))} and is not compared"
        raise plan.error(plan.source.problem(("axes",), message))
    rungs = math.prod(len(axis.levels) for axis in plan.axes if axis.name in axes)
    if rungs < LEAST_RUNGS:
        message = f"a law needs {LEAST_RUNGS} rungs, and the ladder of {', '.join(axes)} has {rungs}: add levels"
        raise plan.error(plan.source.problem(("axes", axes[0]), message))
    run = run_study(plan, folder, executor, options, watch=watch, report=report)
    if run.interrupted:
        return ScalingReport(run, None)
    return ScalingReport(run, report_scaling(folder, plan.study.name, bootstraps, options.tracking_uri))


def report_scaling(folder: RunsFolder, study: str, bootstraps: int, tracking_uri: str | None) -> AnalysisReport:
    """Fit scaling laws to what has been run so far of a study. Raises NotFound, AnalysisUnavailable."""
    return write_analysis("scaling", folder, study, tracking_uri, bootstraps=bootstraps)


def retry_failed(
    plan: StudyPlan,
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    *,
    chosen: Callable[[Trial, Outcome], bool],
    watch: Watch = unwatched,
    report: Callable[[StudyResult], None] = lambda result: None,
) -> RunResult:
    """Run those trials of a study again that have failed and are `chosen`, and no others.

    The other arguments, and what is raised, are those of `run_study`; WrongRequest, too, if no failed trial is chosen.
    """
    matrix = planning.plan_study(plan, planning.searched(folder))
    known = [(trial, Outcome.read(folder.trial(trial.id).outcome)) for trial in matrix.trials]
    failed = [(trial, outcome) for trial, outcome in known if outcome and outcome.status is Status.FAILED]
    again = {trial.id for trial, outcome in failed if chosen(trial, outcome)}
    if not again:
        kinds = sorted({outcome.kind or "unknown" for _, outcome in failed})
        told = f"{len(failed)} failed otherwise ({', '.join(kinds)})" if failed else "none of its trials has failed"
        raise WrongRequest(f"{matrix.plan.study.name}: nothing to try again: {told}")
    with watch(_start(matrix, folder)) as show:
        progress = run_matrix(matrix, folder, executor, options, show, only=again)
    result = _publish(matrix, folder, options, progress)
    report(result)
    return RunResult((result,))


def preflight(chain: Sequence[Matrix], folder: RunsFolder, concurrency: int | None) -> None:
    """Refuse what cannot be run before any of a chain of studies is run. Raises StudyError, DataError."""
    for matrix in chain:
        if matrix.plan.study.budget.hours is not None:
            planning.estimate(matrix, folder, concurrency)  # refuses what exceeds the budget
    for matrix in chain if len(chain) > 1 else ():
        planning.check_data(matrix, folder)


def _run_chain(
    chain: Sequence[Matrix],
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    watch: Watch,
    report: Callable[[StudyResult], None],
) -> RunResult:
    preflight(chain, folder, executor.concurrency)
    results: list[StudyResult] = []
    for matrix in chain:
        with watch(_start(matrix, folder, len(chain))) as show:
            progress = run_matrix(matrix, folder, executor, options, show)
        results.append(_publish(matrix, folder, options, progress))
        report(results[-1])
        if progress.stopping or progress.halted:
            break
    return RunResult(tuple(results))


def _start(matrix: Matrix, folder: RunsFolder, chain: int = 1) -> StudyStart:
    done = sum(is_over(folder.trial(trial.id)) for trial in matrix.trials)
    return StudyStart(matrix, changed_since(folder, matrix), done, chain)


def _publish(matrix: Matrix, folder: RunsFolder, options: RunOptions, progress: Progress) -> StudyResult:
    """Write a study's tables and plots, and add them to MLflow if that is there."""
    name, problem = matrix.plan.study.name, progress.tracking_problem
    written = write_study(folder, name)
    if not problem:
        verdicts = {row.variant: row.verdict for row in written.result.rows}
        problem = add_to_mlflow(folder, name, options.tracking_uri, written.files, verdicts)
    return StudyResult(matrix, progress, written, problem)
