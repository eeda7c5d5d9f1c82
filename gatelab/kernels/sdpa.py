"""Attention by torch's fused `scaled_dot_product_attention`, then the gate as separate operations."""

import torch.nn.functional as F
from torch import Tensor

from gatelab.kernels.gate import apply_gate


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    activation: str,
    combine: str,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """`[B, T, Hq, D]`: attention and, where there is one, its gate. Arguments as `gated_attention`."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    ).transpose(1, 2)
    return out if gate is None else apply_gate(out, gate, activation=activation, combine=combine)
