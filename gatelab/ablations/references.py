"""Names in a study that lead nowhere, and settings that contradict its axes."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from gatelab.ablations.errors import Problem, nearest
from gatelab.ablations.learning_rates import LEARNING_RATE
from gatelab.ablations.paths import check_value, leaf_paths, level_label, nearest_path
from gatelab.ablations.source import KeyPath
from gatelab.ablations.study import Axis, StudyPlan
from gatelab.errors import Unavailable


@dataclass(frozen=True)
class _Names:
    """What the names in a study may refer to."""

    plan: StudyPlan
    axes: dict[str, Axis]
    paths: frozenset[str]

    def no_such_axis(self, place: KeyPath, name: str, *value: str) -> Iterator[Problem]:
        """Find that an axis is not there; `value` is its name where the key does not end in it."""
        if name not in self.axes:
            yield self.plan.source.problem(place, f"no such axis; {nearest(name, self.axes)}", *value)

    def accepted(self, name: str, value: Any) -> Any | Unavailable:
        """Return the level of an axis, or the value of a field, that a value stands for; or what was expected."""
        axis = self.axes.get(name)
        if axis is not None and (label := axis.label(value)) is not None:
            return label
        return check_value(name, value) if name in self.paths else Unavailable(self._lacks(name))

    def _lacks(self, name: str) -> str:
        return f"not a level of this axis (it has {', '.join(level.label for level in self.axes[name].levels)})"

    def no_such_level(self, place: KeyPath, name: str, values: Iterable[Any]) -> Iterator[Problem]:
        """Find that an axis, or one of its levels, is not there."""
        if name not in self.axes:
            yield from self.no_such_axis(place, name)
            return
        for value in values:
            if self.axes[name].label(value) is None:
                yield self.plan.source.problem(place, self._lacks(name), level_label(value))


def reference_problems(plan: StudyPlan) -> Iterator[Problem]:
    """Find names in `baseline`, `exclude`, `nuisance`, `fixed` and `claims` that lead nowhere, and contradictions."""
    names = _Names(plan, {axis.name: axis for axis in plan.axes}, frozenset(leaf_paths()))
    for check in (_baseline, _exclude, _nuisance, _fixed, _claims, _learning_rate, _match):
        yield from check(names)


def _baseline(names: _Names) -> Iterator[Problem]:
    for name, value in (names.plan.study.baseline or {}).items():
        yield from names.no_such_level(("baseline", name), name, [value])


def _exclude(names: _Names) -> Iterator[Problem]:
    plan = names.plan
    inherited = plan.parent.study.exclude if plan.parent else []  # may be about levels that are left out here
    for index, rule in enumerate(plan.study.exclude):
        for name, wanted in rule.items():
            problem = partial(plan.source.problem, ("exclude", index, name), key=f"exclude[{index}].{name}")
            if name not in names.axes and name not in names.paths:
                near = difflib.get_close_matches(name, names.axes, n=1)
                hint = f"did you mean {near[0]}?" if near else nearest_path(name)
                yield problem(f"neither an axis nor a configuration field; {hint}")
            elif rule not in inherited:
                for value in wanted if isinstance(wanted, list) else [wanted]:
                    if isinstance(found := names.accepted(name, value), Unavailable):
                        yield problem(found.reason, value)


def _nuisance(names: _Names) -> Iterator[Problem]:
    for name in names.plan.study.nuisance:
        yield from names.no_such_axis(("nuisance",), name, name)


def _fixed(names: _Names) -> Iterator[Problem]:
    for path in names.plan.study.fixed:
        if path not in names.paths:
            message = f"no such configuration field; {nearest_path(path)}"
            yield names.plan.source.problem(("fixed",), message, path)
        elif names.plan.varies(path):
            yield names.plan.source.problem(("fixed",), "an axis varies it", path)


def _claims(names: _Names) -> Iterator[Problem]:
    for name, claim in names.plan.study.claims.items():
        for axis in claim.variant:
            yield from names.no_such_level(("claims", name, "variant", axis), axis, claim.levels(axis))


def _learning_rate(names: _Names) -> Iterator[Problem]:
    given = names.plan.study.learning_rate
    varied = [axis.name for axis in names.plan.axes if LEARNING_RATE in axis.paths]
    if given != "given" and varied:
        yield names.plan.source.problem(("learning_rate",), f"axis {varied[0]} varies the learning rate", str(given))


def _match(names: _Names) -> Iterator[Problem]:
    plan = names.plan
    # Along an axis that the baseline does not name, variant and baseline have the same width to begin with.
    compared = [axis for axis in plan.axes if axis.name in plan.baseline]
    if plan.study.match != "none" and any("model.ffn_size" in axis.paths for axis in compared):
        yield plan.source.problem(("match",), "sets model.ffn_size, which an axis varies", plan.study.match)
