"""Training that goes on: what a study takes from the one that it continues, and what the two must have in common."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatelab.ablations.errors import Problem, nearest
from gatelab.ablations.paths import flatten
from gatelab.ablations.presets import study_files
from gatelab.ablations.yaml_source import KeyPath, line_of
from gatelab.training.config import TrialConfig

if TYPE_CHECKING:
    from gatelab.ablations.study import Axis, StudyPlan

INHERITED = ("axes", "exclude", "baseline", "match", "seeds", "nuisance", "fixed")
"""What a study that does not say it takes from the one that it continues, beside its base."""

FREE = ("rope_base", "yarn_factor", "yarn_length", "norm_eps")
"""Fields of a model that none of its parameters depends on: training may go on with others."""


def find_study(given: str, folder: Path) -> Path | None:
    """The file of a study that another continues: a path from the folder of that one or from the current folder, or
    the name of a study that comes with gatelab."""
    for path in (folder / given, Path(given)):
        if path.is_file():
            return path
    return study_files().get(given)


def no_such_study(given: str, line: int | None) -> Problem:
    """The problem of a study that continues one that is not there."""
    names = study_files()
    hint = f"no such file, and no study that comes with gatelab; {nearest(given.removesuffix('.yaml'), names)}"
    return Problem("continues", hint, given, line)


def inherit(raw: Mapping[str, Any], earlier: "StudyPlan") -> dict[str, Any]:
    """A study's fields, completed by those of the one that it continues."""
    taken = {name: getattr(earlier.study, name) for name in INHERITED}
    whole = {"base": {}, **taken, **raw}
    # What is not of the right kind stays, for the check of the study to refuse.
    if isinstance(axes := raw.get("axes"), Mapping):
        own = {name: _by_name(levels, taken["axes"].get(name)) for name, levels in axes.items()}
        whole["axes"] = {**taken["axes"], **own}
    if isinstance(rules := raw.get("exclude"), list):
        whole["exclude"] = [*rules, *taken["exclude"]]  # its own first: an error names one by its place in the file
    return whole


def _by_name(levels: Any, known: Any) -> Any:
    """Levels that have names may be listed by them."""
    if isinstance(levels, list) and isinstance(known, Mapping):
        return {str(name): known.get(str(name), {}) for name in levels}
    return levels


def inherited_lines(raw: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> dict[KeyPath, int]:
    """`lines`, and for what is inherited the line that says from where."""
    place = lines.get(("continues",))
    return dict(lines) if place is None else {**{(name,): place for name in INHERITED if name not in raw}, **lines}


def narrow(
    axes: Sequence["Axis"], earlier: "StudyPlan", lines: dict[KeyPath, int], problems: list[Problem]
) -> Iterator["Axis"]:
    """The axes with the earlier study's own levels where it has the axis, too: a variant is found again by these."""
    known = {axis.name: axis.levels for axis in earlier.axes}
    for axis in axes:
        levels = []
        for level in axis.levels if axis.name in known else ():
            same = next((candidate for candidate in known[axis.name] if candidate.values == level.values), None)
            if same is None:
                labels = ", ".join(candidate.label for candidate in known[axis.name])
                message = f"not a level of this axis in {earlier.study.name}, which this study continues ({labels})"
                problems.append(Problem(f"axes.{axis.name}", message, level.label, line_of(lines, ("axes", axis.name))))
            else:
                levels.append(same)
        yield replace(axis, levels=tuple(levels) or axis.levels)


def continuing_problems(plan: "StudyPlan", earlier: "StudyPlan", overrides: Mapping[str, Any]) -> Iterator[Problem]:
    """What a study says that cannot be so in one that continues another."""
    study, name = plan.study, earlier.study.name

    def line(*key: str) -> int | None:
        return line_of(plan.lines, key)

    if study.name in earlier.names:
        yield Problem("name", "a study that it continues has this name", study.name, line("name"))
    for seed in study.common_seeds:
        if seed not in earlier.study.common_seeds:
            seeds = ", ".join(map(str, earlier.study.common_seeds))
            yield Problem(
                "seeds", f"{name}, which this study continues, has not this one (it has {seeds})", seed, line("seeds")
            )
    if study.match != earlier.study.match:
        message = f"models stay as they were matched in {name}, which this study continues ({earlier.study.match})"
        yield Problem("match", message, study.match, line("match"))
    own = dict(flatten(study.base)) if isinstance(study.base, dict) else {}
    for axis in earlier.axes:
        for path in sorted(axis.paths):
            # A base that sets it would be passed over without a word.
            if all(path in level.values for level in axis.levels):
                message = f"axis {axis.name} of {name} sets it, which this study continues"
                if path in own:
                    yield Problem(f"base.{path}", message, own[path], line("base", path))
                if path in overrides:
                    yield Problem(f"--set {path}", message, overrides[path])


def clashes(config: TrialConfig, before: TrialConfig, same_data: bool) -> Iterator[tuple[str, str]]:
    """(path, why) of all that keeps a trial from starting with the weights of one that was trained as `before`."""
    tokenizer = before.data.tokenizer
    if config.data.tokenizer != tokenizer:
        yield "data.tokenizer", f"must stay {tokenizer}, as in the trials that it continues: tokens have their meanings"
    elif tokenizer.startswith("bpe:") and not same_data:
        hint = "in both studies, name a tokenizer.json"
        yield "data.source", f"other data, on which {tokenizer} would become another tokenizer: {hint}"
    own, kept = (dict(flatten(each.model.model_dump())) for each in (config, before))
    if config.data.tokenizer != tokenizer:
        own["vocab_size"] = kept["vocab_size"]  # follows from the tokenizer
    for path, value in kept.items():
        if own[path] != value and path not in FREE:
            message = (
                f"must stay {value}, as in the trials that it continues: of a model only {', '.join(FREE)} may change"
            )
            yield f"model.{path}", message
