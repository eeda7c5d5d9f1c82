"""From a study to its matrix, in stages.

Every combination of levels goes through them until it is a variant or is dropped, with the reason:
expand -> exclude -> attach parent -> fold -> pair with baseline -> match -> set rate -> seed.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from gatelab.ablations.errors import Problem
from gatelab.ablations.exclusion import Rule, exclusion_rules
from gatelab.ablations.identity import canonical_json, canonical_variant
from gatelab.ablations.learning_rates import RateRule, with_rate
from gatelab.ablations.limits import check_combinations
from gatelab.ablations.matching import match_model
from gatelab.ablations.matrix import Dropped, Matrix, Stage, Variant
from gatelab.ablations.notes import notes
from gatelab.ablations.paths import get_path, set_path
from gatelab.ablations.study import Axis, Level, StudyPlan
from gatelab.ablations.trials import trials_of
from gatelab.ablations.warm_start import incompatibilities
from gatelab.ablations.wording import reasons
from gatelab.errors import Unavailable
from gatelab.training.config import UNREADABLE_TOKENIZER, DataConfig, TrialConfig

Levels = tuple[Level, ...]
"""A level of each axis, in their order."""

Identify = Callable[[DataConfig], str]
"""Names the tokens that a data configuration yields."""

Optimum = Callable[[StudyPlan, Variant], float | Unavailable]
"""The learning rate that a search found for a variant of a study, or why there is none."""

_From = TypeVar("_From")
_To = TypeVar("_To")


@dataclass(frozen=True)
class Combination:
    """One level of each axis, and the configuration that they make, or why they make none."""

    levels: Levels
    label: str
    config: TrialConfig | Unavailable


@dataclass(frozen=True)
class Candidate:
    """A combination that can be trained."""

    levels: Levels
    label: str
    config: TrialConfig
    parent: Variant | None
    """The variant of the parent study whose trials it continues."""


Groups = Mapping[str, tuple[Candidate, ...]]
"""Label of a variant -> the equal combinations that it stands for."""


def not_searched(plan: StudyPlan, variant: Variant) -> Unavailable:
    """Know no search: an `Optimum`."""
    file = f" {plan.source.name}" if plan.source.name.endswith((".yaml", ".yml")) else ""
    return Unavailable(
        f"it has not been searched for: gatelab lr-tolerance{file}, with this command's --name, --set, …"
    )


def build_matrix(plan: StudyPlan, identify: Identify, optimum: Optimum = not_searched) -> Matrix:
    """Plan all trials of a study.

    Args:
        plan: the study.
        identify: names the tokens that a data configuration yields; it is asked once for each.
        optimum: knows what searches of learning rates found.

    Raises StudyError if nothing is left to run, the baseline is not there, the budget is exceeded, a learning rate is
    to be that of a search which has found none, or a model is not that of the trials that it continues.
    """
    check_combinations(plan)
    identify = functools.cache(identify)  # it reads all data
    parent = None if plan.parent is None else build_matrix(plan.parent, identify, optimum)
    combinations = tuple(expand(plan))
    rules = exclusion_rules(plan)
    included = _through(functools.partial(exclude, plan, rules), combinations)
    candidates, dropped = _split(_through(functools.partial(attach_parent, parent), included))
    if not candidates:
        raise plan.error(_nothing_left(plan, dropped))
    groups = fold(plan, candidates, identify)
    variants = [_variant(plan, label, members, identify) for label, members in groups.items()]
    if parent is not None:
        variants = inherit_widths(plan, parent, variants, groups, identify)
    paired = {variant.label: variant for variant in pair_with_baseline(plan, variants, groups)}
    matched = _through(functools.partial(match, plan, paired), paired.values())
    rated, lost = _split(_through(functools.partial(set_rate, plan, optimum), matched))
    if unsearched := [entry for entry in lost if entry.stage is Stage.RATE]:
        raise plan.error(*_no_optimum(plan, unsearched))
    matrix = Matrix(
        plan=plan,
        variants=tuple(rated),
        trials=tuple(trials_of(plan, rated, parent)),
        combinations=len(combinations),
        folded={label: tuple(each.label for each in members) for label, members in groups.items() if len(members) > 1},
        dropped=(*dropped, *lost),
        variant_of={_labels(each.levels): variant.label for variant in rated for each in groups[variant.label]},
        parent=parent,
    )
    return replace(matrix, notes=tuple(notes(matrix)))


def _through(stage: Callable[[_From], _To | Dropped], entries: Iterable[_From | Dropped]) -> Iterator[_To | Dropped]:
    """Take entries through a stage; what an earlier one has dropped passes by."""
    for entry in entries:
        yield entry if isinstance(entry, Dropped) else stage(entry)


def _split(entries: Iterable[_To | Dropped]) -> tuple[list[_To], list[Dropped]]:
    every = list(entries)
    dropped = [entry for entry in every if isinstance(entry, Dropped)]
    return [entry for entry in every if not isinstance(entry, Dropped)], dropped


def expand(plan: StudyPlan) -> Iterator[Combination]:
    """Yield the product of the axes."""
    for levels in itertools.product(*(axis.levels for axis in plan.axes)):
        yield Combination(levels, _label(plan, levels), configure(plan, levels))


def configure(plan: StudyPlan, levels: Levels) -> TrialConfig | Unavailable:
    """Set the values of levels in a study's base; unavailable where they do not go together.

    Raises StudyError if the file of a tokenizer cannot be read.
    """
    tree: dict[str, Any] = plan.base
    for level in levels:
        for path, value in level.values.items():
            tree = set_path(tree, path, value)
    try:
        return TrialConfig.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] == UNREADABLE_TOKENIZER:
                problem = plan.problem("data.tokenizer", detail["msg"], detail["input"])
                raise plan.error(problem) from error
        return Unavailable(reasons(error))


def exclude(plan: StudyPlan, rules: Collection[Rule], entry: Combination) -> Combination | Dropped:
    """Drop a combination that meets a rule of the study."""
    for rule in rules:
        if rule.excludes(plan.axes, entry.levels, entry.config):
            return Dropped(entry.label, Stage.EXCLUDE, rule.text)
    return entry


def attach_parent(parent: Matrix | None, entry: Combination) -> Candidate | Dropped:
    """Find what a combination continues; drop it where that is not there, or where it is impossible itself."""
    if isinstance(entry.config, Unavailable):
        return Dropped(entry.label, Stage.CONFIGURE, entry.config.reason)
    if parent is None:
        return Candidate(entry.levels, entry.label, entry.config, None)
    levels = entry.levels[: len(parent.plan.axes)]  # those of the parent's axes come first
    label = parent.variant_of.get(_labels(levels))
    if label is not None:
        return Candidate(entry.levels, entry.label, entry.config, parent.variant(label))
    reason = {each.label: f" ({each.reason})" for each in parent.dropped}.get(_label(parent.plan, levels), "")
    missing = f"{parent.plan.study.name} has no such trial to continue{reason}"
    return Dropped(entry.label, Stage.PARENT, missing)


def fold(plan: StudyPlan, candidates: Iterable[Candidate], identify: Identify) -> Groups:
    """Group candidates that would train the same; label each group by the levels on which its members agree."""
    equal: dict[str, list[Candidate]] = {}
    for entry in candidates:
        canonical = canonical_variant(entry.config, identify(entry.config.data))
        key = canonical_json({**canonical, "parent": entry.parent.label if entry.parent else None})
        equal.setdefault(key, []).append(entry)
    groups: dict[str, tuple[Candidate, ...]] = {}
    for members in equal.values():
        label = plan.label(_common_levels(plan.axes, members))
        groups[members[0].label if label in groups else label] = tuple(members)
    return groups


def _variant(plan: StudyPlan, label: str, members: tuple[Candidate, ...], identify: Identify) -> Variant:
    config, parent = members[0].config, members[0].parent
    return Variant(
        label=label,
        levels=_common_levels(plan.axes, members),
        config=config,
        data_id=identify(config.data),
        parent=parent.label if parent else None,
    )


def inherit_widths(
    plan: StudyPlan, parent: Matrix, variants: Iterable[Variant], groups: Groups, identify: Identify
) -> list[Variant]:
    """Give variants the widths to which their parents were matched.

    Raises StudyError if they differ in what must stay.
    """
    problems: dict[str, Problem] = {}  # by path
    sized = []
    for variant in variants:
        first, config = groups[variant.label][0], variant.config
        # Compared as the studies write them: the width that a match chose is neither's to say.
        before = configure(parent.plan, first.levels[: len(parent.plan.axes)])
        assert isinstance(before, TrialConfig) and first.parent is not None
        for path, message in incompatibilities(config, before, identify):
            problems.setdefault(path, plan.problem(path, message, get_path(config, path)))
        sized.append(_with_width(variant, first.parent.config.model.ffn_size))
    if problems:
        raise plan.error(*problems.values())
    return sized


def _with_width(variant: Variant, ffn_size: int) -> Variant:
    model = variant.config.model.model_copy(update={"ffn_size": ffn_size})
    return replace(variant, config=variant.config.model_copy(update={"model": model}))


def pair_with_baseline(plan: StudyPlan, variants: Collection[Variant], groups: Groups) -> Iterator[Variant]:
    """Name the baseline of each variant that has one: the same levels, but for those that the baseline names.

    Raises StudyError where none has one.
    """
    variant_of = {_labels(each.levels): label for label, members in groups.items() for each in members}
    wanted = plan.baseline

    def baseline(label: str) -> str | None:
        for each in groups[label]:
            levels = tuple(
                wanted.get(axis.name, level.label) for axis, level in zip(plan.axes, each.levels, strict=True)
            )
            if levels in variant_of:
                return variant_of[levels]
        return None

    found = [replace(variant, baseline=baseline(variant.label)) for variant in variants]
    if all(variant.baseline is None for variant in found):
        described = ", ".join(f"{name}={label}" for name, label in wanted.items())
        raise plan.error(Problem("baseline", f"{described} is not in the matrix: it is excluded or impossible"))
    yield from found


def match(plan: StudyPlan, paired: Mapping[str, Variant], variant: Variant) -> Variant | Dropped:
    """Give a variant the size of its baseline where the study asks for it, and count what it adds to it."""
    if variant.baseline is None:
        return variant
    baseline = paired[variant.baseline]
    if plan.study.match != "none" and plan.parent is None:
        length = variant.config.training.sequence_length
        model = match_model(variant.config.model, baseline.config.model, plan.study.match, length)
        if isinstance(model, Unavailable):
            return Dropped(variant.label, Stage.MATCH, model.reason)
        variant = _with_width(variant, model.ffn_size)
    return replace(variant, added_parameters=variant.parameters - baseline.parameters)


def set_rate(plan: StudyPlan, optimum: Optimum, variant: Variant) -> Variant | Dropped:
    """Give a variant its learning rate: the given one, that of a rule, or the optimum of a search."""
    rule = plan.study.learning_rate
    if rule == "given":
        return variant
    rate = rule.rate(variant.config) if isinstance(rule, RateRule) else optimum(plan, variant)
    if isinstance(rate, Unavailable):
        return Dropped(variant.label, Stage.RATE, rate.reason)
    return replace(variant, config=with_rate(variant.config, rate))


def _no_optimum(plan: StudyPlan, unsearched: Iterable[Dropped]) -> Iterator[Problem]:
    variants: dict[str, list[str]] = {}  # by reason
    for entry in unsearched:
        variants.setdefault(entry.reason, []).append(entry.label)
    rule = plan.study.learning_rate
    for reason, labels in variants.items():
        message = f"no {'optimum' if rule == 'search' else 'learning rate'} for {'; '.join(labels)}: {reason}"
        yield plan.source.problem(("learning_rate",), message, str(rule))


def _nothing_left(plan: StudyPlan, dropped: Collection[Dropped]) -> Problem:
    """Say why no combination of a study can be run: each reason once, with the first combination that it is of."""
    excluded = sum(entry.stage is Stage.EXCLUDE for entry in dropped)
    reasons = [f"{excluded} combinations excluded"] if excluded else []
    impossible: dict[str, list[str]] = {}
    for entry in dropped:
        if entry.stage is not Stage.EXCLUDE:
            impossible.setdefault(entry.reason, []).append(entry.label)
    for reason, labels in list(impossible.items())[:3]:
        more = f" and {len(labels) - 1} more are" if len(labels) > 1 else " is"
        reasons.append(f"{labels[0]}{more} impossible: {reason}")
    at = "exclude" if excluded == len(dropped) else "axes" if plan.axes else "base"
    return plan.source.problem((at,), f"nothing is left to run ({'; '.join(reasons)})")


def _labels(levels: Levels) -> tuple[str, ...]:
    return tuple(level.label for level in levels)


def _label(plan: StudyPlan, levels: Levels) -> str:
    return plan.label({axis.name: level.label for axis, level in zip(plan.axes, levels, strict=True)})


def _common_levels(axes: Collection[Axis], members: Collection[Candidate]) -> dict[str, str]:
    """Return the levels on which equal combinations agree: the axes that mean something to them."""
    every = zip(axes, zip(*(each.levels for each in members), strict=True), strict=True)
    return {axis.name: levels[0].label for axis, levels in every if len({level.label for level in levels}) == 1}
