"""Rules that leave combinations of levels out of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gatelab.ablations.paths import UnknownPath, check_value, get_path, level_label
from gatelab.ablations.study import Axis, Level, StudyPlan
from gatelab.errors import Unavailable
from gatelab.training.config import TrialConfig


@dataclass(frozen=True)
class Rule:
    """What a combination must have in common with a rule to be excluded by it."""

    text: str
    """The rule as the study writes it."""
    accepted: dict[str, set[str]]
    """Axis or configuration path -> labels of the values that it names."""

    def excludes(self, axes: Sequence[Axis], levels: Sequence[Level], config: TrialConfig | Unavailable) -> bool:
        """Return whether a combination meets all of the rule; a path that no axis sets is that of its configuration."""
        values = {path: level_label(value) for level in levels for path, value in level.values.items()}
        labels = {axis.name: level.label for axis, level in zip(axes, levels, strict=True)}

        def meets(name: str, accepted: set[str]) -> bool:
            if name in labels or name in values:
                return labels.get(name) in accepted or values.get(name) in accepted
            return isinstance(config, TrialConfig) and level_label(get_path(config, name)) in accepted

        return all(meets(name, accepted) for name, accepted in self.accepted.items())


def exclusion_rules(plan: StudyPlan) -> list[Rule]:
    """Read a study's rules."""
    return [
        Rule(
            ", ".join(f"{name}: {value}" for name, value in rule.items()),
            {name: _accepted(name, wanted) for name, wanted in rule.items()},
        )
        for rule in plan.study.exclude
    ]


def _accepted(name: str, wanted: Any) -> set[str]:
    """Label values as they are written and as their field reads them: 300k is 300000."""
    values = wanted if isinstance(wanted, list) else [wanted]
    labels = {level_label(value) for value in values}
    try:
        read = [check_value(name, value) for value in values]
    except UnknownPath:  # an axis with named levels
        return labels
    return labels | {level_label(value) for value in read if not isinstance(value, Unavailable)}
