"""How attention is computed: `gated_attention`, one function over several backends.

The import is deferred so that a configuration can read the table of activations without loading torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatelab.kernels.attention import gated_attention as gated_attention

__all__ = ["gated_attention"]


def __getattr__(name: str) -> Any:
    if name == "gated_attention":
        from gatelab.kernels.attention import gated_attention

        return gated_attention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
