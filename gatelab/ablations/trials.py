"""The trials of variants: which seeds each has, and what they are called."""

import math
from collections import Counter
from collections.abc import Collection, Iterator

from gatelab.ablations.identity import trial_id
from gatelab.ablations.matrix import Matrix, Trial, Variant
from gatelab.ablations.study import StudyPlan


def trials_of(plan: StudyPlan, variants: Collection[Variant], parent: Matrix | None) -> Iterator[Trial]:
    """Yield the trials of variants seed by seed, so that a study that is cut short has complete blocks.

    `parent` is the matrix of the study that theirs continues.
    """
    seeds = _seeds(plan, variants)
    parents = {(trial.variant, trial.seed): trial.id for trial in parent.trials} if parent else {}
    for seed in dict.fromkeys(seed for own in seeds.values() for seed in own):
        for variant in variants:
            # A variant that continues another's weights has the seeds that there are of those.
            if seed not in seeds[variant.label] or (variant.parent and (variant.parent, seed) not in parents):
                continue
            config = variant.config.model_copy(update={"seed": seed})
            continued = None if variant.parent is None else parents[variant.parent, seed]
            id = trial_id(variant.canonical, seed, continued)
            yield Trial(id, variant.label, config, variant.data_id, continued)


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
