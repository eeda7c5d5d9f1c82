"""Gated attention in Triton: a forward with the gate in its epilogue, and a backward in two launches without atomics.

The backward needs no separate pass over the gate. Each program of the query pass owns whole rows, so it starts with
them: it reads dY, the saved output and the gate once and has dO, the gate's gradient and delta before its loop.
Since delta = rowsum(dO·O) = rowsum(dY·Y), a positive activation needs the gated output Y alone: O is never written.

    forward         Y (and O, where the activation needs it), lse
    query pass      dQ, dG, delta, and dO where it differs from dY by more than a factor per row
    key pass        dK, dV, summed over the query heads of a group in registers

Notation: T queries, S keys; lse and the scaled logits are in units of log2. Packed sequences (`cu_seqlens`) are told
apart by a table of tiles, made on the device: nothing waits for the lengths.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels import triton_gate
from gatelab.kernels.gate import keeps_output
from gatelab.kernels.requirements import interpreted
from gatelab.kernels.triton_gate import activate, log_slope, slope

LOG2_E = 1.4426950408889634
UPCAST = tl.constexpr(interpreted())  # the interpreter multiplies the bit patterns of bfloat16


@dataclass(frozen=True)
class Tiles:
    """How one kernel is launched: rows of the tile that a program owns, rows of each tile that it loops over."""

    own: int
    loop: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Triton's launch options. Multiply-add is fused whatever a release's default is: it moves last bits."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


_BOTH_FLOAT32 = {
    "forward": {
        16: Tiles(64, 32, 4, 2),
        32: Tiles(64, 32, 4, 2),
        64: Tiles(32, 32, 4, 2),
        128: Tiles(32, 16, 8, 2),
        256: Tiles(32, 16, 8, 2),
    },
    "query pass": {
        16: Tiles(64, 32, 4, 2),
        32: Tiles(64, 32, 4, 2),
        64: Tiles(32, 32, 4, 2),
        128: Tiles(32, 16, 8, 2),
        256: Tiles(16, 16, 8, 2),
    },
    "key pass": {
        16: Tiles(64, 32, 4, 2),
        32: Tiles(32, 32, 4, 2),
        64: Tiles(64, 16, 8, 2),
        128: Tiles(32, 16, 8, 2),
        256: Tiles(16, 16, 8, 2),
    },
}

# By architecture and bytes per element, then by kernel, then by padded head dimension. The largest tiles that need no
# local memory, with Triton 3.6 and with 3.9, whatever the gate: benchmarks/compile_report.py shows what each becomes.
# A fixed table, not an autotuner: a run's bits do not depend on timings, and nothing stalls at the first call.
TILES: dict[tuple[str, int], dict[str, dict[int, Tiles]]] = {
    ("hopper", 2): {  # up to 227 KiB of shared memory; 128 rows feed the wgmma of two warp groups
        "forward": {
            16: Tiles(128, 64, 4, 3),
            32: Tiles(128, 64, 4, 3),
            64: Tiles(128, 64, 4, 3),
            128: Tiles(128, 64, 8, 3),
            256: Tiles(64, 32, 8, 2),
        },
        "query pass": {
            16: Tiles(128, 64, 8, 3),
            32: Tiles(128, 64, 8, 3),
            64: Tiles(128, 64, 8, 3),
            128: Tiles(128, 64, 8, 2),
            256: Tiles(32, 32, 8, 2),
        },
        "key pass": {
            16: Tiles(128, 64, 8, 3),
            32: Tiles(128, 64, 8, 3),
            64: Tiles(128, 32, 8, 3),
            128: Tiles(128, 32, 8, 2),
            256: Tiles(32, 32, 8, 2),
        },
    },
    ("ampere", 2): {  # fits the 99 KiB of consumer GPUs, too
        "forward": {
            16: Tiles(128, 64, 4, 3),
            32: Tiles(128, 64, 4, 3),
            64: Tiles(128, 64, 8, 3),
            128: Tiles(128, 32, 8, 3),
            256: Tiles(64, 32, 8, 2),
        },
        "query pass": {
            16: Tiles(128, 64, 8, 3),
            32: Tiles(128, 64, 8, 3),
            64: Tiles(128, 64, 8, 3),
            128: Tiles(64, 64, 8, 2),
            256: Tiles(32, 32, 8, 2),
        },
        "key pass": {
            16: Tiles(128, 64, 8, 3),
            32: Tiles(128, 64, 8, 3),
            64: Tiles(128, 32, 8, 3),
            128: Tiles(64, 32, 8, 2),
            256: Tiles(32, 32, 8, 2),
        },
    },
    ("hopper", 4): _BOTH_FLOAT32,
    ("ampere", 4): _BOTH_FLOAT32,
}


def architecture(device: torch.device) -> str:
    """Whose tiles a device takes; those for the data-centre GPUs from Hopper on need its shared memory."""
    if device.type != "cuda":
        return "hopper"
    return "hopper" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "ampere"


def tiles_for(kernel: str, x: Tensor) -> Tiles:
    """Return how a kernel is launched on `x [B, T, H, D]`."""
    return TILES[architecture(x.device), x.element_size()][kernel][padded(x.shape[-1])]


def padded(width: int) -> int:
    """The power of two that a head dimension is padded to; tensor cores need 16."""
    power: int = triton.next_power_of_2(width)
    return max(16, power)


@triton.jit
def _dot(a, b, acc):
    """`acc + a @ b` in float32; float32 inputs are multiplied as such, not as TF32."""
    if UPCAST:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _own_tile(CU, TILE_TABLE, T, S, H):
    """This program's tile number, batch row, head, first row of its sequence, and that sequence's queries and keys.

    The tile number is negative where there is nothing to do.
    """
    z = tl.program_id(1)
    b, h = (z // H).to(tl.int64), (z % H).to(tl.int64)
    if CU is None:
        return tl.program_id(0), b, h, b * 0, T, S
    else:
        sequence = tl.load(TILE_TABLE + 2 * tl.program_id(0))
        start = tl.load(CU + sequence)
        length = tl.load(CU + sequence + 1) - start
        return tl.load(TILE_TABLE + 2 * tl.program_id(0) + 1), b, h, start.to(tl.int64), length, length


@triton.jit
def _load(pointer, offsets, mask, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointer + offsets, mask=mask, other=0.0)
    else:
        return tl.load(pointer + offsets)


@triton.jit
def _forward_keys(
    acc, l, m, q, k_at, v_at, skt, svt, lo, hi, rows, keys, shift, scale2,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys lo … hi-1; k_at, v_at point at lo. MASKED: some are out of sight, or not keys."""
    ns, ds = tl.arange(0, BN), tl.arange(0, DP)
    for j in range(lo, hi, BN):
        n = j + ns
        inside = (n < keys)[:, None] & (ds < D)[None, :]
        k = _load(k_at, ns[:, None] * skt + ds[None, :], inside, MASKED or D != DP)
        s = _dot(q, tl.trans(k), tl.zeros([q.shape[0], BN], tl.float32)) * scale2
        if MASKED:
            visible = (n < keys)[None, :]
            if CAUSAL:
                visible = visible & (rows[:, None] + shift >= n[None, :])
            s = tl.where(visible, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        v = _load(v_at, ns[:, None] * svt + ds[None, :], inside, MASKED or D != DP)
        acc = _dot(p.to(v.dtype), v, acc * alpha[:, None])
        m = m_new
        k_at += BN * skt
        v_at += BN * svt
    return acc, l, m


@triton.jit(do_not_specialize=["T", "S"])
def _forward(
    Q, K, V, G, Y, O, LSE, CU, TILE_TABLE,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh, sgd,
    scale2, T, S,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ACTIVATION: tl.constexpr, COMBINE: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    i, b, h, start, queries, keys = _own_tile(CU, TILE_TABLE, T, S, H)
    if i < 0:
        return
    if CU is None:
        i = tl.num_programs(0) - 1 - i  # the last rows see the most keys: they start first
    first = i * BM
    ms, ds = tl.arange(0, BM), tl.arange(0, DP)
    rows, shift = first + ms, keys - queries
    inside = (rows < queries)[:, None] & (ds < D)[None, :]
    row0 = start + first
    q = tl.load(Q + b * sqb + h * sqh + row0 * sqt + ms[:, None] * sqt + ds[None, :], mask=inside, other=0.0)
    k_at = K + b * skb + (h // GROUP) * skh
    v_at = V + b * svb + (h // GROUP) * svh
    acc = tl.zeros([BM, DP], tl.float32)
    l = tl.zeros([BM], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    # Keys that every row sees in whole tiles, then the rest.
    seen = tl.minimum(first + shift + 1, keys) if CAUSAL else keys
    whole = seen // BN * BN
    end = tl.minimum(first + BM + shift, keys) if CAUSAL else keys
    acc, l, m = _forward_keys(
        acc, l, m, q, k_at + start * skt, v_at + start * svt, skt, svt,
        0, whole, rows, keys, shift, scale2, D, DP, BN, CAUSAL, False,
    )  # fmt: skip
    acc, l, m = _forward_keys(
        acc, l, m, q, k_at + (start + whole) * skt, v_at + (start + whole) * svt, skt, svt,
        whole, end, rows, keys, shift, scale2, D, DP, BN, CAUSAL, True,
    )  # fmt: skip
    o = acc / l[:, None]
    tl.store(LSE + (b * H + h) * T + row0 + ms, m + tl.log2(l), mask=rows < queries)
    at, base = ms[:, None] * (H * D) + ds[None, :], ((b * T + row0) * H + h) * D
    if O is not None:
        tl.store(O + base + at, o.to(O.dtype.element_ty), mask=inside)
    if COMBINE != "none":
        g_at = G + b * sgb + h * sgh + row0 * sgt
        g = tl.load(g_at + ms[:, None] * sgt + ds[None, :] * sgd, mask=inside, other=0.0)
        a = activate(g.to(tl.float32), ACTIVATION)
        o = o + a if COMBINE == "add" else o * a
    tl.store(Y + base + at, o.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def _dq_keys(
    dq, q, do, lse, delta, k_at, v_at, skt, svt, lo, hi, rows, keys, shift, scale2,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    ns, ds = tl.arange(0, BN), tl.arange(0, DP)
    for j in range(lo, hi, BN):
        n = j + ns
        inside = (n < keys)[:, None] & (ds < D)[None, :]
        k = _load(k_at, ns[:, None] * skt + ds[None, :], inside, MASKED or D != DP)
        v = _load(v_at, ns[:, None] * svt + ds[None, :], inside, MASKED or D != DP)
        zeros = tl.zeros([q.shape[0], BN], tl.float32)
        p = tl.exp2(_dot(q, tl.trans(k), zeros) * scale2 - lse[:, None])
        if MASKED:
            visible = (n < keys)[None, :]
            if CAUSAL:
                visible = visible & (rows[:, None] + shift >= n[None, :])
            p = tl.where(visible, p, 0.0)
        dlogits = p * (_dot(do, tl.trans(v), zeros) - delta[:, None])
        dq = _dot(dlogits.to(k.dtype), k, dq)
        k_at += BN * skt
        v_at += BN * svt
    return dq


@triton.jit(do_not_specialize=["T", "S"])
def _query_pass(
    Q, K, V, G, DY, SAVED, LSE, DELTA, DQ, DO, DG, SCORES, CU, TILE_TABLE,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh, sgd,
    scale, scale2, T, S,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ACTIVATION: tl.constexpr, COMBINE: tl.constexpr, CAUSAL: tl.constexpr,
    HEADWISE: tl.constexpr, GATED_SAVED: tl.constexpr,
):  # fmt: skip
    """The gate's backward on this program's rows, then dQ.

    SAVED holds Y (GATED_SAVED) or O. COMBINE "done": another kernel has made DO and DELTA. Where a head-wise gate
    multiplies, SCORES takes the score of each row and dO = score·dY is never written.
    """
    i, b, h, start, queries, keys = _own_tile(CU, TILE_TABLE, T, S, H)
    if i < 0:
        return
    if CU is None:
        i = tl.num_programs(0) - 1 - i  # the last rows see the most keys: they start first
    first = i * BM
    ms, ds = tl.arange(0, BM), tl.arange(0, DP)
    rows, shift = first + ms, keys - queries
    valid = rows < queries
    inside = valid[:, None] & (ds < D)[None, :]
    row0 = start + first
    at, base = ms[:, None] * (H * D) + ds[None, :], ((b * T + row0) * H + h) * D
    row_at = (b * H + h) * T + row0 + ms
    if COMBINE == "done":
        do = tl.load(DO + base + at, mask=inside, other=0.0)
        delta = tl.load(DELTA + row_at, mask=valid, other=0.0)
    else:
        do = tl.load(DY + base + at, mask=inside, other=0.0)
        dy = do.to(tl.float32)
        saved = tl.load(SAVED + base + at, mask=inside, other=0.0).to(tl.float32)
        delta = tl.sum(dy * saved, 1)
        if COMBINE != "none":
            g_at = G + b * sgb + h * sgh + row0 * sgt
            if HEADWISE:
                g = tl.load(g_at + ms * sgt, mask=valid, other=0.0).to(tl.float32)
                a = activate(g, ACTIVATION)
                if COMBINE == "add":
                    dg = tl.sum(dy, 1) * slope(g, ACTIVATION)
                else:
                    dg = delta * (log_slope(g, ACTIVATION) if GATED_SAVED else slope(g, ACTIVATION))
                    delta = delta if GATED_SAVED else delta * a
                    do = (dy * a[:, None]).to(do.dtype)
                    tl.store(SCORES + row_at, a, mask=valid)
                tl.store(DG + (b * T + row0 + ms) * H + h, dg.to(DG.dtype.element_ty), mask=valid)
            else:
                g = tl.load(g_at + ms[:, None] * sgt + ds[None, :] * sgd, mask=inside, other=0.0).to(tl.float32)
                if COMBINE == "add":
                    dg = dy * slope(g, ACTIVATION)
                else:
                    dg = dy * saved * (log_slope(g, ACTIVATION) if GATED_SAVED else slope(g, ACTIVATION))
                    wide = dy * activate(g, ACTIVATION)
                    delta = delta if GATED_SAVED else tl.sum(wide * saved, 1)
                    do = wide.to(do.dtype)
                    tl.store(DO + base + at, do, mask=inside)
                tl.store(DG + base + at, dg.to(DG.dtype.element_ty), mask=inside)
        tl.store(DELTA + row_at, delta, mask=valid)
    q = tl.load(Q + b * sqb + h * sqh + row0 * sqt + ms[:, None] * sqt + ds[None, :], mask=inside, other=0.0)
    lse = tl.load(LSE + row_at, mask=valid, other=0.0)
    k_at = K + b * skb + (h // GROUP) * skh
    v_at = V + b * svb + (h // GROUP) * svh
    dq = tl.zeros([BM, DP], tl.float32)
    seen = tl.minimum(first + shift + 1, keys) if CAUSAL else keys
    whole = seen // BN * BN
    end = tl.minimum(first + BM + shift, keys) if CAUSAL else keys
    dq = _dq_keys(
        dq, q, do, lse, delta, k_at + start * skt, v_at + start * svt, skt, svt,
        0, whole, rows, keys, shift, scale2, D, DP, BN, CAUSAL, False,
    )  # fmt: skip
    dq = _dq_keys(
        dq, q, do, lse, delta, k_at + (start + whole) * skt, v_at + (start + whole) * svt, skt, svt,
        whole, end, rows, keys, shift, scale2, D, DP, BN, CAUSAL, True,
    )  # fmt: skip
    tl.store(DQ + base + at, (dq * scale).to(DQ.dtype.element_ty), mask=inside)


@triton.jit
def _dkdv_queries(
    dk, dv, k, v, q_at, do_at, lse_at, delta_at, score_at, sqt, sqh, T, lo, hi, n, queries, shift, scale2,
    GROUP: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    MASKED: tl.constexpr, SCORED: tl.constexpr,
):  # fmt: skip
    """dK and dV of keys n from queries lo … hi-1 of every query head of the group, in one loop.

    Rows beyond the last query load as zeros and add nothing.
    """
    ms, ds = tl.arange(0, BM), tl.arange(0, DP)
    count = (tl.maximum(hi - lo, 0) + BM - 1) // BM
    for step in range(0, GROUP * count):
        r = step // count if GROUP > 1 else 0
        i = lo + (step - r * count) * BM
        rows = i + ms
        valid = rows < queries
        inside = valid[:, None] & (ds < D)[None, :]
        far = tl.cast(i, tl.int64)
        q_i = q_at + far * sqt
        do_i = do_at + far * (H * D)
        lse_i, delta_i = lse_at + i, delta_at + i
        if GROUP > 1:
            head = tl.cast(r, tl.int64)
            q_i += head * sqh
            do_i += r * D
            lse_i += head * T
            delta_i += head * T
        q = tl.load(q_i + ms[:, None] * sqt + ds[None, :], mask=inside, other=0.0)
        lse = tl.load(lse_i + ms, mask=valid, other=0.0)
        delta = tl.load(delta_i + ms, mask=valid, other=0.0)
        do = tl.load(do_i + ms[:, None] * (H * D) + ds[None, :], mask=inside, other=0.0)
        zeros = tl.zeros([k.shape[0], BM], tl.float32)
        p = tl.exp2(_dot(k, tl.trans(q), zeros) * scale2 - lse[None, :])
        if MASKED:
            p = tl.where(rows[None, :] + shift >= n[:, None], p, 0.0)
        dp = _dot(v, tl.trans(do), zeros)
        if SCORED:
            score_i = score_at + i
            if GROUP > 1:
                score_i += head * T
            score = tl.load(score_i + ms, mask=valid, other=0.0)
            dv = _dot((p * score[None, :]).to(do.dtype), do, dv)
            dp = dp * score[None, :]
        else:
            dv = _dot(p.to(do.dtype), do, dv)
        dk = _dot((p * (dp - delta[None, :])).to(q.dtype), q, dk)
    return dk, dv


@triton.jit(do_not_specialize=["T", "S"])
def _key_pass(
    Q, K, V, DO, LSE, DELTA, DK, DV, SCORES, CU, TILE_TABLE,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh,
    scale, scale2, T, S,
    HK: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """dK and dV of this program's keys, over all query heads of the group. With SCORES, DO holds dY."""
    j, b, hk, start, queries, keys = _own_tile(CU, TILE_TABLE, T, S, HK)
    if j < 0:
        return
    H: tl.constexpr = HK * GROUP
    first = j * BN
    ns, ds = tl.arange(0, BN), tl.arange(0, DP)
    n, shift = first + ns, keys - queries
    inside = (n < keys)[:, None] & (ds < D)[None, :]
    row0 = start + first
    k = tl.load(K + b * skb + hk * skh + row0 * skt + ns[:, None] * skt + ds[None, :], mask=inside, other=0.0)
    v = tl.load(V + b * svb + hk * svh + row0 * svt + ns[:, None] * svt + ds[None, :], mask=inside, other=0.0)
    dk = tl.zeros([BN, DP], tl.float32)
    dv = tl.zeros([BN, DP], tl.float32)
    # The first tile of queries that sees any of these keys, and the first from which on each sees them all.
    lo = tl.maximum(first - shift, 0) // BM * BM if CAUSAL else 0
    full = (tl.maximum(first + BN - 1 - shift, 0) + BM - 1) // BM * BM if CAUSAL else 0
    full = tl.minimum(full, (queries + BM - 1) // BM * BM)
    h = hk * GROUP
    q_at = Q + b * sqb + h * sqh + start * sqt
    do_at = DO + ((b * T + start) * H + h) * D
    row_at = (b * H + h) * T + start
    score_at = SCORES + row_at if SCORES is not None else None
    if CAUSAL:
        dk, dv = _dkdv_queries(
            dk, dv, k, v, q_at, do_at, LSE + row_at, DELTA + row_at, score_at,
            sqt, sqh, T, lo, full, n, queries, shift, scale2, GROUP, H, D, DP, BM, True, SCORES is not None,
        )  # fmt: skip
    dk, dv = _dkdv_queries(
        dk, dv, k, v, q_at, do_at, LSE + row_at, DELTA + row_at, score_at,
        sqt, sqh, T, full, queries, n, queries, shift, scale2, GROUP, H, D, DP, BM, False, SCORES is not None,
    )  # fmt: skip
    at, base = ns[:, None] * (HK * D) + ds[None, :], ((b * S + row0) * HK + hk) * D
    tl.store(DK + base + at, (dk * scale).to(DK.dtype.element_ty), mask=inside)
    tl.store(DV + base + at, dv.to(DV.dtype.element_ty), mask=inside)


def _grid(rows: int, tile: int, heads: int, cu_seqlens: Tensor | None) -> tuple[tuple[int, int], Tensor | None]:
    """The launch grid, and for packed sequences the table `[tiles, 2]` of (sequence, its tile number or -1)."""
    if cu_seqlens is None:
        return (triton.cdiv(rows, tile), heads), None
    count = cu_seqlens.numel() - 1
    tiles = triton.cdiv(rows, tile) + count  # at most this many, whatever the lengths are
    per_sequence = (cu_seqlens.diff() + (tile - 1)) // tile
    ends = per_sequence.cumsum(0)
    numbers = torch.arange(tiles, device=cu_seqlens.device)
    sequence = torch.searchsorted(ends, numbers, right=True).clamp_(max=count - 1)
    local = numbers - (ends - per_sequence)[sequence]
    local = local.masked_fill(numbers >= ends[-1], -1)
    return (tiles, heads), torch.stack([sequence, local], 1).to(torch.int32)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def forward(
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
    """(Y, O, lse); O is empty where the backward does not need it, lse is `[B, Hq, T]` float32, in units of log2.

    `q [B, T, Hq, D]`, `k, v [B, S, Hkv, D]` with contiguous channels, `gate [B, T, Hq or 1, D or 1]` or None with
    combine "none".
    """
    batch, length, heads, width = q.shape
    tiles = tiles_for("forward", q)
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    keep = keeps_output(activation, combine, q.dtype)
    o = torch.empty(q.shape if keep else (0,), dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
    grid, table = _grid(length, tiles.own, batch * heads, cu_seqlens)
    gate_strides = (0, 0, 0, 0) if gate is None else gate.expand(q.shape).stride()
    with torch.cuda.device_of(q):
        _forward[grid](
            q, k, v, gate, y, o if keep else None, lse, cu_seqlens, table,
            *_strides(q, k, v), *gate_strides, scale * LOG2_E, length, k.shape[1],
            heads, heads // k.shape[2], width, padded(width), tiles.own, tiles.loop,
            activation, combine, causal, **tiles.options,
        )  # fmt: skip
    return y, o, lse


def backward(
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
    """(dQ, dK, dV, dG) for `dy [B, T, Hq, D]`, from what `forward` took and returned; dG is empty without a gate."""
    batch, length, heads, width = q.shape
    kv_heads, group, wide = k.shape[2], heads // k.shape[2], padded(width)
    dy = dy.contiguous()
    gated_saved = o.numel() == 0
    saved = y if gated_saved else o
    headwise = gate is not None and gate.shape[3] < width
    shared = gate is not None and gate.shape[2] < heads
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    dg = torch.empty(
        gate.shape if gate is not None else (0,), dtype=(q if gate is None else gate).dtype, device=q.device
    )
    do, scores, delta = dy, None, None
    if shared:
        assert gate is not None
        do, dg, delta = triton_gate.gate_backward(
            dy, saved, gate, activation, combine, gated_x=gated_saved, with_delta=True
        )
        combine = "done"
    elif combine == "multiply" and headwise:
        scores = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    elif combine == "multiply":
        do = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if delta is None:
        delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    gate_strides = (0, 0, 0, 0) if gate is None else gate.expand(q.shape).stride()
    with torch.cuda.device_of(q):
        tiles = tiles_for("query pass", q)
        grid, table = _grid(length, tiles.own, batch * heads, cu_seqlens)
        _query_pass[grid](
            q, k, v, gate, dy, saved, lse, delta, dq, do, dg, scores, cu_seqlens, table,
            *_strides(q, k, v), *gate_strides, scale, scale * LOG2_E, length, k.shape[1],
            heads, group, width, wide, tiles.own, tiles.loop, activation, combine, causal, headwise, gated_saved,
            **tiles.options,
        )  # fmt: skip
        tiles = tiles_for("key pass", q)
        grid, table = _grid(k.shape[1], tiles.own, batch * kv_heads, cu_seqlens)
        _key_pass[grid](
            q, k, v, do, lse, delta, dk, dv, scores, cu_seqlens, table,
            *_strides(q, k, v), scale, scale * LOG2_E, length, k.shape[1],
            kv_heads, group, width, wide, tiles.loop, tiles.own, causal,
            **tiles.options,
        )  # fmt: skip
    return dq, dk, dv, dg
