"""The Triton kernels as operators: `gatelab::attention` and its backward."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatelab.kernels.gate import keeps_output
from gatelab.kernels.operators import Call, attention_flops, differentiable_once, fake_gradients


@torch.library.custom_op("gatelab::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
    combine: str,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (Y, O, lse); O is empty where the backward does not need it."""
    from gatelab.kernels import triton_attention

    return triton_attention.forward(
        _dense(q), _dense(k), _dense(v), gate, cu_seqlens, activation, combine, causal, scale
    )


@_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
    combine: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    keep = keeps_output(activation, combine, q.dtype)
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape if keep else 0), lse


@torch.library.custom_op("gatelab::attention_backward", mutates_args=())
def _attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    y: Tensor,
    o: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor | None,
    activation: str,
    combine: str,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (dQ, dK, dV, dG); dG is empty without a gate."""
    from gatelab.kernels import triton_attention

    return triton_attention.backward(
        dy, _dense(q), _dense(k), _dense(v), gate, y, o, lse, cu_seqlens, activation, combine, causal, scale
    )


_attention_backward.register_fake(fake_gradients)


def _dense(x: Tensor) -> Tensor:
    """Make channels contiguous: the kernels read whole ones."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, gate, cu_seqlens, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, gate, *output, cu_seqlens)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    q, k, v, gate, y, o, lse, cu_seqlens = ctx.saved_tensors
    dq, dk, dv, dg = _attention_backward(dy, q, k, v, gate, y, o, lse, cu_seqlens, *ctx.options)
    return dq, dk, dv, None if gate is None else dg, None, None, None, None, None


differentiable_once(_attention, _attention_backward, _setup, _gradients)


@register_flop_formula(torch.ops.gatelab.attention)
def _(q: torch.Size, k: torch.Size, *_: Any, **__: Any) -> int:
    return attention_flops(q, k, 2)


@register_flop_formula(torch.ops.gatelab.attention_backward)
def _(dy: torch.Size, q: torch.Size, k: torch.Size, *_: Any, **__: Any) -> int:
    return attention_flops(q, k, 5)  # as a single-pass backward counts; two passes make S and dP twice


def attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, call: Call) -> Tensor:
    """Return `[B, T, Hq, D]`. Arguments as `gated_attention`."""
    combine = "none" if gate is None else call.combine
    y: Tensor = _attention(q, k, v, gate, call.cu_seqlens, call.activation, combine, call.causal, call.scale)[0]
    return y
