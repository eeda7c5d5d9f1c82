"""Names in a study that lead nowhere, and settings that contradict its axes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gatelab.ablations.errors import Problem, nearest
from gatelab.ablations.learning_rates import LEARNING_RATE
from gatelab.ablations.paths import leaf_paths, level_label
from gatelab.ablations.source import KeyPath
from gatelab.ablations.study import Axis, StudyPlan


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

    def no_such_level(self, place: KeyPath, name: str, labels: Iterable[str]) -> Iterator[Problem]:
        """Find that an axis, or one of its levels, is not there."""
        if name not in self.axes:
            yield from self.no_such_axis(place, name)
            return
        known = [level.label for level in self.axes[name].levels]
        for label in labels:
            if label not in known:
                yield self.plan.source.problem(place, f"not a level of this axis (it has {', '.join(known)})", label)


def reference_problems(plan: StudyPlan) -> Iterator[Problem]:
    """Find names in `baseline`, `exclude`, `nuisance`, `fixed` and `claims` that lead nowhere, and contradictions."""
    names = _Names(plan, {axis.name: axis for axis in plan.axes}, frozenset(leaf_paths()))
    for check in (_baseline, _exclude, _nuisance, _fixed, _claims, _learning_rate, _match):
        yield from check(names)


def _baseline(names: _Names) -> Iterator[Problem]:
    for name, value in (names.plan.study.baseline or {}).items():
        yield from names.no_such_level(("baseline", name), name, [level_label(value)])


def _exclude(names: _Names) -> Iterator[Problem]:
    known = names.paths | set(names.axes)
    for index, rule in enumerate(names.plan.study.exclude):
        for name in rule:
            if name not in known:
                message = f"neither an axis nor a configuration field; {nearest(name, known)}"
                yield names.plan.source.problem(("exclude", index, name), message, key=f"exclude[{index}].{name}")


def _nuisance(names: _Names) -> Iterator[Problem]:
    for name in names.plan.study.nuisance:
        yield from names.no_such_axis(("nuisance",), name, name)


def _fixed(names: _Names) -> Iterator[Problem]:
    for path in names.plan.study.fixed:
        if path not in names.paths:
            message = f"no such configuration field; {nearest(path, names.paths)}"
            yield names.plan.source.problem(("fixed",), message, path)
        elif names.plan.varies(path):
            yield names.plan.source.problem(("fixed",), "an axis varies it", path)


def _claims(names: _Names) -> Iterator[Problem]:
    for name, claim in names.plan.study.claims.items():
        for axis, levels in claim.variant.items():
            yield from names.no_such_level(("claims", name, "variant", axis), axis, claim.labels(levels))


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
