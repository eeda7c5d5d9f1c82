"""Studies from the command line: a file or a named study, and flags that override it."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gatelab.ablations.errors import Problem, StudyError, nearest
from gatelab.ablations.identity import digest
from gatelab.ablations.loading import load_study, make_study
from gatelab.ablations.presets import bases, study_files
from gatelab.ablations.study import StudyPlan
from gatelab.ablations.yaml_source import parse_scalar

COMMAND_LINE = "command line"


def study_from_flags(
    path: Path | None = None,
    *,
    preset: str | None = None,
    axes: Sequence[str] = (),
    sets: Sequence[str] = (),
    seeds: str | None = None,
    baseline: Sequence[str] = (),
    match: str | None = None,
    name: str | None = None,
    tolerance: Mapping[str, Any] | None = None,
) -> StudyPlan:
    """Read the study of a file, of a preset (a named study or base), or of axes alone.

    `axes` are PATH=LEVEL,LEVEL,…; `sets` and `baseline` are PATH=VALUE; `seeds` is a count, or a comma-separated
    list; `tolerance` overrides fields of the file's. Raises StudyError.
    """
    if path is not None and preset is not None:
        raise StudyError([Problem("--preset", "give a study file or a preset, not both", preset)], COMMAND_LINE)
    overrides = overrides_from_flags(sets)
    fields: dict[str, Any] = {
        "name": name,
        "axes": {key: _levels(f"--axis {key}", value) for key, value in _pairs("--axis", axes)} or None,
        "seeds": None if seeds is None else _seeds(seeds),
        "baseline": {key: _value(f"--baseline {key}", value) for key, value in _pairs("--baseline", baseline)} or None,
        "match": match,
        "tolerance": tolerance or None,
    }
    if preset is not None and preset in study_files():
        path = study_files()[preset]
    if path is not None:
        with suppress(OSError):  # a name that is too long is refused in reading
            if not path.exists():
                raise StudyError([Problem("file", _no_such_file(path))], str(path))
        return load_study(path, overrides, **fields)
    if preset is not None and preset not in bases():
        raise StudyError([Problem("--preset", nearest(preset, [*bases(), *study_files()]), preset)], COMMAND_LINE)
    if preset is None and not fields["axes"]:
        hint = "name a study file, --preset NAME (see: gatelab presets) or --axis PATH=LEVEL,LEVEL"
        raise StudyError([Problem("study", hint)], COMMAND_LINE)
    raw = {"base": preset} if preset else {}
    asked = {"raw": raw, "set": list(sets), **{key: fields[key] for key in fields if key not in ("seeds", "tolerance")}}
    raw["name"] = f"adhoc-{digest(asked)[:8]}"
    return make_study(raw, COMMAND_LINE, overrides, **fields)


def overrides_from_flags(sets: Sequence[str]) -> dict[str, Any]:
    """Read PATH=VALUE texts: dotted path -> value. Raises StudyError."""
    return {key: _value(f"--set {key}", value) for key, value in _pairs("--set", sets)}


def _no_such_file(path: Path) -> str:
    """Say what a file that is not there was probably meant to be."""
    shipped, name = {**study_files(), **bases()}, path.name.removesuffix(".yaml").removesuffix(".yml")
    if name in shipped:
        return f"no such file; what comes with gatelab by this name is --preset {name}"
    beside = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, beside, n=1) or difflib.get_close_matches(
        f"{name}.yaml", beside, n=1
    ):
        return f"no such file; did you mean {path.parent / near[0]}?"
    if near := difflib.get_close_matches(name, shipped, n=1):
        return f"no such file; did you mean --preset {near[0]}?"
    return "no such file (gatelab init writes a study to start from; gatelab presets lists those that come along)"


def _pairs(flag: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    expected = "expected PATH=LEVEL,LEVEL" if flag == "--axis" else "expected PATH=VALUE"
    pairs = [(key.strip(), value.strip()) for key, _, value in (text.partition("=") for text in texts)]
    problems = [
        Problem(flag, expected, text) for text, (key, _) in zip(texts, pairs, strict=True) if "=" not in text or not key
    ]
    keys = [key for key, _ in pairs]
    problems += [Problem(flag, "given twice", key) for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if problems:
        raise StudyError(problems, COMMAND_LINE)
    return pairs


def _value(flag: str, text: str, form: str = "{}") -> Any:
    try:
        return parse_scalar(form.format(text) if text else text)
    except ValueError as error:
        raise StudyError([Problem(flag, str(error), text)], COMMAND_LINE) from error


def _levels(flag: str, text: str) -> list[Any]:
    """Read levels with commas between them, each as in a study file: in quotes or brackets, too."""
    levels: list[Any] = _value(flag, text, "[{}]")
    return levels[0] if len(levels) == 1 and isinstance(levels[0], list) else levels


def _seeds(text: str) -> Any:
    text = text.strip()
    if not text:
        return text
    seeds = _levels("--seeds", text) if "," in text or text.startswith("[") else _value("--seeds", text)
    return text if seeds is None else seeds
