"""The arithmetic of a gate: its activations, its ways of combining, and both applied to a tensor.

These tables drive every backend and name what a configuration may ask for. Entries use tensor methods only, so
reading a name does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda x: x.sigmoid(),
    "silu": lambda x: x * x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    "relu": lambda x: x.relu(),
    "softplus": lambda x: x.logaddexp(x.new_zeros(())),
    "identity": lambda x: x,
    "ns_sigmoid": lambda x: 0.5 + 0.5 * x.sigmoid(),  # non-sparse: range (0.5, 1), paper eq. 9
}

COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiply": lambda x, score: x * score,
    "add": lambda x, score: x + score,
}


def gate_score(gate: Tensor, activation: str) -> Tensor:
    """`activation(gate)` for pre-activations of any shape, in float32 when they come in 16 bits.

    In bfloat16 a sigmoid rounds to 1 from about 6 on and its gradient is lost.
    """
    wide = gate.float() if gate.dtype.itemsize < 4 else gate
    return ACTIVATIONS[activation](wide)


def apply_gate(x: Tensor, gate: Tensor, *, activation: str = "sigmoid", combine: str = "multiply") -> Tensor:
    """`Y' = combine(Y, activation(gate))` (paper eq. 5), in the dtype of `x`.

    `gate` holds pre-activations and broadcasts against `x`; both are `[..., heads, width]`.
    """
    return COMBINATIONS[combine](x, gate_score(gate, activation).to(x.dtype))
