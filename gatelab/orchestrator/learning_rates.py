"""The search of each variant's learning rates: a window for all, then optimum and edges located, in rounds on Ray.

What to try next follows from what is known and from nothing else, so a search that is run again goes on where it was.
Optuna keeps the account, a study for each variant, told of a learning rate once all its seeds are over: asking and
telling happen in this process only. The truth is in the trials' own folders; the account can be made anew from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gatelab.ablations.errors import StudyError
from gatelab.ablations.identity import digest
from gatelab.ablations.learning_rate_grid import SUFFIX, learning_rate_grid
from gatelab.ablations.learning_rates import ToleranceConfig, rounded, searched_kind
from gatelab.ablations.matrix import Matrix, Variant
from gatelab.orchestrator.cluster import CannotRun, connected
from gatelab.orchestrator.driver import Options, Progress, run_study
from gatelab.orchestrator.study_manifest import study_record
from gatelab.results.analyses.learning_rates import Sweep, sweeps
from gatelab.results.report.write import read_tolerance
from gatelab.results.statistics.optimum import around, largest_stable, lower_edge, optimum, upper_edge
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import write_json
from gatelab.results.store.runs import AXIS, arm_of, runs_of_record
from gatelab.results.store.trials import is_over

NAME = "learning_rate"
"""Of the parameter in Optuna."""

Floats = npt.NDArray[np.float64]

Rates = dict[str, list[float]]
"""Label of a variant -> learning rates, ascending."""


@dataclass(frozen=True)
class Round:
    """What a search is about to try."""

    number: int
    new: Rates
    cells: int
    """Pairs of a variant and a learning rate, of all rounds."""


@dataclass(frozen=True)
class Searched:
    """How a search ended."""

    progress: Progress
    """Of the trials of all rounds."""
    unfinished: str
    """Why not everything was located that could be, or ''."""


def search(
    matrix: Matrix,
    folder: RunsFolder,
    options: Options,
    show: Callable[[Progress], None] = lambda progress: None,
    announce: Callable[[Round], None] = lambda new: None,
) -> Searched:
    """Search the learning rates of a study's variants, from where an earlier search of them was left.

    An interrupt returns after running trials have written a checkpoint. Raises CannotRun, DataError as `run_study`
    does, and if another process searches the same study; StudyError if the window alone exceeds the study's budget.
    """
    study = folder.study(matrix.plan.study.name + SUFFIX)
    study.path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(study.path / "search.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise CannotRun(
            f"{matrix.plan.study.name!r} is being searched by another process ({lock.lock_file})"
        ) from error
    try:
        with connected(options.address):
            return _search(matrix, folder, options, show, announce)
    finally:
        lock.release()


def _search(
    matrix: Matrix,
    folder: RunsFolder,
    options: Options,
    show: Callable[[Progress], None],
    announce: Callable[[Round], None],
) -> Searched:
    new, number = _window(matrix), 1
    rates = new
    cells = learning_rate_grid(matrix, rates)
    kinds = {variant.label: searched_kind(variant.canonical) for variant in matrix.variants}
    account = _Account(folder.study(cells.plan.study.name).path / "optuna.log", matrix, kinds)
    given_up: set[str] = set()  # trials that failed: another command may try them again, another round does not
    while True:
        missing = [trial for trial in cells.trials if trial.id not in given_up and not is_over(folder.trial(trial.id))]
        grown = None if missing else _grown(matrix, _sweeps(matrix, cells, folder), rates)
        # What is known already decides what is next without a word to Ray, MLflow or the record.
        if grown is None or isinstance(grown, str):
            if missing:
                announce(Round(number, new, len(cells.variants)))
            account.ask(rates)
            progress = run_study(cells, folder, options, show, given_up)
            found = _sweeps(matrix, cells, folder)
            account.tell(found)
            if progress.stopping:
                return Searched(progress, "it was interrupted")
            given_up |= {id for id, entry in progress.trials.items() if entry.state == "failed"}
            grown = _grown(matrix, found, rates)
            if isinstance(grown, str):
                unfinished = grown or (f"{len(given_up)} trials failed" if given_up else "")
                if not unfinished:
                    _write_located(matrix, kinds, folder, cells.plan.study.name)
                return Searched(progress, unfinished)
        rates, new, cells, number = *grown, number + 1


def window_matrix(matrix: Matrix) -> Matrix:
    """What a search tries first: every variant of a study at every learning rate of the window. Raises StudyError."""
    return learning_rate_grid(matrix, _window(matrix))


def _window(matrix: Matrix) -> Rates:
    return {variant.label: list(matrix.plan.study.tolerance.rates) for variant in matrix.variants}


def _grown(matrix: Matrix, found: Mapping[str, Sweep], rates: Rates) -> tuple[Rates, Rates, Matrix] | str:
    """(rates, what is new in them, their matrix) of the next round; '' if all is located, or why there can be none."""
    how = matrix.plan.study.tolerance
    more = {label: wanted for label, sweep in found.items() if (wanted := propose(sweep, how))}
    if not more:
        return ""
    joined = {label: sorted({*own, *more.get(label, [])}) for label, own in rates.items()}
    try:
        return joined, more, learning_rate_grid(matrix, joined)
    except StudyError as error:
        return error.problems[0].message


def _sweeps(matrix: Matrix, cells: Matrix, folder: RunsFolder) -> dict[str, Sweep]:
    """What is known of each variant, by label."""
    found = {sweep.arm: sweep for sweep in sweeps(runs_of_record(folder, study_record(cells)))}
    return {variant.label: found[_arm(matrix, variant)] for variant in matrix.variants}


def _arm(matrix: Matrix, variant: Variant) -> str:
    return arm_of({AXIS + axis.name: variant.levels.get(axis.name) for axis in matrix.plan.axes}, ())


def _write_located(matrix: Matrix, kinds: Mapping[str, str], folder: RunsFolder, name: str) -> None:
    """Keep the optima for the studies that want them."""
    found = {arm.sweep.arm: arm.optimum for arm in read_tolerance(folder, name).arms}
    entries = []
    for variant in matrix.variants:
        rate = found[_arm(matrix, variant)]
        entries.append(
            {
                "variant": variant.label,
                "kind": kinds[variant.label],
                "tokens": variant.config.training.tokens,
                "rate": None if rate is None else rounded(rate),
            }
        )
    write_json(folder.study(name).located, {"variants": entries})


def propose(sweep: Sweep, how: ToleranceConfig) -> list[float]:
    """Learning rates at which an arm should be tried next, ascending; none once all is located that can be.

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
    """As much of the window around the best learning rate of the lattice as the lattice holds."""
    pairs = zip(losses.tolist(), rates.tolist(), strict=True)
    on_lattice = [(loss, rate) for loss, rate in pairs if rate in lattice]
    return around(min(on_lattice)[1], lattice, points) if on_lattice else []


def _middle(x: Floats, value: float, resolution: float) -> set[float]:
    """The learning rate in the middle of the gap that begins at or holds a logarithm, if it is wider than resolved."""
    left = min(int(np.searchsorted(x, value, side="right")) - 1, len(x) - 2)
    return {rounded(10 ** float((x[left] + x[left + 1]) / 2))} if x[left + 1] - x[left] > resolution else set()


class _Account:
    """What Optuna is told: a study for each variant, a trial for each learning rate."""

    def __init__(self, path: Path, matrix: Matrix, kinds: Mapping[str, str]) -> None:
        lattice = matrix.plan.study.tolerance.lattice
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path)))
        self._space: dict[str, BaseDistribution] = {NAME: FloatDistribution(lattice[0], lattice[-1], log=True)}
        self._studies = {
            variant.label: optuna.create_study(
                storage=storage,
                study_name=_name(matrix, variant, kinds[variant.label]),
                direction="minimize",
                load_if_exists=True,
            )
            for variant in matrix.variants
        }

    def ask(self, rates: Rates) -> None:
        """Begin a trial at each learning rate that has none yet."""
        for label, own in rates.items():
            study = self._studies[label]
            for _ in study.get_trials(states=[TrialState.WAITING]):  # of a command that was killed, or somebody else's
                study.ask(self._space)
            begun = {trial.params.get(NAME) for trial in study.get_trials()}
            for rate in own:
                if rate not in begun:
                    study.enqueue_trial({NAME: rate})
                    study.ask(self._space)

    def tell(self, found: Mapping[str, Sweep]) -> None:
        """End the trials whose seeds are all over, with their mean loss."""
        for label, sweep in found.items():
            study, places = self._studies[label], {rate: place for place, rate in enumerate(sweep.rates.tolist())}
            for trial in study.get_trials(states=[TrialState.RUNNING]):
                place = places.get(trial.params.get(NAME))
                if place is not None and sweep.complete[place]:
                    losses = dict(zip(map(str, sweep.seeds), sweep.losses[:, place].tolist(), strict=True))
                    optuna.Trial(study, trial._trial_id).set_user_attr("loss by seed", losses)
                    study.tell(trial.number, float(sweep.mean[place]))


def _name(matrix: Matrix, variant: Variant, kind: str) -> str:
    """The name of a variant's study in Optuna. One that has changed is another."""
    asked = [kind, variant.config.training.tokens, matrix.plan.study.common_seeds]
    return f"{variant.label} [{digest(asked)[:8]}]"
