"""The arithmetic of a gate: its activations with their derivatives, its ways of combining, its hand-written backward.

The table drives every backend and names what a configuration may ask for. Entries use tensor methods only, so reading
a name does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """An activation a(x) and the derivatives that a hand-written backward needs.

    With a > 0 everywhere, `(ln a)'` exists and the gradient of the gate follows from the *gated* output alone:
    dG = dY·Y·(ln a)'(G), where any other activation needs the output before the gate: dG = dY·O·a'(G).
    Derivatives are written with s(-x), never 1 - s(x): that difference is 0 once s(x) has rounded to 1.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]  # a'(x)
    log_slope: Callable[[Tensor], Tensor] | None = None  # (ln a)'(x), where a > 0

    @property
    def positive(self) -> bool:
        """True if a > 0 everywhere."""
        return self.log_slope is not None


def _softplus_log_slope(x: Tensor) -> Tensor:
    """Return s(x) / softplus(x); as x falls both vanish and the ratio is 1 - e^x / 2 + …"""
    far = (x.clamp(max=0).exp() * -0.5) + 1
    return far.where(x < -20, x.sigmoid() / x.clamp(min=-20).logaddexp(x.new_zeros(())))


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(
        value=lambda x: x.sigmoid(),
        slope=lambda x: x.sigmoid() * (-x).sigmoid(),
        log_slope=lambda x: (-x).sigmoid(),
    ),
    "silu": Activation(
        value=lambda x: x * x.sigmoid(),
        slope=lambda x: x.sigmoid() * (1 + x * (-x).sigmoid()),
    ),
    "tanh": Activation(
        value=lambda x: x.tanh(),
        slope=lambda x: 4 * (2 * x).sigmoid() * (-2 * x).sigmoid(),
    ),
    "relu": Activation(
        value=lambda x: x.relu(),
        slope=lambda x: (x > 0).to(x.dtype),
    ),
    "softplus": Activation(
        value=lambda x: x.logaddexp(x.new_zeros(())),
        slope=lambda x: x.sigmoid(),
        log_slope=_softplus_log_slope,
    ),
    "identity": Activation(
        value=lambda x: x,
        slope=lambda x: x.new_ones(()).expand_as(x),
    ),
    "ns_sigmoid": Activation(  # non-sparse: range (0.5, 1), paper eq. 9
        value=lambda x: 0.5 + 0.5 * x.sigmoid(),
        slope=lambda x: 0.5 * x.sigmoid() * (-x).sigmoid(),
        log_slope=lambda x: x.sigmoid() * (-x).sigmoid() / (1 + x.sigmoid()),
    ),
}

COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiply": lambda x, score: x * score,
    "add": lambda x, score: x + score,
}


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32 if it comes in 16 bits: the precision of all arithmetic on gates.

    In bfloat16 a sigmoid rounds to 1 from about 6 on and its gradient is lost.
    """
    return x.float() if x.dtype.itemsize < 4 else x


def gate_score(gate: Tensor, activation: str) -> Tensor:
    """Return `activation(gate)` for pre-activations of any shape, in float32 when they come in 16 bits."""
    return ACTIVATIONS[activation].value(widen(gate))


def gate_forward(x: Tensor, gate: Tensor, activation: str, combine: str) -> Tensor:
    """Return `combine(x, activation(gate))` (paper eq. 5) in the dtype of `x`, rounded once.

    `x [..., heads, width]`; `gate` holds pre-activations and broadcasts against it.
    """
    return COMBINATIONS[combine](widen(x), gate_score(gate, activation)).to(x.dtype)


def keeps_output(activation: str, combine: str, dtype: torch.dtype) -> bool:
    """Return whether the backward of a gate on an output O in `dtype` needs O itself, not only the gated Y.

    Y = O·a cannot tell O where a = 0, and underflows in float16 where a is small; Y - a cancels. Without a gate
    (combine "none") Y is O.
    """
    if combine == "none":
        return False
    return combine == "add" or not ACTIVATIONS[activation].positive or str(dtype) == "torch.float16"


def gate_backward(
    dy: Tensor, x: Tensor, gate: Tensor, activation: str, combine: str, *, gated_x: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `gate_forward` for `x` and `gate`, in their shapes and dtypes, for `dy` like `x`.

    With `gated_x`, `x` is what `gate_forward` returned, and the activation is positive and multiplies.
    """
    table = ACTIVATIONS[activation]
    wide, logits = widen(dy), widen(gate)
    if combine == "add":
        return dy, _reduce_to(wide * table.slope(logits), gate)
    slope = table.log_slope if gated_x and table.log_slope else table.slope
    return (wide * table.value(logits)).to(x.dtype), _reduce_to(wide * widen(x) * slope(logits), gate)


def _reduce_to(full: Tensor, gate: Tensor) -> Tensor:
    """Sum over the dimensions that `gate` was broadcast along."""
    return full.sum_to_size(gate.shape).to(gate.dtype)
