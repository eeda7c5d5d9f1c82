"""The search of each variant's learning rates: a window for all, then optimum and edges located, in rounds on Ray.

What to try next follows from what is known and from nothing else, so a search that is run again goes on where it was.
Optuna keeps the account, a study for each variant, told of a learning rate once all its seeds are over: asking and
telling happen in this process only. The truth is in the trials' own folders; the account can be made anew from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gatelab.ablations.identity import digest
from gatelab.ablations.learning_rates import ToleranceConfig, rounded
from gatelab.ablations.matrix import Matrix, Trial, Variant
from gatelab.ablations.rate_matrix import rate_matrix
from gatelab.orchestrator.cluster import connected
from gatelab.orchestrator.driver import Options, Progress, is_over, run_study
from gatelab.orchestrator.record import changes, study_record
from gatelab.results.folders import RunsFolder, read_json
from gatelab.results.frames import AXIS, arm_of, runs_of_record
from gatelab.results.tolerance import (
    Sweep,
    largest_stable,
    lower_edge,
    optimum,
    sweeps,
    upper_edge,
)
from gatelab.training.data import data_identity

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


def search(
    matrix: Matrix,
    folder: RunsFolder,
    options: Options,
    show: Callable[[Progress], None] = lambda progress: None,
    announce: Callable[[Round], None] = lambda round: None,
) -> Progress:
    """Search the learning rates of a study's variants; return how the trials of all rounds ended.

    An interrupt returns after running trials have written a checkpoint. Raises CannotRun, DataError, StudyError as
    `run_study` and `rate_matrix` do.
    """
    how = matrix.plan.study.tolerance
    rates: Rates = {variant.label: list(how.rates) for variant in matrix.variants}
    new, number = rates, 1
    given_up: set[str] = set()  # trials that failed: another command may try them again, another round does not
    with connected(options.address):
        while True:
            cells = rate_matrix(matrix, rates, data_identity)
            missing = [trial for trial in cells.trials if trial.id not in given_up and not _is_over(folder, trial)]
            more = {} if missing else _more(_sweeps(matrix, cells, folder), rates, how)
            # What is known already decides what is next without a word to Ray, MLflow or the record.
            if not more:
                if missing:
                    announce(Round(number, new, len(cells.variants)))
                account = _Account(folder.study(cells.plan.study.name).path / "optuna.log", matrix, how)
                account.ask(rates)
                progress = run_study(cells, folder, options, show, given_up)
                found = _sweeps(matrix, cells, folder)
                account.tell(found)
                given_up |= {id for id, entry in progress.trials.items() if entry.state == "failed"}
                more = {} if progress.stopping else _more(found, rates, how)
                if not more:
                    return progress
            rates, new, number = _joined(rates, more), more, number + 1


def changed(matrix: Matrix, folder: RunsFolder) -> list[str]:
    """In what a search differs from what was last run under its name, for people."""
    how = matrix.plan.study.tolerance
    now = study_record(rate_matrix(matrix, {variant.label: how.rates for variant in matrix.variants}, data_identity))
    before = read_json(folder.study(now["name"]).record)
    return [] if before is None else changes(before, now)


def _is_over(folder: RunsFolder, trial: Trial) -> bool:
    return is_over(read_json(folder.trial(trial.id).outcome))


def _joined(rates: Rates, more: Rates) -> Rates:
    return {label: sorted({*own, *more.get(label, [])}) for label, own in rates.items()}


def _sweeps(matrix: Matrix, cells: Matrix, folder: RunsFolder) -> dict[str, Sweep]:
    """What is known of each variant, by label."""
    found = {sweep.arm: sweep for sweep in sweeps(runs_of_record(folder, study_record(cells)))}
    return {variant.label: found[_arm(variant)] for variant in matrix.variants}


def _more(found: Mapping[str, Sweep], rates: Rates, how: ToleranceConfig) -> Rates:
    """What each variant should be tried at next; those that are located are not in it."""
    wanted = {label: propose(sweep, how) for label, sweep in found.items()}
    return {label: own for label, own in wanted.items() if own}


def _arm(variant: Variant) -> str:
    return arm_of({AXIS + axis: level for axis, level in variant.levels.items()}, ())


def propose(sweep: Sweep, how: ToleranceConfig) -> list[float]:
    """Learning rates at which an arm should be tried next, ascending; none once all is located that can be.

    The lattice of the window is continued where a window around the best needs it, and upwards until something is not
    stable. The optimum is located by the vertex of the parabola through the best and its neighbours; the edges of what
    is tolerated and of what is stable are bisected; each to within `resolution` decades.
    """
    known = np.isfinite(sweep.mean)
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
    best = min((loss, rate) for rate, loss in zip(rates.tolist(), losses.tolist(), strict=True) if rate in lattice)[1]
    first = list(lattice).index(best) - (points - 1) // 2
    return list(lattice[max(0, first) : first + points])


def _middle(x: Floats, value: float, resolution: float) -> set[float]:
    """The learning rate in the middle of the gap that begins at or holds a logarithm, if it is wider than resolved."""
    left = min(int(np.searchsorted(x, value, side="right")) - 1, len(x) - 2)
    return {rounded(10 ** float((x[left] + x[left + 1]) / 2))} if x[left + 1] - x[left] > resolution else set()


class _Account:
    """What Optuna is told: a study for each variant, a trial for each learning rate."""

    def __init__(self, path: Path, matrix: Matrix, how: ToleranceConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path)))
        self._space: dict[str, BaseDistribution] = {NAME: FloatDistribution(how.lattice[0], how.lattice[-1], log=True)}
        self._studies = {
            variant.label: optuna.create_study(
                storage=storage, study_name=_name(matrix, variant), direction="minimize", load_if_exists=True
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


def _name(matrix: Matrix, variant: Variant) -> str:
    """The name of a variant's study in Optuna. One that has changed is another."""
    trials = [trial.id for trial in matrix.trials if trial.variant == variant.label]
    return f"{variant.label} [{digest(trials)[:8]}]"
