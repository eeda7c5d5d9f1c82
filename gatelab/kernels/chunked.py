"""Gated attention on a CPU: a chunk of rows at a time, by plain matrix products, with a hand-written backward.

PyTorch's fused CPU kernel multiplies bfloat16 no faster than float32. Matrix products over a chunk of query rows and
the keys that they see, in one piece, are faster in both, and save the work above the diagonal. The price is memory:
the probabilities are kept for the backward.

Rows are laid out `[B·Hkv, T·group, D]`: the query heads that share keys are rows of one matrix, position by position.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatelab.kernels.gate import gate_backward, gate_forward, keeps_output
from gatelab.kernels.operators import Call, attention_flops, differentiable_once, fake_gradients


class Chunk(NamedTuple):
    """Query positions begin … end-1 and the keys first … last-1 that some of them see."""

    begin: int
    end: int
    first: int
    last: int


def chunk_length(length: int, dtype: torch.dtype) -> int:
    """Return the query positions per chunk: the fastest measured (docs/kernels.md)."""
    if dtype.itemsize > 2:
        return 64
    return 128 if length <= 1024 else 256


def chunks(length: int, keys: int, causal: bool, size: int, cu_seqlens: Tensor | None) -> Iterator[Chunk]:
    """Yield the chunks of one sequence, or of packed ones."""
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    for start, stop in itertools.pairwise(bounds):
        first, last = (0, keys) if cu_seqlens is None else (start, stop)
        for begin in range(start, stop, size):
            end = min(begin + size, stop)
            yield Chunk(begin, end, first, last - (stop - end) if causal else last)


def probabilities_sizes(
    batch: int, length: int, keys: int, heads: int, causal: bool, dtype: torch.dtype, *, packed: bool = False
) -> list[int]:
    """Return the elements of what the backward keeps, chunk by chunk.

    How packed sequences fall into chunks is in their data: they get one buffer, of the size that they cannot exceed.
    """
    size = chunk_length(length, dtype)
    sizes = [
        (chunk.end - chunk.begin) * (chunk.last - chunk.first) * batch * heads
        for chunk in chunks(length, keys, causal, size, None)
    ]
    return [sum(sizes)] if packed else sizes


def _pieces(buffers: list[Tensor]) -> Callable[[int], Tensor]:
    """Make a function that takes so many elements from the buffers, one after another."""
    rest = iter(buffers)
    current = buffers[0].new_empty(0) if buffers else None

    def take(size: int) -> Tensor:
        nonlocal current
        assert current is not None
        if current.numel() < size:
            current = next(rest)
        piece, current = current[:size], current[size:]
        return piece

    return take


@functools.lru_cache(maxsize=16)
def _future(rows: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return `[rows·group, rows]`: -inf where a key lies after the query."""
    return torch.full((rows, rows), float("-inf"), dtype=dtype).triu_(1).repeat_interleave(group, 0)


def _to_rows(x: Tensor, kv_heads: int) -> Tensor:
    """Lay `[B, T, H, D]` out as `[B·Hkv, T·group, D]`."""
    batch, length, heads, width = x.shape
    split = x.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(1, 2)
    return split.reshape(batch * kv_heads, length * (heads // kv_heads), width)


def _from_rows(rows: Tensor, shape: torch.Size, kv_heads: int) -> Tensor:
    """Undo `_to_rows`."""
    batch, length, heads, width = shape
    split = rows.view(batch, kv_heads, length, heads // kv_heads, width).transpose(1, 2)
    return split.reshape(shape)


@torch.library.custom_op("gatelab::chunked_attention", mutates_args=())
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
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return (Y, O, probabilities); O is empty if the backward needs none, probabilities where `keep` is false."""
    kv_heads, group = k.shape[2], q.shape[2] // k.shape[2]
    keys, values = _to_rows(k, kv_heads).transpose(1, 2), _to_rows(v, kv_heads)
    y = q.new_empty(q.shape)
    o = q.new_empty(q.shape if gate is not None and keeps_output(activation, combine, q.dtype) else 0)
    kept = _buffers(q, k, causal, cu_seqlens) if keep else []
    take = _pieces(kept)
    parts = list(chunks(q.shape[1], k.shape[1], causal, chunk_length(q.shape[1], q.dtype), cu_seqlens))
    scratch = _scratch(q, parts)
    for chunk in parts:
        at = slice(chunk.begin, chunk.end)
        queries = _to_rows(q[:, at], kv_heads)
        logits = _view(scratch, queries, chunk)
        torch.baddbmm(logits, queries, keys[:, :, chunk.first : chunk.last], beta=0, alpha=scale, out=logits)
        if causal:
            logits[:, :, chunk.begin - chunk.end :] += _future(chunk.end - chunk.begin, group, q.dtype)
        probabilities = take(logits.numel()).view(logits.shape) if keep else torch.empty_like(logits)
        torch.softmax(logits, -1, out=probabilities)
        out = _from_rows(torch.bmm(probabilities, values[:, chunk.first : chunk.last]), q[:, at].shape, kv_heads)
        if o.numel():
            o[:, at] = out
        y[:, at] = out if gate is None else gate_forward(out, gate[:, at], activation, combine)
    return y, o, kept


def _scratch(q: Tensor, parts: list[Chunk]) -> Tensor:
    """Make room for the logits of any one chunk, once: memory that comes and goes is faulted in again."""
    most = max((chunk.end - chunk.begin) * (chunk.last - chunk.first) for chunk in parts)
    return q.new_empty(q.shape[0] * q.shape[2] * most)


def _view(buffer: Tensor, queries: Tensor, chunk: Chunk) -> Tensor:
    """View the beginning of a buffer as the logits `[B·Hkv, rows, keys]` of a chunk's query rows."""
    shape = (*queries.shape[:2], chunk.last - chunk.first)
    return buffer[: math.prod(shape)].view(shape)


def _buffers(q: Tensor, k: Tensor, causal: bool, cu_seqlens: Tensor | None) -> list[Tensor]:
    batch, length, heads, _ = q.shape
    sizes = probabilities_sizes(batch, length, k.shape[1], heads, causal, q.dtype, packed=cu_seqlens is not None)
    make = q.new_empty if cu_seqlens is None else q.new_zeros  # what packed sequences leave unused is defined
    return [make(size) for size in sizes]


@_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
    combine: str,
    causal: bool,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    output = gate is not None and keeps_output(activation, combine, q.dtype)
    kept = _buffers(q, k, causal, cu_seqlens) if keep else []
    return q.new_empty(q.shape), q.new_empty(q.shape if output else 0), kept


@torch.library.custom_op("gatelab::chunked_attention_backward", mutates_args=())
def _attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    y: Tensor,
    o: Tensor,
    kept: list[Tensor],
    cu_seqlens: Tensor | None,
    activation: str,
    combine: str,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (dQ, dK, dV, dG); dG is empty without a gate."""
    kv_heads, gated = k.shape[2], o.numel() == 0
    saved = y if gated else o
    keys, values = _to_rows(k, kv_heads), _to_rows(v, kv_heads).transpose(1, 2)
    dq, dg = q.new_empty(q.shape), q.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    dk, dv = (torch.zeros(keys.shape, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    take = _pieces(kept)
    parts = list(chunks(q.shape[1], k.shape[1], causal, chunk_length(q.shape[1], q.dtype), cu_seqlens))
    scratch = _scratch(q, parts), _scratch(q, parts)
    for chunk in parts:
        at, seen = slice(chunk.begin, chunk.end), slice(chunk.first, chunk.last)
        do = dy[:, at]
        if gate is not None:
            do, dg[:, at] = gate_backward(do, saved[:, at], gate[:, at], activation, combine, gated_x=gated)
        queries, grads = _to_rows(q[:, at], kv_heads), _to_rows(do, kv_heads)
        dp, dlogits = (_view(buffer, queries, chunk) for buffer in scratch)
        probabilities = take(dp.numel()).view(dp.shape)
        _accumulate(dv[:, seen], probabilities.transpose(1, 2), grads, 1.0)
        torch.bmm(grads, values[:, :, seen], out=dp)
        torch._softmax_backward_data(dp, probabilities, -1, dp.dtype, grad_input=dlogits)  # P·(dP - rowsum(dP·P))
        dq[:, at] = _from_rows(torch.bmm(dlogits, keys[:, seen]).mul_(scale), q[:, at].shape, kv_heads)
        _accumulate(dk[:, seen], dlogits.transpose(1, 2), queries, scale)
    dk, dv = (_from_rows(x.to(q.dtype), k.shape, kv_heads).contiguous() for x in (dk, dv))
    return dq, dk, dv, dg


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add `scale · left @ right` to `total`; sums over chunks would lose bits in less than float32."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right, alpha=scale)
    else:
        total.add_(torch.bmm(left, right), alpha=scale)


_attention_backward.register_fake(fake_gradients)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    q, k, v, gate, cu_seqlens, *ctx.options, _ = inputs
    y, o, kept = output
    ctx.save_for_backward(q, k, v, gate, y, o, cu_seqlens, *kept)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    q, k, v, gate, y, o, cu_seqlens, *kept = ctx.saved_tensors
    dq, dk, dv, dg = _attention_backward(dy, q, k, v, gate, y, o, kept, cu_seqlens, *ctx.options)
    return dq, dk, dv, None if gate is None else dg, None, None, None, None, None, None


differentiable_once(_attention, _attention_backward, _setup, _gradients)


@register_flop_formula(torch.ops.gatelab.chunked_attention)
def _(q: torch.Size, k: torch.Size, *_: Any, **__: Any) -> int:
    return attention_flops(q, k, 2)


@register_flop_formula(torch.ops.gatelab.chunked_attention_backward)
def _(dy: torch.Size, q: torch.Size, k: torch.Size, *_: Any, **__: Any) -> int:
    return attention_flops(q, k, 4)  # the probabilities were kept


def attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, call: Call) -> Tensor:
    """Return `[B, T, Hq, D]`. Arguments as `gated_attention`."""
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, gate))
    *options, cu_seqlens = call
    y: Tensor = _attention(q, k, v, gate, cu_seqlens, *options, keep)[0]
    return y
