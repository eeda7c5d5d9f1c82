"""The matrix of a learning-rate search: the variants of a study, each at learning rates of its own."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from gatelab.ablations.errors import Problem
from gatelab.ablations.learning_rates import LEARNING_RATE, with_rate
from gatelab.ablations.matrix import Matrix, Variant, trials_of
from gatelab.ablations.paths import level_label
from gatelab.ablations.study import Axis, Level, StudyPlan
from gatelab.training.config import DataConfig

SUFFIX = "-lr-tolerance"
"""Ends the name of the study that a search is."""

Rates = Mapping[str, Collection[float]]
"""Label of a variant -> learning rates."""


def rate_matrix(matrix: Matrix, rates: Rates, data_identity: Callable[[DataConfig], str]) -> Matrix:
    """The trials of a study's variants at these learning rates: a study of its own, named after the first.

    Raises StudyError if there are more than the study's budget allows.
    """
    identify = functools.cache(data_identity)  # it reads all data
    plan = _plan(matrix.plan, sorted({rate for own in rates.values() for rate in own}))
    variants = tuple(_cells(matrix, rates))
    trials = tuple(trials_of(plan, variants, identify, matrix.earlier))
    most = plan.study.budget.trials
    if most is not None and len(trials) > most:
        raise matrix.plan.error(Problem("budget.trials", f"the search would come to {len(trials)} trials", most))
    return replace(matrix, plan=plan, variants=variants, trials=trials, combinations=len(variants), notes=())


def cell_label(variant: str, rate: float) -> str:
    """The label of a variant at a learning rate."""
    at = f"learning_rate={level_label(rate)}"
    return at if variant == "base" else f"{variant}, {at}"


def _plan(plan: StudyPlan, rates: Collection[float]) -> StudyPlan:
    of_its_own = {"name": plan.study.name + SUFFIX, "claims": {}, "seeds": plan.study.common_seeds}
    study = plan.study.model_copy(update=of_its_own)
    levels = tuple(Level(level_label(rate), {LEARNING_RATE: rate}) for rate in rates)
    return replace(plan, study=study, axes=(*plan.axes, Axis(LEARNING_RATE, levels)))


def _cells(matrix: Matrix, rates: Rates) -> Iterator[Variant]:
    for variant in matrix.variants:
        for rate in sorted(rates[variant.label]):
            baseline = variant.baseline
            shared = baseline is not None and rate in rates[baseline]
            yield replace(
                variant,
                label=cell_label(variant.label, rate),
                levels={**variant.levels, LEARNING_RATE: level_label(rate)},
                config=with_rate(variant.config, rate),
                baseline=cell_label(baseline, rate) if baseline is not None and shared else None,
            )
