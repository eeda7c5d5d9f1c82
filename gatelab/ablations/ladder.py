"""The ladder of a study: the axes along which its models and their training grow."""

from gatelab.ablations.study import SIZES, StudyPlan


def ladder(plan: StudyPlan) -> tuple[str, ...]:
    """Name the axes that set a size or a token budget; the variants of all others are compared on its rungs.

    An axis that the study's `baseline` names is one of those, whatever it sets.
    """
    compared = plan.study.baseline or {}
    return tuple(axis.name for axis in plan.axes if axis.paths & SIZES and axis.name not in compared)
