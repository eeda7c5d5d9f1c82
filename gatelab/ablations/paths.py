"""Dotted paths into a trial's configuration: which exist, what they take, how they are set."""

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from gatelab.ablations.path_hints import path_hint
from gatelab.ablations.wording import reasons
from gatelab.errors import GatelabError, Unavailable
from gatelab.training.config import TrialConfig


class UnknownPath(GatelabError, ValueError):
    """A dotted path leads to no field of a trial's configuration."""


def leaf_paths(model: type[BaseModel] = TrialConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all fields, those of nested configurations included."""
    for name, field in model.model_fields.items():
        inner = _nested(field)
        if inner is None:
            yield prefix + name
        else:
            yield from leaf_paths(inner, f"{prefix}{name}.")


@functools.cache
def field_adapter(path: str) -> TypeAdapter[Any]:
    """Return what checks a value for the field at a path, by itself. Raises UnknownPath, naming the nearest path."""
    model: type[BaseModel] | None = TrialConfig
    field: FieldInfo | None = None
    for name in path.split("."):
        if model is None or name not in model.model_fields:
            raise UnknownPath(f"no such configuration field; {nearest_path(path)}")
        field = model.model_fields[name]
        model = _nested(field)
    assert field is not None
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated)


def nearest_path(path: str) -> str:
    """Hint at the path that was probably meant."""
    return path_hint(path, tuple(leaf_paths()))


def check_value(path: str, value: Any) -> Any | Unavailable:
    """Return a value as the field at a path reads it, or what was expected instead. Raises UnknownPath."""
    adapter = field_adapter(path)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        return Unavailable(reasons(error))


def set_path(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Copy a nested mapping with one value replaced; what is not on the path is shared."""
    name, _, rest = path.partition(".")
    inner = tree.get(name)
    if rest:
        value = set_path(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**tree, name: value}


def merge(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Copy `tree` with its values replaced by those of `over`, at nested or dotted keys."""
    merged = dict(tree)
    for key, value in flatten(over):
        merged = set_path(merged, key, value)
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of everything that is not a mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get_path(config: BaseModel, path: str) -> Any:
    """Return the value at a path of a configuration."""
    return functools.reduce(getattr, path.split("."), config)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """Return the configuration class that a field holds, if it holds one."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def level_label(value: Any) -> str:
    """Write a level as tables show it: as in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value)
