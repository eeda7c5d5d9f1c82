"""The account of a learning-rate search in Optuna: a study for each variant, a trial for each learning rate.

Optuna keeps the account, so that its dashboard and its tools can look at a search; it does not propose. Its samplers
are asked for one trial of one study at a time, and know what that study was told. The rule of this search proposes a
round for all variants at once, within a budget that they share, from the losses and divergences of each seed, which are
in the trials' own folders. A sampler would only hand on what has been decided elsewhere. The account can be deleted: it
is made anew from the trials.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gatelab.ablations.identity import digest
from gatelab.ablations.matrix import Matrix, Variant
from gatelab.errors import DamagedFile
from gatelab.results.analyses.sweeps import Sweep

NAME = "learning_rate"
"""Name of the parameter in Optuna."""

Rates = dict[str, list[float]]
"""Label of a variant -> learning rates, ascending."""


class LearningRateAccount:
    """The account of one search, in a journal file."""

    def __init__(self, path: Path, matrix: Matrix, kinds: Mapping[str, str]) -> None:
        lattice = matrix.plan.study.tolerance.lattice
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._space: dict[str, BaseDistribution] = {NAME: FloatDistribution(lattice[0], lattice[-1], log=True)}
        names = {variant.label: _name(matrix, variant, kinds[variant.label]) for variant in matrix.variants}
        try:
            self._storage, self._studies = _open(path, names)
        except (ValueError, TypeError, LookupError, AssertionError):  # a line that a power cut has torn, say
            aside = path.rename(path.with_name(f"{path.name}.damaged"))
            text = f"{path}: cannot be read: it is made anew from the trials, and kept as {aside.name}"
            warnings.warn(text, DamagedFile, stacklevel=2)
            self._storage, self._studies = _open(path, names)

    def begin(self, rates: Rates) -> None:
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
        """End the trials whose seeds are all over, with their mean loss; `loss by seed` is an attribute of each."""
        for label, sweep in found.items():
            study, places = self._studies[label], {rate: place for place, rate in enumerate(sweep.rates.tolist())}
            study_id = self._storage.get_study_id_from_name(study.study_name)
            for trial in study.get_trials(states=[TrialState.RUNNING]):
                place = places.get(trial.params.get(NAME))
                if place is not None and sweep.complete[place]:
                    losses = dict(zip(map(str, sweep.seeds), sweep.losses[:, place].tolist(), strict=True))
                    trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                    self._storage.set_trial_user_attr(trial_id, "loss by seed", losses)
                    study.tell(trial.number, float(sweep.mean[place]))


def _open(path: Path, names: Mapping[str, str]) -> tuple[JournalStorage, dict[str, optuna.Study]]:
    """Open an account, and in it the study of each label, by its name."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    studies = {
        label: optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
        for label, name in names.items()
    }
    return storage, studies


def _name(matrix: Matrix, variant: Variant, kind: str) -> str:
    """Name a variant's study in Optuna. A variant that has changed has another."""
    asked = [kind, variant.config.training.tokens, matrix.plan.study.common_seeds]
    return f"{variant.label} [{digest(asked)[:8]}]"
