"""A gate on any tensor (queries, keys, values, the dense output), as one operator: one kernel forward, one backward."""

from typing import Any

import torch
from torch import Tensor

from gatelab.kernels import gate as arithmetic
from gatelab.kernels.checks import check_gate
from gatelab.kernels.operators import beyond_backward, differentiable_once
from gatelab.kernels.requirements import FUSED_ACTIVATIONS, triton_missing


def apply_gate(x: Tensor, gate: Tensor, *, activation: str = "sigmoid", combine: str = "multiply") -> Tensor:
    """Return `Y' = combine(Y, activation(gate))` (paper eq. 5), in the dtype of `x`, computed in float32 or wider.

    Args:
        x: `[B, T, heads, width]`, any strides, of a floating dtype of 16 bits or more.
        gate: pre-activations `[B, T, heads or 1, width or 1]`, of such a dtype, which may differ from that of `x`.
        activation: a name in `gatelab.kernels.gate.ACTIVATIONS`.
        combine: "multiply" or "add".

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or unknown names.
    """
    check_gate(x, gate, activation, combine)
    if beyond_backward(x, gate) is not None:
        return arithmetic.gate_forward(x, gate, activation, combine)  # plain operations have every rule
    out: Tensor = _modulate(x, gate, activation, combine)
    return out


def _in_triton(x: Tensor, activation: str) -> bool:
    return x.is_cuda and triton_missing() is None and activation in FUSED_ACTIVATIONS and x.dtype != torch.float64


@torch.library.custom_op("gatelab::modulate", mutates_args=())
def _modulate(x: Tensor, gate: Tensor, activation: str, combine: str) -> Tensor:
    if _in_triton(x, activation):
        from gatelab.kernels import triton_gate

        return triton_gate.gate_forward(x, gate, activation, combine)
    return arithmetic.gate_forward(x, gate, activation, combine).contiguous()


@_modulate.register_fake
def _(x: Tensor, gate: Tensor, activation: str, combine: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("gatelab::modulate_backward", mutates_args=())
def _modulate_backward(dy: Tensor, x: Tensor, gate: Tensor, activation: str, combine: str) -> tuple[Tensor, Tensor]:
    """Return (dX, dG); dX is empty where the gate adds: it is dY."""
    if _in_triton(x, activation):
        from gatelab.kernels import triton_gate

        dx, dg, _ = triton_gate.gate_backward(dy, x, gate, activation, combine)
    else:
        dx, dg = arithmetic.gate_backward(dy, x, gate, activation, combine)
    return x.new_empty(0) if combine == "add" else dx.contiguous(), dg.contiguous()


@_modulate_backward.register_fake
def _(dy: Tensor, x: Tensor, gate: Tensor, activation: str, combine: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(0 if combine == "add" else x.shape), gate.new_empty(gate.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gate, ctx.activation, ctx.combine = inputs
    ctx.save_for_backward(x, gate)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, gate = ctx.saved_tensors
    dx, dg = _modulate_backward(dy, x, gate, ctx.activation, ctx.combine)
    return dy if ctx.combine == "add" else dx, dg, None, None


differentiable_once(_modulate, _modulate_backward, _setup, _gradients)
