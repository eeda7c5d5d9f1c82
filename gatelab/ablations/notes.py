"""What a careful reader of a plan would point out."""

from collections.abc import Iterator

from gatelab.ablations.exclusion import exclusion_rules
from gatelab.ablations.learning_rates import LEARNING_RATE
from gatelab.ablations.matrix import Matrix, claimed_of

ROUNDED = 1.05
"""A budget is said to be rounded up when it grows by more than this factor."""
MANY_SEEDS = 1_000


def notes(matrix: Matrix) -> Iterator[str]:
    """Yield what should be known of a matrix before it is run."""
    checks = (_idle_overrides, _idle_rules, _untuned_rate, _unshared_prefix, _rounded_budget, _single_seed, _many_seeds)
    for note in (*checks, _claims_of_nothing, _alone):
        yield from note(matrix)


def _idle_overrides(matrix: Matrix) -> Iterator[str]:
    for path in matrix.plan.overrides:
        for axis in matrix.plan.axes:
            if axis.levels and all(path in level.values for level in axis.levels):
                yield f"--set {path} has no effect: axis {axis.name} sets it (replace its levels by --axis)"


def _idle_rules(matrix: Matrix) -> Iterator[str]:
    plan, used = matrix.plan, set(matrix.excluded.values())
    inherited = plan.parent.study.exclude if plan.parent else []
    texts = [rule.text for rule in exclusion_rules(plan)]
    for index, (rule, text) in enumerate(zip(plan.study.exclude, texts, strict=True)):
        # One that is inherited may be about levels that are left out here; of two equal ones the first excludes.
        if (text not in used or text in texts[:index]) and rule not in inherited:
            yield f"exclude[{index}] ({text}) excludes nothing"


def _untuned_rate(matrix: Matrix) -> Iterator[str]:
    study = matrix.plan.study
    varied = matrix.plan.varies(LEARNING_RATE) or study.learning_rate != "given"
    if not varied and LEARNING_RATE not in study.fixed:
        rate = matrix.variants[0].config.training.optimizer.learning_rate
        yield (
            f"{LEARNING_RATE} is neither an axis nor declared fixed: the comparison holds at {rate:g} only, "
            "and variants whose optimum differs are compared unfairly"
        )


def _unshared_prefix(matrix: Matrix) -> Iterator[str]:
    schedules = [variant.config.training.schedule for variant in matrix.variants]
    budgets = matrix.plan.varies("training.tokens")
    if budgets and any(schedule.kind == "wsd" and 0 < schedule.warmup < 1 for schedule in schedules):
        yield (
            "token budgets could share one trunk under wsd if training.schedule.warmup were a number of steps: as a "
            "fraction it is another for each budget"
        )


def _rounded_budget(matrix: Matrix) -> Iterator[str]:
    said: dict[str, None] = {}
    for variant in matrix.variants:
        training = variant.config.training
        trained = training.steps * training.tokens_per_step
        if trained > ROUNDED * training.tokens:
            said[
                f"training.tokens: {training.tokens:,} become {trained:,}, in whole steps of "
                f"{training.tokens_per_step:,} (training.batch_size x training.sequence_length)"
            ] = None
    yield from said


def _many_seeds(matrix: Matrix) -> Iterator[str]:
    count = len(matrix.plan.study.common_seeds)
    if count > MANY_SEEDS:
        yield f"{count:,} seeds of each variant: a number is how many seeds; which ones is a list, [0, 1, 5]"


def _single_seed(matrix: Matrix) -> Iterator[str]:
    if len(matrix.plan.study.common_seeds) == 1:
        yield "one seed: differences will have no interval"


def _claims_of_nothing(matrix: Matrix) -> Iterator[str]:
    for name, claim in matrix.plan.study.claims.items():
        if not claimed_of(matrix, claim):
            yield f"claims.{name}: no variant with a baseline of its own is one that it names"


def _alone(matrix: Matrix) -> Iterator[str]:
    alone = [variant.label for variant in matrix.variants if variant.baseline is None]
    if alone:
        yield f"without a baseline to compare with: {'; '.join(alone)}"
