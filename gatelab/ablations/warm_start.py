"""Training that goes on from trained weights: what a study takes from the one that it continues, its parent, and what
the two must have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatelab.ablations.errors import Problem, nearest
from gatelab.ablations.paths import flatten
from gatelab.ablations.presets import study_files
from gatelab.ablations.source import Source
from gatelab.ablations.study import Axis, Level, StudyPlan
from gatelab.errors import Unavailable
from gatelab.training.config import DataConfig, TrialConfig

INHERITED = ("axes", "exclude", "baseline", "match", "seeds", "nuisance", "fixed")
"""Fields that a study takes from its parent where it does not set them, beside the base."""

FREE = ("rope_base", "yarn_factor", "yarn_length", "norm_eps")
"""Fields of a model that none of its parameters depends on: training may go on with others."""

MOST_SEEDS_SAID = 20


def find_study(given: str, folder: Path) -> Path | Unavailable:
    """Find the file of a study that another continues.

    `given` is a path from the folder of the other or from the current folder, or the name of a study that comes with
    gatelab.
    """
    for path in (folder / given, Path(given)):
        with suppress(OSError):  # a name that is too long for one of a file
            if path.is_file():
                return path
    names = study_files()
    hint = f"no such file, and no study that comes with gatelab; {nearest(given.removesuffix('.yaml'), names)}"
    return names.get(given) or Unavailable(hint)


def inherit(raw: Mapping[str, Any], parent: StudyPlan) -> dict[str, Any]:
    """Complete a study's fields by those of its parent."""
    taken = {name: getattr(parent.study, name) for name in INHERITED}
    whole = {"base": {}, **taken, **raw}
    # What is not of the right kind stays, for the check of the study to refuse.
    if isinstance(axes := raw.get("axes"), Mapping):
        own = {name: _by_name(levels, taken["axes"].get(name)) for name, levels in axes.items()}
        whole["axes"] = {**taken["axes"], **own}
    if isinstance(rules := raw.get("exclude"), list):
        whole["exclude"] = [*rules, *taken["exclude"]]  # its own first: an error names one by its place in the file
    return whole


def _by_name(levels: Any, known: Any) -> Any:
    """Spell out levels that have names, where they are listed by these."""
    if isinstance(levels, list) and isinstance(known, Mapping):
        return {str(name): known.get(str(name), {}) for name in levels}
    return levels


def inherited_lines(raw: Mapping[str, Any], source: Source) -> Source:
    """Place what is inherited at the line that says from where."""
    place = source.lines.get(("continues",))
    if place is None:
        return source
    return replace(source, lines={**{(name,): place for name in INHERITED if name not in raw}, **source.lines})


def restrict_levels(axes: Sequence[Axis], parent: StudyPlan) -> tuple[Axis, ...]:
    """Give axes the parent's own levels where it has the axis, too: a variant is found again by these."""
    known = {axis.name: axis.levels for axis in parent.axes}
    found = ((axis, (_same(level, known.get(axis.name, ())) for level in axis.levels)) for axis in axes)
    return tuple(replace(axis, levels=tuple(filter(None, levels)) or axis.levels) for axis, levels in found)


def level_problems(axes: Sequence[Axis], parent: StudyPlan, source: Source) -> Iterator[Problem]:
    """Find levels of the parent's axes that the parent does not have."""
    known = {axis.name: axis.levels for axis in parent.axes}
    for axis in axes:
        for level in axis.levels if axis.name in known else ():
            if _same(level, known[axis.name]) is None:
                labels = ", ".join(candidate.label for candidate in known[axis.name])
                message = f"not a level of this axis in {parent.study.name}, which this study continues ({labels})"
                yield source.problem(("axes", axis.name), message, level.label)


def _same(level: Level, known: Sequence[Level]) -> Level | None:
    return next((candidate for candidate in known if candidate.values == level.values), None)


def warm_start_problems(plan: StudyPlan, parent: StudyPlan, overrides: Mapping[str, Any]) -> Iterator[Problem]:
    """Find what a study says that cannot be so in one that continues another."""
    study, source, name = plan.study, plan.source, parent.study.name
    if study.name in parent.names:
        yield source.problem(("name",), "a study that it continues has this name", study.name)
    known = dict.fromkeys(parent.study.common_seeds)
    seeds = ", ".join(map(str, list(known)[:MOST_SEEDS_SAID])) + (", …" if len(known) > MOST_SEEDS_SAID else "")
    for seed in [seed for seed in study.common_seeds if seed not in known][:MOST_SEEDS_SAID]:
        message = f"{name}, which this study continues, has not this one (it has {seeds})"
        yield source.problem(("seeds",), message, seed)
    if study.match != parent.study.match:
        message = f"models stay as they were matched in {name}, which this study continues ({parent.study.match})"
        yield source.problem(("match",), message, study.match)
    own = dict(flatten(study.base)) if isinstance(study.base, dict) else {}
    for axis in parent.axes:
        for path in sorted(axis.paths):
            # A base that sets it would be passed over without a word.
            if all(path in level.values for level in axis.levels):
                message = f"axis {axis.name} of {name} sets it, which this study continues"
                if path in own:
                    yield source.problem(("base", path), message, own[path])
                if path in overrides:
                    yield Problem(f"--set {path}", message, overrides[path])


def incompatibilities(
    config: TrialConfig, before: TrialConfig, identify: Callable[[DataConfig], str]
) -> Iterator[tuple[str, str]]:
    """Yield (path, why) of all that keeps a trial from starting with weights that were trained as `before`.

    `identify` names the tokens of data. A tokenizer's file may lie elsewhere: what it holds must be the same.
    """
    tokenizer = before.data.tokenizer
    retokenized = before.data.model_copy(update={"tokenizer": config.data.tokenizer})
    same_tokenizer = config.data.tokenizer == tokenizer or identify(retokenized) == identify(before.data)
    if not same_tokenizer:
        yield "data.tokenizer", f"must stay {tokenizer}, as in the trials that it continues: tokens have their meanings"
    elif tokenizer.startswith("bpe:") and identify(config.data) != identify(before.data):
        hint = "in both studies, name a tokenizer.json"
        yield "data.source", f"other data, on which {tokenizer} would become another tokenizer: {hint}"
    own, kept = (dict(flatten(each.model.model_dump())) for each in (config, before))
    if not same_tokenizer:
        own["vocab_size"] = kept["vocab_size"]  # follows from the tokenizer
    for path, value in kept.items():
        if own[path] != value and path not in FREE:
            message = (
                f"must stay {value}, as in the trials that it continues: of a model only {', '.join(FREE)} may change"
            )
            yield f"model.{path}", message
