"""Gates in Triton: the activations, and one kernel forward and one backward for a gate on any tensor.

All arithmetic is float32 on raw pre-activations. The code stays within what Triton 3.6 to 3.9 share, and runs in
Triton's interpreter (TRITON_INTERPRET=1), which is how machines without a GPU test it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _log1p(x):
    """ln(1 + x) for x in [0, 1], without losing a small x (Kahan's correction)."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * x / tl.where(u == 1, 1.0, u - 1))


@triton.jit
def _tanh(x):
    series = x * (1 + x * x * (-1.0 / 3 + x * x * (2.0 / 15 - x * x * (17.0 / 315))))
    return tl.where(tl.abs(x) < 0.1, series, 2 * tl.sigmoid(2 * x) - 1)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """a(x), for float32 x."""
    if ACTIVATION == "sigmoid":
        return tl.sigmoid(x)
    elif ACTIVATION == "silu":
        return x / (1 + tl.exp(-x))  # one register less at the end of the forward than x * sigmoid(x)
    elif ACTIVATION == "tanh":
        return _tanh(x)
    elif ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    elif ACTIVATION == "softplus":
        return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))
    elif ACTIVATION == "ns_sigmoid":
        return 0.5 + 0.5 * tl.sigmoid(x)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return x


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    """a'(x), for float32 x."""
    if ACTIVATION == "sigmoid":
        return tl.sigmoid(x) * tl.sigmoid(-x)
    elif ACTIVATION == "silu":
        return tl.sigmoid(x) * (1 + x * tl.sigmoid(-x))
    elif ACTIVATION == "tanh":
        return 4 * tl.sigmoid(2 * x) * tl.sigmoid(-2 * x)
    elif ACTIVATION == "relu":
        return tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "softplus":
        return tl.sigmoid(x)
    elif ACTIVATION == "ns_sigmoid":
        return 0.5 * tl.sigmoid(x) * tl.sigmoid(-x)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return tl.zeros_like(x) + 1


@triton.jit
def log_slope(x, ACTIVATION: tl.constexpr):
    """(ln a)'(x), for float32 x and a positive activation."""
    if ACTIVATION == "sigmoid":
        return tl.sigmoid(-x)
    elif ACTIVATION == "softplus":
        far = 1 - 0.5 * tl.exp(tl.minimum(x, 0.0))
        return tl.where(x < -20, far, tl.sigmoid(x) / activate(tl.maximum(x, -20.0), "softplus"))
    else:
        tl.static_assert(ACTIVATION == "ns_sigmoid")
        s = tl.sigmoid(x)
        return s * tl.sigmoid(-x) / (1 + s)


@triton.jit
def _row_offsets(rows, T, batch_stride, time_stride):
    """Offsets of rows (b, t) of a [B, T, …] tensor, from their number b*T + t."""
    return (rows // T) * batch_stride + (rows % T) * time_stride


@triton.jit(do_not_specialize=["ROWS", "T"])
def _forward(
    X, G, Y,
    sxb, sxt, sxh, sxd, sgb, sgt, sgh, sgd,
    ROWS, T,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    ACTIVATION: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    h, columns = tl.program_id(1), tl.program_id(2) * BD + tl.arange(0, BD)
    mask = (rows < ROWS)[:, None] & (columns < D)[None, :]
    x_at = _row_offsets(rows, T, sxb, sxt)[:, None] + h * sxh + columns[None, :] * sxd
    g_at = _row_offsets(rows, T, sgb, sgt)[:, None] + h * sgh + columns[None, :] * sgd
    x = tl.load(X + x_at, mask=mask, other=0.0).to(tl.float32)
    a = activate(tl.load(G + g_at, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
    y = x + a if ADD else x * a
    tl.store(Y + (rows[:, None] * H + h) * D + columns[None, :], y.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["ROWS", "T"])
def _backward(
    DY, X, G, DX, DG, DELTA,
    syb, syt, syh, syd, sxb, sxt, sxh, sxd, sgb, sgt, sgh, sgd,
    ROWS, T,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    ACTIVATION: tl.constexpr, ADD: tl.constexpr, GATED_X: tl.constexpr,
    SHARED: tl.constexpr, HEADWISE: tl.constexpr,
):  # fmt: skip
    """One program owns the rows, heads and columns that share gate values, so that every sum stays inside it.

    GATED_X: X holds the gated output of a positive activation, not its input. DELTA, if any, takes rowsum(dX·X).
    """
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    valid = rows < ROWS
    y_rows, x_rows = _row_offsets(rows, T, syb, syt), _row_offsets(rows, T, sxb, sxt)
    g_rows = _row_offsets(rows, T, sgb, sgt)
    HEADS: tl.constexpr = H if SHARED else 1
    BLOCKS: tl.constexpr = (D + BD - 1) // BD if HEADWISE else 1
    dg_tile = tl.zeros([BM, BD], tl.float32)
    dg_row = tl.zeros([BM], tl.float32)
    for i in range(HEADS):
        h = i if SHARED else tl.program_id(1)
        for j in range(BLOCKS):
            block = j if HEADWISE else tl.program_id(2)
            columns = block * BD + tl.arange(0, BD)
            mask = valid[:, None] & (columns < D)[None, :]
            y_at = y_rows[:, None] + h * syh + columns[None, :] * syd
            x_at = x_rows[:, None] + h * sxh + columns[None, :] * sxd
            g_at = g_rows[:, None] + h * sgh + columns[None, :] * sgd
            dy = tl.load(DY + y_at, mask=mask, other=0.0).to(tl.float32)
            g = tl.load(G + g_at, mask=mask, other=0.0).to(tl.float32)
            if ADD:
                dg = dy * slope(g, ACTIVATION)
                if DELTA is not None:
                    x = tl.load(X + x_at, mask=mask, other=0.0).to(tl.float32)
                    delta = tl.sum(dy * x, 1)
            else:
                x = tl.load(X + x_at, mask=mask, other=0.0).to(tl.float32)
                a = activate(g, ACTIVATION)
                dg = dy * x * (log_slope(g, ACTIVATION) if GATED_X else slope(g, ACTIVATION))
                at = (rows[:, None] * H + h) * D + columns[None, :]
                tl.store(DX + at, (dy * a).to(DX.dtype.element_ty), mask=mask)
                if DELTA is not None:
                    delta = tl.sum(dy * x if GATED_X else dy * x * a, 1)
            if DELTA is not None:
                tl.store(DELTA + ((rows // T) * H + h) * T + rows % T, delta, mask=valid)
            if HEADWISE:
                dg_row += tl.sum(dg, 1)
            else:
                dg_tile += dg
    first = 0 if SHARED else tl.program_id(1)
    HG: tl.constexpr = 1 if SHARED else H
    if HEADWISE:
        tl.store(DG + rows * HG + first, dg_row.to(DG.dtype.element_ty), mask=valid)
    else:
        columns = tl.program_id(2) * BD + tl.arange(0, BD)
        at = (rows[:, None] * HG + first) * D + columns[None, :]
        tl.store(DG + at, dg_tile.to(DG.dtype.element_ty), mask=valid[:, None] & (columns < D)[None, :])


def tile_shape(width: int) -> tuple[int, int]:
    """(rows, columns) of the tile that one program holds, for tensors of `width` channels per head."""
    columns = min(triton.next_power_of_2(width), 512)
    return max(1, 4096 // columns), columns


def gate_forward(x: Tensor, gate: Tensor, activation: str, combine: str) -> Tensor:
    """`combine(x, activation(gate))` for `x [B, T, H, D]` and `gate [B, T, H or 1, D or 1]`, in one launch."""
    batch, length, heads, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, columns = tile_shape(width)
    grid = (triton.cdiv(batch * length, rows), heads, triton.cdiv(width, columns))
    with torch.cuda.device_of(x):
        _forward[grid](
            x, gate, y, *x.stride(), *gate.expand(x.shape).stride(), batch * length, length,
            heads, width, rows, columns, activation, combine == "add", num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def gate_backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    activation: str,
    combine: str,
    *,
    gated_x: bool = False,
    with_delta: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients for x and gate in one launch without atomics; with `with_delta`, also rowsum(dX·X) `[B, H, T]`.

    With `gated_x`, `x` is the gated output and the activation is positive. Adding has dX = dY: that is returned.
    """
    batch, length, heads, width = x.shape
    shared, headwise = gate.shape[2] < heads, gate.shape[3] < width
    add = combine == "add"
    dx = dy if add else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dg = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    delta = torch.empty(batch, heads, length, dtype=torch.float32, device=x.device) if with_delta else None
    rows, columns = tile_shape(width)
    assert not with_delta or columns >= width  # delta is a sum over whole rows
    grid = (
        triton.cdiv(batch * length, rows),
        1 if shared else heads,
        1 if headwise else triton.cdiv(width, columns),
    )
    with torch.cuda.device_of(x):
        _backward[grid](
            dy, x, gate, dx, dg, delta, *dy.stride(), *x.stride(), *gate.expand(x.shape).stride(),
            batch * length, length, heads, width, rows, columns, activation, add, gated_x, shared, headwise,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return dx, dg, delta
