"""From a study to its trials: the product of the axes, less what is excluded, impossible or equal."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from gatelab.ablations.claims import Claim
from gatelab.ablations.continuing import clashes
from gatelab.ablations.errors import Problem
from gatelab.ablations.identity import canonical_json, canonical_variant, trial_id
from gatelab.ablations.learning_rates import LEARNING_RATE, RateRule, with_rate
from gatelab.ablations.matching import NotMatchable, match_model
from gatelab.ablations.paths import UnknownPath, check_value, get_path, level_label, readable, set_path
from gatelab.ablations.study import Level, StudyPlan
from gatelab.ablations.yaml_source import line_of
from gatelab.models.accounting import count_parameters, flops_per_token, training_memory
from gatelab.training.config import DataConfig, TrialConfig

Levels = tuple[Level, ...]


@dataclass(frozen=True)
class Variant:
    """One combination of levels, seeds aside, with what it costs."""

    label: str
    levels: dict[str, str]  # axis -> label; an axis that makes no difference here is absent
    config: TrialConfig
    parameters: int
    added_parameters: int | None  # over the baseline; None where there is no baseline
    flops_per_token: int
    memory: int  # bytes, estimated
    baseline: str | None  # label of the variant to compare with
    parent: str | None = None  # label of the variant of the earlier study that it continues


@dataclass(frozen=True)
class Trial:
    """One variant at one seed: the unit of work."""

    id: str
    variant: str
    config: TrialConfig
    parent: str | None = None  # id of the trial of the earlier study whose final weights it starts from

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.seed


@dataclass(frozen=True)
class Matrix:
    """All trials of a study, and what became of the other combinations."""

    plan: StudyPlan
    variants: tuple[Variant, ...]
    trials: tuple[Trial, ...]
    combinations: int
    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)  # variant -> labels of equal combinations
    excluded: dict[str, str] = field(default_factory=dict)  # combination -> rule
    impossible: dict[str, str] = field(default_factory=dict)  # combination -> reason
    notes: tuple[str, ...] = ()
    variant_of: dict[tuple[str, ...], str] = field(default_factory=dict)  # labels of a combination's levels -> variant
    earlier: "Matrix | None" = None  # of the study that this one continues

    @property
    def chain(self) -> "tuple[Matrix, ...]":
        """This matrix after those that it continues: the order in which they are run."""
        return (*(self.earlier.chain if self.earlier else ()), self)

    def variant(self, label: str) -> Variant:
        """The variant of a label."""
        return next(variant for variant in self.variants if variant.label == label)


Optimum = Callable[[StudyPlan, dict[str, Any], TrialConfig], float | str]
"""The learning rate that a search found for a canonical variant of a study and its configuration, or why there is
none."""


def not_searched(plan: StudyPlan, variant: dict[str, Any], config: TrialConfig) -> float | str:
    """An `Optimum` that knows no search."""
    return f"it has not been searched for: gatelab lr-tolerance {plan.source}"


def build_matrix(
    plan: StudyPlan,
    data_identity: Callable[[DataConfig], str],
    optimum: Optimum = not_searched,
) -> Matrix:
    """All trials of a study. `data_identity` names the tokens that a data configuration yields.

    Raises StudyError if nothing is left to run, the baseline is not there, the budget is exceeded, a learning rate is
    to be that of a search which has found none, or a model is not that of the trials that it continues.
    """
    identify = functools.cache(data_identity)
    earlier = None if plan.earlier is None else build_matrix(plan.earlier, identify, optimum)
    excluded: dict[str, str] = {}
    impossible: dict[str, str] = {}
    groups: dict[str, list[Levels]] = {}  # equal configurations
    configs: dict[str, TrialConfig] = {}
    parents: dict[str, Variant] = {}
    used_rules: set[int] = set()
    names, rules = _short_names(plan), _exclusion_rules(plan)
    combinations = 0
    for combination in itertools.product(*(axis.levels for axis in plan.axes)):
        combinations += 1
        config, reason = _configure(plan, combination)
        rule = _exclusion(plan, rules, combination, config)
        if rule is not None:
            used_rules.add(rule)
            excluded[_label(plan, names, combination)] = _describe_rule(plan.study.exclude[rule])
            continue
        parent = None
        if earlier is not None and config is not None:
            parent, reason = _parent(earlier, combination)
        if config is None or (parent is None and earlier is not None):
            impossible[_label(plan, names, combination)] = reason
            continue
        variant = canonical_variant(config, identify(config.data))
        key = canonical_json({**variant, "parent": parent.label if parent else None})
        groups.setdefault(key, []).append(combination)
        configs.setdefault(key, config)
        if parent is not None:
            parents[key] = parent
    if not groups:
        raise plan.error(Problem("axes", _nothing_left(excluded, impossible)))
    if earlier is not None:
        configs = _go_on(plan, earlier, configs, groups, parents, identify)

    labels = _group_labels(plan, names, groups)
    baselines = _baselines(plan, groups)
    variants = {}
    unsearched: dict[str, list[str]] = {}  # why -> variants
    for key, members in groups.items():
        config, base = configs[key], baselines.get(key)
        if base is not None and plan.study.match != "none" and earlier is None:
            try:
                model = match_model(
                    config.model, configs[base].model, plan.study.match, config.training.sequence_length
                )
            except NotMatchable as error:
                impossible[labels[key]] = str(error)
                continue
            config = config.model_copy(update={"model": model})
        levels = _common_levels(plan, members)
        rate = _learning_rate(plan, config, canonical_variant(config, identify(config.data)), optimum)
        if isinstance(rate, str):
            unsearched.setdefault(rate, []).append(labels[key])
            continue
        config = with_rate(config, rate)
        added = None if base is None else _parameters(config) - _parameters(configs[base])
        variants[key] = Variant(
            label=labels[key],
            levels=levels,
            config=config,
            parameters=_parameters(config),
            added_parameters=added,
            flops_per_token=flops_per_token(config.model, config.training.sequence_length),
            memory=training_memory(
                config.model,
                config.training.sequence_length,
                config.training.batch_size // config.training.accumulation,
            ),
            baseline=None if base is None else labels[base],
            parent=parents[key].label if key in parents else None,
        )
    if unsearched:
        line = line_of(plan.lines, ("learning_rate",))
        raise plan.error(
            *(
                Problem("learning_rate", f"no optimum for {'; '.join(variants)}: {reason}", "search", line)
                for reason, variants in unsearched.items()
            )
        )
    folded = {
        labels[key]: tuple(_label(plan, names, member) for member in members)
        for key, members in groups.items()
        if len(members) > 1
    }
    matrix = Matrix(
        plan=plan,
        variants=tuple(variants.values()),
        trials=tuple(trials_of(plan, variants.values(), identify, earlier)),
        combinations=combinations,
        folded=folded,
        excluded=excluded,
        impossible=impossible,
        variant_of={_level_labels(member): variants[key].label for key in variants for member in groups[key]},
        earlier=earlier,
    )
    most = plan.study.budget.trials
    if most is not None and len(matrix.trials) > most:
        raise plan.error(Problem("budget.trials", f"the matrix has {len(matrix.trials)} trials", most))
    return replace(matrix, notes=tuple(_notes(matrix, used_rules)))


def _configure(plan: StudyPlan, combination: Levels) -> tuple[TrialConfig | None, str]:
    """(configuration, '') of a combination, or (None, why it is impossible)."""
    tree: dict[str, Any] = plan.base
    for level in combination:
        for path, value in level.values.items():
            tree = set_path(tree, path, value)
    try:
        return TrialConfig.model_validate(tree), ""
    except ValidationError as error:
        return None, "; ".join(readable(detail["msg"]) for detail in error.errors())


def _parent(earlier: Matrix, combination: Levels) -> tuple[Variant | None, str]:
    """(the variant of the earlier study that a combination continues, '') or (None, why there is none)."""
    levels = combination[: len(earlier.plan.axes)]  # its axes come first
    label = earlier.variant_of.get(_level_labels(levels))
    if label is not None:
        return earlier.variant(label), ""
    name = _label(earlier.plan, _short_names(earlier.plan), levels)
    reason = earlier.impossible.get(name) or earlier.excluded.get(name)
    return None, f"{earlier.plan.study.name} has no such trial to continue" + (f" ({reason})" if reason else "")


def _go_on(
    plan: StudyPlan,
    earlier: Matrix,
    configs: dict[str, TrialConfig],
    groups: dict[str, list[Levels]],
    parents: dict[str, Variant],
    identify: Callable[[DataConfig], str],
) -> dict[str, TrialConfig]:
    """The configurations with the widths to which their parents were matched. Raises StudyError if they differ in
    what must stay."""
    problems: dict[str, Problem] = {}  # by path
    sized = {}
    for key, config in configs.items():
        # Compared as the studies write them: the width that a match chose is neither's to say.
        before, _ = _configure(earlier.plan, groups[key][0][: len(earlier.plan.axes)])
        assert before is not None
        for path, message in clashes(config, before, identify(config.data) == identify(before.data)):
            place, line = plan.place(path)
            problems.setdefault(path, Problem(place, message, get_path(config, path), line))
        model = config.model.model_copy(update={"ffn_size": parents[key].config.model.ffn_size})
        sized[key] = config.model_copy(update={"model": model})
    if problems:
        raise plan.error(*problems.values())
    return sized


Rule = dict[str, set[str]]  # axis or path -> labels that match


def _exclusion_rules(plan: StudyPlan) -> list[Rule]:
    """The rules with their values as they are written and as their fields read them: 300k is 300000."""
    return [{name: _accepted(name, wanted) for name, wanted in rule.items()} for rule in plan.study.exclude]


def _accepted(name: str, wanted: Any) -> set[str]:
    values = wanted if isinstance(wanted, list) else [wanted]
    labels = {level_label(value) for value in values}
    try:
        return labels | {level_label(check_value(name, value)[0]) for value in values}
    except UnknownPath:  # an axis with named levels
        return labels


def _exclusion(plan: StudyPlan, rules: list[Rule], combination: Levels, config: TrialConfig | None) -> int | None:
    """Index of the first rule that excludes a combination."""
    if not rules:
        return None
    labels = {path: level_label(value) for level in combination for path, value in level.values.items()}
    names = {axis.name: level.label for axis, level in zip(plan.axes, combination, strict=True)}

    def matches(name: str, accepted: set[str]) -> bool:
        if name in names or name in labels:
            return names.get(name) in accepted or labels.get(name) in accepted
        return config is not None and level_label(get_path(config, name)) in accepted

    for index, rule in enumerate(rules):
        if all(matches(name, accepted) for name, accepted in rule.items()):
            return index
    return None


def _baselines(plan: StudyPlan, groups: dict[str, list[Levels]]) -> dict[str, str]:
    """Key of the baseline for each group that has one: the same levels, but for those that the baseline names."""
    key_of = {_level_labels(member): key for key, members in groups.items() for member in members}
    wanted = plan.baseline
    found = {}
    for key, members in groups.items():
        for member in members:
            levels = tuple(wanted.get(axis.name, level.label) for axis, level in zip(plan.axes, member, strict=True))
            if levels in key_of:
                found[key] = key_of[levels]
                break
    if not found:
        described = ", ".join(f"{name}={label}" for name, label in wanted.items())
        raise plan.error(Problem("baseline", f"{described} is not in the matrix: it is excluded or impossible"))
    return found


def _learning_rate(plan: StudyPlan, config: TrialConfig, variant: dict[str, Any], optimum: Optimum) -> float | str:
    """The learning rate of a variant, or why there is none."""
    rule = plan.study.learning_rate
    if isinstance(rule, RateRule):
        return rule.rate(config)
    return optimum(plan, variant, config) if rule == "search" else config.training.optimizer.learning_rate


def trials_of(
    plan: StudyPlan, variants: Collection[Variant], identify: Callable[[DataConfig], str], earlier: Matrix | None
) -> Iterator[Trial]:
    """The trials of variants: seed by seed, so that a study that is cut short has complete blocks."""
    seeds = _seeds(plan, variants)
    canonical = {
        variant.label: canonical_variant(variant.config, identify(variant.config.data)) for variant in variants
    }
    parents = {(trial.variant, trial.seed): trial.id for trial in earlier.trials} if earlier else {}
    for seed in dict.fromkeys(seed for own in seeds.values() for seed in own):
        for variant in variants:
            # A variant that continues another's weights has the seeds that there are of those.
            if seed not in seeds[variant.label] or (variant.parent and (variant.parent, seed) not in parents):
                continue
            config = variant.config.model_copy(update={"seed": seed})
            parent = None if variant.parent is None else parents[variant.parent, seed]
            yield Trial(trial_id(canonical[variant.label], seed, parent), variant.label, config, parent)


def _seeds(plan: StudyPlan, variants: Collection[Variant]) -> dict[str, list[int]]:
    """The seeds of each variant. Where they are automatic a baseline has sqrt(k) times as many as the k variants that
    are compared with it: of all ways to share out as many trials the one with the least variance of a difference, if
    seeds have nothing in common; with a correlation r it would be sqrt(k (1 - r) / (1 + r)), which no one knows before.
    """
    common = plan.study.common_seeds
    compared = Counter(variant.baseline for variant in variants if variant.baseline != variant.label)

    def own(variant: Variant) -> list[int]:
        shared = compared[variant.label] if plan.study.seeds == "auto" else 0
        return list(range(round(len(common) * math.sqrt(shared)))) if shared > 1 else common

    return {variant.label: own(variant) for variant in variants}


def claimed_of(matrix: Matrix, claim: Claim) -> list[str]:
    """The variants that a claim is about: those that it names and that are compared with another."""
    compared = (variant for variant in matrix.variants if variant.baseline not in (None, variant.label))
    return [variant.label for variant in compared if claim.is_about(variant.levels)]


def _level_labels(combination: Levels) -> tuple[str, ...]:
    return tuple(level.label for level in combination)


def _short_names(plan: StudyPlan) -> dict[str, str]:
    """The shortest ends of the axes' paths that tell them apart."""
    names = [axis.name for axis in plan.axes]
    short = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        alone = (end for end in ends if sum(other == end or other.endswith(f".{end}") for other in names) == 1)
        short[name] = next(alone, name)
    return short


def _label(plan: StudyPlan, names: dict[str, str], combination: Levels) -> str:
    parts = (f"{names[axis.name]}={level.label}" for axis, level in zip(plan.axes, combination, strict=True))
    return ", ".join(parts) or "base"


def _common_levels(plan: StudyPlan, members: list[Levels]) -> dict[str, str]:
    """The levels on which equal combinations agree: the axes that mean something to them."""
    return {
        axis.name: members[0][index].label
        for index, axis in enumerate(plan.axes)
        if len({member[index].label for member in members}) == 1
    }


def _group_labels(plan: StudyPlan, names: dict[str, str], groups: dict[str, list[Levels]]) -> dict[str, str]:
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for key, members in groups.items():
        common = _common_levels(plan, members)
        label = ", ".join(f"{names[name]}={level}" for name, level in common.items()) or "base"
        if label in taken:
            label = _label(plan, names, members[0])
        labels[key] = label
        taken.add(label)
    return labels


def _parameters(config: TrialConfig) -> int:
    return count_parameters(config.model).total


def _describe_rule(rule: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in rule.items())


def _nothing_left(excluded: dict[str, str], impossible: dict[str, str]) -> str:
    reasons = [f"{len(excluded)} combinations excluded"] if excluded else []
    reasons += [f"{label} is impossible: {reason}" for label, reason in list(impossible.items())[:3]]
    return f"nothing is left to run ({'; '.join(reasons)})"


def _notes(matrix: Matrix, used_rules: set[int]) -> Iterator[str]:
    """What a careful reader of the plan would point out."""
    plan, study = matrix.plan, matrix.plan.study
    inherited = plan.earlier.study.exclude if plan.earlier else []
    for index, rule in enumerate(study.exclude):
        if index not in used_rules and rule not in inherited:  # one that is may be about levels that are left out here
            yield f"exclude[{index}] ({_describe_rule(rule)}) excludes nothing"
    varied = any(LEARNING_RATE in axis.paths for axis in plan.axes) or study.learning_rate != "given"
    if not varied and LEARNING_RATE not in study.fixed:
        rate = matrix.variants[0].config.training.optimizer.learning_rate
        yield (
            f"{LEARNING_RATE} is neither an axis nor declared fixed: the comparison holds at {rate:g} only, "
            "and a variant with another optimum is judged unfairly"
        )
    schedules = [variant.config.training.schedule for variant in matrix.variants]
    budgets = any("training.tokens" in axis.paths for axis in plan.axes)
    if budgets and any(schedule.kind == "wsd" and 0 < schedule.warmup < 1 for schedule in schedules):
        yield (
            "token budgets could share one trunk under wsd if training.schedule.warmup were a number of steps: as a "
            "fraction it is another for each budget"
        )
    if len(study.common_seeds) == 1:
        yield "one seed: differences will have no interval"
    for name, claim in study.claims.items():
        if not claimed_of(matrix, claim):
            yield f"claims.{name}: no variant with a baseline of its own is one that it names"
    alone = [variant.label for variant in matrix.variants if variant.baseline is None]
    if alone:
        yield f"without a baseline to compare with: {'; '.join(alone)}"
