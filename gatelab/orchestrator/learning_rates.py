"""The search of each variant's learning rates: a window for all, then optimum and edges located, in rounds.

What to try next follows from what is known and from nothing else, so a search that is run again goes on where it was.
The rule is `propose`. Optuna keeps the account (see `learning_rate_account`); it does not sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gatelab.ablations.errors import StudyError
from gatelab.ablations.learning_rate_grid import learning_rate_grid
from gatelab.ablations.learning_rates import ToleranceConfig, rounded, searched_kind
from gatelab.ablations.matrix import Matrix, Variant
from gatelab.errors import Unavailable
from gatelab.names import SEARCH_SUFFIX
from gatelab.orchestrator.executor import CannotRun, Executor
from gatelab.orchestrator.learning_rate_account import LearningRateAccount, Rates
from gatelab.orchestrator.progress import Progress
from gatelab.orchestrator.study_manifest import study_record
from gatelab.orchestrator.study_run import RunOptions, run_matrix
from gatelab.results.analyses.learning_rates import read_learning_rates
from gatelab.results.analyses.sweeps import Sweep, sweeps
from gatelab.results.statistics.optimum import around, largest_stable, lower_edge, optimum, upper_edge
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import Held, acquire
from gatelab.results.store.records import SearchedRate, SearchFindings, write_json
from gatelab.results.store.runs import AXIS, arm_of, runs_of_record
from gatelab.results.store.trials import is_over
from gatelab.status import Status

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What a search is about to try."""

    number: int
    new: Rates
    cells: int
    """Pairs of a variant and a learning rate, of all rounds."""


@dataclass(frozen=True)
class SearchResult:
    """How a search ended."""

    progress: Progress
    """Progress of the trials of all rounds."""
    unfinished: str
    """Why not everything was located that could be, or ''."""


def search(
    matrix: Matrix,
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    show: Callable[[Progress], None] = lambda progress: None,
    announce: Callable[[Round], None] = lambda new: None,
) -> SearchResult:
    """Search the learning rates of a study's variants, from where an earlier search of them was left.

    An interrupt ends the search as it ends a study (see `run_matrix`).

    Raises:
        CannotRun: another process searches the same study, or as `run_matrix` raises it.
        DataError: the data cannot be used.
        StudyError: the window alone exceeds the study's budget.
    """
    study = folder.study(matrix.plan.study.name + SEARCH_SUFFIX)
    try:
        lease = acquire(study.path, "search")
    except Held as error:
        raise CannotRun(f"{matrix.plan.study.name!r} is being searched by another process: {error}") from error
    with lease, executor.session():
        return _search(matrix, folder, executor, options, show, announce)


def _search(
    matrix: Matrix,
    folder: RunsFolder,
    executor: Executor,
    options: RunOptions,
    show: Callable[[Progress], None],
    announce: Callable[[Round], None],
) -> SearchResult:
    rates, number = _window(matrix), 1
    wanted = _Rates(rates, rates, learning_rate_grid(matrix, rates))
    kinds = {variant.label: searched_kind(variant.canonical) for variant in matrix.variants}
    name = wanted.cells.plan.study.name
    account = LearningRateAccount(folder.study(name).path / "optuna.log", matrix, kinds)
    exhausted: set[str] = set()  # trials that failed: another command tries them again, another round does not
    while True:
        cells = wanted.cells
        missing = [trial for trial in cells.trials if trial.id not in exhausted and not is_over(folder.trial(trial.id))]
        grown = None if missing else _grown(matrix, _sweeps(matrix, cells, folder), wanted.rates)
        # What is known already decides what is next without a word to Ray, MLflow or the record.
        if not isinstance(grown, _Rates):
            if missing:
                announce(Round(number, wanted.new, len(cells.variants)))
            account.begin(wanted.rates)
            progress = run_matrix(cells, folder, executor, options, show, exhausted)
            found = _sweeps(matrix, cells, folder)
            account.tell(found)
            if progress.stopping or progress.halted:
                return SearchResult(progress, progress.halted or "it was interrupted")
            exhausted |= {id for id, entry in progress.trials.items() if entry.state is Status.FAILED}
            grown = _grown(matrix, found, wanted.rates)
        if isinstance(grown, Unavailable):
            return SearchResult(progress, grown.reason)
        if grown is None:
            if exhausted:
                return SearchResult(progress, f"{len(exhausted)} trials failed")
            _write_located(matrix, kinds, folder, name)
            return SearchResult(progress, "")
        wanted, number = grown, number + 1


@dataclass(frozen=True)
class _Rates:
    """The learning rates of a round and of those before it."""

    rates: Rates
    new: Rates
    cells: Matrix


def window_matrix(matrix: Matrix) -> Matrix:
    """Build what a search tries first: every variant of a study at every rate of the window. Raises StudyError."""
    return learning_rate_grid(matrix, _window(matrix))


def _window(matrix: Matrix) -> Rates:
    return {variant.label: list(matrix.plan.study.tolerance.rates) for variant in matrix.variants}


def _grown(matrix: Matrix, found: Mapping[str, Sweep], rates: Rates) -> _Rates | Unavailable | None:
    """Return the learning rates of the next round; None if all is located; or why there can be no next round."""
    how = matrix.plan.study.tolerance
    more = {label: wanted for label, sweep in found.items() if (wanted := propose(sweep, how))}
    if not more:
        return None
    joined = {label: sorted({*own, *more.get(label, [])}) for label, own in rates.items()}
    try:
        return _Rates(joined, more, learning_rate_grid(matrix, joined))
    except StudyError as error:
        return Unavailable(error.problems[0].message)


def _sweeps(matrix: Matrix, cells: Matrix, folder: RunsFolder) -> dict[str, Sweep]:
    """Read what is known of each variant, by label."""
    found = {sweep.arm: sweep for sweep in sweeps(runs_of_record(folder, study_record(cells)))}
    return {variant.label: found[_arm(matrix, variant)] for variant in matrix.variants}


def _arm(matrix: Matrix, variant: Variant) -> str:
    return arm_of({AXIS + axis.name: variant.levels.get(axis.name) for axis in matrix.plan.axes}, ())


def _write_located(matrix: Matrix, kinds: Mapping[str, str], folder: RunsFolder, name: str) -> None:
    """Keep the optima for the studies that want them."""
    found = {arm.sweep.arm: arm.optimum for arm in read_learning_rates(folder, name).arms}
    entries = []
    for variant in matrix.variants:
        rate = found[_arm(matrix, variant)]
        entries.append(
            SearchedRate(
                variant=variant.label,
                kind=kinds[variant.label],
                tokens=variant.config.training.tokens,
                rate=None if rate is None else rounded(rate),
            )
        )
    write_json(folder.study(name).located, SearchFindings(variants=entries).to_json())


def propose(sweep: Sweep, how: ToleranceConfig) -> list[float]:
    """Return the learning rates at which an arm should be tried next, ascending; none once all that can be is located.

    The lattice of the window is continued where a window around the best needs it, and upwards until something is not
    stable. The optimum is located by the vertex of the parabola through the best and its neighbours; the edges of what
    is tolerated and of what is stable are bisected; each to within `resolution` decades.
    """
    known = sweep.complete  # a mean over some of the seeds is no point of this curve
    if not known.any():
        return []
    rates, losses, stable = sweep.rates[known], sweep.mean[known], np.all(sweep.stable, axis=0)[known]
    x, lattice = np.log10(rates), how.lattice
    wanted = set(_around_best(rates, losses, lattice, len(how.rates)))
    best, limit = optimum(x, losses), largest_stable(x, losses, stable)
    if not best.bound:
        middle = int(np.argmin(losses))
        if stable[middle - 1 : middle + 2].all():
            if np.abs(x - best.value).min() > how.resolution / 2:
                wanted.add(rounded(10**best.value))
        else:  # the loss of what is not stable bends the parabola: narrow both gaps instead
            for left in (x[middle - 1], x[middle]):
                wanted |= _middle(x, float(left), how.resolution * 2 / 3)
    if limit.bound == "≥":
        wanted |= set([rate for rate in lattice if rate > rates[-1]][:1])
    elif not limit.bound:
        wanted |= _middle(x, limit.value, how.resolution)
    threshold = float(losses.min()) * (1 + how.margin)
    for edge in (lower_edge(x, losses, threshold), upper_edge(x, losses, threshold)):
        if not edge.bound:
            wanted |= _middle(x, edge.value, how.resolution)
    return sorted(wanted - set(sweep.rates.tolist()))


def _around_best(rates: Floats, losses: Floats, lattice: Sequence[float], points: int) -> list[float]:
    """Return as much of the window around the best learning rate of the lattice as the lattice holds."""
    pairs = zip(losses.tolist(), rates.tolist(), strict=True)
    on_lattice = [(loss, rate) for loss, rate in pairs if rate in lattice]
    return around(min(on_lattice)[1], lattice, points) if on_lattice else []


def _middle(x: Floats, value: float, resolution: float) -> set[float]:
    """Return the rate in the middle of the gap that begins at or holds a logarithm, if that is wider than resolved."""
    left = min(int(np.searchsorted(x, value, side="right")) - 1, len(x) - 2)
    return {rounded(10 ** float((x[left] + x[left + 1]) / 2))} if x[left + 1] - x[left] > resolution else set()
