"""How much each axis of an unbalanced study matters, by Optuna's evaluators: no test, and no direction."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import create_trial

TOP = 0.25
"""The share of runs that PED-ANOVA calls good."""


LEAST = 5
"""Good runs that PED-ANOVA needs."""


NO_LEVEL = "–"
"""The level of an axis that makes no difference to a variant."""


Values = Mapping[str, Mapping[int, float]]
"""Variant -> seed -> value."""


Levels = Mapping[str, Mapping[str, str | None]]
"""Variant -> axis -> level."""


@dataclass(frozen=True)
class Importance:
    """Axis -> importance, by two methods; None where a method has nothing to say."""

    runs: int
    variants: int
    fanova: dict[str, float] | None
    """Share of the variance of a random forest over all combinations of levels that the axis alone accounts for."""
    ped_anova: dict[str, float] | None
    """How far the levels of good runs are from those of all, as shares of 1."""


def importance(
    values: Values, levels: Levels, axes: Sequence[str], better: Literal["lower", "higher", ""], *, seed: int = 0
) -> Importance:
    """The importance of axes for what finished runs have reached: each run is a trial, less what its seed adds."""
    alike = without_seeds(values)
    runs = [(levels[variant], value) for variant, of in alike.items() for value in of.values()]
    named = {axis: list(dict.fromkeys(level[axis] or NO_LEVEL for level, _ in runs)) for axis in axes}
    spread = np.ptp([value for _, value in runs]) if runs else 0.0
    scale = max((abs(value) for of in values.values() for value in of.values()), default=0.0)
    fanova = ped_anova = None
    if spread > 1e-12 * scale:
        # One-hot columns, as of a categorical parameter, would weigh combinations that are no level, 2^levels of them.
        # A box of width 1 for each level weighs all levels alike.
        boxes = {axis: FloatDistribution(-0.5, len(of) - 0.5) for axis, of in named.items()}
        points = [({axis: float(named[axis].index(at[axis] or NO_LEVEL)) for axis in axes}, y) for at, y in runs]
        fanova = _evaluate(points, boxes, FanovaImportanceEvaluator(seed=seed), "lower", axes)
        if better and TOP * len(runs) >= LEAST:
            kinds = {axis: CategoricalDistribution(of) for axis, of in named.items()}
            tagged = [({axis: at[axis] or NO_LEVEL for axis in axes}, y) for at, y in runs]
            evaluator = PedAnovaImportanceEvaluator(target_quantile=TOP)
            raw = _evaluate(tagged, kinds, evaluator, better, axes)
            total = sum(raw.values())
            ped_anova = {axis: value / total for axis, value in raw.items()} if total > 0 else None
    return Importance(len(runs), len(alike), fanova, ped_anova)


def without_seeds(values: Values) -> dict[str, dict[int, float]]:
    """Values less what their seeds add in all variants, by least squares: variants may have finished unlike seeds."""
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
    distributions: Mapping[str, BaseDistribution],
    evaluator: BaseImportanceEvaluator,
    better: Literal["lower", "higher"],
    axes: Sequence[str],
) -> dict[str, float]:
    """Importances as an evaluator gives them, in the order of the axes."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if better == "higher" else "minimize")
    study.add_trials([create_trial(params=params, distributions=dict(distributions), value=y) for params, y in runs])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `normalize`
        found = get_param_importances(study, evaluator=evaluator, params=list(axes), normalize=False)
    return {axis: float(found[axis]) for axis in axes}
