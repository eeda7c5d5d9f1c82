"""What a call must be like: each refusal says what was given and what would be right."""

import math
import numbers

import torch
from torch import Tensor

from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS

FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""The dtypes that attention and gates take: integers would be cut off, 8 bits have no arithmetic."""


def check_kind(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless queries, keys and values are dense tensors on one device."""
    if any(x.layout != torch.strided or x.is_nested for x in (q, k, v)):
        raise ValueError(
            "q, k and v must be dense tensors, neither sparse nor nested (for packed sequences: cu_seqlens)"
        )
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device (got {q.device}, {k.device}, {v.device})")


def check_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, cu_seqlens: Tensor | None) -> None:
    """Raise ValueError unless queries, keys and values fit together."""
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape and (k.shape[0], k.shape[3]) == (q.shape[0], q.shape[3])
    if not fits or k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(
            "k and v must be [B, S, Hkv, D] with q's B and D, and Hkv must divide Hq "
            f"(got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)})"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in FLOATING:
        raise ValueError(
            f"q, k and v must have one floating dtype of 16 bits or more (got {q.dtype}, {k.dtype}, {v.dtype})"
        )
    if 0 in q.shape or k.shape[1] == 0:
        raise ValueError(f"there must be queries and keys (got q {list(q.shape)}, k {list(k.shape)})")
    if causal and q.shape[1] > k.shape[1]:
        raise ValueError(
            f"causal attention needs at least as many keys as queries (got S={k.shape[1]}, T={q.shape[1]})"
        )
    if cu_seqlens is not None:
        if torch._C._functorch.is_batchedtensor(cu_seqlens):
            raise ValueError("cu_seqlens must be the same for all that vmap maps over")
        if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.dtype != torch.int32:
            dtype = str(cu_seqlens.dtype).removeprefix("torch.")
            raise ValueError(f"cu_seqlens must be [n + 1] int32 (got {list(cu_seqlens.shape)} {dtype})")
        if q.shape[0] != 1 or q.shape[1] != k.shape[1] or cu_seqlens.device != q.device:
            raise ValueError(
                "with cu_seqlens, q and k must be [1, T, …] and on its device "
                f"(got q {list(q.shape)} on {q.device}, k {list(k.shape)}, cu_seqlens on {cu_seqlens.device})"
            )
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            bounds = cu_seqlens.tolist()
            if bounds[0] != 0 or bounds[-1] != q.shape[1] or bounds != sorted(bounds):
                raise ValueError(f"cu_seqlens must rise from 0 to T={q.shape[1]} (got {bounds})")


def number(scale: object) -> float:
    """Return a scale as a Python number. Raises ValueError if it is anything else, or not finite."""
    if isinstance(scale, torch.SymFloat):
        return scale  # type: ignore[return-value]  # a number that a graph leaves open
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        hint = "; multiply q by one that is learned" if isinstance(scale, Tensor) else ""
        raise ValueError(f"scale is a number (got {type(scale).__name__}{hint})")
    if not torch.compiler.is_compiling() and not math.isfinite(scale):  # a graph may leave it open
        raise ValueError(f"scale is a finite number (got {scale})")
    return float(scale)


def check_gate(x: Tensor, gate: Tensor | None, activation: str, combine: str) -> None:
    """Raise ValueError unless `gate` fits `x [B, T, heads, width]` and both names are known."""
    if gate is not None:
        fits = gate.dim() == x.dim() == 4 and gate.shape[:2] == x.shape[:2]
        if not fits or gate.shape[2] not in (1, x.shape[2]) or gate.shape[3] not in (1, x.shape[3]):
            raise ValueError(
                f"gate must be [B, T, H or 1, D or 1] (got {list(gate.shape)} for a tensor [B, T, H, D] of "
                f"{list(x.shape)})"
            )
        if x.dtype not in FLOATING or gate.dtype not in FLOATING:
            raise ValueError(
                "a gate and what it modulates must have floating dtypes of 16 bits or more "
                f"(got {gate.dtype} for {x.dtype})"
            )
        if gate.device != x.device:
            raise ValueError(f"gate must be on the device of what it modulates (got {gate.device} for {x.device})")
    for given, known, what in (
        (activation, ACTIVATIONS, "activation"),
        (combine, COMBINATIONS, "combine"),
    ):
        if given not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)} (got {given!r})")
