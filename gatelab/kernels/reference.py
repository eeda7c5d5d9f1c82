"""Attention by explicit softmax, in any dtype including float64: the truth that other backends are tested against.

Its backward is written out by hand. It is the specification of the fused ones, and made of differentiable operations,
so this backend alone has higher derivatives.
"""

from typing import Any

import torch
from torch import Tensor

from gatelab.kernels.gate import gate_backward, gate_forward
from gatelab.kernels.operators import Call, beyond_backward


def attention_weights(
    q: Tensor, k: Tensor, *, causal: bool = True, scale: float | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Return attention probabilities `[B, Hq, T, S]` of `q [B, T, Hq, D]` and `k [B, S, Hkv, D]`.

    With `causal`, query i sees the keys 0 … i + S - T. `scale` multiplies the logits; by default 1/sqrt(D). With
    `cu_seqlens`, tokens see their own sequence only.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = (q.transpose(1, 2) @ _for_queries(k, q).permute(0, 2, 3, 1)) * scale
    hidden = torch.zeros(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
    if causal:
        hidden |= torch.ones_like(hidden).triu(k.shape[1] - q.shape[1] + 1)
    if cu_seqlens is not None:
        tokens = torch.arange(q.shape[1], device=q.device)
        sequence = torch.searchsorted(cu_seqlens.to(torch.int64), tokens, right=True)
        hidden |= sequence[:, None] != sequence[None, :]
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


def _for_queries(x: Tensor, q: Tensor) -> Tensor:
    """Repeat keys or values `[B, S, Hkv, D]` for each query head of their group."""
    return x.repeat_interleave(q.shape[2] // x.shape[2], dim=2)


def _ungated(weights: Tensor, v: Tensor, q: Tensor) -> Tensor:
    return (weights @ _for_queries(v, q).transpose(1, 2)).transpose(1, 2)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    activation: str,
    combine: str,
    causal: bool,
    scale: float,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """Compute it by PyTorch's operations, which have every derivative and rule that PyTorch knows."""
    o = _ungated(attention_weights(q, k, causal=causal, scale=scale, cu_seqlens=cu_seqlens), v, q)
    return o if gate is None else gate_forward(o, gate, activation, combine)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor | None,
        activation: str,
        combine: str,
        causal: bool,
        scale: float,
        cu_seqlens: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, gate, cu_seqlens)
        ctx.options = activation, combine, causal, scale
        return _plain(q, k, v, gate, activation, combine, causal, scale, cu_seqlens)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gate, cu_seqlens = ctx.saved_tensors
        activation, combine, causal, scale = ctx.options
        # Everything from the inputs again: what is saved from a forward has no derivative of its own.
        weights = attention_weights(q, k, causal=causal, scale=scale, cu_seqlens=cu_seqlens)
        do, dg = dy, None
        o = _ungated(weights, v, q)
        if gate is not None:
            do, dg = gate_backward(dy, o, gate, activation, combine)
        delta = (do * o).sum(-1).transpose(1, 2).unsqueeze(-1)  # [B, Hq, T, 1]
        heads_first = do.transpose(1, 2)
        dv = weights.mT @ heads_first
        dlogits = weights * (heads_first @ _for_queries(v, q).permute(0, 2, 3, 1) - delta)
        dq = (dlogits @ _for_queries(k, q).transpose(1, 2)) * scale
        dk = (dlogits.mT @ q.transpose(1, 2)) * scale
        dk, dv = (x.transpose(1, 2).reshape(*k.shape[:3], -1, k.shape[3]).sum(3) for x in (dk, dv))  # over each group
        return dq.transpose(1, 2), dk, dv, dg, None, None, None, None, None


def attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, call: Call) -> Tensor:
    """Return `[B, T, Hq, D]`. Arguments as `gated_attention`."""
    if beyond_backward(q, k, v, gate) is not None:
        return _plain(q, k, v, gate, *call)
    out: Tensor = _Attention.apply(q, k, v, gate, *call)  # type: ignore[no-untyped-call]
    return out
