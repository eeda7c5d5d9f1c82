"""Gated attention: the one public function, the table of its backends, and the choice between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gatelab.kernels import reference, sdpa
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS


@dataclass(frozen=True)
class Case:
    """What a backend must be able to do for one call."""

    device: str  # "cpu" | "cuda"
    dtype: torch.dtype
    query_length: int
    key_length: int
    query_heads: int
    kv_heads: int
    head_dim: int
    gated: bool
    causal: bool


@dataclass(frozen=True)
class Backend:
    """One way of computing gated attention."""

    name: str
    what: str
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None, str, str, bool, float | None], Tensor]
    refusal: Callable[[Case], str | None]  # why it cannot do a case, or None


def _sdpa_refusal(case: Case) -> str | None:
    if case.causal and case.query_length != case.key_length:
        return (
            "its causal mask is aligned to the first key, so it needs as many queries as keys "
            f"(got {case.query_length} and {case.key_length})"
        )
    return None


# In order of preference: "auto" takes the first that can do the case.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("sdpa", "torch's fused attention, then the gate", sdpa.attention, _sdpa_refusal),
        Backend("reference", "explicit softmax, any dtype", reference.attention, lambda case: None),
    )
}


def choose_backend(case: Case, wanted: str = "auto") -> Backend:
    """The backend for a case; raises ValueError if `wanted` is unknown or cannot do it, saying why."""
    if wanted == "auto":
        return next(backend for backend in BACKENDS.values() if backend.refusal(case) is None)
    if wanted not in BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)} (got {wanted!r})")
    reason = BACKENDS[wanted].refusal(case)
    if reason is not None:
        raise ValueError(f"backend {wanted!r} cannot compute this attention: {reason}")
    return BACKENDS[wanted]


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None = None,
    *,
    activation: str = "sigmoid",
    combine: str = "multiply",
    causal: bool = True,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention whose output is modulated by a gate: `combine(softmax(QKᵀ·scale)V, activation(gate))`.

    Args:
        q: `[B, T, Hq, D]`.
        k, v: `[B, S, Hkv, D]`; `Hq` is a multiple of `Hkv` (grouped-query attention).
        gate: pre-activations `[B, T, Hq or 1, D or 1]`, or None for plain attention.
        activation: a name in `gatelab.kernels.gate.ACTIVATIONS`.
        combine: "multiply" or "add".
        causal: query i sees the keys 0 … i + S - T.
        scale: multiplies the logits; 1/sqrt(D) by default.
        backend: "auto", or the name of one in `BACKENDS`.

    Returns:
        `[B, T, Hq, D]` in the dtype of `q`.

    Raises:
        ValueError: shapes that do not fit, unknown names, or a backend that cannot do the case.
    """
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape and (k.shape[0], k.shape[3]) == (q.shape[0], q.shape[3])
    if not fits or k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(
            "k and v must be [B, S, Hkv, D] with q's B and D, and Hkv must divide Hq "
            f"(got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)})"
        )
    _, length, heads, width = q.shape
    if causal and length > k.shape[1]:
        raise ValueError(f"causal attention needs at least as many keys as queries (got S={k.shape[1]}, T={length})")
    if gate is not None:
        fits = gate.dim() == 4 and gate.shape[:2] == q.shape[:2]
        if not fits or gate.shape[2] not in (1, heads) or gate.shape[3] not in (1, width):
            raise ValueError(f"gate must be [B, T, Hq or 1, D or 1] (got {list(gate.shape)} for q {list(q.shape)})")
    for given, known, what in ((activation, ACTIVATIONS, "activation"), (combine, COMBINATIONS, "combine")):
        if given not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)} (got {given!r})")
    case = Case(q.device.type, q.dtype, length, k.shape[1], heads, k.shape[2], width, gate is not None, causal)
    return choose_backend(case, backend).run(q, k, v, gate, activation, combine, causal, scale)
