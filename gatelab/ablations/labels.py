"""How variants are named: by their levels, each after the short name of its axis."""

from collections.abc import Collection, Mapping


def short_names(axes: Collection[str]) -> dict[str, str]:
    """Map each axis to the shortest end of its dotted path that tells it from the others."""
    return {axis: _shortest_end(axis, axes) for axis in axes}


def _shortest_end(axis: str, axes: Collection[str]) -> str:
    parts = axis.split(".")
    ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
    alone = (end for end in ends if sum(other == end or other.endswith(f".{end}") for other in axes) == 1)
    return next(alone, axis)


def join_levels(levels: Mapping[str, str]) -> str:
    """Label a variant by its levels, by the short names of their axes."""
    return ", ".join(f"{name}={level}" for name, level in levels.items()) or "base"
