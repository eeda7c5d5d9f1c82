"""How attention is computed: `gated_attention`, one function over several backends, and `apply_gate` on any tensor.

The imports are deferred so that a configuration can read the table of activations without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatelab.kernels.attention import gated_attention as gated_attention
    from gatelab.kernels.modulation import apply_gate as apply_gate

__all__ = ["apply_gate", "gated_attention"]

_HOMES = {"gated_attention": "attention", "apply_gate": "modulation"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gatelab.kernels.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
