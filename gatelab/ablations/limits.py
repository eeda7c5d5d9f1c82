"""How large a study may be: checked before its combinations, and its trials, are made."""

import math

from gatelab.ablations.study import StudyPlan

MOST_COMBINATIONS = 50_000
"""Combinations of levels: planning them takes some ten seconds."""
FEW_COMBINATIONS = 1_000
"""So many are planned whatever the budget."""
SPARE = 100
"""Times as many trials as the budget allows, of which exclusions and folding may leave what it allows."""
MOST_TRIALS = 200_000
"""Trials of a study: naming them takes some five seconds."""


def check_combinations(plan: StudyPlan) -> None:
    """Refuse a product of axes that is out of all proportion. Raises StudyError."""
    lengths = [len(axis.levels) for axis in plan.axes]
    count, seeds, budget = math.prod(lengths), len(plan.study.common_seeds), plan.study.budget.trials
    said = f"{count:,} combinations ({' x '.join(map(str, lengths))})"
    if budget is not None and count > FEW_COMBINATIONS and count * seeds > SPARE * budget:
        each = f"{seeds:,} seed{'' if seeds == 1 else 's'}"
        message = f"the axes make {said} at {each}: more than {SPARE} times as many trials, before exclusions"
        raise plan.error(plan.source.problem(("budget", "trials"), message, budget))
    if count > MOST_COMBINATIONS:
        message = f"{said}: at most {MOST_COMBINATIONS:,} are planned, before exclusions; leave out levels, or an axis"
        raise plan.error(plan.source.problem(("axes",), message))


def check_trials(plan: StudyPlan, count: int, whose: str) -> None:
    """Refuse more trials than the budget allows, or than can be planned; `whose` begins the message: the matrix has.

    Raises StudyError.
    """
    budget = plan.study.budget.trials
    if budget is not None and count > budget:
        raise plan.error(plan.source.problem(("budget", "trials"), f"{whose} {count} trials", budget))
    if count > MOST_TRIALS:
        message = f"{whose} {count:,} trials: at most {MOST_TRIALS:,} are planned"
        raise plan.error(plan.source.problem(("seeds",), message))
