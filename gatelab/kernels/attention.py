"""Gated attention: the one public function, the table of its backends, and the choice between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gatelab.kernels import chunked, composite, fused, reference
from gatelab.kernels.checks import check_attention, check_gate, check_kind, number
from gatelab.kernels.operators import FORWARD_MODE, TRANSFORM, Call, beyond_backward, symbolic
from gatelab.kernels.requirements import FUSED_ACTIVATIONS, capability, interpreted, triton_missing

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
PROBABILITIES_LIMIT = 256 * 2**20  # bytes that one call of the chunked backend may keep for its backward


@dataclass(frozen=True)
class Case:
    """What a backend must be able to do for one call."""

    device: str  # "cpu" | "cuda" | any other of PyTorch's
    dtype: torch.dtype
    batch: int
    query_length: int
    key_length: int
    query_heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    activation: str | None = "sigmoid"  # None: ungated
    capability: tuple[int, int] | None = None  # compute capability of a CUDA device
    beyond: str | None = None  # FORWARD_MODE or TRANSFORM: what is asked of it beyond a backward


@dataclass(frozen=True)
class Backend:
    """One way of computing gated attention."""

    name: str
    what: str
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None, Call], Tensor]
    limits: Callable[[Case], str | None]  # why it cannot do a case, or None
    reluctance: Callable[[Case], str | None] = lambda case: None  # why "auto" passes it over where it could, or None
    beyond: tuple[str, ...] = ()  # what it has beyond a backward

    def refusal(self, case: Case) -> str | None:
        """Say why it cannot do a case, or return None."""
        if case.beyond is not None and case.beyond not in self.beyond:
            return f"it has no {case.beyond} (backend='reference' has)"
        return self.limits(case)


def _triton_refusal(case: Case) -> str | None:
    if reason := triton_missing():
        return reason
    if case.device != "cuda" and not interpreted():
        return "Triton needs a CUDA device"
    if reason := _age_refusal(case):
        return reason
    if case.dtype not in (*SIXTEEN_BITS, torch.float32):
        return f"it computes in bfloat16, float16 and float32 (got {_name(case.dtype)})"
    if case.head_dim > 256:
        return f"its head dimension ends at 256 (got {case.head_dim})"
    if case.batch * case.query_heads > 65535:  # the second dimension of a CUDA grid
        return f"it takes at most 65,535 sequences times heads (got {case.batch * case.query_heads:,})"
    if case.activation is not None and case.activation not in FUSED_ACTIVATIONS:
        return f"the activation {case.activation!r} is not written in Triton"
    return None


def _triton_reluctance(case: Case) -> str | None:
    if case.device != "cuda":
        return "on a CPU it runs in Triton's interpreter"
    if case.dtype == torch.float32:
        return "in float32 it uses no tensor cores"
    return None


def _flash_refusal(case: Case) -> str | None:
    if case.capability is None:
        return "flash-attn needs a CUDA device"
    if reason := _half_refusal(case, 256):  # before a search of the installed packages
        return reason
    if composite.flash_package(case.capability) is None:
        return f"no flash-attn package for compute capability {case.capability[0]}.{case.capability[1]} is installed"
    return None


def _cudnn_refusal(case: Case) -> str | None:
    if case.capability is None:
        return "cuDNN needs a CUDA device"
    return _age_refusal(case) or _half_refusal(case, 128) or _alignment_refusal(case)


def _age_refusal(case: Case) -> str | None:
    if case.capability is not None and case.capability < (8, 0):
        return f"it needs compute capability 8.0 (this is {case.capability[0]}.{case.capability[1]})"
    return None


def _half_refusal(case: Case, widest: int) -> str | None:
    if case.dtype not in SIXTEEN_BITS:
        return f"it computes in bfloat16 and float16 (got {_name(case.dtype)})"
    if case.head_dim % 8 or case.head_dim > widest:
        return f"its head dimension is a multiple of 8 up to {widest} (got {case.head_dim})"
    return None


def _alignment_refusal(case: Case) -> str | None:
    if case.causal and case.query_length != case.key_length:
        return (
            "its causal mask is aligned to the first key, so it needs as many queries as keys "
            f"(got {case.query_length} and {case.key_length})"
        )
    return None


def _chunked_refusal(case: Case) -> str | None:
    return "it is made for the CPU" if case.device != "cpu" else None


def _chunked_reluctance(case: Case) -> str | None:
    if case.dtype not in (torch.float32, torch.bfloat16):
        return f"it was measured in float32 and bfloat16 (this is {_name(case.dtype)})"
    if symbolic(case.query_length) or symbolic(case.key_length):
        return "a graph for any length cannot know its chunks"
    pays = case.causal and 256 <= case.query_length <= 1024
    if case.dtype == torch.float32 and not pays and _alignment_refusal(case) is None:
        return "in float32 it is faster for causal sequences of 256 to 1,024 tokens only"
    kept = case.dtype.itemsize * sum(
        chunked.probabilities_sizes(
            case.batch, case.query_length, case.key_length, case.query_heads, case.causal, case.dtype
        )
    )
    if kept > PROBABILITIES_LIMIT:
        return f"it would keep {kept / 2**20:,.0f} MiB for the backward (limit {PROBABILITIES_LIMIT / 2**20:.0f} MiB)"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# In order of preference: "auto" takes the first that can do the case and is not reluctant.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("triton", "attention and gate in one kernel", fused.attention, _triton_refusal, _triton_reluctance),
        Backend(
            "flash", "a flash-attn package, then a gate kernel", composite.gated(composite.flash_core), _flash_refusal
        ),
        Backend(
            "chunked", "matrix products over chunks of rows", chunked.attention, _chunked_refusal, _chunked_reluctance
        ),
        Backend(
            "cudnn",
            "cuDNN's attention, then a gate kernel",
            composite.gated(composite.cudnn_core),
            _cudnn_refusal,
            lambda case: "PyTorch picks it where it trusts it",
            beyond=(TRANSFORM,),
        ),
        Backend(
            "sdpa",
            "PyTorch's attention, then a gate kernel",
            composite.gated(composite.torch_core),
            _alignment_refusal,
            beyond=(TRANSFORM,),
        ),
        Backend(
            "reference",
            "explicit softmax, any dtype",
            reference.attention,
            lambda case: None,
            beyond=(FORWARD_MODE, TRANSFORM),
        ),
    )
}


def choose_backend(case: Case, wanted: str = "auto") -> Backend:
    """Choose the backend for a case. Raises ValueError if `wanted` is unknown or cannot do it, saying why."""
    if wanted == "auto":
        return next(b for b in BACKENDS.values() if b.refusal(case) is None and b.reluctance(case) is None)
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
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention whose output is modulated by a gate: `combine(softmax(QKᵀ·scale)V, activation(gate))`.

    The gate is computed in float32 (or wider) from its raw pre-activations, in the forward and in the backward. Only
    the backend "reference" has second and forward-mode derivatives. Under `torch.func`, "auto" takes "sdpa" or
    "reference", for forward mode "reference". Under autocast q, k and v take its dtype; the gate keeps its own.

    Args:
        q: `[B, T, Hq, D]`.
        k, v: `[B, S, Hkv, D]`; `Hq` is a multiple of `Hkv` (grouped-query attention).
        gate: pre-activations `[B, T, Hq or 1, D or 1]`, or None for plain attention.
        activation: a name in `gatelab.kernels.gate.ACTIVATIONS`.
        combine: "multiply" or "add".
        causal: query i sees the keys 0 … i + S - T.
        scale: a finite number, multiplies the logits; 1/sqrt(D) by default. Multiply q by a scale that is learned.
        cu_seqlens: packed sequences of different lengths, for B = 1 and T = S: `[n + 1]` int32 on the device of q,
            rising from 0 to T; sequence i is the tokens cu_seqlens[i] … cu_seqlens[i + 1] - 1, and may be empty.
        backend: "auto", or the name of one in `BACKENDS`.

    Returns:
        `[B, T, Hq, D]` in the dtype of `q`.

    Raises:
        ValueError: shapes or dtypes that do not fit, unknown names, or a backend that cannot do the case.
    """
    check_kind(q, k, v)
    if torch.amp.is_autocast_available(q.device.type) and torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    check_attention(q, k, v, causal, cu_seqlens)
    check_gate(q, gate, activation, combine)
    case = Case(
        device=q.device.type,
        dtype=q.dtype,
        batch=q.shape[0],
        query_length=q.shape[1],
        key_length=k.shape[1],
        query_heads=q.shape[2],
        kv_heads=k.shape[2],
        head_dim=q.shape[3],
        causal=causal,
        activation=None if gate is None else activation,
        capability=capability(q.device.index) if q.device.type == "cuda" else None,
        beyond=beyond_backward(q, k, v, gate),
    )
    scale = q.shape[3] ** -0.5 if scale is None else number(scale)
    if scale <= 0:  # libraries multiply the -inf of their mask by it, or skip a product with 0 and leave what was there
        q, scale = q * (-1 if scale else 0), -scale or 1.0
    call = Call(activation, combine, causal, scale, cu_seqlens)
    return choose_backend(case, backend).run(q, k, v, gate, call)
