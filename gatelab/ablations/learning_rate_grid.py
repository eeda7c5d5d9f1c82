"""The grid of a learning-rate search: the variants of a study, each at learning rates of its own."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from gatelab.ablations.learning_rates import LEARNING_RATE, with_rate
from gatelab.ablations.matrix import Matrix, Variant
from gatelab.ablations.paths import level_label
from gatelab.ablations.study import Axis, Level, StudyPlan
from gatelab.ablations.trials import trials_of
from gatelab.names import SEARCH_SUFFIX

Rates = Mapping[str, Collection[float]]
"""Label of a variant -> learning rates."""


def learning_rate_grid(matrix: Matrix, rates: Rates) -> Matrix:
    """Plan the trials of a study's variants at these learning rates: a study of its own, named after the first.

    Raises StudyError if there are more than the study's budget allows.
    """
    plan = _plan(matrix.plan, sorted({rate for own in rates.values() for rate in own}))
    variants = tuple(_at_rates(matrix, rates))
    trials = tuple(trials_of(plan, variants, matrix.parent, "the search would come to"))
    return replace(matrix, plan=plan, variants=variants, trials=trials, combinations=len(variants), notes=())


def label_at(variant: str, rate: float) -> str:
    """Label a variant at a learning rate."""
    at = f"learning_rate={level_label(rate)}"
    return at if variant == "base" else f"{variant}, {at}"


def _plan(plan: StudyPlan, rates: Collection[float]) -> StudyPlan:
    of_its_own = {"name": plan.study.name + SEARCH_SUFFIX, "claims": {}, "seeds": plan.study.common_seeds}
    study = plan.study.model_copy(update=of_its_own)
    levels = tuple(Level(level_label(rate), {LEARNING_RATE: rate}) for rate in rates)
    return replace(plan, study=study, axes=(*plan.axes, Axis(LEARNING_RATE, levels)))


def _at_rates(matrix: Matrix, rates: Rates) -> Iterator[Variant]:
    for variant in matrix.variants:
        for rate in sorted(rates[variant.label]):
            baseline = variant.baseline
            shared = baseline is not None and rate in rates[baseline]
            yield replace(
                variant,
                label=label_at(variant.label, rate),
                levels={**variant.levels, LEARNING_RATE: level_label(rate)},
                config=with_rate(variant.config, rate),
                baseline=label_at(baseline, rate) if baseline is not None and shared else None,
            )
