"""The ladder of a study: the axes along which its models and their training grow."""

from collections.abc import Iterable

from gatelab.ablations.study import Axis

SIZES = (
    *(f"model.{name}" for name in ("layers", "hidden_size", "query_heads", "kv_heads", "head_dim", "ffn_size")),
    "training.tokens",
)
"""What an axis of the ladder sets."""


def ladder(axes: Iterable[Axis]) -> tuple[str, ...]:
    """The names of the axes that set a size or a token budget; the variants of all others are compared on its rungs."""
    return tuple(axis.name for axis in axes if axis.paths & set(SIZES))
