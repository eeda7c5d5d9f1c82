"""Attention by explicit softmax, in any dtype including float64: the truth that other backends are tested against."""

from torch import Tensor

from gatelab.kernels.gate import apply_gate


def attention_weights(q: Tensor, k: Tensor, *, causal: bool = True, scale: float | None = None) -> Tensor:
    """Attention probabilities `[B, Hq, T, S]` of `q [B, T, Hq, D]` and `k [B, S, Hkv, D]`.

    With `causal`, query i sees the keys 0 … i + S - T. `scale` multiplies the logits; by default 1/sqrt(D).
    """
    group = q.shape[2] // k.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keys = k.repeat_interleave(group, dim=2)
    logits = (q.transpose(1, 2) @ keys.permute(0, 2, 3, 1)) * scale
    if causal:
        length, keys_length = q.shape[1], k.shape[1]
        hidden = logits.new_ones(length, keys_length).triu(keys_length - length + 1).bool()
        logits = logits.masked_fill(hidden, float("-inf"))
    return logits.softmax(-1)


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
    weights = attention_weights(q, k, causal=causal, scale=scale)
    values = v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)
    out = (weights @ values.transpose(1, 2)).transpose(1, 2)
    return out if gate is None else apply_gate(out, gate, activation=activation, combine=combine)
