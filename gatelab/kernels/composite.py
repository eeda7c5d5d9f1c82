"""Attention by another library's kernel, then the gate as one fused operator."""

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gatelab.kernels.modulation import apply_gate
from gatelab.kernels.operators import Call

# (q [B, T, Hq, D], k, v [B, S, Hkv, D], call) -> [B, T, Hq, D], without the gate
Core = Callable[[Tensor, Tensor, Tensor, Call], Tensor]

# Packages that bring flash attention, newest first: module, release, oldest GPU, newest GPU (compute capability).
FLASH_PACKAGES = (
    ("flash_attn.cute", "FlashAttention 4", (9, 0), (12, 9)),
    ("flash_attn_interface", "FlashAttention 3", (9, 0), (9, 9)),
    ("flash_attn", "FlashAttention 2", (8, 0), (12, 9)),
)


def torch_core(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Run `scaled_dot_product_attention` by the kernel that PyTorch picks; packed sequences one after another."""
    if call.cu_seqlens is not None:
        bounds, one = call.cu_seqlens.tolist(), call._replace(cu_seqlens=None)
        parts = (slice(a, b) for a, b in itertools.pairwise(bounds) if b > a)
        return torch.cat([torch_core(q[:, p], k[:, p], v[:, p], one) for p in parts], 1)
    attention = F.scaled_dot_product_attention
    if q.shape[2] != k.shape[2]:  # a plain constant, not a comparison, also where shapes are symbols
        attention = functools.partial(attention, enable_gqa=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attention(q, k, v, is_causal=call.causal, scale=call.scale).transpose(1, 2)


def cudnn_core(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Run `scaled_dot_product_attention` by cuDNN's kernel."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch_core(q, k, v, call)


def flash_core(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Run the newest flash-attn package that is installed and serves this GPU."""
    module = importlib.import_module(flash_package(torch.cuda.get_device_capability(q.device)) or "flash_attn")
    options: dict[str, Any] = {"causal": call.causal, "softmax_scale": call.scale}
    cu_seqlens = call.cu_seqlens
    if cu_seqlens is None:
        found = module.flash_attn_func(q, k, v, **options)
    else:
        longest = int(cu_seqlens.diff().max())
        options |= {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
        options |= {"max_seqlen_q": longest, "max_seqlen_k": longest}
        found = module.flash_attn_varlen_func(q.squeeze(0), k.squeeze(0), v.squeeze(0), **options)
    out: Tensor = found[0] if isinstance(found, tuple) else found  # some releases return the log-sum-exp as well
    return out.view(q.shape)


def flash_package(capability: tuple[int, int]) -> str | None:
    """Return the module of the newest flash-attn that is installed and serves a GPU of this compute capability."""
    for module, _, oldest, newest in FLASH_PACKAGES:
        if oldest <= capability <= newest and _installed(module):
            return module
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not there
        return False


def gated(core: Core) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, Call], Tensor]:
    """Make a backend of a core: attention by `core`, then its gate."""

    def attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, call: Call) -> Tensor:
        out = core(q, k, v, call)
        return out if gate is None else apply_gate(out, gate, activation=call.activation, combine=call.combine)

    return attention
