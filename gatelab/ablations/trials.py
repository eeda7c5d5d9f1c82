"""The trials of variants: which seeds each has, and what they are called."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from gatelab.ablations.identity import trial_id
from gatelab.ablations.limits import MOST_TRIALS, check_trials
from gatelab.ablations.matrix import Matrix, Trial, Variant
from gatelab.ablations.study import StudyPlan


def trials_of(
    plan: StudyPlan, variants: Collection[Variant], parent: Matrix | None, whose: str = "the matrix has"
) -> Iterator[Trial]:
    """Yield the trials of variants seed by seed, so that a study that is cut short has complete blocks.

    `parent` is the matrix of the study that theirs continues; `whose` begins what is said of too many. Raises
    StudyError if there are more than the study's budget allows.
    """
    parents = {(trial.variant, trial.seed): trial.id for trial in parent.trials} if parent else {}
    seeds = {label: dict.fromkeys(own) for label, own in _seeds(plan, variants).items()}
    at_most = sum(map(len, seeds.values()))
    if parent is None or at_most > MOST_TRIALS:  # known, or too many, before all are listed
        check_trials(plan, at_most, whose)
    seeded = list(_by_seed(seeds, variants, parents))
    check_trials(plan, len(seeded), whose)
    for seed, variant in seeded:
        config = variant.config.model_copy(update={"seed": seed})
        continued = plan.study.imported if variant.parent is None else parents[variant.parent, seed]
        id = trial_id(variant.canonical, seed, continued)
        yield Trial(id, variant.label, config, variant.data_id, continued)


def _by_seed(
    seeds: Mapping[str, Collection[int]], variants: Collection[Variant], parents: Collection[tuple[str, int]]
) -> Iterator[tuple[int, Variant]]:
    """Yield the seeds, each with the variants that have it: one that continues another's weights, where it has it."""
    for seed in dict.fromkeys(seed for own in seeds.values() for seed in own):
        for variant in variants:
            if seed in seeds[variant.label] and (variant.parent is None or (variant.parent, seed) in parents):
                yield seed, variant


def _seeds(plan: StudyPlan, variants: Collection[Variant]) -> dict[str, list[int]]:
    """Choose the seeds of each variant.

    Where they are automatic a baseline has sqrt(k) times as many as the k variants that are compared with it: of all
    ways to share out as many trials the one with the least variance of a difference, if seeds have nothing in common.
    With a correlation r it would be sqrt(k (1 - r) / (1 + r)), which no one knows before.
    """
    common = plan.study.common_seeds
    compared = Counter(variant.baseline for variant in variants if variant.baseline != variant.label)

    def own(variant: Variant) -> list[int]:
        shared = compared[variant.label] if plan.study.seeds == "auto" else 0
        return list(range(round(len(common) * math.sqrt(shared)))) if shared > 1 else common

    return {variant.label: own(variant) for variant in variants}
