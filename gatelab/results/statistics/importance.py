"""How much each axis of an unbalanced study matters, by Optuna's evaluators: no test, and no direction."""

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gatelab.errors import Unavailable
from gatelab.extras import require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.importance import BaseImportanceEvaluator

TOP = 0.25
"""The share of runs that PED-ANOVA calls good."""
LEAST = 5
"""Good runs that PED-ANOVA needs."""
NO_LEVEL = "–"
"""The level of an axis that makes no difference to a variant."""
NO_FOREST = Unavailable(
    "fANOVA is left out: its random forest needs scikit-learn, which is not installed "
    "(pip install 'gatelab[importance]')."
)

Values = Mapping[str, Mapping[int, float]]
"""Variant -> seed -> value."""
Levels = Mapping[str, Mapping[str, str | None]]
"""Variant -> axis -> level."""


@dataclass(frozen=True)
class Importance:
    """Axis -> importance, by two methods; None where a method has nothing to say."""

    runs: int
    variants: int
    fanova: dict[str, float] | Unavailable | None
    """Share of the variance of a random forest over all combinations of levels that the axis alone accounts for.
    Unavailable without scikit-learn."""
    ped_anova: dict[str, float] | None
    """Distance of the levels of good runs from those of all, as shares of 1."""


def importance(
    values: Values, levels: Levels, axes: Sequence[str], better: Literal["lower", "higher", ""], *, seed: int = 0
) -> Importance:
    """Rate axes for what finished runs have reached: each run is a trial, less what its seed adds.

    fANOVA: Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance", ICML 2014.
    PED-ANOVA: Watanabe, Bansal and Hutter, "PED-ANOVA", IJCAI 2023; it needs no scikit-learn.
    Raises MissingExtra where Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        require("sklearn", "optuna")  # where both are missing, the extra that brings both
    alike = without_seeds(values)
    runs = [(levels[variant], value) for variant, of in alike.items() for value in of.values()]
    spread = np.ptp([value for _, value in runs]) if runs else 0.0
    scale = max((abs(value) for of in values.values() for value in of.values()), default=0.0)
    if not spread > 1e-12 * scale:
        return Importance(len(runs), len(alike), None, None)
    tagged = [({axis: NO_LEVEL if (level := at[axis]) is None else level for axis in axes}, y) for at, y in runs]
    named = {axis: list(dict.fromkeys(at[axis] for at, _ in tagged)) for axis in axes}
    fanova = _fanova(tagged, named, seed)
    enough = better and TOP * len(runs) >= LEAST
    return Importance(len(runs), len(alike), fanova, _ped_anova(tagged, named, better) if enough else None)


def _fanova(
    runs: Sequence[tuple[dict[str, str], float]], named: Mapping[str, Sequence[str]], seed: int
) -> dict[str, float] | Unavailable:
    if importlib.util.find_spec("sklearn") is None:
        return NO_FOREST
    from optuna.distributions import FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator

    # One-hot columns, as of a categorical parameter, would weigh combinations that are no level, 2^levels of them.
    # A box of width 1 for each level weighs all levels alike.
    boxes = {axis: FloatDistribution(-0.5, len(of) - 0.5) for axis, of in named.items()}
    points = [({axis: float(named[axis].index(level)) for axis, level in at.items()}, y) for at, y in runs]
    return _evaluate(points, boxes, FanovaImportanceEvaluator(seed=seed), "lower")


def _ped_anova(
    runs: Sequence[tuple[dict[str, str], float]],
    named: Mapping[str, Sequence[str]],
    better: Literal["lower", "higher", ""],
) -> dict[str, float] | None:
    from optuna.distributions import CategoricalDistribution
    from optuna.importance import PedAnovaImportanceEvaluator

    kinds = {axis: CategoricalDistribution(of) for axis, of in named.items()}
    raw = _evaluate(runs, kinds, PedAnovaImportanceEvaluator(target_quantile=TOP), better)
    total = sum(raw.values())
    return {axis: value / total for axis, value in raw.items()} if total > 0 else None


def without_seeds(values: Values) -> dict[str, dict[int, float]]:
    """Take what seeds add in all variants from values, by least squares: variants may have finished unlike seeds."""
    seeds = sorted({seed for of in values.values() for seed in of})
    table = np.array([[of.get(seed, math.nan) for seed in seeds] for of in values.values()])
    known = np.isfinite(table)
    counts = known.sum(1)
    means = np.where(known, table, 0).sum(1) / np.maximum(counts, 1)
    # The normal equations of variants + seeds, variants eliminated.
    missed = np.where(known, table - means[:, None], 0).sum(0)
    weights = np.diag(known.sum(0)) - known.T @ (known / np.maximum(counts, 1)[:, None])
    added = dict(zip(seeds, np.linalg.lstsq(weights, missed, rcond=1e-9)[0], strict=True))
    return {
        variant: {seed: value - float(added[seed]) for seed, value in of.items()}
        for variant, of in values.items()
        if of
    }


def _evaluate(
    runs: Sequence[tuple[dict[str, float] | dict[str, str], float]],
    distributions: "Mapping[str, BaseDistribution]",
    evaluator: "BaseImportanceEvaluator",
    better: Literal["lower", "higher", ""],
) -> dict[str, float]:
    """Return importances as an evaluator gives them, in the order of the axes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if better == "higher" else "minimize")
    made = optuna.trial.create_trial
    study.add_trials([made(params=params, distributions=dict(distributions), value=y) for params, y in runs])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `normalize`
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, params=list(distributions), normalize=False
        )
    return {axis: float(found[axis]) for axis in distributions}
